"""Where artifacts stand on a run's page: pytest tests/tasks/ui/test_artifacts.py"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate

from tasks.ui import artifacts
from tasks.ui.artifacts import ORDER, rank_of_id, rank_of_key


class Server:
    """What the server does with ids."""

    def __init__(self) -> None:
        self.ids: dict[UUID, str] = {}

    def create_artifact(self, artifact: ArtifactCreate) -> Any:
        made = uuid4()
        self.ids[made] = artifact.key or ""
        return SimpleNamespace(id=made)

    def delete_artifact(self, identity: UUID) -> None:
        del self.ids[identity]


def test_ids_from_high_to_low_are_the_order() -> None:
    server, keys = Server(), [key for keys in ORDER for key in keys]
    for key in reversed(keys):
        artifacts._made(cast(SyncPrefectClient, server), ArtifactCreate(key=key))
    shown = [rank_of_key(key) for _, key in sorted(server.ids.items(), reverse=True)]
    assert shown == sorted(place for place in shown if place is not None)
    assert sorted(server.ids.values()) == sorted(keys), "none is left over"


def test_every_id_has_a_place_and_all_places_have_as_many() -> None:
    assert (rank_of_id(UUID(int=0)), rank_of_id(UUID(int=2**128 - 1))) == (len(ORDER) - 1, 0)
    found = Counter(rank_of_id(uuid4()) for _ in range(7000))
    assert set(found) == set(range(len(ORDER))) and min(found.values()) > 800


def test_a_key_without_a_place_is_made_once() -> None:
    server = Server()
    artifacts._made(cast(SyncPrefectClient, server), ArtifactCreate(key="skipped"))
    assert list(server.ids.values()) == ["skipped"] and rank_of_key("skipped") is None
