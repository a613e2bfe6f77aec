"""The training loop. Read it top to bottom.

In:   job.json (TrainJob): spec, base folder, packed rows
Out:  events.jsonl and step-NNNNNN/ while it runs; model/ and result.json at the end
Exit: 0 done, 3 user error, 4 preempted after a checkpoint, 5 not finite, 6 out of memory
Dies half-way: start the same command again; it goes on at the last checkpoint, on the same
trajectory: the rows, the learning rate and the seeds of a step are functions of (spec, step).
Run alone: python -m torch.distributed.run --standalone --nproc-per-node=2 -m tasks.distributed.train job.json
"""

from __future__ import annotations

if __name__ == "__main__":
    from infra.orphan import die_with_parent

    die_with_parent()  # before the slow imports

import contextlib
import math
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from infra.errors import EXIT_DONE, EXIT_PREEMPTED, Diverged, OutOfMemory, Preempted, Transient
from infra.spec import TrainingSpec
from tasks.distributed import checkpoint
from tasks.distributed.data import PackedRows, Plan, micro_batches
from tasks.distributed.events import Events
from tasks.distributed.job import TrainJob, main_of
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import add_adapter, dtype_of, load_base, save_model
from tasks.distributed.parallel import Group, StopFlag, group

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def train(job: TrainJob) -> int:
    """Train to the end and return the exit code."""
    stop = StopFlag()
    spec = TrainingSpec.from_json(job.spec)
    with group() as ranks:
        trainer = Trainer(job, spec, ranks)
        started = trainer.resume()
        for step in range(started, trainer.plan.steps):
            loss, gradient = trainer.step(step)
            wants_stop = trainer.check_and_update(step, loss, gradient, stop)
            last = step + 1 == trainer.plan.steps
            if wants_stop and not last:
                trainer.save(step + 1)
                trainer.events.emit("preempted", step=step + 1)
                return EXIT_PREEMPTED
            if not last and (step + 1) % spec.checkpoint_steps == 0:
                trainer.save(step + 1)
            if (step + 1) % trainer.plan.steps_per_epoch == 0 or last:
                trainer.validate(step + 1)
        trainer.finish(started)
    return EXIT_DONE


