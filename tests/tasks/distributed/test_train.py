"""tasks/distributed/train.py: the same numbers on any split, after any death.

Tests tasks/distributed/build.py too.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import LlamaConfig, LlamaForCausalLM

from infra.errors import EXIT_NON_FINITE, EXIT_PREEMPTED, EXIT_USER_ERROR, Diverged
from infra.records import Trained
from infra.spec import TrainingSpec
from tasks.distributed import train as trainer
from tasks.distributed.contract import FINISH, TrainJob
from tasks.distributed.packs import PackedRows
from tests.support import ranks
from tests.tasks.distributed.conftest import MakeJob, events_of, losses

pytestmark = pytest.mark.slow


def wait_for_step(job: TrainJob, step: int) -> None:
    deadline = time.monotonic() + 90
    while not any(event["step"] >= step for event in events_of(job)):
        assert time.monotonic() < deadline, (Path(job.out) / "log.txt").read_text()[-2000:]
        time.sleep(0.02)


def test_a_diverging_training_stops_before_the_update(one_rank: None, make_job: MakeJob) -> None:
    job = make_job("diverge", peft_method="full", learning_rate=1e20, max_grad_norm=0.0, warmup_ratio=0.0)
    with pytest.raises(Diverged, match=r"training step \d+: the loss is"):
        trainer.train_rank(job)
    assert not (Path(job.out) / "result.json").exists()


@pytest.mark.chaos
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_layers_are_compiled_once(one_rank: None, make_job: MakeJob, parallelism: str) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    job = make_job("compiled", compile_layers="on", pack_sequences=True, train_batch_size=4, num_train_epochs=3)
    job = dataclasses.replace(job, parallelism=parallelism)
    rows = len(PackedRows(Path(job.packs) / "train"))
    assert rows > 4 and rows % 4, "the last batch of an epoch has fewer rows"
    graphs = []
    tell = trainer.Trainer._tell

    def counting(self: trainer.Trainer, step: int, loss: float, norm: float) -> None:
        tell(self, step, loss, norm)
        graphs.append(counters["stats"]["unique_graphs"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_tell", counting)
        assert trainer.train_rank(job) == 0
    assert graphs[0] > 0 and len(graphs) == 6 and len(set(graphs)) == 1, graphs


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_ranks_diverge_together_and_keep_no_checkpoint_of_it(make_job: MakeJob, parallelism: str) -> None:
    job = dataclasses.replace(make_job(
        "diverge", peft_method="full", learning_rate=1e20, max_grad_norm=0.0, warmup_ratio=0.0, checkpoint_steps=1),
        parallelism=parallelism)
    assert ranks.run(job, 2) == [EXIT_NON_FINITE] * 2
    (bad,) = events_of(job, "non_finite")
    assert bad["step"] == events_of(job)[-1]["step"] + 1
    told = json.loads((Path(job.out) / "error.json").read_text())
    assert f"training step {bad['step']}" in told["where"]
    kept = [int(folder.name.split("-")[1]) for folder in Path(job.out).glob("step-??????")]
    assert kept and max(kept) < bad["step"]
    for folder in Path(job.out).glob("step-??????"):
        weights = {"model": {f"model.{name}": torch.zeros_like(weight) for name, weight in
                             load_file(Path(job.base) / "model.safetensors").items()}}
        load(weights, checkpoint_id=folder)
        assert all(weight.isfinite().all() for weight in weights["model"].values())


def test_sigterm_saves_a_checkpoint_and_exits(make_job: MakeJob) -> None:
    job = make_job("stopped", num_train_epochs=200, checkpoint_steps=1000)
    under_way = ranks.start(job, 2)
    wait_for_step(job, 3)
    under_way.send(signal.SIGTERM, rank=1)  # one is enough: the ranks agree
    assert under_way.wait(30) == [EXIT_PREEMPTED, EXIT_PREEMPTED]
    step = events_of(job, "preempted")[0]["step"]
    record = json.loads((Path(job.out) / f"step-{step:06d}" / "manifest.json").read_text())
    assert record["record"]["step"] == step


def zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another_training(manifest: Path) -> None:
    told = json.loads(manifest.read_text())
    told["record"]["key"] = "another"
    manifest.write_text(json.dumps(told))


@pytest.mark.parametrize(("damage", "file"), [
    (zeros, "__0_0.distcp"), (half, "__0_0.distcp"), (one_bit, "__0_0.distcp"), (Path.unlink, ".metadata"),
    (half, "manifest.json"), (of_another_training, "manifest.json")])
def test_a_damaged_checkpoint_is_passed_over_aloud(
    one_rank: None, make_job: MakeJob, damage: Callable[[Path], None], file: str,
) -> None:
    job = make_job("damaged", num_train_epochs=6, checkpoint_steps=3)
    assert trainer.train_rank(job) == 0
    weights = (Path(job.out) / "model" / "adapter_model.safetensors").read_bytes()
    newest, older = sorted(Path(job.out).glob("step-*"), reverse=True)[:2]
    damage(newest / file)
    assert trainer.train_rank(job) == 0
    assert [event["folder"] for event in events_of(job, "checkpoint_passed_over")] == [newest.name]
    assert events_of(job, "resume")[0]["step"] == int(older.name.split("-")[1])
    assert (Path(job.out) / "model" / "adapter_model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("steps_between", [2, 1000])
def test_a_disk_that_fills_at_a_checkpoint_or_at_the_end_is_said(
    make_job: MakeJob, full_disk: Path, steps_between: int,
) -> None:
    job = make_job("full", peft_method="full", checkpoint_steps=steps_between)
    job = dataclasses.replace(job, out=str(full_disk))
    assert ranks.run(job, 2)[0] == EXIT_USER_ERROR
    told = json.loads((full_disk / "error.json").read_text())
    assert "the disk is full" in told["found"]


def test_the_best_weights_are_kept_and_training_stops_when_they_get_no_better(make_job: MakeJob) -> None:
    knobs = {"peft_method": "full", "num_train_epochs": 30, "learning_rate": 5e-3, "validation_steps": 2,
             "early_stopping_patience": 2, "keep_weights": "best"}
    job = make_job("best", **knobs)
    assert ranks.run(job, 1) == [0]
    validations = {event["step"]: event["loss"] for event in events_of(job, "validation")}
    best = min(validations, key=lambda step: validations[step])
    result = json.loads((Path(job.out) / "result.json").read_text())
    known = {field.name for field in dataclasses.fields(Trained)}
    assert set(result) <= known, "what ranks report is not lost"
    assert (result["loss_best"], result["loss_validation"]) == (validations[best], list(validations.values())[-1])
    assert result["best_step"] == best and result["steps"] == list(validations)[-1] < 30 * 2
    assert [step for step in validations if step > best] == [best + 2, best + 4]
    assert events_of(job, "stopped_early")[0]["best_step"] == best
    reached = make_job("reached", **{**knobs, "early_stopping_patience": 0, "keep_weights": "last"})
    ranks.run(reached, 1, ANNEAL_CRASH_AT=f"train.after_backward:SIGTERM:{best - 1}",
              ANNEAL_CRASH_FIRED=f"{reached.out}/fired")
    step = events_of(reached, "preempted")[0]["step"]
    assert step == best, "the signal is read a step later"
    weights = load_file(Path(job.out) / "model" / "model.safetensors")
    last = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    load({"model": {f"model.{name}": weight for name, weight in last.items()}},
         checkpoint_id=Path(reached.out) / f"step-{step:06d}")
    assert all(torch.equal(weights[name], last[name]) for name in weights)


def test_a_training_that_a_person_finishes_has_the_weights_of_that_step(make_job: MakeJob) -> None:
    knobs = {"peft_method": "full", "num_train_epochs": 10, "validation_steps": 1000}
    job, reached = make_job("finished", **knobs), make_job("reached", **knobs)
    (Path(job.out) / FINISH).touch()
    assert ranks.run(job, 2) == [0, 0]
    result = json.loads((Path(job.out) / "result.json").read_text())
    assert (result["steps"], result["planned_steps"]) == (2, events_of(job, "start")[0]["total"])
    assert [event["step"] for event in events_of(job, "validation")] == [2], "the weights that are kept are validated"
    assert [event["step"] for event in events_of(job, "finished_early")] == [2] and not events_of(job, "checkpoint")
    ranks.run(reached, 2, ANNEAL_CRASH_AT="train.after_backward:SIGTERM:1", ANNEAL_CRASH_FIRED=f"{reached.out}/fired")
    assert events_of(reached, "preempted")[0]["step"] == 2
    weights = load_file(Path(job.out) / "model" / "model.safetensors")
    then = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    load({"model": {f"model.{name}": weight for name, weight in then.items()}},
         checkpoint_id=Path(reached.out) / "step-000002")
    assert all(torch.equal(weights[name], then[name]) for name in weights)


def test_a_finish_whose_validation_loses_patience_is_no_whole_training(
    one_rank: None, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job("impatient", peft_method="full", num_train_epochs=10, validation_steps=1, early_stopping_patience=1,
                   learning_rate=0.05, warmup_ratio=0.0)
    tell = trainer.Trainer._tell

    def asked(self: trainer.Trainer, step: int, loss: float, norm: float) -> None:
        (Path(job.out) / FINISH).touch()  # while the first step is validated
        tell(self, step, loss, norm)

    monkeypatch.setattr(trainer.Trainer, "_tell", asked)
    assert trainer.train_rank(job) == 0
    assert [event["step"] for event in events_of(job, "stopped_early")] == [2]
    result = json.loads((Path(job.out) / "result.json").read_text())
    assert result["planned_steps"] == events_of(job, "start")[0]["total"] > result["steps"] == 2


def test_an_untied_head_trains_on_two_ranks_with_a_row_left_over(make_job: MakeJob, tmp_path: Path) -> None:
    base = tmp_path / "untied"
    LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, tie_word_embeddings=False)).save_pretrained(base)
    job = dataclasses.replace(make_job("untied-run", peft_method="full"), base=str(base))
    rows = len(PackedRows(Path(job.packs) / "train"))
    spec = dataclasses.replace(TrainingSpec.from_json(job.spec), train_batch_size=rows - 1, num_train_epochs=1)
    job = dataclasses.replace(job, spec=spec.to_json())
    assert ranks.run(job, 2) == [0, 0]
    assert len(losses(job)) == 2
