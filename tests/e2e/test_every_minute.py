"""What a run of flows/reconcile.py does of its minute, on the stack's server: pytest tests/e2e/test_every_minute.py"""

from __future__ import annotations

import contextvars
import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from infra.errors import UserError
from infra.settings import Settings
from infra.storage.store import Store
from tests.e2e.conftest import Stack

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow


def test_a_second_reconcile_leaves_it_to_the_first_and_may_wait_for_its_end(
    stack: Stack, client: SyncPrefectClient,
) -> None:
    from tasks.launcher.gpu_slots import take_slots

    took = list[tuple[bool, float]]()

    def follow() -> None:
        with ExitStack() as slot:
            took.append((take_slots(slot, "alone", 1, 1, patience_s=60), time.monotonic()))

    follower = threading.Thread(target=contextvars.copy_context().run, args=(follow,))  # on the same server
    with ExitStack() as first, ExitStack() as second:
        assert take_slots(first, "alone", 1, 1) and not take_slots(second, "alone", 1, 1)
        follower.start()
        time.sleep(2)
        ended = time.monotonic()
    follower.join()
    ((takes_over, when),) = took
    assert takes_over and when > ended
    client.delete_global_concurrency_limit_by_name("alone")


def test_it_looks_again_while_anything_runs_and_leaves_the_next_minute_to_the_next() -> None:
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Running

    from flows.reconcile import EVERY_S, LOOKS_S, while_it_lasts

    looks, clock = list[float](), [0.0]
    run = FlowRun(flow_id=uuid4(), state=Running())

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def passed(lasts: Callable[[], bool]) -> list[float]:
        looks.clear()
        clock[0] = 0.0
        while_it_lasts(lambda: looks.append(clock[0]), lambda: [run] if lasts() else [], 0.0, sleep, lambda: clock[0])
        return looks

    assert passed(lambda: False) == []
    assert passed(lambda: len(looks) < 2) == [EVERY_S, 2 * EVERY_S]
    assert max(passed(lambda: True)) == LOOKS_S < 60


def test_every_minute_it_keeps_house(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    from prefect import flow
    from prefect.client.schemas.objects import State
    from prefect.states import Completed, Failed

    from flows import reconcile
    from tests.tasks.runs.test_webhooks import SECRET, Receiver

    deployment = UUID(stack.prefect("/deployments/name/predict/batch")["id"])
    ends: dict[str, State[None]] = {"ended": Completed(), "failed": Failed(message="line 3: there is no completion")}
    runs = {name: client.create_flow_run_from_deployment(
        deployment, parameters={"model": "acme/nobody", "prompts": "/nowhere.jsonl"}, name=name, state=state)
        for name, state in ends.items()}
    receiver, asked = Receiver(200), list[str]()
    settings = stack.settings.model_copy(update={"webhook_url": receiver.url, "webhook_secret": SECRET})
    store = Store(Settings(home=tmp_path))  # of its own: nothing was told yet
    monkeypatch.setattr(reconcile, "TIDY_MINUTE", datetime.now(UTC).minute)
    monkeypatch.setattr(reconcile, "forget", lambda client, name, kept: asked.append(name))
    monkeypatch.setattr(reconcile, "forget_looks", lambda client, kept: asked.append("looks"))

    def tidied(*_: Any) -> int:
        asked.append("tidy")
        return 0

    monkeypatch.setattr(reconcile, "tidy", tidied)

    @flow(persist_result=False)
    def keeps(wanted: Settings) -> None:
        reconcile.keep_house(wanted, client, store)

    try:
        keeps(settings)
        assert asked[:2] == ["reconcile", "looks"] and asked[2:] in ([], ["tidy"])  # the minute may have passed
        told = {body["data"]["run"]: body for body in (json.loads(text) for _, text in receiver.got)}
        assert len(told) == len(receiver.got), "each run once"
        assert told[str(runs["ended"].id)]["type"] == "run.completed"
        failed = told[str(runs["failed"].id)]
        assert (failed["type"], failed["data"]["message"]) == ("run.failed", str(ends["failed"].message))
        with pytest.raises(UserError, match="ANNEAL_WEBHOOK_SECRET"):
            keeps(settings.model_copy(update={"webhook_secret": "none"}))
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