class Trainer:
    """The state of one rank: model, optimizer, data, and what it has measured."""

    def __init__(self, job: TrainJob, spec: TrainingSpec, ranks: Group) -> None:
        self.job, self.spec, self.ranks = job, spec, ranks
        self.run = Path(job.out)
        packs = Path(job.packs)
        self.rows = PackedRows(packs / "train")
        self.held_out = PackedRows(packs / "validation")
        self.plan = Plan(len(self.rows), spec.train_batch_size, spec.num_train_epochs, spec.max_steps, spec.seed)
        dtype = dtype_of(spec.precision, ranks.device)
        full = spec.peft_method == "full"
        base = load_base(Path(job.base), dtype=torch.float32 if full else dtype, device=ranks.device)
        self.model = base if full else add_adapter(base, spec)
        causal = base if full else self.model.get_base_model()
        self.loss = PackedLoss(causal).train()
        self.autocast = dtype if dtype != torch.float32 else None
        self.ddp = DistributedDataParallel(self.loss, gradient_as_bucket_view=True) if ranks.world > 1 else None
        self.trainable = [p for p in self.loss.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trainable, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=spec.weight_decay, fused=True)
        parameters = sum(p.numel() for p in self.loss.parameters())
        # Forward 2N, backward 2N for activations and 2N for the weights that learn.
        flops = (4 if not full else 6) * parameters
        self.events = Events(self.run, self.plan.steps, muted=not ranks.is_first, flops_per_token=flops)
        self.losses: dict[str, float] = {}
        self.seconds_before = 0.0
        self.began = time.monotonic()

    # ------------------------------------------------------------------ one step

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Loss per labelled token over the global batch, and the gradient's norm. No update yet."""
        rows = self.plan.rows_of(step)
        labels = int(self.rows.labels_in[rows].sum())
        torch.manual_seed(self._seed_of(step))
        total = torch.zeros((), device=self.ranks.device)
        parts = micro_batches(
            rows, rank=self.ranks.rank, world=self.ranks.world, count=self.spec.gradient_accumulation_steps)
        parts = [part for part in parts if len(part)] or [rows[:0]]
        for index, part in enumerate(parts):
            batch = self.rows.batch(part if len(part) else rows[:1], labelled=bool(len(part))).to(self.ranks.device)
            with self._no_sync(index + 1 < len(parts)), self._precision():
                loss = (self.ddp or self.loss)(batch) / labels
                total += loss.detach()
                # DDP averages over ranks; the sum over ranks is wanted.
                (loss * self.ranks.world).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trainable if p.grad is not None])
        return total, norm

    def check_and_update(self, step: int, loss: Tensor, norm: Tensor, stop: StopFlag) -> bool:
        """Update the weights unless something is not finite; True when any rank was told to stop.

        Raises Diverged before the update, so that the last checkpoint is good.
        """
        flag = torch.tensor(float(stop.is_set), device=self.ranks.device)
        total, stops = self.ranks.sum(torch.stack([loss.float(), flag])).tolist()
        gradient, rate = float(norm), self.learning_rate(step)
        if not (math.isfinite(total) and math.isfinite(gradient)):
            last = self.losses.get("last", float("nan"))
            self.events.emit("non_finite", step=step + 1, loss=repr(total), grad_norm=repr(gradient))
            raise Diverged(
                f"the loss is {total} and the gradient norm {gradient} (last finite loss {last:.4f})",
                where=f"training step {step + 1}",
                fix=f"Nothing was updated. Lower learning_rate (now {self.spec.learning_rate:g}) "
                    "or max_grad_norm, and look at the rows of this step.")
        if self.spec.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.trainable, self.spec.max_grad_norm, norm)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.setdefault("first", total)
        self.losses["last"] = total
        rows = self.plan.rows_of(step)
        self.events.step(
            step + 1, loss=total, grad_norm=gradient, lr=rate, tokens=int(self.rows.tokens_in[rows].sum()),
            labels=int(self.rows.labels_in[rows].sum()), capacity=len(rows) * self.job.chunk_tokens)
        return bool(stops > 0)

    def learning_rate(self, step: int) -> float:
        """Rate of the update after `step` finished ones: warm-up, then the schedule down to 0."""
        spec, steps = self.spec, self.plan.steps
        warmup = math.ceil(spec.warmup_ratio * steps)
        if step < warmup:
            return spec.learning_rate * (step + 1) / warmup
        if spec.lr_schedule == "constant":
            return spec.learning_rate
        done = (step - warmup) / max(1, steps - warmup)
        left = 1 - done if spec.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return spec.learning_rate * left

    # ------------------------------------------------------------------ beside the steps

    def validate(self, step: int) -> None:
        """Mean cross-entropy at the labelled held-out tokens."""
        if not self.spec.run_validation or len(self.held_out) == 0:
            return
        value = held_out_loss(
            self.loss, self.held_out, self.ranks, self.spec.validation_batch_size, self._precision)
        self.loss.train()
        self.losses["validation"] = value
        self.events.emit("validation", step=step, loss=value, perplexity=math.exp(min(value, 700)))

    def save(self, step: int) -> None:
        """Checkpoint after `step` finished steps."""
        began = time.monotonic()
        checkpoint.save(self.run, step, self.loss, self.optimizer, self.ranks, {
            "key": self.job.key, "losses": self.losses, "seconds": self._seconds()})
        self.events.emit("checkpoint", step=step, seconds=round(time.monotonic() - began, 3))

    def resume(self) -> int:
        """Load the newest good checkpoint; returns the number of finished steps."""
        found = checkpoint.latest(self.run, self.job.key)
        if found is None:
            self.events.emit("start", total=self.plan.steps, ranks=self.ranks.world)
            return 0
        checkpoint.load(found, self.loss, self.optimizer)
        self.losses = dict(found.record["losses"])
        self.seconds_before = float(found.record["seconds"])
        self.events.emit("resume", step=found.step, total=self.plan.steps, ranks=self.ranks.world)
        return found.step

    def finish(self, started: int) -> None:
        """Write the trained weights, then the result."""
        if not self.ranks.is_first:
            return
        shutil.rmtree(self.run / "model", ignore_errors=True)
        save_model(self.model, self.run / "model")
        self.job.finish(self._result(started))
        self.events.emit("done", step=self.plan.steps)

    def _result(self, started: int) -> dict[str, Any]:
        cuda = self.ranks.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return {
            "steps": self.plan.steps, "ranks": self.ranks.world, "seconds": round(self._seconds(), 3),
            "tokens_per_s": round(self.events.tokens_per_s, 1),
            "trainable": sum(p.numel() for p in self.trainable), "losses": self.losses,
            "peak_memory_bytes": peak, "resumed_from": started}

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _seed_of(self, step: int) -> int:
        return (self.spec.seed * 1_000_003 + step * 4096 + self.ranks.rank) % (1 << 63)

    def _no_sync(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        return self.ddp.no_sync() if self.ddp and wanted else contextlib.nullcontext()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.ranks.device.type, dtype=self.autocast)


def held_out_loss(model: PackedLoss, rows: PackedRows, ranks: Group, batch_size: int, precision: Any) -> float:
    """Mean cross-entropy in nats at the labelled tokens of `rows`, over all ranks; nan without any."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    mine = torch.arange(ranks.rank, len(rows), ranks.world).numpy()
    for start in range(0, len(mine), batch_size):
        batch = rows.batch(mine[start : start + batch_size]).to(ranks.device)
        with torch.inference_mode(), precision():
            sums += torch.tensor([float(model(batch)), len(batch.labels_N)], dtype=torch.float64)
    total, labels = ranks.patient_sum(sums).tolist()
    return float(total / labels) if labels else math.nan


def main(job: TrainJob) -> int:
    """Train; say in our own words what torch says in its own."""
    try:
        if train(job) == EXIT_PREEMPTED:
            raise Preempted("the training was told to stop and saved a checkpoint", where="training",
                            fix="Start it again; it goes on from there.")
        return EXIT_DONE
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"out of memory ({str(error).splitlines()[0]})", where="training",
            fix="Raise gradient_accumulation_steps or lower chunk_size; the numbers do not change with the "
                "former.") from error
    except torch.distributed.DistError as error:
        raise Transient(f"a rank lost the others ({str(error).splitlines()[0]})", where="training") from error


if __name__ == "__main__":
    main_of(TrainJob, main)
