"""`make bench-large`: whole trainings on one and on ten gigabytes of rows, with the memory of all processes over time.

`anneal train` itself, from a file of SAMSum's rows over and over (each with a number of its own) to a registered
version: a tiny model of random weights with Llama 2's tokenizer, a few steps. Memory is the sum of proportional set
sizes (PSS) of the command and everything it starts: Prefect's temporary server, the flow, the processes that look at
rows and tokenise them. What a step takes is its peak less what all of them had when the first step began.
OPTIONS="--gigabytes 1 10 --plot memory.svg --folder FOLDER"; 10 GB need 40 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.data import needs_shared, random_llama
from tests.benchmarks.preparing import FLAT, LENGTH, MEMORY_MIB, TINY, memory_mib, rows
from tests.benchmarks.preparing import STEPS as PREPARING
from tests.benchmarks.report import finish, say
from tests.conftest import ROOT

POLL_S = 1.0
SWING_MIB = 32
"""By so much what is there anyway, Prefect's server and the command, differs from moment to moment."""
STEPS = ("ingest", "validate", "base", "pack", "train", "evaluate", "register", "deploy")
BEGAN = re.compile(r"^(\S+) \| .*Beginning flow run", re.MULTILINE)
ENDED = re.compile(r"^(\S+) \| .*Task run '(\w+) .*Finished in state (?:Completed|Cached)", re.MULTILINE)
VERSION = re.compile(r"^bench/large version \d+$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """Memory at one moment."""

    at: float
    mib: float


@dataclass(frozen=True)
class Run:
    """One training, from its command to its end."""

    samples: list[Sample]
    has_version: bool
    home_gb: float
    began: float
    """When the first step began; seconds since the epoch."""
    before: float
    """Memory at that moment, in MiB."""
    steps: dict[str, dict[str, Any]]


def main() -> None:
    """Make the data, train, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 10], help="one training each")
    parser.add_argument("--plot", type=Path, help="where to draw memory over time (SVG)")
    parser.add_argument("--folder", type=Path, help="where the data, the store and the log are left; default: nowhere")
    options = parser.parse_args()
    if len(set(options.gigabytes)) < 2:
        parser.error("--gigabytes needs two or more, to compare their memory")
    needs_shared()
    runs = {size: trained(size, options.folder) for size in sorted(options.gigabytes)}
    if options.plot:
        draw(runs, options.plot)
    first, last = (runs[size].steps for size in (min(runs), max(runs)))
    largest = max((run.steps[name]["own_mib"] for run in runs.values() for name in PREPARING if name in run.steps),
                  default=float("inf"))
    goals = {
        "every training ends with a registered version": all(run.has_version for run in runs.values()),
        f"ingest, validate and pack take less than {MEMORY_MIB} MiB (is {largest:.0f})": largest < MEMORY_MIB,
        f"memory is flat: each takes at most {FLAT} x + {SWING_MIB} MiB from {min(runs):g} to {max(runs):g} GB": all(
            name in first and name in last and last[name]["own_mib"] <= FLAT * first[name]["own_mib"] + SWING_MIB
            for name in PREPARING)}
    finish({f"{size:g} GB": {
        "mib_before": run.before, "home_gb": run.home_gb, "steps": run.steps,
        "seconds": run.samples[-1].at - run.samples[0].at} for size, run in runs.items()}, goals, ("prefect", "mlflow"))


def trained(gigabytes: float, kept: Path | None) -> Run:
    """One training on so many rows; its files stay in `kept`."""
    with tempfile.TemporaryDirectory(prefix="anneal-large-") as temporary:
        folder = (kept or Path(temporary)) / f"{gigabytes:g}-gb"
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "rows.jsonl"
        with data.open("wb") as file:
            file.writelines(rows(gigabytes))
        say(f"{data.stat().st_size / 1e9:.1f} GB of rows")
        samples, code = train(folder, data, random_llama(folder / f"tiny-{os.getpid()}", TINY))
        log = (folder / "log.txt").read_text(errors="replace")
        home_gb = sum(file.stat().st_size for file in (folder / "home").rglob("*") if file.is_file()) / 1e9
    began, before, steps = by_step(log, samples)
    for name, step in steps.items():
        say(f"  {name:<10} {step['seconds']:8.1f} s  {step['peak_mib']:6.0f} MiB at most, "
            f"{step['own_mib']:.0f} its own")
    return Run(samples, code == 0 and VERSION.search(log) is not None, home_gb, began, before, steps)


def train(folder: Path, data: Path, base: Path) -> tuple[list[Sample], int]:
    """Run `anneal train` to its end, log.txt takes its output; memory once a second, and the exit code."""
    command = [
        sys.executable, "-m", "deployments.cli.main", "train", "--train-data", str(data), "--base-model", str(base),
        "--destination", "bench/large", "--pack-sequences", "--chunk-size", str(LENGTH), "--max-steps", "20",
        "--num-evaluation-samples", "8", "--max-new-tokens", "16", "--gate", "off", "--no-deploy"]
    samples = []
    with (folder / "log.txt").open("wb") as log:
        child = psutil.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={
            **os.environ, "ANNEAL_HOME": str(folder / "home")})
        try:
            while child.poll() is None:
                samples.append(Sample(time.time(), memory_mib(child)))
                time.sleep(POLL_S)
        finally:
            if child.poll() is None:
                child.kill()
    return samples, int(child.wait())


def by_step(log: str, samples: list[Sample]) -> tuple[float, float, dict[str, dict[str, Any]]]:
    """When the first step began and how much memory there was, then seconds and memory of each step."""
    began = BEGAN.search(log)
    if began is None:
        say(log[-3000:])
        return 0.0, 0.0, {}
    marks = [("", moment(began[1], samples)), *((name, moment(at, samples)) for at, name in ENDED.findall(log))]
    before = max((one.mib for one in samples if one.at <= marks[0][1]), default=0.0)
    found = {}
    for (_, start), (name, end) in pairwise(marks):
        peak = max((one.mib for one in samples if start <= one.at <= end), default=before)
        found[name] = {"seconds": end - start, "end_s": end - marks[0][1], "peak_mib": peak, "own_mib": peak - before}
    return marks[0][1], before, found


def moment(clock: str, samples: list[Sample]) -> float:
    """Seconds since the epoch of a log's time of day, of the day on which the run began or the next one."""
    day = datetime.fromtimestamp(samples[0].at).date()
    at = datetime.combine(day, datetime.strptime(clock, "%H:%M:%S.%f").time()).timestamp()
    return at if at >= samples[0].at - 1 else at + 24 * 3600


def draw(runs: dict[float, Run], path: Path) -> None:
    """Memory over time, a picture a training, with a line where a step ends."""
    from matplotlib import pyplot

    figure, pictures = pyplot.subplots(len(runs), figsize=(9, 4 * len(runs)), squeeze=False)
    for (size, run), axes in zip(runs.items(), pictures[:, 0], strict=True):
        end = max((step["end_s"] for step in run.steps.values()), default=0.0)
        axes.plot([(one.at - run.began) / 60 for one in run.samples], [one.mib for one in run.samples], linewidth=1)
        for name in STEPS:
            if name in run.steps and run.steps[name]["seconds"] > end / 50:
                axes.axvline(run.steps[name]["end_s"] / 60, color="grey", linewidth=0.5)
                axes.annotate(f"{name} ends", (run.steps[name]["end_s"] / 60, 0), rotation=90, fontsize=8, ha="right")
        axes.set(xlabel="minutes", ylabel="memory of all processes in MiB (PSS)", ylim=(0, None),
                 title=f"{size:g} GB of rows")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
