"""What steps took on this machine, and what they will take by that.

In:   steps that ended: what they were like, how much they had to do, seconds      Out: (low, likely, high) in seconds
On disk: <home>/measured.jsonl, one line a step, the newest last; a torn line is passed over.
Steps that are alike (same device, ranks, base and method) take a + b x work seconds, a and b >= 0. With a single amount
of work measured, a and b are not known apart: another amount then gets an interval from "all of it is a" to "all of it
is b". Where nothing alike was measured, the forecast says so and gives a wide interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from infra.files import write_atomic
from infra.records import Record
from infra.settings import Settings

FILE = "measured.jsonl"
KEPT, ASKED = 500, 20
"""Lines in the file, and the newest ones of a kind that are looked at."""
SPREAD = 0.15
"""At least so far from the likely time are the ends of an interval: a machine does other things too."""
SAME_WORK = 0.1


@dataclass(frozen=True, kw_only=True)
class Measured(Record):
    """One step that ended."""

    step: str
    like: str
    """What has to be the same for its time to say something: device, ranks, base, method."""
    work: float
    """How much it had to do, in a unit of the step's own."""
    seconds: float


class Span(NamedTuple):
    """Seconds."""

    low: float
    likely: float
    high: float


def note_measured(settings: Settings, steps: Iterable[Measured]) -> None:
    """Add what was measured. A disk that is full costs the next forecast some of its truth, not this run its end."""
    with suppress(OSError):
        lines = [json.dumps(one.to_json()) for one in (*read_measured(settings), *steps)]
        write_atomic(settings.home_path / FILE, "\n".join(lines[-KEPT:]) + "\n")


def read_measured(settings: Settings) -> list[Measured]:
    """All that is kept; lines that cannot be read are left out."""
    found = []
    with suppress(OSError):
        for line in (settings.home_path / FILE).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError, AttributeError):
                found.append(Measured.of(json.loads(line)))
    return found


def expected_span(known: Iterable[Measured], step: str, like: str, work: float) -> Span | None:
    """What a step of that kind with so much work will take; None where nothing alike was measured."""
    alike = [one for one in known if (one.step, one.like) == (step, like) and one.seconds > 0][-ASKED:]
    if not alike:
        return None
    seconds = np.array([one.seconds for one in alike])
    amounts = np.array([max(one.work, 1.0) for one in alike])
    near = np.abs(amounts / max(work, 1.0) - 1) <= SAME_WORK
    if near.any():
        return _around(float(np.median(seconds[near])), seconds[near])
    if amounts.max() / amounts.min() > 1 + SAME_WORK:
        constant, rate = line_through(amounts, seconds)
        fitted = constant + rate * amounts
        off = float(np.max(np.abs(seconds - fitted) / np.maximum(fitted, 1e-9)))
        likely = constant + rate * work
        return Span(likely * (1 - max(SPREAD, min(off, 0.9))), likely, likely * (1 + max(SPREAD, off)))
    usual, ratio = float(np.median(seconds)), work / float(np.median(amounts))
    low, high = sorted((usual, usual * ratio))
    return Span(low * (1 - SPREAD), math.sqrt(low * high), high * (1 + SPREAD))


def line_through(amounts: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """(a, b) of the line a + b x work with the least squares of relative errors, both >= 0."""
    weights = 1 / np.maximum(seconds, 1e-9)
    columns = np.stack([np.ones_like(amounts), amounts], axis=1) * weights[:, None]
    (constant, rate), *_ = np.linalg.lstsq(columns, seconds * weights, rcond=None)
    if rate <= 0:
        return float(np.median(seconds)), 0.0
    if constant < 0:
        return 0.0, float(np.median(seconds / amounts))
    return float(constant), float(rate)


def _around(likely: float, seconds: np.ndarray) -> Span:
    return Span(min(float(seconds.min()), likely * (1 - SPREAD)), likely,
                max(float(seconds.max()), likely * (1 + SPREAD)))
