"""How long a training may be silent before it counts as frozen.

In:   the trainer's events      Out: a number of seconds, which infra/process.py holds the ranks to
A first start loads weights and compiles: it takes as long as ANNEAL_STALL_TIMEOUT_S lets it, and so do the first
pauses, in which ranks validate or write. Between two steps the steps before them say what is usual, after a pause
those of its kind, for a start again the starts before it: ten times that is too long (torchtitan and torchft use fixed
times, which are too long for small models or too short for large ones), but never less than ANNEAL_STEP_TIMEOUT_S.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from statistics import median

from infra.settings import Settings
from tasks.distributed.events import Event

ENOUGH_STEPS, ENOUGH_PAUSES, ENOUGH_STARTS = 5, 2, 1
USUAL_STEPS = 20
TIMES_USUAL = 10
ENDS_WAIT = ("step", "pause")
"""Events that say that a start, or a pause, is over."""
BESIDE = ("checkpoint",)
"""Events that come from beside the steps, and say nothing of what comes next."""


class StallWatchdog:
    """Of one training; told of every launch and every event."""

    def __init__(self, settings: Settings) -> None:
        self._longest_s, self._shortest_s = settings.stall_timeout_s, settings.step_timeout_s
        self._usual: deque[float] = deque(maxlen=USUAL_STEPS)
        self._last: float | None = None
        self._newest: float | None = None
        self._starts: deque[float] = deque(maxlen=USUAL_STEPS)
        self._launched: float | None = None
        self._pause, self._paused = "", 0.0
        self._pauses: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=USUAL_STEPS))

    def launch(self) -> None:
        """The ranks are started."""
        self._last = self._newest = None
        self._pause, self._launched = "", time.time()

    def see(self, event: Event) -> None:
        """Take one event."""
        if event["event"] in BESIDE:
            return
        if event["event"] in ENDS_WAIT:
            if self._launched is not None:
                self._starts.append(event["time"] - self._launched)
                self._launched = None
            if self._pause:
                self._pauses[self._pause].append(event["time"] - self._paused)
                self._pause = ""
        if event["event"] != "step":
            # The trainer tells of a step while it does the next one, but of the last before a pause at once.
            self._last = self._newest = None
            if event["event"] == "pause":
                self._pause, self._paused = event["what"], event["time"]
            return
        if self._newest is not None:
            self._usual.append(self._newest)
        if self._last is not None:
            self._newest = event["time"] - self._last
        self._last = event["time"]

    def limit_s(self) -> float:
        """Seconds until the next event at the latest."""
        usual, enough = self._usual, ENOUGH_STEPS
        if self._launched is not None:
            usual, enough = self._starts, ENOUGH_STARTS
        elif self._pause:
            usual, enough = self._pauses[self._pause], ENOUGH_PAUSES
        if len(usual) < enough or (usual is self._usual and self._last is None):
            return self._longest_s
        return min(self._longest_s, max(self._shortest_s, TIMES_USUAL * median(usual)))
