"""What a training's log says, made from the trainer's events: in the home while it runs, then in the store.

In:   trainings/<content id>/events.jsonl      Out: lines; those about progress are what Replicate's clients parse
Such a line begins with the percentage: `12%|#1        | 3/25`. A log has at most LINES of them, and says so.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, cast

from tqdm import tqdm

from deployments.gateway.context import Gateway
from deployments.gateway.tables import Training
from infra.errors import AnnealError
from tasks.distributed.contract import EVENTS
from tasks.distributed.events import Event, read_events, whole_events

LINES = 400
KEPT = 256
POINTS = 500
"""Of a curve."""
LEFT_OUT = ("pause",)
ENDS = ("stopped_early", "finished_early", "done")


@dataclass(frozen=True)
class Told:
    """One event of a training: its number among all of them, what the log says of it, and the event itself."""

    number: int
    line: str
    event: dict[str, Any]


class Known:
    """What is known of one training's events, and up to which byte they are read."""

    def __init__(self) -> None:
        self.offset, self.step, self.total, self.count = 0, 0, 0, 0
        self.is_trained = False  # its steps are over
        self.is_whole = False  # read from the store, where only finished ones are
        self.newest: dict[str, Any] = {}
        """The last event about a step."""
        self.told: deque[Told] = deque(maxlen=LINES)
        self.losses: list[tuple[int, float]] = []
        """(step, loss) of at most twice POINTS steps, evenly spread."""
        self.validations: dict[int, float] = {}
        """Held-out loss by step."""
        self.checkpoints: list[tuple[int, float]] = []
        """(step, seconds since 1970)."""
        self._begun, self._every = 0.0, 1

    def add(self, events: list[Event]) -> None:
        """Take more of them."""
        for event in cast(list[dict[str, Any]], events):
            name = event["event"]
            if name in ("start", "resume"):
                self._begun, self.total, self.is_trained = event["time"], event["total"], False
            elif name == "step":
                self._add_step(event)
            elif name == "validation":
                self.validations[event["step"]] = event["loss"]
            elif name in ENDS:
                self.is_trained = True
            elif name == "checkpoint":
                self.checkpoints.append((event["step"], event["time"]))
            if name not in LEFT_OUT:
                self.told.append(Told(self.count, _line(event, self._begun), event))
                self.count += 1

    def _add_step(self, event: dict[str, Any]) -> None:
        self.step, self.total, self.newest = event["step"], event["total"], event
        self.is_trained = self.step >= self.total
        if event["step"] % self._every == 0:
            self.losses.append((event["step"], event["loss"]))
        if len(self.losses) > 2 * POINTS:
            self.losses, self._every = self.losses[1::2], 2 * self._every

    @property
    def text(self) -> str:
        """The log."""
        cut = self.count - len(self.told)
        head = [f"{cut} earlier lines are left out."] if cut else []
        return "".join(f"{line}\n" for line in [*head, *(one.line for one in self.told)])


class Logs:
    """The logs of the trainings that were asked for last. Only what is new of a file is read."""

    def __init__(self, here: Gateway) -> None:
        self._here = here
        self._told: OrderedDict[str, Known] = OrderedDict()
        self._lock = Lock()

    def of(self, row: Training) -> str:
        """The log of a training."""
        return self.with_step(row)[0]

    def with_step(self, row: Training) -> tuple[str, int]:
        """The log, and the optimizer step that it has come to."""
        head = f"{row.waits_for}\n" if row.waits_for and not row.completed_at else ""
        try:
            known = self.known(row)
        except AnnealError as error:
            return f"{head}The log is not to be had now: {error}\n", 0
        with self._lock:
            return head + known.text, known.step

    def known(self, row: Training) -> Known:
        """All that its events tell. Raises Transient where the store does not answer."""
        if not row.content_id:
            return Known()
        local = self._here.settings.home_path / "trainings" / row.content_id
        try:
            size = (local / EVENTS).stat().st_size
        except OSError:
            size = -1
        text = None
        if size < 0 and not self._is_whole(row.content_id):
            text = self._here.store.read(f"trainings/{row.content_id}/{EVENTS}")
        with self._lock:
            return self._read(row.content_id, local, size, text)

    def _is_whole(self, content_id: str) -> bool:
        with self._lock:
            told = self._told.get(content_id)
            return told is not None and told.is_whole

    def _read(self, content_id: str, local: Path, size: int, text: str | None) -> Known:
        """Up to its newest event: in the home's file of `size` bytes, or in the store's text."""
        told = self._told.pop(content_id, Known())
        if size >= 0:
            if size < told.offset:  # a resumed training dropped a torn line, or began anew
                told = Known()
            found, told.offset = read_events(local, told.offset)
            told.add(found)
        elif text is not None:
            told = Known()
            told.add(whole_events(text.encode()))
            told.is_whole = True
        self._told[content_id] = told
        while len(self._told) > KEPT:
            self._told.popitem(last=False)
        return told


def _line(event: dict[str, Any], begun: float) -> str:
    if event["event"] == "step":
        meter = str(tqdm.format_meter(event["step"], event["total"], max(0.0, event["time"] - begun), ncols=60))
        return (f"{meter.lstrip()} loss {event['loss']:.4f}, {event['tokens_per_s']:.0f} tokens/s, "
                f"{event['eta_s']:.0f} s left")
    details = " ".join(f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
                       for key, value in event.items() if key not in ("event", "time"))
    return f"{event['event']} {details}".rstrip()
