"""How long those may take to end who are told to stop.

A cancelled run and a preempted one are both told by SIGTERM. A preempted training has ANNEAL_STOP_GRACE_S to save a
checkpoint; a cancelled one keeps its last checkpoint, and its GPUs are wanted. tasks/runs/attempt.py asks Prefect which
it is.
"""

from __future__ import annotations

import contextvars
import threading

from infra.settings import Settings

CANCEL_GRACE_S = 5.0
cancellation: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancellation", default=None)
"""Set for this context's flow run once Prefect calls it cancelled; None outside of one."""


def is_cancelled() -> bool:
    """Whether this context's flow run is known to be cancelled."""
    event = cancellation.get()
    return event is not None and event.is_set()


def stop_grace_s(settings: Settings) -> float:
    """How long children may take to end after SIGTERM."""
    return min(settings.stop_grace_s, CANCEL_GRACE_S) if is_cancelled() else settings.stop_grace_s
