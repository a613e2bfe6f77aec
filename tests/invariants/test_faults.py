"""Faults that the launcher above torchrun answers: memory that runs out, a rank that stands still.

Tests tasks/distributed/process_group.py too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import Transient
from infra.settings import Settings
from tasks.distributed.contract import TrainJob
from tasks.distributed.events import read_events
from tasks.launcher.jobs import TRAIN, run_child
from tasks.launcher.relaunch import Launches
from tasks.launcher.watchdog import StallWatchdog
from tests.conftest import ranks_in, torchruns_in, training_processes
from tests.invariants.conftest import trajectory
from tests.invariants.test_trajectory import check, recorded
from tests.tasks.distributed.conftest import MakeJob, events_of

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

STALL_S = 60
"""More than the ranks need to begin."""
STEP_S = 10


def inject(monkeypatch: pytest.MonkeyPatch, job: TrainJob, wish: str) -> Path:
    """Let one rank fail at a point, once; returns the file that then exists."""
    fired = Path(job.out) / "fired"
    monkeypatch.setenv("ANNEAL_CRASH_AT", wish)
    monkeypatch.setenv("ANNEAL_CRASH_FIRED", str(fired))
    return fired


@pytest.mark.parametrize(("ranks", "wish"), [(1, "train.mid_step:MEMORY:4"), (2, "train.mid_step:MEMORY:4:1")])
def test_memory_that_runs_out_halves_the_micro_batch_and_changes_no_number(
    make_job: MakeJob, settings: Settings, monkeypatch: pytest.MonkeyPatch, ranks: int, wish: str,
) -> None:
    job = make_job("run", num_ranks=ranks, checkpoint_steps=2)
    fired = inject(monkeypatch, job, wish)
    Launches(settings, StallWatchdog(settings), lambda: None).run_smaller_if_needed(job)
    assert fired.exists() and '"gradient_accumulation_steps\\": 2' in (Path(job.out) / "job.json").read_text()
    assert len(events_of(job, "start") + events_of(job, "resume")) == 2
    check(trajectory(job), recorded("lora"))


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_frozen_rank_is_found_and_the_same_again_goes_on(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallelism: str,
) -> None:
    settings = Settings(home=tmp_path / "home", stall_timeout_s=STALL_S, stop_grace_s=1)
    job = make_job("run", checkpoint_steps=2, parallelism=parallelism)
    fired = inject(monkeypatch, job, "train.after_backward:SIGSTOP:5:1")
    with pytest.raises(Transient, match=f"no progress for {STALL_S} s"):
        run_child(settings, job, TRAIN, ranks=2)
    assert fired.exists() and ranks_in(job.out) + torchruns_in(job.out) == []
    run_child(settings, job, TRAIN, ranks=2)
    assert training_processes(job.out) == []
    assert events_of(job, "resume")[0]["step"] >= 2
    check(trajectory(job), recorded("lora"))


def test_a_rank_that_freezes_between_steps_is_found_long_before_a_start_would_be(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(home=tmp_path / "home", stall_timeout_s=900, step_timeout_s=STEP_S, stop_grace_s=1)
    job = make_job("run", num_ranks=2, checkpoint_steps=50, num_train_epochs=6, run_validation=False)
    pace, offset = StallWatchdog(settings), 0
    fired = inject(monkeypatch, job, "train.after_backward:SIGSTOP:12:1")

    def look() -> None:
        nonlocal offset
        events, offset = read_events(Path(job.out), offset)
        for event in events:
            pace.see(event)

    with pytest.raises(Transient, match=f"no progress for {STEP_S} s"):
        Launches(settings, pace, look).run_smaller_if_needed(job)
    assert fired.exists() and training_processes(job.out) == []
