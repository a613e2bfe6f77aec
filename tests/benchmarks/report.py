"""What all benchmarks share: interleaved measurement, and one JSON object as the last line.

These machines are noisy, so contenders take turns and medians are compared.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch


def interleaved(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contender's figures, one of each per round, so that a slow minute hits all of them."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1, rounds + 1):
        for name, measure in contenders.items():
            figures[name].append(measure())
            say(f"  round {number}/{rounds}  {name:<28} {figures[name][-1]:.4g}")
    return figures


def spreads(figures: dict[str, list[float]]) -> dict[str, float]:
    """Of each contender, the distance between its best and its worst round, over its median."""
    return {name: round((max(values) - min(values)) / median(values), 4) for name, values in figures.items()}


def cpu_name() -> str:
    """What the processor calls itself; empty where Linux does not tell."""
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        return found[1] if found else ""
    return ""


def medians(figures: dict[str, list[float]]) -> dict[str, float]:
    """The median of each contender."""
    return {name: median(values) for name, values in figures.items()}


def seconds(work: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def say(text: str) -> None:
    """A line for the reader; the JSON object stays the last one."""
    print(text, flush=True)


def finish(figures: dict[str, Any], goals: dict[str, bool], packages: tuple[str, ...] = ()) -> None:
    """Print the JSON object; exit 1 when a goal is missed. `ok` is true only if all are met."""
    for goal, met in goals.items():
        say(f"{'met   ' if met else 'MISSED'}  {goal}")
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else (
        f"CPU {cpu_name()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    say(json.dumps({
        **figures, "machine": machine, "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", *packages)},
        "date": datetime.now(UTC).date().isoformat(), "missed": [g for g, met in goals.items() if not met],
        "ok": all(goals.values())}))
    sys.exit(0 if all(goals.values()) else 1)
