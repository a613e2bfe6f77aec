"""A kill at any named point, on any rank, changes nothing: pytest tests/invariants/test_resume.py

make chaos-train runs the whole grid, make test a row of it. Losses of every step and the sha256 of the
final weights equal those of the training that nobody killed, with dropout.

Tests tasks/distributed/validation.py too.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from infra.errors import EXIT_PREEMPTED
from infra.files import sha256_of
from tasks.distributed.contract import TrainJob
from tests.invariants.conftest import trajectory
from tests.support import ranks
from tests.tasks.distributed.conftest import MakeJob, events_of

pytestmark = pytest.mark.slow

WEIGHTS = {"lora": "model/adapter_model.safetensors", "full": "model/model.safetensors"}
WAYS = [("lora", "ddp"), ("full", "ddp"), ("lora", "fsdp"), ("full", "fsdp")]
EVERY = {"checkpoint_steps": 2, "lora_dropout": 0.1}
START, END = ("train.before_init", 1), ("train.final.before_commit", 1)
MIDDLE = [(f"train.{point}", nth) for point in ("mid_step", "after_backward") for nth in (4, 5, 10)]
"""Five steps are an epoch: in its middle, at its edge, and at the edge of the next."""
SAVING = [
    (f"train.checkpoint.{point}", nth) for point in ("mid_write", "before_commit", "after_commit") for nth in (1, 3)]
POINTS = [START, ("train.after_init", 1), *MIDDLE, *SAVING, END]
GRID = [
    (method, way, point, nth, rank) for method, way in WAYS for point, nth in POINTS for rank in (0, 1)
    if rank == 0 or point != "train.checkpoint.after_commit"]  # only the first rank commits
ROW = {("lora", "ddp", "train.after_backward", 5, 1), ("full", "fsdp", "train.checkpoint.before_commit", 3, 0),
       ("full", "ddp", "train.final.before_commit", 1, 0)}


RESUMES = {5: 2, 10: 6}
"""A kill in this step comes after the next save has waited for the checkpoint of that one."""


def resumes_at(point: str, nth: int) -> int:
    """The least step that a training killed there goes on from; 0: it may have to start over."""
    if point == END[0]:
        return 14
    if ".checkpoint." in point:
        return 2 * (nth - 1)
    return RESUMES.get(nth, 0)


def outcome(job: TrainJob, method: str) -> tuple[dict[int, tuple[float, float]], str]:
    """What must not change: every logged figure, those of a step that was done twice too, and the weights."""
    last = trajectory(job)
    assert all((event["loss"], event["grad_norm"]) == last[event["step"]] for event in events_of(job))
    return last, sha256_of(Path(job.out) / WEIGHTS[method])


@pytest.fixture(scope="session")
def smooth() -> dict[tuple[str, str], tuple[dict[int, tuple[float, float]], str]]:
    """Outcomes of the trainings that nobody kills, made when first asked for."""
    return {}


@pytest.mark.parametrize(("method", "way", "point", "nth", "rank"), [
    pytest.param(*case, marks=() if case in ROW else pytest.mark.chaos) for case in GRID])
def test_a_kill_changes_nothing(
    method: str, way: str, point: str, nth: int, rank: int, make_job: MakeJob, tmp_path: Path,
    smooth: dict[tuple[str, str], tuple[dict[int, tuple[float, float]], str]],
) -> None:
    if (method, way) not in smooth:
        alone = make_job("smooth", peft_method=method, parallelism=way, **EVERY)
        assert ranks.run(alone, 2) == [0, 0]
        smooth[method, way] = outcome(alone, method)
    job = make_job("killed", peft_method=method, parallelism=way, **EVERY)
    fired = tmp_path / "fired"
    codes = ranks.run(job, 2, ANNEAL_CRASH_AT=f"{point}:SIGKILL:{nth}:{rank}", ANNEAL_CRASH_FIRED=fired)
    assert fired.exists() and codes[rank] == -signal.SIGKILL
    assert ranks.run(job, 2) == [0, 0]
    assert max((event["step"] for event in events_of(job, "resume")), default=0) >= resumes_at(point, nth)
    assert outcome(job, method) == smooth[method, way]


@pytest.mark.parametrize(("method", "way"), [
    ("lora", "ddp"), *(pytest.param(*case, marks=pytest.mark.chaos) for case in WAYS[1:])])
def test_a_signal_to_one_rank_saves_on_all_and_changes_nothing(
    method: str, way: str, make_job: MakeJob, tmp_path: Path,
) -> None:
    alone, stopped = (make_job(name, peft_method=method, parallelism=way, **EVERY) for name in ("alone", "stopped"))
    assert ranks.run(alone, 2) == [0, 0]
    codes = ranks.run(stopped, 2, ANNEAL_CRASH_AT="train.mid_step:SIGTERM:5:1", ANNEAL_CRASH_FIRED=tmp_path / "fired")
    assert codes == [EXIT_PREEMPTED, EXIT_PREEMPTED]
    assert ranks.run(stopped, 2) == [0, 0]
    assert events_of(stopped, "resume")[0]["step"] == events_of(stopped, "preempted")[0]["step"] >= 5
    assert outcome(stopped, method) == outcome(alone, method)


@pytest.mark.parametrize("knobs", [
    {"checkpoint_steps": 1}, {"checkpoint_steps": 1000, "validation_steps": 1}, {"checkpoint_steps": 2}])
def test_a_signal_is_heard_though_every_step_ends_with_a_pause(
    knobs: dict[str, Any], make_job: MakeJob, tmp_path: Path,
) -> None:
    job = make_job("stopped", **knobs)
    fired = tmp_path / "fired"
    assert ranks.run(job, 1, ANNEAL_CRASH_AT="train.mid_step:SIGTERM:4", ANNEAL_CRASH_FIRED=fired) == [EXIT_PREEMPTED]
    assert fired.exists() and 4 <= events_of(job, "preempted")[0]["step"] <= 5


@pytest.mark.parametrize(("before", "after", "ways"), [
    (2, 1, ("fsdp", "ddp")), pytest.param(1, 2, ("ddp", "fsdp"), marks=pytest.mark.chaos)])
def test_other_ranks_and_the_other_parallelism_go_on_where_these_stopped(
    before: int, after: int, ways: tuple[str, str], make_job: MakeJob, tmp_path: Path,
) -> None:
    """Without dropout, whose masks belong to ranks; sums of fp32 in another order: 5e-6."""
    knobs = {"peft_method": "full", "checkpoint_steps": 2}
    alone, moved = make_job("alone", **knobs), make_job("moved", parallelism=ways[0], **knobs)
    assert ranks.run(alone, 1) == [0]
    fired = tmp_path / "fired"
    codes = ranks.run(moved, before, ANNEAL_CRASH_AT="train.mid_step:SIGKILL:8:0", ANNEAL_CRASH_FIRED=fired)
    assert fired.exists() and codes[0] == -signal.SIGKILL
    moved = make_job("moved", parallelism=ways[1], **knobs)
    assert ranks.run(moved, after) == [0] * after
    assert events_of(moved, "resume")[0]["step"] >= 4
    wanted, found = trajectory(alone), trajectory(moved)
    assert {step: loss for step, (loss, _) in found.items()} == pytest.approx(
        {step: loss for step, (loss, _) in wanted.items()}, rel=5e-6)
