"""What a run tells the terminal of the command that runs it in this process.

In:   calls of the flow and its steps      Out: nothing, unless a command has put a listener of its own here
Prefect's pages and logs are told apart from this (tasks/ui/). Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from infra.records import Record


class RunListener:
    """Hears how a run gets on. This one does nothing."""

    def run_begins(self, run: str) -> None:
        """The flow run's id, once Prefect has given one."""

    def step_begins(self, name: str) -> None:
        """A step begins, or begins again."""

    def step_ends(self, name: str, result: Record | None, *, was_done: bool) -> None:
        """A step has its result; `was_done`: an earlier run had made it."""

    def gets_on(self, done: float, total: float, what: str) -> None:
        """The step that runs has done so much of its work; `what` says it in words."""

    def trains(self, event: Mapping[str, Any]) -> None:
        """An event of the trainer (tasks/distributed/events.py)."""

    def expects(self, forecast: Record) -> None:
        """What the rest of the run will take."""


_listeners = [RunListener()]


def listener() -> RunListener:
    """Who listens in this process."""
    return _listeners[-1]


@contextmanager
def listening(new: RunListener) -> Iterator[None]:
    """Let `new` hear everything meanwhile."""
    _listeners.append(new)
    try:
        yield
    finally:
        _listeners.remove(new)
