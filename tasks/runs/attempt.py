"""One process's attempt at a flow run: it notes how far it comes, and stops when the run is not its own any more.

In:   the flow run that this process executes    Out: <store>/runs/<flow run id>.json, what each attempt reached;
      signs of life among Prefect's events
On disk meanwhile: <home>/runs/<flow run id>.lock, with host, pid, the attempt's number and its worker's pid in it
A run that was taken for dead and started elsewhere has a higher `run_count`: the older process stops its children
and goes without a word, because what it would report belongs to the newer one. A frozen one on this machine is woken
for that, and killed if it does not go: it would keep its training and its GPUs for ever. A cancelled run stops even
when no worker is left to tell it. Without a Prefect server that outlives the process, nothing is done here.
Dies half-way: the file says what was reached; flows/reconcile.py starts the run again unless three attempts in a
row reached the same.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import AwaitingRetry, Cancelled

from infra.engine import is_engine, runs_of
from infra.errors import AnnealError, Transient, UserError
from infra.settings import Settings
from infra.stack.processes import lives
from infra.storage.store import Store
from tasks.runs.fence import cancellation
from tasks.runs.locks import died_with, noted_by_the_dead, only_one
from tasks.runs.run_log import show_in_runs

Standing = Literal["ours", "taken", "cancelled"]

RUNS = "runs"
POLL_S = 2.0
ALIVE_S = 30.0
ALIVE = "anneal.run.alive"
"""A run gives this event as sign of life. Prefect's own heartbeats come as often as its settings in the run's process
say, by default every three minutes."""
CANCEL_POLLS = 2  # the worker's own SIGTERM comes within a few seconds; after that nobody else will send one
MISSING_POLLS = 15
TAKEOVER_S = 60.0
"""A process that lost its run finds out within seconds, and then its ranks save a checkpoint."""
PUT_OFF = timedelta(minutes=1)
SETTLE_S, SETTLE_HERE_S = 5.0, 3.0
"""A worker reports the same crash a second time, once it has looked for hooks: in a process of their own seconds later,
by itself, for what infra/engine.py started, 0.6 s later."""
EXIT_TAKEN = 0  # any other code lets the worker report a crash, of a run that others execute
log = logging.getLogger(__name__)
_held: list[ExitStack] = []
"""Locks that go with the process."""
_current: contextvars.ContextVar[Attempt | None] = contextvars.ContextVar("attempt", default=None)


class Attempt:
    """What this attempt, and those before it, reached."""

    def __init__(self, store: Store, run: UUID, number: int) -> None:
        self._store, self._name, self._number = store, name_of(run), str(number)
        try:
            self._reached = read_attempts(store, run)
        except AnnealError as error:
            log.warning("earlier attempts are not known: %s", error)
            self._reached = {}
        self._one_at_a_time = threading.Lock()
        self._noting: threading.Thread | None = None

    def reached(self, mark: str, *, wait: bool = True) -> None:
        """Note it. A store that is away costs the note, not the training."""
        self._reached[self._number] = mark
        if wait:
            self._note()
        elif self._noting is None or not self._noting.is_alive():
            self._noting = threading.Thread(target=self._note, name="note", daemon=True)
            self._noting.start()

    def _note(self) -> None:
        with self._one_at_a_time:
            try:
                self._store.write(self._name, json.dumps(self._reached))
            except AnnealError as error:
                log.warning("progress not noted: %s", error)


def reached(mark: str, *, wait: bool = True) -> None:
    """Note that this process's flow run came so far; nothing outside of one. Whoever watches ranks does not wait for a
    store that hangs."""
    if (attempt := _current.get()) is not None:
        attempt.reached(mark, wait=wait)


def read_attempts(store: Store, run: UUID) -> dict[str, str]:
    """What each attempt at a flow run reached last, by its number. Raises AnnealError when the store does not tell."""
    try:
        return dict(json.loads(store.read(name_of(run)) or "{}"))
    except ValueError:  # a damaged note is none
        return {}


def name_of(run: UUID) -> str:
    """Where the attempts at a run stand in the store."""
    return f"{RUNS}/{run}.json"


def lock_of(settings: Settings, run: UUID) -> Path:
    """The lock that the process of a flow run holds, with the attempt's number in it, and who started it."""
    return locks_of(settings) / f"{run}.lock"


def died_here(settings: Settings, run: FlowRun) -> bool:
    """Whether the process of a run's newest attempt was one of this machine, and is no more."""
    return died_with(lock_of(settings, run.id), str(run.run_count))


def reported_within_s(settings: Settings, run: FlowRun) -> float:
    """For how long after its end a worker may report once more how a run's process ended: 0 if none is there."""
    number, *worker = noted_by_the_dead(lock_of(settings, run.id)) or [""]
    if number != str(run.run_count) or not worker:
        return SETTLE_S
    try:
        return SETTLE_HERE_S if lives(psutil.Process(int(worker[0]))) else 0.0
    except psutil.NoSuchProcess:
        return 0.0


