"""What becomes of a training when something dies between its acceptance and its end, on the stack's real Prefect."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deployments.gateway import projector as module
from deployments.gateway.ids import id_of_run
from deployments.gateway.orchestrator import Orchestrator
from deployments.gateway.tables import Training
from infra.errors import Transient
from infra.settings import Settings
from tests.conftest import wait_for
from tests.e2e.conftest import BUSY_TRIES
from tests.support.gateway import Running, running

if TYPE_CHECKING:
    from tests.e2e.conftest import Stack

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("environment")]
INPUT = {"train_data": "https://data.invalid/rows.jsonl"}
"""A run of it fails at once, wherever it is started."""


@pytest.fixture
def settings(stack: Stack, tmp_path: Path) -> Settings:
    """The stack's, with a database of its own."""
    return stack.settings.model_copy(update={"gateway_database": f"sqlite:///{tmp_path / 'gateway.db'}"})


@pytest.fixture
def idle(settings: Settings) -> Iterator[Running]:
    """A gateway that accepts, and brings nothing to Prefect."""
    with running(settings, projecting=False) as found:
        found.model()
        yield found


def accepted(gateway: Running) -> str:
    made = gateway.http.post(gateway.base(), json={"destination": "acme/notes", "input": INPUT})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def row_of(gateway: Running, identity: str) -> Training:
    with gateway.here.database.session() as session:
        return session.get_one(Training, identity)  # type: ignore[no-any-return]


def submitted(prefect: Orchestrator, gateway: Running, identity: str) -> str:
    """The run of a training, started; Prefect answers 503 while its SQLite is busy."""
    spec = row_of(gateway, identity).spec
    for _ in range(BUSY_TRIES):
        with suppress(Transient):
            return prefect.submit(identity, spec)
        time.sleep(1)
    raise AssertionError("Prefect is busy")


def runs_of(stack: Stack, identity: str) -> list[dict[str, Any]]:
    """Prefect's runs with that key."""
    found = stack.prefect("/flow_runs/filter", flow_runs={"tags": {"all_": ["gateway"]}}, limit=200)
    return [run for run in found if run["idempotency_key"] == identity]


def test_killed_between_insert_and_submit_another_gateway_starts_one_run(
    idle: Running, settings: Settings, stack: Stack,
) -> None:
    identity = accepted(idle)
    with running(settings) as other:
        wait_for(lambda: row_of(other, identity).flow_run_id, timeout_s=60)
    assert [run["id"] for run in runs_of(stack, identity)] == [row_of(idle, identity).flow_run_id]


def test_killed_between_submit_and_the_note_of_it_the_run_is_found_again(
    idle: Running, settings: Settings, stack: Stack,
) -> None:
    identity = accepted(idle)
    started = submitted(Orchestrator(settings), idle, identity)  # and here it died
    with running(settings) as other:
        wait_for(lambda: row_of(other, identity).flow_run_id, timeout_s=60)
    assert row_of(idle, identity).flow_run_id == started and len(runs_of(stack, identity)) == 1


def test_a_failed_run_is_an_error_in_one_sentence(idle: Running, settings: Settings) -> None:
    """Row 22."""
    identity = accepted(idle)
    with running(settings) as other:
        wait_for(lambda: row_of(other, identity).status == "failed", timeout_s=150)
        found = other.http.get(f"/v1/trainings/{identity}").json()
    assert isinstance(found["error"], str) and "data.invalid" in found["error"] and found["output"] is None


def test_a_run_that_was_started_elsewhere_is_in_the_list(idle: Running, settings: Settings, stack: Stack) -> None:
    from uuid import UUID

    run = stack.start_run({**INPUT, "base_model": "none", "destination": "acme/elsewhere"})
    with running(settings) as other:
        identity = id_of_run(UUID(run))
        wait_for(lambda: other.http.get(f"/v1/trainings/{identity}").status_code == 200, timeout_s=60)
        found = other.http.get(f"/v1/trainings/{identity}").json()
        assert other.http.get("/v1/models/acme/elsewhere").status_code == 200
    assert (found["source"], found["destination"]) == ("web", "acme/elsewhere")


def test_a_cancel_reaches_prefect_and_a_run_that_vanished_fails_after_a_while(
    idle: Running, settings: Settings, stack: Stack, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "VANISHED_S", 2.0)
    canceled, vanished = accepted(idle), accepted(idle)
    prefect = Orchestrator(settings)
    runs = {one: submitted(prefect, idle, one) for one in (canceled, vanished)}
    with idle.here.database.session() as session:
        for one, run in runs.items():
            session.get_one(Training, one).flow_run_id = run
        session.get_one(Training, vanished).flow_run_id = "00000000-0000-4000-8000-000000000000"
    assert idle.http.post(f"/v1/trainings/{canceled}/cancel").json()["status"] == "canceled"
    with running(settings) as other:
        wait_for(lambda: row_of(other, canceled).cancel_delivered, timeout_s=60)
        wait_for(lambda: row_of(other, vanished).status == "failed", timeout_s=60)
    assert "vanished" in str(row_of(idle, vanished).error)
    state = stack.wait_until_over(runs[canceled])
    assert state["type"] in ("CANCELLED", "FAILED")  # it may have failed before the cancel came
    with suppress(Transient):
        prefect.cancel(runs[vanished])


def test_a_paused_training_frees_its_run_and_goes_on_with_another(
    idle: Running, settings: Settings, stack: Stack,
) -> None:
    identity = accepted(idle)
    first = submitted(Orchestrator(settings), idle, identity)
    with idle.here.database.session() as session:
        session.get_one(Training, identity).flow_run_id = first
    assert idle.http.post(f"/v1/trainings/{identity}/pause").status_code == 200
    with running(settings) as other:
        wait_for(lambda: row_of(other, identity).hold == "paused" or row_of(other, identity).status == "failed",
                 timeout_s=100)
        if row_of(other, identity).status == "failed":
            pytest.skip("the run failed before it could be paused")
        assert other.http.post(f"/v1/trainings/{identity}/resume").status_code == 200
        wait_for(lambda: row_of(other, identity).flow_run_id, timeout_s=60)
    assert row_of(idle, identity).flow_run_id != first
