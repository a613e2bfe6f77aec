"""deployments/reconcile.py on the stack's server: pytest tests/e2e/test_reconciler.py"""

from __future__ import annotations

import contextvars
import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from infra.settings import Settings
from infra.storage.store import Store
from tests.conftest import wait_for
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


def test_events_wake_it(stack: Stack, client: SyncPrefectClient) -> None:
    from prefect.states import Cancelled

    from deployments.reconcile import listen

    woken = threading.Event()
    threading.Thread(target=listen, args=(stack.settings, woken), daemon=True).start()
    assert woken.wait(30), "it does not get through the door"
    time.sleep(2)  # events of the last minute come first
    woken.clear()
    deployment = UUID(stack.prefect("/deployments/name/predict/predict")["id"])
    run = client.create_flow_run_from_deployment(
        deployment, parameters={"model": "acme/nobody", "prompts": "/nowhere.jsonl"}, state=Cancelled())
    client.set_flow_run_state(run.id, Cancelled(), force=True)
    assert woken.wait(10), "it does not hear of a run's end"


def test_it_looks_often_while_anything_runs_and_leaves_it_to_another_one(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.states import Cancelled, Running

    from deployments import reconcile
    from tasks.launcher.gpu_slots import take_slots

    monkeypatch.setattr(reconcile, "NAME", "reconcile-test")
    monkeypatch.setattr(reconcile, "WATCHED", ())
    ours, looks = reconcile.Reconciler(stack.settings), list[object]()
    monkeypatch.setattr(ours, "_find", lambda *given: looks.append(given))
    deployment = UUID(stack.prefect("/deployments/name/predict/predict")["id"])
    wait_for(lambda: ours.look(False) == reconcile.IDLE_S, "runs of other tests do not end", 60)
    run = client.create_flow_run_from_deployment(
        deployment, parameters={"model": "acme/nobody", "prompts": "/nowhere.jsonl"})
    client.set_flow_run_state(run.id, Running(), force=True)
    try:
        assert ours.look(False) == reconcile.BUSY_S
        seen = len(looks)
        with ExitStack() as slot:
            assert take_slots(slot, "reconcile-test", 1, 1, 10)
            assert (ours.look(False), len(looks)) == (reconcile.BUSY_S, seen)
    finally:
        client.set_flow_run_state(run.id, Cancelled(), force=True)
        client.delete_global_concurrency_limit_by_name("reconcile-test")


def test_it_is_a_service_and_leaves_no_runs(stack: Stack) -> None:
    assert json.loads(stack.anneal("status", "--json").stdout)["services"]["reconcile"]["state"] == "running"
    assert stack.prefect("/flow_runs/filter", flows={"name": {"any_": ["reconcile"]}}) == []
    names = [one["name"] for one in stack.prefect("/deployments/filter", limit=200)]
    assert "every-minute" not in names


def test_it_keeps_house(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from prefect.client.schemas.objects import State
    from prefect.states import Completed, Failed

    from deployments import reconcile
    from tests.tasks.runs.test_webhooks import SECRET, Receiver

    deployment = UUID(stack.prefect("/deployments/name/predict/predict")["id"])
    ends: dict[str, State[None]] = {"ended": Completed(), "failed": Failed(message="line 3: there is no completion")}
    runs = {name: client.create_flow_run_from_deployment(
        deployment, parameters={"model": "acme/nobody", "prompts": "/nowhere.jsonl"}, name=name, state=state)
        for name, state in ends.items()}
    receiver, asked = Receiver(200), list[str]()
    settings = stack.settings.model_copy(update={"webhook_url": receiver.url, "webhook_secret": SECRET})
    store = Store(Settings(home=tmp_path))  # of its own: nothing was told yet
    monkeypatch.setattr(reconcile, "forget_looks", lambda client, kept: asked.append("looks"))

    def tidied(*_: Any) -> int:
        asked.append("tidy")
        return 0

    monkeypatch.setattr(reconcile, "tidy", tidied)

    def keeps(wanted: Settings) -> None:
        keeper = reconcile.Reconciler(wanted)
        for is_told in (False, False, True):  # at first, not again within the minute, and when something ended
            keeper._keep_house(client, store, is_told)

    try:
        keeps(settings)
        assert asked == ["looks", "tidy", "looks"]
        told = {body["data"]["run"]: body for body in (json.loads(text) for _, text in receiver.got)}
        assert len(told) == len(receiver.got), "each run once"
        assert told[str(runs["ended"].id)]["type"] == "run.completed"
        failed = told[str(runs["failed"].id)]
        assert (failed["type"], failed["data"]["message"]) == ("run.failed", str(ends["failed"].message))
        keeps(settings.model_copy(update={"webhook_secret": "none"}))
        assert "ANNEAL_WEBHOOK_SECRET" in caplog.text
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
