"""Telling how far long work has come, but only now and then.

In:   how much is done, as often as it is known     Out: a line every TELL_EVERY_S
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from infra.run_listener import listener

TELL_EVERY_S, SHOW_EVERY_S = 5.0, 0.5
"""In a log, and on a terminal."""
MEGABYTE = 1_000_000
Unit = Literal["MB", "rows"]
UNITS: dict[Unit, int] = {"MB": MEGABYTE, "rows": 1}


class Throttle:
    """Is due once in so many seconds, first when so many are over."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def is_due(self) -> bool:
        """Whether it is; then not again for as long."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


class ProgressLog:
    """Says now and then how much of a pass is done."""

    def __init__(self, say: Callable[[str], None], what: str, unit: Unit, total: int) -> None:
        """`total`: rows, or bytes with MB for a unit."""
        self._say, self._what, self._unit, self._total = say, what, unit, total
        self._soon, self._every = Throttle(min(SHOW_EVERY_S, TELL_EVERY_S)), Throttle(TELL_EVERY_S)

    def at(self, done: int) -> None:
        """It is so far. Of less than a megabyte there is nothing to tell."""
        size = UNITS[self._unit]
        if self._total < size or not self._soon.is_due():
            return
        so_far = f"{self._what}: {done / size:.0f} of {self._total / size:.0f} {self._unit}"
        listener().gets_on(done, self._total, so_far)
        if self._every.is_due():
            self._say(f"{so_far} ({done / self._total:.0%})")


def price_in_words(usd: float) -> str:
    """US dollars, as every page, terminal and artifact writes them."""
    return f"{usd:.2f} USD" if usd >= 0.005 or usd == 0 else "less than 0.01 USD"


def seconds_in_words(seconds: float) -> str:
    """0.8 s | 41 s | 3 min 20 s | 25 min | 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
