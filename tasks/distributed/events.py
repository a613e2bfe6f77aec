"""What a training tells while it runs: one JSON line per step, and a progress line for people.

On disk:   <run>/events.jsonl, append only; a resumed training goes on in the same file
           stdout: `12%|#1        | 3/25`, the progress line that Replicate's clients parse
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from tqdm import tqdm

from tasks.distributed.contract import EVENTS

EventName = Literal[
    "start", "resume", "proven", "not_repeatable", "step", "pause", "validation", "stopped_early", "finished_early",
    "checkpoint", "checkpoint_passed_over", "non_finite", "preempted", "done", "tokenised", "answered", "evaluated"]
Pause = Literal["validation", "checkpoint", "weights"]


class StepEvent(TypedDict):
    """An optimizer step is done: loss in nats per labelled token, rates as averages since the launch over all ranks."""

    event: Literal["step"]
    time: float
    step: int
    total: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    labels: int
    fill: float
    tokens_per_s: float
    labels_per_s: float
    tflops_per_s: float
    memory_bytes: int
    """The most that the first rank has held so far."""
    eta_s: float
    mfu: NotRequired[float]
    usd: NotRequired[float]


class BeginEvent(TypedDict):
    """Training begins at step 0, or goes on at a checkpoint."""

    event: Literal["start", "resume"]
    time: float
    step: int
    total: int
    ranks: int
    parallelism: str


class PauseEvent(TypedDict):
    """The steps stop for something else."""

    event: Literal["pause"]
    time: float
    step: int
    what: Pause


class ValidationEvent(TypedDict):
    """The held-out loss is known, in nats per labelled token."""

    event: Literal["validation"]
    time: float
    step: int
    loss: float
    perplexity: float


class CheckpointEvent(TypedDict):
    """A checkpoint is complete. `stall_s`: how long training stood still for it."""

    event: Literal["checkpoint"]
    time: float
    step: int
    folder: str
    stall_s: float
    seconds: float


class StateEvent(TypedDict):
    """The held-out loss has not become lower for long enough, a person asked for the weights so far, a checkpoint was
    saved before the end, or the weights are written."""

    event: Literal["stopped_early", "finished_early", "preempted", "done"]
    time: float
    step: int
    best_step: NotRequired[int]


class NonFiniteEvent(TypedDict):
    """Loss or gradient is not finite; nothing was updated. Both are written as text: JSON has no NaN."""

    event: Literal["non_finite"]
    time: float
    step: int
    loss: str
    grad_norm: str


class ProvenEvent(TypedDict):
    """Our loss and its gradient agree with the model's own, with these relative errors. `why`: why segments go through
    the model one at a time, where they are not packed."""

    event: Literal["proven"]
    time: float
    packed: bool
    why: str
    loss_error: float
    gradient_error: float


class NoticeEvent(TypedDict):
    """An operation has no deterministic kernel, or a checkpoint does not verify and was put aside."""

    event: Literal["not_repeatable", "checkpoint_passed_over"]
    time: float
    reason: str
    folder: NotRequired[str]


class WorkEvent(TypedDict):
    """How far *pack* and *evaluate* are, each in its own folder."""

    event: Literal["tokenised", "answered"]
    time: float
    bytes: NotRequired[int]
    rows: NotRequired[int]


class EvaluatedEvent(TypedDict):
    """*evaluate* knows the held-out loss of a model."""

    event: Literal["evaluated"]
    time: float
    model: str
    loss: float


Event = (
    StepEvent | BeginEvent | PauseEvent | ValidationEvent | CheckpointEvent | StateEvent | NonFiniteEvent | ProvenEvent
    | NoticeEvent | WorkEvent | EvaluatedEvent)


@dataclass
class Events:
    """The event log of one launch. `muted` on all ranks but the first."""

    folder: Path
    total: int
    muted: bool = False
    peak_tflops: float = 0.0
    usd_per_hour: float = 0.0
    """These two: of all devices together."""
    seconds_before: float = 0.0
    """Of the launches up to the checkpoint that this one goes on from: they cost money too."""
    _start: float = field(default_factory=time.monotonic)
    _tokens: int = 0
    _labels: int = 0
    _steps: int = 0
    _flops: float = 0.0

    def emit(self, event: EventName, **values: Any) -> None:
        """Append one line."""
        if self.muted:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        with (self.folder / EVENTS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def step(self, step: int, *, loss: float, grad_norm: float, lr: float, tokens: int, labels: int,
             capacity: int, flops: float, memory_bytes: int) -> None:
        """One optimizer step. Loss in nats per labelled token; `capacity`: tokens of the rows if full; `memory_bytes`:
        the most that the first rank has held so far.

        Rates are averages since the launch, over all ranks; mfu is FLOP/s over the devices' peak.
        """
        self._steps += 1
        self._tokens += tokens
        self._labels += labels
        self._flops += flops
        elapsed = time.monotonic() - self._start
        rate = self._tokens / elapsed
        self.emit(
            "step", step=step, total=self.total, loss=loss, grad_norm=grad_norm, lr=lr, tokens=tokens,
            labels=labels, fill=round(tokens / capacity, 4), tokens_per_s=round(rate, 1),
            labels_per_s=round(self._labels / elapsed, 1),
            tflops_per_s=round(self._flops / elapsed / 1e12, 6), **self._known(elapsed),
            memory_bytes=memory_bytes, eta_s=round(elapsed / self._steps * (self.total - step), 1))
        if not self.muted:
            print(tqdm.format_meter(step, self.total, elapsed), flush=True)

    def _known(self, elapsed: float) -> dict[str, float]:
        """What needs the table of devices."""
        found = {}
        if self.peak_tflops:
            found["mfu"] = round(self._flops / elapsed / 1e12 / self.peak_tflops, 4)
        if self.usd_per_hour:
            found["usd"] = round((self.seconds_before + elapsed) / 3600 * self.usd_per_hour, 6)
        return found

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second since this launch began to train."""
        return self._tokens / max(1e-9, time.monotonic() - self._start)


def drop_torn_line(folder: Path) -> None:
    """Cut off the half line of a launch that was killed."""
    path = folder / EVENTS
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def read_events(folder: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The whole lines after byte `offset`, and where the next read starts."""
    try:
        with (folder / EVENTS).open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return whole_events(whole), offset + len(whole)


def whole_events(data: bytes) -> list[Event]:
    """The events in these lines."""
    found: list[Event] = []
    for line in data.split(b"\n"):
        with suppress(ValueError):  # the torn line of a launch that was killed
            if isinstance(event := json.loads(line), dict):
                found.append(cast(Event, event))
    return found
