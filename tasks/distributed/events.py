"""What a training tells while it runs: one JSON line per step, and a progress line for people.

On disk:   <run>/events.jsonl, append only; a resumed training goes on in the same file
           stdout: `12%|#1        | 3/25`, the progress line that Replicate's clients parse
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tasks.distributed.contract import EVENTS


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

    def emit(self, event: str, **values: Any) -> None:
        """Append one line."""
        if self.muted:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        with (self.folder / EVENTS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def step(self, step: int, *, loss: float, grad_norm: float, lr: float, tokens: int, labels: int,
             capacity: int, flops: float) -> None:
        """One optimizer step. Loss in nats per labelled token; `capacity`: tokens of the rows if full.

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
            eta_s=round(elapsed / self._steps * (self.total - step), 1))
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


def read_events(folder: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines after byte `offset`, and where the next read starts."""
    try:
        with (folder / EVENTS).open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    found = []
    for line in whole.split(b"\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the torn line of a launch that was killed
    return [event for event in found if isinstance(event, dict)], offset + len(whole)
