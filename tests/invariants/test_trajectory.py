"""One recorded trajectory, reproduced by every way to cut the work up: pytest tests/invariants

golden/<method>.txt holds `step loss gradient_norm` in full digits (float.hex), recorded by
`python -m tests.invariants.record` on 1 rank. The tolerance covers the order of fp32 sums.

Tests tasks/distributed/cpu_attention.py, tasks/distributed/sharding.py too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.distributed.contract import TrainJob
from tasks.distributed.cpu_attention import short_segments
from tests.invariants.conftest import trajectory, write_data
from tests.support import ranks
from tests.tasks.distributed.conftest import MakeJob, events_of

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"
LOSS_RTOL, NORM_RTOL = 5e-6, 1e-4
BF16_RTOL = 2e-2
"""bf16 keeps 8 bits; the loss of a step is the mean over some hundred places."""
DRIFT = 0.5
"""Residuals that all lean one way are an error even within the tolerance: |mean| <= DRIFT x LOSS_RTOL."""
CUTS: dict[str, tuple[int, dict[str, object]]] = {
    "one rank": (1, {}),
    "two ranks, ddp": (2, {}),
    "two ranks, fsdp": (2, {"parallelism": "fsdp"}),
    "four ranks, hsdp": (4, {"parallelism": "hsdp"}),
    "one rank, fsdp": (1, {"parallelism": "fsdp"}),
    "accumulation 2": (1, {"gradient_accumulation_steps": 2}),
    "accumulation 4": (1, {"gradient_accumulation_steps": 4}),
    "two ranks, accumulation 2": (2, {"gradient_accumulation_steps": 2}),
    "two ranks, fsdp, accumulation 2": (2, {"parallelism": "fsdp", "gradient_accumulation_steps": 2}),
    "three ranks, uneven": (3, {}),
    "three ranks, uneven, fsdp": (3, {"parallelism": "fsdp"}),
    "activation checkpointing": (1, {"activation_checkpointing": True}),
    "activation checkpointing, fsdp": (2, {"activation_checkpointing": True, "parallelism": "fsdp"}),
    "compiled": (1, {"compile_layers": "on"}),
    "compiled, rows filled up, accumulation 2": (
        1, {"compile_layers": "on", "pack_sequences": True, "gradient_accumulation_steps": 2}),
    "compiled, rows filled up, fsdp": (2, {"compile_layers": "on", "pack_sequences": True, "parallelism": "fsdp"}),
    "sums in one order": (2, {"constants": {"tasks.distributed.process_group.UNORDERED": {"cpu"}}}),
    "sums in one order, fsdp": (
        2, {"parallelism": "fsdp", "constants": {"tasks.distributed.process_group.UNORDERED": {"cpu"}}}),
    "torch's attention": (1, {"constants": {"tasks.distributed.attention.SHORT": 0}}),
}


LATER = {(cut, method) for number, cut in enumerate(CUTS) for method in ("lora", "full")
         if cut.startswith("compiled") or (number > 2 and (method == "full") == bool(number % 2))}
"""The other method of most cuts, and the compiler, are left to make chaos."""


def recorded(method: str) -> dict[int, tuple[float, float]]:
    """The golden trajectory."""
    rows = (line.split() for line in (GOLDEN / f"{method}.txt").read_text().splitlines())
    return {int(step): (float.fromhex(loss), float.fromhex(norm)) for step, loss, norm in rows}


def check(found: dict[int, tuple[float, float]], wanted: dict[int, tuple[float, float]]) -> None:
    """Within the tolerance at every step, and not leaning to one side."""
    assert found.keys() == wanted.keys()
    a, b = np.array([found[step] for step in wanted]), np.array([wanted[step] for step in wanted])
    residuals = (a - b) / np.abs(b)
    assert np.abs(residuals[:, 0]).max() <= LOSS_RTOL
    assert np.abs(residuals[:, 1]).max() <= NORM_RTOL
    assert abs(residuals[:, 0].mean()) <= DRIFT * LOSS_RTOL


@pytest.mark.parametrize(("cut", "method"), [
    pytest.param(cut, method, marks=pytest.mark.chaos if (cut, method) in LATER else ())
    for cut in CUTS for method in ("lora", "full")])
def test_every_cut_gives_the_recorded_trajectory(cut: str, method: str, make_job: MakeJob) -> None:
    world, values = CUTS[cut]
    options = {name: values[name] for name in ("constants",) if name in values}
    job = make_job("run", peft_method=method, **{name: values[name] for name in values.keys() - options})
    if world == 4:
        options["LOCAL_WORLD_SIZE"] = 2
    assert ranks.run(job, world, **options) == [0] * world, log_of(job)
    check(trajectory(job), recorded(method))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("knobs", [{}, {"parallelism": "fsdp"}], ids=["ddp", "fsdp"])
def test_bf16_stays_close_to_the_recorded_trajectory(method: str, knobs: dict[str, Any], make_job: MakeJob) -> None:
    job = make_job("run", peft_method=method, precision="bf16", **knobs)
    assert ranks.run(job, 2) == [0, 0], log_of(job)
    check_bf16(job, method)


def losses_of(job: TrainJob) -> list[float]:
    """By step."""
    return [loss for _, (loss, _) in sorted(trajectory(job).items())]


def check_bf16(job: TrainJob, method: str) -> None:
    """Within what bf16 can tell, and not the same: the training did not run in fp32."""
    found, wanted = losses_of(job), [loss for loss, _ in recorded(method).values()]
    assert found == pytest.approx(wanted, rel=BF16_RTOL)
    assert found != pytest.approx(wanted, rel=10 * LOSS_RTOL)


def log_of(job: TrainJob) -> str:
    """The end of the ranks' output."""
    return (Path(job.out) / "log.txt").read_text(errors="replace")[-3000:]


def test_packed_rows_give_the_same_loss_as_one_example_a_row(make_job: MakeJob, tmp_path: Path) -> None:
    """The whole data in one batch, so that both ways have the same examples in every step."""
    apart = write_data(tmp_path / "apart", packed=False)
    knobs = {"train_batch_size": 100, "num_train_epochs": 6}
    packed, alone = make_job("packed", **knobs), make_job("alone", packs=str(apart), **knobs)
    assert ranks.run(packed, 1) == ranks.run(alone, 1) == [0]
    check(trajectory(alone), trajectory(packed))
    losses = [loss for loss, _ in trajectory(packed).values()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_an_operation_that_adds_as_it_comes_is_told_and_training_goes_on(parallelism: str, make_job: MakeJob) -> None:
    job = make_job("run", parallelism=parallelism)
    assert ranks.run(job, 2, constants={
        "tasks.distributed.process_group.UNORDERED": {"cpu"},
        "tasks.distributed.attention.short_segments": unordered}) == [0, 0], log_of(job)
    (told,) = events_of(job, "not_repeatable")
    assert "does not have a deterministic implementation" in told["reason"]
    check(trajectory(job), recorded("lora"))


def unordered(*given: Any) -> torch.Tensor:
    """Attention; as torch's operations do, it refuses where sums must be made in one order."""
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError("short_segments does not have a deterministic implementation")
    return short_segments(*given)
