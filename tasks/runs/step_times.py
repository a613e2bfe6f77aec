"""How long the steps of the run in this process took, without waiting for GPUs.

In:   steps that ended (tasks/runs/retries.py), waits (tasks/launcher/gpu_slots.py)      Out: seconds by step
Only what this process did counts: a step that an earlier run had done is not there. Nothing is left on disk.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterator
from contextlib import contextmanager

_taken: contextvars.ContextVar[dict[str, float] | None] = contextvars.ContextVar("step times", default=None)
WAITED = ""
"""The key of what the running step has waited so far."""


class Clock:
    """The clock of one step."""

    counts = True

    def forget(self) -> None:
        """The step was done before: its time says nothing."""
        self.counts = False


@contextmanager
def timing() -> Iterator[None]:
    """Keep the times of one run, and forget them after it."""
    token = _taken.set({})
    try:
        yield
    finally:
        _taken.reset(token)


@contextmanager
def timed(step: str) -> Iterator[Clock]:
    """Note how long a step takes, if it ends well and its clock is not told to forget it."""
    found, clock, began = _taken.get(), Clock(), time.monotonic()
    if found is not None:
        found[WAITED] = 0.0
    yield clock
    if found is not None and clock.counts:
        found[step] = time.monotonic() - began - found.pop(WAITED, 0.0)


@contextmanager
def waiting() -> Iterator[None]:
    """What passes meanwhile is no work of the step's."""
    found, began = _taken.get(), time.monotonic()
    try:
        yield
    finally:
        if found is not None:
            found[WAITED] = found.get(WAITED, 0.0) + time.monotonic() - began


def step_times() -> dict[str, float]:
    """Seconds by step, so far."""
    return {step: seconds for step, seconds in (_taken.get() or {}).items() if step != WAITED}
