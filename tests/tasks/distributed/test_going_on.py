"""Started again: what a training needs is still there, whatever ended it and whatever is damaged.

Tests tasks/distributed/checkpoint.py too.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from infra.files import sha256_of
from tasks.distributed.contract import TrainJob, checkpoint_folders, checkpoint_name, step_of
from tests.support import ranks
from tests.tasks.distributed.conftest import MakeJob, events_of

pytestmark = pytest.mark.slow

BEST = {"peft_method": "full", "num_train_epochs": 8, "learning_rate": 5e-3, "validation_steps": 2,
        "checkpoint_steps": 3, "keep_weights": "best"}


def weights_of(job: TrainJob) -> str:
    """Their sha256."""
    return sha256_of(Path(job.out) / "model" / "model.safetensors")


@pytest.fixture
def smooth(make_job: MakeJob) -> TrainJob:
    """A training that nothing disturbs, whose best step is not its last."""
    job = make_job("smooth", **BEST)
    assert ranks.run(job, 1) == [0]
    losses = {event["step"]: event["loss"] for event in events_of(job, "validation")}
    assert min(losses, key=lambda step: losses[step]) < max(losses)
    return job


def test_a_kill_at_the_end_leaves_the_best_weights(smooth: TrainJob, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("killed", **BEST)
    assert ranks.run(job, 1, ANNEAL_CRASH_AT="train.final.before_commit:SIGKILL:1",
                     ANNEAL_CRASH_FIRED=tmp_path / "fired") == [-signal.SIGKILL]
    for _ in range(2):  # and once more, as after a result that could not be put into the store
        assert ranks.run(job, 1) == [0]
        assert events_of(job, "resume")
        assert weights_of(job) == weights_of(smooth)


def test_a_checkpoint_without_the_best_weights_that_it_counts_on_is_passed_over(
    smooth: TrainJob, make_job: MakeJob, tmp_path: Path,
) -> None:
    job = make_job("alone", **BEST)
    assert ranks.run(job, 1, ANNEAL_CRASH_AT="train.final.before_commit:SIGKILL:1",
                     ANNEAL_CRASH_FIRED=tmp_path / "fired") == [-signal.SIGKILL]
    shutil.rmtree(Path(job.out) / "best")
    assert ranks.run(job, 1) == [0]
    reasons = [event["reason"] for event in events_of(job, "checkpoint_passed_over")]
    assert reasons and all("best weights" in reason for reason in reasons)
    assert weights_of(job) == weights_of(smooth)


def test_what_is_damaged_does_not_take_the_place_of_a_good_checkpoint(make_job: MakeJob) -> None:
    knobs = {"num_train_epochs": 6, "checkpoint_steps": 3}
    job = make_job("damaged", **knobs)
    assert ranks.run(job, 1) == [0]
    damaged = checkpoint_folders(Path(job.out))
    for folder in damaged:
        (folder / "manifest.json").write_text("{}")
    assert ranks.run(job, 1) == [0]
    assert [event["folder"] for event in events_of(job, "checkpoint_passed_over")] == [
        folder.name for folder in damaged]
    assert len(checkpoint_folders(Path(job.out))) == len(damaged) == 2
    assert ranks.run(job, 1) == [0]
    assert events_of(job, "resume")[0]["step"] == step_of(damaged[0].name), "the new ones are good"
    assert sorted(Path(job.out).glob("*.damaged")) == sorted(
        folder.with_name(f"{folder.name}.damaged") for folder in damaged)


def test_checkpoints_are_ordered_by_their_steps_and_not_by_their_names(tmp_path: Path) -> None:
    for name in ("step-999950", "step-1000000", "step-000050", "step-000100.part", "step-000150.damaged", "step-x"):
        (tmp_path / name).mkdir()
    assert [step_of(folder.name) for folder in checkpoint_folders(tmp_path)] == [1_000_000, 999_950, 50]
    assert step_of(checkpoint_name(1_000_000)) == 1_000_000