def locks_of(settings: Settings) -> Path:
    """Where they lie."""
    return runs_of(settings)


def cancelled() -> Any:
    """What a cancelled flow returns; Prefect makes an exception of it for callers, so it stands for any result."""
    return Cancelled(message="Cancelled; the last checkpoint is kept.")


@contextmanager
def attempt(settings: Settings, store: Store) -> Iterator[None]:
    """Around the body of a flow. Code after it is reached only when the run was cancelled: return `cancelled()` there.

    Raises UserError when somebody gave the run of a plain call another state.
    """
    show_in_runs()
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not PREFECT_API_URL.value():
        yield
        return
    run = context.flow_run
    with get_client(sync_client=True) as client:
        number = client.read_flow_run(run.id).run_count
    known = threading.Event()
    tokens = _current.set(Attempt(store, run.id, number)), cancellation.set(known)
    fence = Fence(run.id, number, CANCEL_POLLS if run.deployment_id else 1, known)
    fence.start()
    try:
        with ExitStack() as locks:
            try:
                locks.enter_context(only_one(
                    lock_of(settings, run.id), f"flow run {run.name}", takeover_s=TAKEOVER_S if number > 1 else 0,
                    note=f"{number} {os.getppid()}" if is_engine() else str(number)))
            except Transient as error:
                if run.deployment_id is not None:
                    fence.over.set()
                    put_off(run.id, error)
                    leave("Another process still has this flow run; this one ends.")
                raise
            if run.deployment_id is not None:  # this process was made for the run: whoever finds the lock free
                _held.append(locks.pop_all())  # knows that it is dead, also while it tells Prefect how it ended
            yield
    except BaseException as error:
        if fence.standing == "ours":
            raise
        if fence.standing == "taken" and run.deployment_id is None:
            raise UserError("somebody gave the run another state", where=f"flow run {run.name}",
                            fix="Start the same training again; it goes on where it was.") from error
        if fence.standing == "taken":  # this process was made for the run, and has nothing more to say
            leave("Another process has this flow run; this one ends.")
    finally:
        fence.over.set()
        _current.reset(tokens[0])
        cancellation.reset(tokens[1])


def put_off(run: UUID, error: Transient) -> None:
    """Have the run started again later: a machine that is cut off or frozen holds its lock until it is back."""
    later: State[None] = AwaitingRetry(scheduled_time=datetime.now(UTC) + PUT_OFF, message=str(error))
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, later, force=True)


def leave(last: str) -> NoReturn:
    """End this process without another word to Prefect."""
    print(last, flush=True)
    logging.shutdown()
    os._exit(EXIT_TAKEN)


class Fence(threading.Thread):
    """Gives signs of life, asks Prefect whether the run is still this process's, and ends the process by SIGTERM when
    it is not."""

    def __init__(self, run: UUID, number: int, cancel_polls: int, cancelled: threading.Event) -> None:
        """`cancel_polls`: how often in a row it must find the run cancelled; 1 where no worker will tell the process.
        `cancelled` is set when it does so first."""
        super().__init__(name="fence", daemon=True)
        self._run, self._number, self._cancel_polls = run, number, cancel_polls
        self._context = contextvars.copy_context()
        self.over = threading.Event()
        self.standing: Standing = "ours"
        self._cancelled = cancelled
        self._missing = 0
        """How often in a row there was no such run."""

    def run(self) -> None:
        """Poll until the flow's body is over. A server that is away says nothing about whose the run is."""
        self._context.run(self._watch)

    def _watch(self) -> None:
        cancelled, told = 0, -ALIVE_S
        # No retries: it asks again anyway, and must not be silent for as long as the server was.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            while not self.over.wait(POLL_S):
                if time.monotonic() - told >= ALIVE_S:
                    told = time.monotonic()
                    emit_event(ALIVE, resource={"prefect.resource.id": f"prefect.flow-run.{self._run}"})
                found = self._ask(client)
                cancelled = cancelled + 1 if found == "cancelled" else 0
                if cancelled:
                    self._cancelled.set()
                if self.over.is_set() or found == "ours" or 0 < cancelled < self._cancel_polls:
                    continue
                if not callable(signal.getsignal(signal.SIGTERM)):  # a flow outside of the main thread
                    log.warning("the flow run is %s, and this process cannot be told to stop", found)
                    return
                self.standing = found
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _ask(self, client: SyncPrefectClient) -> Standing:
        try:
            found = standing_of(client.read_flow_run(self._run), self._number)
            self._missing = 0
            return found
        except ObjectNotFound:  # deleted in the UI, if it is said again: a proxy says so while the server starts
            self._missing += 1
            return "taken" if self._missing > MISSING_POLLS else "ours"
        except (httpx.HTTPError, PrefectException):
            return "ours"


def standing_of(run: FlowRun, number: int) -> Standing:
    """Whose the run is, seen from its attempt of that number."""
    state = run.state.type if run.state else None
    if state in (StateType.CANCELLING, StateType.CANCELLED):
        return "cancelled"
    return "ours" if state == StateType.RUNNING and run.run_count == number else "taken"
