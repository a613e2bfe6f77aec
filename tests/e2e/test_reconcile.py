"""How dead runs are found and started again, on the stack's server: pytest tests/e2e/test_reconcile.py

Tests tasks/runs/cleanup.py, tasks/runs/recover.py too.
"""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from infra.settings import Settings
from infra.storage.store import Store
from tests.conftest import ROOT, wait_for
from tests.e2e.conftest import Stack

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

pytestmark = pytest.mark.slow

HOLD = """
import sys, time, pathlib
from tasks.runs.locks import exclusive_lock
with exclusive_lock(pathlib.Path(sys.argv[1]), "a run", note=sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_dead_run_is_found_and_scheduled_again(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.states import Running

    from tasks.runs import recover

    monkeypatch.setattr(recover, "SILENT_S", 0)
    monkeypatch.setattr(recover, "SETTLE_S", 1)
    deployment = UUID(stack.prefect("/deployments/name/predict/predict")["id"])
    parameters = {"model": "acme/nobody", "prompts": "/nowhere.jsonl"}
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters, name="dead")
    client.set_flow_run_state(run.id, Running(), force=True)  # no process ever has it

    time.sleep(0.5)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(1.5)

    done = recover.recover(stack.settings, client, Store(stack.settings), ("predict",), sleep=sleep)
    assert done.crashed == ["dead"]
    assert done.again == ["dead"]
    assert waits[0] == recover.SECOND_LOOK_S
    state = stack.wait_until_over(str(run.id))  # the worker takes it, and finds that there is no such file
    assert (state["type"], "no such file" in state["message"]) == ("FAILED", True), state


def test_a_run_whose_process_died_on_this_machine_needs_no_second_look(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    from prefect.states import Cancelled, Running

    from tasks.runs import recover
    from tasks.runs.locks import lock_of

    monkeypatch.setattr(recover, "SETTLE_S", 1000.0)
    unsettled_s = recover.unsettled_s

    def of_this_run(one: FlowRun) -> float:
        return unsettled_s(one) if one.id == run.id else 0.0  # others crashed here in the last 1000 s

    monkeypatch.setattr(recover, "unsettled_s", of_this_run)
    settings, waits = Settings(home=tmp_path), list[float]()  # a home of its own: the stack's reconcile sees no lock
    deployment = UUID(stack.prefect("/deployments/name/predict/predict")["id"])
    run = client.create_flow_run_from_deployment(
        deployment, parameters={"model": "acme/nobody", "prompts": "/nowhere.jsonl"}, name="died here")
    client.set_flow_run_state(run.id, Running(), force=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock_of(settings, run.id)), "1"], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            monkeypatch.setattr(recover, "SETTLE_S", 0.0)

    def look() -> recover.Recovered:
        return recover.recover(settings, client, Store(stack.settings), ("predict",), sleep=sleep)

    try:
        assert look().crashed == [] == waits
        process.kill()
        process.communicate()
        done = look()
        assert (done.crashed, done.again) == (["died here"], ["died here"])
        tells, rest = waits
        assert tells == recover.TELLS_S and 0 < rest < 1000, "only the rest of it"
    finally:
        client.set_flow_run_state(run.id, Cancelled(), force=True)


@pytest.mark.parametrize("ends", ["by itself", "as a command"])
def test_a_run_that_ends_while_it_is_looked_at_is_not_dead(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str,
) -> None:
    from prefect.states import Completed, Running

    from flows.predict import predict
    from tasks.runs import recover
    from tasks.runs.locks import exclusive_lock, lock_of

    settings, parameters = Settings(home=tmp_path), {"model": "acme/nobody", "prompts": "/nowhere.jsonl"}
    if ends == "as a command":  # its lock is free before it tells Prefect how it ended
        run = client.create_flow_run(predict, parameters=parameters)
    else:
        deployment = UUID(stack.prefect("/deployments/name/predict/predict")["id"])
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    client.set_flow_run_state(run.id, Running(), force=True)
    with exclusive_lock(lock_of(settings, run.id), "a run", note="1"):
        pass
    if ends == "by itself":
        found = recover.dead

        def dead(*arguments: Any) -> Any:
            runs = found(*arguments)
            assert [one.id for one in runs] == [run.id]
            client.set_flow_run_state(run.id, Completed(), force=True)
            return runs

        monkeypatch.setattr(recover, "dead", dead)
    try:
        assert recover.recover(settings, client, Store(stack.settings), ("predict",)).crashed == []
        assert client.read_flow_run(run.id).state_name == ("Completed" if ends == "by itself" else "Running")
    finally:
        client.set_flow_run_state(run.id, Completed(), force=True)


def test_a_retraining_that_lost_its_place_to_another_one_goes_on_after_it(
    stack: Stack, client: SyncPrefectClient,
) -> None:
    from prefect.client.schemas.objects import State
    from prefect.states import AwaitingRetry, Cancelled, Running

    from tasks.runs import recover
    from tasks.runs.queries import REFUSED

    deployment = UUID(stack.prefect("/deployments/name/retrain/retrain")["id"])
    training = {"train_data": "/nowhere.jsonl", "base_model": "/nowhere", "destination": "acme/nobody"}
    store = Store(stack.settings)

    def create(name: str) -> UUID:
        later: State[None] = AwaitingRetry(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
        return client.create_flow_run_from_deployment(
            deployment, parameters={"training": training}, name=name, state=later).id

    def look() -> list[str]:
        return recover.recover(stack.settings, client, store, ()).again

    begun, never, cancelled, other = (create(name) for name in ("begun", "never begun", "by a user", "other"))
    try:
        for run in (begun, cancelled):
            client.set_flow_run_state(run, Running(), force=True)
        client.set_flow_run_state(cancelled, Cancelled(), force=True)
        for run in (never, begun):
            client.set_flow_run_state(run, Cancelled(message=REFUSED), force=True)
        client.set_flow_run_state(other, Running(), force=True)
        assert look() == [], "the other one is still there"
        client.set_flow_run_state(other, Cancelled(), force=True)
        assert look() == ["begun"]
        assert client.read_flow_run(begun).state_name != "Cancelled"
    finally:
        for run in (begun, never, cancelled, other):
            client.set_flow_run_state(run, Cancelled(), force=True)


def test_a_silent_run_that_is_heard_of_again_is_left_alone(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.events import emit_event
    from prefect.states import Cancelled, Running

    from tasks.runs import recover
    from tasks.runs.fence import ALIVE

    monkeypatch.setattr(recover, "SILENT_S", 0)
    deployment = UUID(stack.prefect("/deployments/name/predict/predict")["id"])
    parameters = {"model": "acme/nobody", "prompts": "/nowhere.jsonl"}
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters, name="silent")
    client.set_flow_run_state(run.id, Running(), force=True)
    resource = f"prefect.flow-run.{run.id}"

    def sleep(_: float) -> None:
        emit_event(ALIVE, resource={"prefect.resource.id": resource})
        wait_for(lambda: stack.prefect("/events/filter", filter={
            "event": {"name": [ALIVE]}, "resource": {"id": [resource]}})["events"], "the sign did not arrive", 30)

    time.sleep(0.5)
    try:
        assert recover.recover(stack.settings, client, Store(stack.settings), ("predict",), sleep=sleep).crashed == []
        assert client.read_flow_run(run.id).state_name == "Running"
    finally:
        client.set_flow_run_state(run.id, Cancelled(), force=True)


def test_notes_and_locks_of_runs_are_removed_when_they_ended_long_ago(
    stack: Stack, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    from datetime import timedelta
    from uuid import uuid4

    from prefect.states import Cancelled

    from tasks.runs import cleanup
    from tasks.runs.attempt import attempts_name

    store = Store(stack.settings)
    deployment = UUID(stack.prefect("/deployments/name/predict/predict")["id"])
    ended, stranger = client.create_flow_run_from_deployment(
        deployment, parameters={"model": "acme/nobody", "prompts": "/nowhere.jsonl"}, state=Cancelled()).id, uuid4()
    client.set_flow_run_state(ended, Cancelled(), force=True)
    for run in (ended, stranger):
        store.write(attempts_name(run), "{}")
        (tmp_path / f"{run}.lock").touch()
    store.write(f"notifications/{ended}-1.done", "delivered")
    (tmp_path / "no run.lock").touch()
    assert cleanup.tidy(client, store, tmp_path) == 0
    monkeypatch.setattr(cleanup, "KEPT", timedelta(0))
    assert cleanup.tidy(client, store, tmp_path) >= 2
    assert {path.stem for path in tmp_path.iterdir()} == {str(stranger), "no run"}
    assert [store.read(attempts_name(run)) for run in (ended, stranger)] == [None, "{}"]
    assert store.read(f"notifications/{ended}-1.done") is None
