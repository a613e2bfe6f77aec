"""Whose a flow run is: signs of life, and the end of a process whose run is not its own any more.

A cancelled run and a preempted one are both told by SIGTERM. A preempted training has ANNEAL_STOP_GRACE_S to save a
checkpoint; a cancelled one keeps its last checkpoint, and its GPUs are wanted.
"""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import threading
import time
from typing import Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra.settings import Settings

Standing = Literal["ours", "taken", "cancelled"]

CANCEL_GRACE_S = 5.0
POLL_S = 2.0
ALIVE_S = 30.0
ALIVE = "anneal.run.alive"
"""A run gives this event as sign of life. Prefect's own heartbeats come as often as its settings in the run's process
say, by default every three minutes."""
MISSING_POLLS = 15
log = logging.getLogger(__name__)
cancellation: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancellation", default=None)
"""Set for this context's flow run once Prefect calls it cancelled; None outside of one."""


def is_cancelled() -> bool:
    """Whether this context's flow run is known to be cancelled."""
    event = cancellation.get()
    return event is not None and event.is_set()


def stop_grace_s(settings: Settings) -> float:
    """How long children may take to end after SIGTERM."""
    return min(settings.stop_grace_s, CANCEL_GRACE_S) if is_cancelled() else settings.stop_grace_s


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
