"""One process's attempt at a flow run: it notes how far it comes, and stops when the run is not its own any more.

In:   the flow run that this process executes    Out: <store>/runs/<flow run id>.json, what each attempt reached;
      signs of life among Prefect's events
On disk meanwhile: <home>/runs/<flow run id>.lock, with host, pid and the attempt's number in it
A run that was taken for dead and started elsewhere has a higher `run_count`: the older process stops its children
and goes without a word, because what it would report belongs to the newer one. A frozen one on this machine is woken
for that, and killed if it does not go: it would keep its training and its GPUs for ever. A cancelled run stops even
when no worker is left to tell it. Without a Prefect server that outlives the process, nothing is done here.
Dies half-way: the file says what was reached; deployments/reconcile.py starts the run again unless three attempts in a
row reached the same.
"""

from __future__ import annotations

import contextvars
import inspect
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, PrefectException
from prefect.settings import PREFECT_API_URL
from prefect.states import AwaitingRetry, Cancelled

from infra.errors import AnnealError, Transient, UserError
from infra.run_listener import listener
from infra.settings import Settings
from infra.storage.store import Store
from tasks.runs.blocks import adopt_secrets
from tasks.runs.fence import Fence, cancellation
from tasks.runs.locks import exclusive_lock, lock_of
from tasks.runs.run_log import show_in_runs
from tasks.runs.step_times import timing

P = ParamSpec("P")
R = TypeVar("R")

RUNS = "runs"
CANCEL_POLLS = 2  # the worker's own SIGTERM comes within a few seconds; after that nobody else will send one
TAKEOVER_S = 60.0
"""A process that lost its run finds out within seconds, and then its ranks save a checkpoint."""
PUT_OFF = timedelta(minutes=1)
INTERRUPTED = "Interrupted by the user (Ctrl-C). The same training started again goes on at its last checkpoint."
EXIT_TAKEN = 0  # any other code lets the worker report a crash, of a run that others execute
log = logging.getLogger(__name__)
_held: list[ExitStack] = []
"""Locks that go with the process."""
_current: contextvars.ContextVar[Attempt | None] = contextvars.ContextVar("attempt", default=None)


class Attempt:
    """What this attempt, and those before it, reached."""

    def __init__(self, store: Store, run: UUID, number: int) -> None:
        self._store, self._name, self._number = store, attempts_name(run), str(number)
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
        return dict(json.loads(store.read(attempts_name(run)) or "{}"))
    except ValueError:  # a damaged note is none
        return {}


def attempts_name(run: UUID) -> str:
    """Where the attempts at a run stand in the store."""
    return f"{RUNS}/{run}.json"


def survives(body: Callable[P, R]) -> Callable[P, R]:
    """A flow's body as one attempt at its run. Of a cancelled run the result is Prefect's state Cancelled, which stands
    for any: callers get Prefect's exception.

    Raises UserError when somebody gave the run of a plain call another state.
    """

    @wraps(body)
    def attempted(*args: P.args, **kwargs: P.kwargs) -> R:
        settings = Settings()
        adopt_secrets(settings)
        with attempt(settings, Store(settings)), timing(), ctrl_c_cancels():
            return body(*args, **kwargs)
        return cast(R, Cancelled(message="Cancelled; the last checkpoint is kept."))

    # Prefect looks the names of the annotations up in this module, not in the body's.
    attempted.__signature__ = inspect.signature(body, eval_str=True)  # type: ignore[attr-defined]
    attempted.__annotations__ = inspect.get_annotations(body, eval_str=True)
    return attempted


@contextmanager
def attempt(settings: Settings, store: Store) -> Iterator[None]:
    """Around the body of a flow; what is raised in a run that was cancelled goes no further."""
    show_in_runs()
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not PREFECT_API_URL.value():
        yield
        return
    run = context.flow_run
    listener().run_begins(str(run.id))
    with get_client(sync_client=True) as client:
        number = client.read_flow_run(run.id).run_count
    known = threading.Event()
    tokens = _current.set(Attempt(store, run.id, number)), cancellation.set(known)
    fence = Fence(run.id, number, CANCEL_POLLS if run.deployment_id else 1, known)
    fence.start()
    try:
        with ExitStack() as locks:
            try:
                locks.enter_context(exclusive_lock(
                    lock_of(settings, run.id), f"flow run {run.name}", takeover_s=TAKEOVER_S if number > 1 else 0,
                    note=str(number)))
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


class InterruptedRun(Abort, KeyboardInterrupt):
    """Ctrl-C, which Prefect's engine takes for an order of its server: it then leaves the state alone, and does not
    report a crash. Whoever called the flow catches a KeyboardInterrupt as ever."""

    state: State[Any] | None = None


@contextmanager
def ctrl_c_cancels() -> Iterator[None]:
    """Show a run that a person started in this process, and interrupts, as cancelled; also where it has Prefect's
    temporary server. Where Prefect does not answer, it shows a crash."""
    try:
        yield
    except KeyboardInterrupt as error:
        context = FlowRunContext.get()
        run = context.flow_run if context is not None else None
        if run is None or run.deployment_id is not None or isinstance(error, InterruptedRun):
            raise
        interrupted = InterruptedRun(INTERRUPTED)
        with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Cancelled(message=INTERRUPTED), force=True)
            interrupted.state = client.read_flow_run(run.id).state
        raise interrupted from error


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
