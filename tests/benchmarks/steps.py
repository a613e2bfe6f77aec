"""The steps of a training, read from its own file while it runs: which were done anew, and what time was of use."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

EVENTS = "trainings/*/events.jsonl"


class Step(NamedTuple):
    """One that was done, perhaps not for the first time."""

    time: float
    number: int
    launch: int


class Log:
    """The steps of the next training to begin, from its own file and, once that is gone, from the copy in the store."""

    def __init__(self, home: Path) -> None:
        self.steps: list[Step] = []
        self.launches: list[float] = []
        self.stalls: list[tuple[float, float]] = []
        """When a checkpoint was written, and for how long training stood still for it."""
        self._home, self._offset, self._before = home, 0, set(home.glob(f"store/{EVENTS}"))

    def read(self) -> None:
        """Take in what is new: whole lines."""
        for path in sorted({*self._home.glob(EVENTS), *self._home.glob(f"store/{EVENTS}")} - self._before):
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
                whole = data[: data.rfind(b"\n") + 1]
                self._offset += len(whole)
                for line in whole.splitlines():
                    event = json.loads(line)
                    if event["event"] == "step":
                        self.steps.append(Step(event["time"], event["step"], len(self.launches)))
                    elif event["event"] in ("start", "resume"):
                        self.launches.append(event["time"])
                    elif event["event"] == "checkpoint":
                        self.stalls.append((event["time"], event["stall_s"]))

    @property
    def last(self) -> int:
        """The highest step done."""
        return max((step.number for step in self.steps), default=0)

    def step_s(self, before: float) -> float:
        """Median time between consecutive steps of one launch."""
        return median(b.time - a.time for a, b in pairwise(self.steps) if a.launch == b.launch and b.time < before)

    def useful_s(self, end: float) -> float:
        """Time until then that was spent on steps done for the first time, without standstills for checkpoints."""
        useful, last = -sum(stall for when, stall in self.stalls if when <= end), 0
        for before, step in pairwise(self.steps):
            last = max(last, before.number)
            if step.launch == before.launch and step.number > last and step.time <= end:
                useful += step.time - before.time
        return useful
