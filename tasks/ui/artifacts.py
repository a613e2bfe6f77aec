"""Put artifacts on a run's page, in the order in which people want to read them; one for each key.

In:   a key, what it holds       Out: the artifact's id
Prefect's run page sorts artifacts by their ids, from high to low, and the server makes ids by chance (UUID4). So each
key of ORDER has a part of all ids, and an artifact whose id lies elsewhere is deleted and made again: seven tries on
average, 15 ms each. A run that is started again writes into the artifacts that it has.
"""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

Kind = Literal["markdown", "table", "image", "progress"]
ORDER: tuple[tuple[str, ...], ...] = (
    ("verdict",), ("evaluation",), ("training-curves", "training-progress"), ("samples",), ("data", "data-lengths"),
    ("forecast",), ("links",))
"""Keys that stand together have the same place. Any other key stands anywhere."""
TRIES = 60
"""A tenth of a thousandth of all artifacts then stands in a wrong place."""


def put(key: str, kind: Kind, data: Any, about: str) -> UUID:
    """Show it on the run's page, in place of what the run showed under that key. Raises what Prefect's client does."""
    run = runtime.flow_run.id
    with get_client(sync_client=True) as client:
        if run and (known := _shown(client, UUID(run), key)):
            client.update_artifact(known, ArtifactUpdate(data=data, description=about))
            return known
        return _made(client, ArtifactCreate(
            key=key, type=kind, data=data, description=about, flow_run_id=UUID(run) if run else None,
            task_run_id=UUID(runtime.task_run.id) if runtime.task_run.id else None))


def rank_of_key(key: str) -> int | None:
    """Which of ORDER's places a key has; None for no place."""
    return next((place for place, keys in enumerate(ORDER) if key in keys), None)


def rank_of_id(identity: UUID) -> int:
    """The place of ORDER that an id belongs to; the highest ids are the first."""
    return len(ORDER) - 1 - (identity.int * len(ORDER) >> 128)


def _shown(client: SyncPrefectClient, run: UUID, key: str) -> UUID | None:
    found: list[Any] = client.read_artifacts(limit=1, artifact_filter=ArtifactFilter(
        key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run])))
    return found[0].id if found else None


def _made(client: SyncPrefectClient, artifact: ArtifactCreate) -> UUID:
    wanted = rank_of_key(artifact.key or "")
    for _ in range(TRIES):
        made = client.create_artifact(artifact).id
        if wanted in (None, rank_of_id(made)):
            return made
        client.delete_artifact(made)
    return client.create_artifact(artifact).id
