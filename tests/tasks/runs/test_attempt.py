"""tasks/runs/attempt.py: whose a flow run is, and whether it comes any further.

Tests tasks/runs/fence.py, tasks/runs/locks.py too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound

from infra.errors import Transient
from infra.settings import Settings
from infra.storage.store import Store
from tasks.runs import fence as fences
from tasks.runs.attempt import Attempt, attempts_name, reached, read_attempts
from tasks.runs.fence import Fence, Standing, cancellation, is_cancelled, standing_of, stop_grace_s
from tasks.runs.locks import died_with, exclusive_lock
from tasks.runs.recover import crashed_at, crashes_of, is_stuck, pause_after

RUN = UUID("11111111-2222-4333-8444-555555555555")


@pytest.mark.parametrize(("places", "stuck"), [
    ([""], False), (["", ""], False), (["", "", ""], True), (["pack done"] * 3, True),
    (["train step 2", "train step 4", "train step 4"], False),
    (["train step 2", "train step 4", "train step 4", "train step 4"], True),
    (["train step 4", "train step 2", "train step 4"], False)])
def test_three_crashes_at_the_same_place_are_enough(places: list[str], stuck: bool) -> None:
    assert is_stuck(places) is stuck


def test_a_run_that_dies_before_it_runs_is_counted_too(store: Store) -> None:
    run = FlowRun(id=RUN, name="r", flow_id=uuid4(), run_count=0)
    assert [is_stuck(crashed_at(store, run)) for _ in range(3)] == [False, False, True]


def test_a_crash_is_counted_once_and_a_damaged_note_stops_nobody(store: Store) -> None:
    run = FlowRun(id=RUN, name="r", flow_id=uuid4(), run_count=0, state=State(type=StateType.CRASHED))
    for note in ("", "{", "[1, 2]", "7"):
        store.write(crashes_of(run), note)
        assert [crashed_at(store, run) for _ in range(3)] == [[""]] * 3
    again = run.model_copy(update={"state": State(type=StateType.CRASHED)})
    assert crashed_at(store, again) == ["", ""]


@pytest.mark.parametrize(("places", "waits"), [
    (["pack done"], False), (["pack done", "train step 2"], False), (["train step 2"] * 2, True)])
def test_a_run_that_came_no_further_waits_a_minute(places: list[str], waits: bool) -> None:
    assert bool(pause_after(places)) is waits


def test_where_a_run_crashed_is_what_its_last_attempt_reached(store: Store) -> None:
    run = FlowRun(id=RUN, name="r", flow_id=uuid4(), run_count=1)
    Attempt(store, RUN, 9).reached("pack done")
    crashed_at(store, run)
    Attempt(store, RUN, 10).reached("train step 50")
    assert crashed_at(store, run) == ["pack done", "train step 50"]


@pytest.mark.parametrize(("state", "count", "standing"), [
    (StateType.RUNNING, 1, "ours"), (StateType.RUNNING, 2, "taken"), (StateType.SCHEDULED, 1, "taken"),
    (StateType.PENDING, 1, "taken"), (StateType.CRASHED, 1, "taken"), (StateType.COMPLETED, 1, "taken"),
    (StateType.CANCELLING, 1, "cancelled"), (StateType.CANCELLED, 1, "cancelled")])
def test_whose_a_run_is(state: StateType, count: int, standing: Standing) -> None:
    run = FlowRun(id=uuid4(), name="r", flow_id=uuid4(), state=State(type=state), run_count=count)
    assert standing_of(run, 1) == standing


@pytest.mark.parametrize(("polls", "asked"), [(1, 2), (2, 5)])
def test_a_cancel_is_known_at_first_sight_and_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, polls: int, asked: int,
) -> None:
    """The process is told once the run was found cancelled so often in a row; a server that is away says nothing."""
    settings = Settings(home=tmp_path, stop_grace_s=25)
    states = iter([StateType.RUNNING, StateType.CANCELLING, None, StateType.CANCELLING, StateType.CANCELLED])
    known, told = [], []

    class Server:
        def read_flow_run(self, run: UUID) -> FlowRun:
            known.append(stop_grace_s(settings))
            if (state := next(states)) is None:
                raise httpx.ConnectError("away")
            return FlowRun(id=run, name="r", flow_id=uuid4(), state=State(type=state), run_count=1)

    monkeypatch.setattr(fences, "POLL_S", 0.001)
    monkeypatch.setattr(fences, "get_client", lambda sync_client: nullcontext(Server()))
    monkeypatch.setattr(fences, "emit_event", lambda *_, **__: None)
    monkeypatch.setattr("tasks.runs.fence.signal.getsignal", lambda _: print)
    monkeypatch.setattr("tasks.runs.fence.os.kill", lambda pid, number: told.append((pid, number)))
    cancelled = Event()
    token = cancellation.set(cancelled)
    try:
        fence = Fence(RUN, 1, polls, cancelled)
        fence.run()
        assert told == [(os.getpid(), signal.SIGTERM)] and fence.standing == "cancelled"
        assert known == [25, 25, 5, 5, 5][:asked]
        assert stop_grace_s(settings) == 5 and is_cancelled()
        assert stop_grace_s(settings.model_copy(update={"stop_grace_s": 2.0})) == 2
    finally:
        cancellation.reset(token)
    assert stop_grace_s(settings) == 25 and not is_cancelled()


def test_an_attempt_adds_to_what_was_reached_before(store: Store) -> None:
    Attempt(store, RUN, 1).reached("pack done")
    second = Attempt(store, RUN, 2)
    second.reached("train step 0")
    second.reached("train step 50")
    assert read_attempts(store, RUN) == {"1": "pack done", "2": "train step 50"}


def test_a_store_that_hangs_does_not_hold_up_who_watches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, write = Event(), store.write
    written = []

    def hang(name: str, text: str) -> None:
        assert answers.wait(60)
        write(name, text)
        written.append(json.loads(text)["1"])

    monkeypatch.setattr(store, "write", hang)
    attempt = Attempt(store, RUN, 1)
    for step in (1, 2, 3):
        attempt.reached(f"train step {step}", wait=False)
    assert written == []
    answers.set()
    attempt.reached("train done")  # waits for the one before it
    assert written[-1] == "train done" and read_attempts(store, RUN) == {"1": "train done"}


@pytest.mark.parametrize(("answers", "told"), [(15, "ours"), (16, "taken")])
def test_a_run_is_deleted_when_that_is_said_again(answers: int, told: Standing) -> None:
    """A proxy answers 404 while the server behind it starts."""
    class Server:
        def read_flow_run(self, run: UUID) -> FlowRun:
            raise ObjectNotFound(RuntimeError("404"))

    fence = Fence(RUN, 1, 1, Event())
    assert [fence._ask(Server()) for _ in range(answers)][-1] == told  # type: ignore[arg-type]


def test_a_store_that_is_away_costs_the_note_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise Transient("away")

    monkeypatch.setattr(Store, "write", fail)
    monkeypatch.setattr(Store, "read", fail)
    Attempt(store, RUN, 1).reached("pack done")
    with pytest.raises(Transient):  # a run whose progress is not known must not count as stuck
        read_attempts(store, RUN)


def test_a_damaged_note_counts_as_none(store: Store) -> None:
    store.write(attempts_name(RUN), '{"1": "pa')
    assert read_attempts(store, RUN) == {}


@pytest.mark.parametrize(("host", "note", "asked", "dead"), [
    ("here", "2", "2", True), ("here", "1", "2", False), ("elsewhere", "2", "2", False), ("here", "", "2", False),
    ("here", "2 4711", "2", True), ("here", "1 2", "2", False)])
def test_a_free_lock_means_dead_on_this_machine_and_for_that_attempt(
    tmp_path: Path, host: str, note: str, asked: str, dead: bool,
) -> None:
    lock = tmp_path / "lock"
    with exclusive_lock(lock, "a run", note=note):
        assert not died_with(lock, asked)
    if host == "elsewhere":
        lock.write_text(lock.read_text().replace(socket.gethostname(), "another"))
    assert died_with(lock, asked) is dead
    assert not died_with(tmp_path / "none", asked)


def test_outside_of_a_flow_run_nothing_is_noted(settings: Settings) -> None:
    reached("pack done")
    assert not (settings.home_path / "store" / "runs").exists()
