"""What is refused before the first step, and the numbers of a step that no recorded trajectory has.

Tests tasks/distributed/preflight.py, tasks/distributed/schedule.py too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from infra.errors import BaseModelError
from infra.spec import TrainingSpec
from tasks.distributed import attention, cpu_attention, preflight
from tasks.distributed import train as trainer
from tasks.distributed.schedule import learning_rate
from tests.support import ranks
from tests.tasks.distributed.conftest import MakeJob, events_of, losses

pytestmark = pytest.mark.slow

RATE, STEPS = 1e-3, 100


@pytest.mark.usefixtures("one_rank")
def test_attention_that_looks_into_the_other_segment_is_not_used(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:
    kernel = cpu_attention.short_segments

    def leaks(q: Tensor, k: Tensor, v: Tensor, bounds: list[int], scaling: float | None) -> Tensor:
        return kernel(q, k, v, [bounds[0], bounds[-1]], scaling)

    monkeypatch.setattr(attention, "short_segments", leaks)
    leaking, whole = make_job("leaks", max_steps=2), make_job("whole", max_steps=2)
    trainer.train_rank(leaking)
    (event,) = events_of(leaking, "proven")
    assert not event["packed"] and event["why"].startswith("examples in one row reach each other")
    assert "one at a time: examples in one row" in capfd.readouterr().out
    monkeypatch.setattr(attention, "short_segments", kernel)
    trainer.train_rank(whole)
    assert losses(leaking) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.usefixtures("one_rank")
def test_a_model_that_does_not_read_is_refused(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def blank(built: Any) -> preflight.Proof:
        with torch.no_grad():
            built.causal.get_input_embeddings().weight.zero_()
        return preflight.check_loss(built)

    monkeypatch.setattr(trainer, "check_loss", blank)
    with pytest.raises(BaseModelError, match="do not depend on what it reads"):
        trainer.train_rank(make_job("blank"))


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


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e6])
def test_gradients_are_clipped_to_their_norm(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, limit: float,
) -> None:
    """Adam's moments after one step are those of the gradient that it was given: 0.1 g, whose norm is told."""
    job, steps = make_job("run", max_grad_norm=limit, max_steps=1), []
    finish = trainer.Trainer.finish

    def noted(self: trainer.Trainer, started: int) -> None:
        steps.append(torch.nn.utils.get_total_norm([state["exp_avg"] for state in self.optimizer.state.values()]))
        finish(self, started)

    monkeypatch.setattr(trainer.Trainer, "finish", noted)
    trainer.train_rank(job)
    (event,) = events_of(job)
    wanted = min(event["grad_norm"], limit) if limit else event["grad_norm"]
    assert event["grad_norm"] > 1e-2 and steps[0].item() == pytest.approx(0.1 * wanted, rel=1e-3)


@pytest.mark.usefixtures("one_rank")
def test_training_ends_after_max_steps_and_adapts_the_layers_that_were_named(make_job: MakeJob) -> None:
    job = make_job("run", max_steps=3, num_train_epochs=5, lora_targets="q_proj,v_proj", lora_rank=3)
    trainer.train_rank(job)
    assert [event["step"] for event in events_of(job)] == [1, 2, 3]
    with safe_open(Path(job.out) / "model" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"}
        assert {file.get_slice(name).get_shape()[0] for name in names if "lora_A" in name} == {3}
