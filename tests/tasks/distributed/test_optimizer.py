"""The optimizer's groups and updates, and trainings with the knobs that change them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.errors import UserError
from infra.spec import TrainingSpec
from tasks.distributed import train as trainer
from tasks.distributed.contract import TrainJob
from tasks.distributed.loss import noise_like
from tasks.distributed.optimizer import make_optimizer, update
from tasks.distributed.process_group import StopFlag
from tests.tasks.distributed.conftest import MakeJob, losses

SPEC = TrainingSpec(train_data="d", base_model="b", destination="a/b", weight_decay=0.1)
GOOD = torch.zeros(())


class Adapted(nn.Module):
    """A module with weights named as an adapter's are."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.norm = nn.LayerNorm(2)


def test_by_default_there_are_two_groups_and_one_rate() -> None:
    optimizer = make_optimizer(Adapted(), SPEC)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(2, 0.1), (2, 0.0)]
    update(optimizer, 0.25, GOOD, None)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_lora_plus_lets_b_learn_faster() -> None:
    module = Adapted()
    optimizer = make_optimizer(module, dataclasses.replace(SPEC, loraplus_lr_ratio=16.0))
    update(optimizer, 0.25, GOOD, None)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rates[id(module.lora_B.weight)] == 4.0 and rates[id(module.lora_A.weight)] == 0.25
    assert rates[id(module.norm.weight)] == 0.25


def test_an_8_bit_update_is_clipped_and_skipped_where_a_figure_is_not_finite() -> None:
    """bitsandbytes computes on a CPU too; trainings ask for a GPU, where alone it is fast."""
    module = nn.Linear(128, 128)
    optimizer = make_optimizer(module, dataclasses.replace(SPEC, optimizer="adamw_8bit"))
    before = module.weight.detach().clone()

    def step(bad: float) -> None:
        module(torch.full((4, 128), 1e3)).sum().backward()
        update(optimizer, 0.25, torch.tensor(bad), torch.tensor(1e3))

    step(1.0)
    assert torch.equal(module.weight, before) and module.weight.grad is None
    step(0.0)
    assert not torch.equal(module.weight, before) and torch.isfinite(module.weight).all()
    assert optimizer.state[module.weight]["state1"].dtype == torch.uint8


# NEFTune.


def segments(*bounds: int) -> Tensor:
    return torch.tensor(bounds)


def test_noise_is_bounded_by_each_examples_own_length() -> None:
    embedded, bounds = torch.zeros(1, 20, 16), segments(0, 4, 20)
    noise = noise_like(embedded, bounds, 5.0)
    short, long = noise[0, :4].abs().max().item(), noise[0, 4:].abs().max().item()
    assert 0.8 * 5 / (4 * 16) ** 0.5 < short <= 5 / (4 * 16) ** 0.5
    assert 0.8 * 5 / (16 * 16) ** 0.5 < long <= 5 / (16 * 16) ** 0.5


def test_noise_does_not_depend_on_what_an_example_is_packed_with() -> None:
    def noise(*bounds: int) -> Tensor:
        torch.manual_seed(1)
        return noise_like(torch.zeros(1, 20, 16), segments(*bounds), 5.0)[0, :4]

    assert torch.equal(noise(0, 4, 20), noise(0, 4, 7, 9, 20))


def last_weights(job: TrainJob) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(Path(job.out) / "model" / "adapter_model.safetensors")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [
    {"neftune_alpha": 5.0}, {"loraplus_lr_ratio": 8.0}, {"use_rslora": True}, {"optimizer": "adamw_8bit"}],
    ids=lambda knobs: str(next(iter(knobs))))
def test_a_knob_changes_the_training_and_a_resumed_one_is_the_same_to_the_bit(
    one_rank: None, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, knobs: dict[str, object],
) -> None:
    plain, whole = make_job("plain", max_steps=4), make_job("whole", max_steps=4, **knobs)
    assert trainer.train_rank(plain) == trainer.train_rank(whole) == 0
    assert losses(plain) != losses(whole)

    cut = make_job("cut", max_steps=4, checkpoint_steps=2, **knobs)
    real = trainer.Trainer.step

    def dies(self: trainer.Trainer, step: int, stop: StopFlag) -> None:
        if step == 2:
            self.checkpoints.wait()
            raise KeyboardInterrupt
        real(self, step, stop)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "step", dies)
        trainer.train_rank(cut)
    assert trainer.train_rank(cut) == 0
    assert losses(cut) == losses(whole)
    first, second = last_weights(cut), last_weights(whole)
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.slow
def test_held_out_rows_get_no_noise(one_rank: None, make_job: MakeJob) -> None:
    job = make_job("quiet", max_steps=1, learning_rate=0.0, neftune_alpha=50.0)
    other = make_job("plain", max_steps=1, learning_rate=0.0)
    assert trainer.train_rank(job) == trainer.train_rank(other) == 0
    from tests.tasks.distributed.conftest import events_of

    assert [e["loss"] for e in events_of(job, "validation")] == [e["loss"] for e in events_of(other, "validation")]
    assert losses(job) != losses(other)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_training_goes_on_from_a_version(one_rank: None, make_job: MakeJob, method: str) -> None:
    first = make_job("first", max_steps=6, peft_method=method)
    assert trainer.train_rank(first) == 0
    start = Path(first.out) / "model"
    if method == "full":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (Path(first.base) / name).exists():
                (start / name).write_bytes((Path(first.base) / name).read_bytes())
    second = dataclasses.replace(make_job("second", max_steps=1, learning_rate=0.0, peft_method=method),
                                 start=str(start))
    assert trainer.train_rank(second) == 0
    before, after = (load_file(next((Path(job.out) / "model").glob("*.safetensors"))) for job in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_version_with_other_layers_is_refused_by_the_ranks_too(one_rank: None, make_job: MakeJob) -> None:
    first = make_job("first", max_steps=1)
    assert trainer.train_rank(first) == 0
    second = dataclasses.replace(make_job("second", lora_rank=4), start=str(Path(first.out) / "model"))
    with pytest.raises(UserError, match="other layers or another rank"):
        trainer.train_rank(second)
