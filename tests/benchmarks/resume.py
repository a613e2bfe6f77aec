"""`make bench-resume`: how long a checkpoint holds training up, and how long from a kill to the next step.

Full fine-tuning of a Llama of 20 million weights (240 MB of weights and optimizer state) on SAMSum, 2 ranks
under torchrun, a checkpoint every CHECKPOINT_STEPS steps. The stall is the time that the loop stands still for a
checkpoint; the write goes on beside the next steps and is told apart. One rank is killed with SIGKILL; the clock
runs from there, through torchrun's end and a new launch, to the first step that had not been done.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from infra.process import spawn
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.distributed.contract import TrainJob
from tasks.distributed.events import read_events
from tasks.launcher.jobs import ALONE, LOG, TRAIN, rank_environment
from tasks.launcher.nodes import new_launch
from tests.benchmarks.data import llama_20m, needs_shared, packs_of, rows_of
from tests.benchmarks.report import finish, say
from tests.conftest import ranks_in

CHECKPOINT_STEPS = 10
STEPS = 60
KILLS, RANKS = 3, 2
GOAL_STALL = 0.01
GOAL_INTERVAL = 50
"""Steps between checkpoints for which the goal is judged: the default of `checkpoint_steps`."""
WAIT_S = 300


def main() -> None:
    """Measure, print, judge."""
    needs_shared()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = llama_20m(folder / "base")
        packs = packs_of(rows_of(folder / "rows", train="val", validation="val"), base, 1024, folder / "packs")
        job = job_of(folder / "run", base, packs)
        resumes = [kill_and_resume(job, nth) for nth in range(1, KILLS + 1)]
        launch(job).wait()
        written = [event for event in read_events(Path(job.out))[0] if event["event"] == "checkpoint"]
        step_s = median_step(Path(job.out))
        stall = median(event["stall_s"] for event in written)
    share = stall / (stall + GOAL_INTERVAL * step_s)
    figures = {
        "step_s": step_s, "stall_s": stall, "stall_share": share, "checkpoints": len(written),
        "written_beside_s": median(event["seconds"] for event in written), "kill_to_next_step_s": median(resumes),
        "kills": resumes}
    goal = f"a checkpoint every {GOAL_INTERVAL} steps costs at most {GOAL_STALL:.0%} (is {share:.2%})"
    finish(figures, {goal: share <= GOAL_STALL})


def job_of(out: Path, base: Path, packs: Path) -> TrainJob:
    """Two rows of 1,024 tokens a step."""
    out.mkdir()
    spec = TrainingSpec(
        train_data="samsum", base_model=str(base), destination="bench/model", peft_method="full", precision="fp32",
        train_batch_size=2, num_train_epochs=50, max_steps=STEPS, checkpoint_steps=CHECKPOINT_STEPS,
        run_validation=False)
    return TrainJob(out=str(out), spec=spec.to_json(), base=str(base), packs=str(packs), chunk_tokens=1024, key="bench")


def launch(job: TrainJob) -> subprocess.Popen[bytes]:
    """The trainer on its ranks, as the pipeline starts it."""
    return spawn([sys.executable, *new_launch(ALONE, RANKS, job.write()).torchrun(0, TRAIN)],
                 log=Path(job.out) / LOG, env=rank_environment(Settings(), RANKS))


def kill_and_resume(job: TrainJob, nth: int) -> float:
    """Seconds from the death of a rank, one step after the nth checkpoint, to the next step that is new."""
    out, process = Path(job.out), launch(job)
    wait_for(out, lambda event: event["event"] == "step" and event["step"] > CHECKPOINT_STEPS * nth)
    wait_for(out, lambda event: event["event"] == "checkpoint" and event["step"] == CHECKPOINT_STEPS * nth)
    reached = max(event["step"] for event in read_events(out)[0] if event["event"] == "step")
    killed = time.time()
    ranks_in(job.out)[-1].kill()
    process.wait()
    again = launch(job)
    told = wait_for(out, lambda event: event["event"] == "step" and event["step"] > reached and event["time"] > killed)
    for child in psutil.Process(again.pid).children(recursive=True):
        child.kill()
    again.wait()
    say(f"  kill {nth}: {told['time'] - killed:.1f} s to step {told['step']}")
    return float(told["time"] - killed)


def wait_for(out: Path, wanted: Callable[[Any], bool]) -> Any:
    """The first event of that kind."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for event in read_events(out)[0]:
            if wanted(event):
                return event
        time.sleep(0.02)
    raise TimeoutError(f"nothing came; the log is {out / LOG}")


def median_step(out: Path) -> float:
    """Seconds between the reports of two steps that follow each other."""
    told = [event for event in read_events(out)[0] if event["event"] == "step"]
    return float(median(b["time"] - a["time"] for a, b in pairwise(told) if b["step"] == a["step"] + 1))


if __name__ == "__main__":
    main()
