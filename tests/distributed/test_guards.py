"""What is refused before the first step, and the numbers of a step that no recorded trajectory has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from infra.errors import BaseModelError
from infra.spec import TrainingSpec
from tasks.distributed import attention, cpu_attention, preflight
from tasks.distributed import train as trainer
from tasks.distributed.schedule import learning_rate
from tests import ranks
from tests.distributed.conftest import MakeJob

pytestmark = pytest.mark.slow

RATE, STEPS = 1e-3, 100


@pytest.mark.usefixtures("one_rank")
def test_attention_that_looks_into_the_other_segment_is_refused(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = cpu_attention.short_segments

    def leaks(q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scaling: float | None) -> Tensor:
        return kernel(q, k, v, [bounds[0], bounds[-1]], scaling)

    monkeypatch.setattr(attention, "short_segments", leaks)
    job = make_job("leaks")
    with pytest.raises(BaseModelError, match="examples in one row reach each other"):
        trainer.train(job)
    assert not list(Path(job.out).glob("step-*"))


@pytest.mark.usefixtures("one_rank")
def test_a_model_that_does_not_read_is_refused(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def blank(built: Any) -> None:
        with torch.no_grad():
            built.causal.get_input_embeddings().weight.zero_()
        preflight.check_isolation(built)

    monkeypatch.setattr(trainer, "check_isolation", blank)
    with pytest.raises(BaseModelError, match="do not depend on what it reads"):
        trainer.train(make_job("blank"))


@pytest.mark.parametrize(("schedule", "rates"), [
    ("constant", [1.0, 1.0, 1.0, 1.0]), ("linear", [1.0, 0.75, 0.5, 1 / 90]),
    ("cosine", [1.0, 0.5 * (1 + 0.5**0.5), 0.5, 0.5 * (1 - math.cos(math.pi / 90))])])
def test_a_tenth_of_warm_up_then_the_schedule(schedule: Any, rates: list[float]) -> None:
    spec = TrainingSpec(train_data="d", base_model="m", destination="a/b", learning_rate=RATE, warmup_ratio=0.1,
                        lr_schedule=schedule)
    assert [learning_rate(spec, step, STEPS) / RATE for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    found = [learning_rate(spec, step, STEPS) / RATE for step in (10, 32.5, 55, 99)]  # type: ignore[arg-type]
    assert found == pytest.approx(rates, rel=1e-6)


def test_weight_decay_shrinks_matrices_by_rate_times_decay_and_nothing_else(make_job: MakeJob) -> None:
    decay, rate = 0.5, 1e-2
    after = {}
    for name, value in (("with", decay), ("without", 0.0)):
        job = make_job(name, peft_method="full", precision="fp32", weight_decay=value, learning_rate=rate, max_steps=1,
                       warmup_ratio=0.0, lr_schedule="constant")
        assert ranks.run(job, 1) == [0]
        after[name] = load_file(Path(job.out) / "model" / "model.safetensors")
    before = load_file(Path(job.base) / "model.safetensors")
    for name, weight in after["with"].items():
        shrunk = decay * rate * before[name].float() if weight.ndim > 1 else torch.zeros_like(weight)
        torch.testing.assert_close(after["without"][name] - weight, shrunk, rtol=1e-3, atol=1e-6)
