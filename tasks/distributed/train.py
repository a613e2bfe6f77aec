"""The training loop. Read it top to bottom.

In:   job.json (TrainJob): spec, base folder, packed rows
Out:  events.jsonl and step-NNNNNN/ while it runs; model/ and result.json at the end
Exit: 0 done, 3 user error, 4 preempted after a checkpoint, 5 not finite, 6 out of memory
Dies half-way: start the same command again; it goes on at the last checkpoint, on the same
trajectory: the rows, the learning rate and the seeds of a step are functions of (spec, step).
Run alone: python -m tasks.distributed.torchrun --standalone --nproc-per-node=2 -m tasks.distributed.train job.json
"""

from __future__ import annotations

if __name__ == "__main__":
    from infra.parent_death import be_rank

    be_rank()  # before the slow imports

import math
import resource
import shutil
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.crashpoints import crashpoint
from infra.errors import EXIT_DONE, EXIT_PREEMPTED, Diverged, OutOfMemory, Preempted, Transient
from infra.spec import TrainingSpec
from tasks.distributed.batches import BatchPlan, Feed
from tasks.distributed.build import build_model, flops_of, save_trained
from tasks.distributed.checkpoint import Checkpoints, TrainProgress
from tasks.distributed.contract import FINISH, TrainJob, main_of
from tasks.distributed.events import Events
from tasks.distributed.optimizer import make_optimizer, update
from tasks.distributed.packs import PackedRows
from tasks.distributed.preflight import check_loss, unrepeatable
from tasks.distributed.process_group import Group, Later, StopFlag, group, repeatable
from tasks.distributed.schedule import learning_rate, seed_of
from tasks.distributed.validation import held_out_loss
from tasks.distributed.weight_check import NO_MEMORY, auto_class


def train_rank(job: TrainJob) -> int:
    """Train to the end and return the exit code."""
    spec = TrainingSpec.from_json(job.spec)
    with group() as ranks:
        stop = StopFlag()  # not before: a rank that waits for one that died must go at torchrun's SIGTERM, not in 30 s
        trainer = Trainer(job, spec, ranks)
        started = trainer.resume()
        for step in range(started, trainer.plan.steps):
            trainer.step(step, stop)
            done, last = step + 1, step + 1 == trainer.plan.steps
            trainer.look_back()
            stops_early = trainer.validates_after(done) and trainer.validate(done)
            if stops_early or last or trainer.wants_finish:
                break
            if trainer.wants_stop or done % spec.checkpoint_steps == 0:
                trainer.save(done)
            if trainer.wants_stop:
                trainer.checkpoints.wait()
                trainer.events.emit("preempted", step=done)
                return EXIT_PREEMPTED
        trainer.finish(started)
    return EXIT_DONE


class Trainer:
    """The state of one rank: model, optimizer, data, and what it has measured."""

    def __init__(self, job: TrainJob, spec: TrainingSpec, ranks: Group) -> None:
        self.job, self.spec, self.ranks = job, spec, ranks
        self.run = Path(job.out)
        packs = Path(job.packs)
        self.rows, self.held_out = PackedRows(packs / "train"), PackedRows(packs / "validation")
        self.plan = BatchPlan(len(self.rows), spec.train_batch_size, spec.num_train_epochs, spec.max_steps, spec.seed)
        repeatable(ranks.device)
        self.built = build_model(job, spec, ranks)
        self.trainable = [p for p in self.built.loss.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.built.loss, spec)
        self.events = Events(self.run, self.plan.steps, muted=not ranks.is_first, peak_tflops=job.peak_tflops,
                             usd_per_hour=job.usd_per_hour)
        self.flops = flops_of(self.built.causal, full=spec.peft_method == "full")
        self.checkpoints = Checkpoints(self.run, ranks, self.events.emit)
        self.progress = TrainProgress()
        self.began = time.monotonic()
        self.bad = torch.zeros((), device=ranks.device)
        self.figures: deque[tuple[int, Later]] = deque()
        self.wants_stop = self.wants_finish = False
        """Some rank was told to stop; a person asks for the weights so far: as figures say that all ranks have read."""

    # ------------------------------------------------------------------ one step

    def step(self, step: int, stop: StopFlag) -> None:
        """Forward, backward, update. Nothing is read back from the device: see look_back."""
        rows = self.plan.rows_of(step)
        labels = int(self.rows.labels_in[rows].sum())
        torch.manual_seed(seed_of(self.spec, step, self.ranks.rank))
        loss = self._gradients(step, labels)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trainable if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        told = (stop.is_set, self.ranks.is_first and self._is_asked_to_finish(step + 1))
        summed = self.ranks.sum(torch.stack([loss.float(), *(loss.new_full((), float(one)) for one in told)]))
        # From the first figure that is not finite on, the fused kernel skips every update.
        self.bad = torch.maximum(self.bad, 1.0 - torch.isfinite(summed[0] + norm).float())
        # The same as clip_grad_norm_, without a pass over the gradients of its own.
        most = self.spec.max_grad_norm
        scale = ((norm + 1e-6) / most).clamp(min=1.0) if most else None
        update(self.optimizer, learning_rate(self.spec, step, self.plan.steps), self.bad, scale)
        self.figures.append((step, Later(torch.stack([summed[0], norm.float(), *summed[1:]]))))
        self.progress.steps = step + 1

    def _gradients(self, step: int, labels: int) -> Tensor:
        """This rank's share of the loss per labelled token of the whole batch; its gradients are in place."""
        total = torch.zeros((), device=self.ranks.device)
        parts = self.feed.parts_of(step)
        for index in range(parts):
            batch = next(self.feed)
            with self.built.spread.accumulate(index + 1 < parts), self.built.precision():
                loss = self.built.spread.call(batch) / labels
                total += loss.detach()
                crashpoint("train.mid_step")
                # DDP and FSDP average over ranks; the sum over ranks is wanted.
                (loss * self.ranks.world).backward()
        crashpoint("train.after_backward")
        return total

    def look_back(self, *, all_of_them: bool = False) -> None:
        """Read the figures of the step before the last one, which the device has finished meanwhile.

        Raises Diverged; no weight was updated since that step.
        """
        while len(self.figures) > (0 if all_of_them else 1):
            step, figures = self.figures.popleft()
            loss, norm, stops, finishes = figures.get()
            self.wants_stop |= stops > 0
            self.wants_finish |= finishes > 0
            self._tell(step, loss, norm)

    def _tell(self, step: int, loss: float, norm: float) -> None:
        if not math.isfinite(loss + norm):
            self.events.emit("non_finite", step=step + 1, loss=repr(loss), grad_norm=repr(norm))
            with suppress(OSError, Transient):  # a checkpoint that fails must not hide why training ends
                self.checkpoints.wait()  # the last good one may still be on its way
            raise Diverged(
                f"the loss is {loss} and the gradient norm {norm} (last finite loss {self.progress.loss_last})",
                where=f"training step {step + 1}",
                fix=f"Nothing was updated. Lower learning_rate (now {self.spec.learning_rate:g}) "
                    "or max_grad_norm, and look at the rows of this step.")
        if self.progress.loss_first is None:
            self.progress.loss_first = loss
        self.progress.loss_last = loss
        rows = self.plan.rows_of(step)
        tokens, labels = int(self.rows.tokens_in[rows].sum()), int(self.rows.labels_in[rows].sum())
        self.events.step(
            step + 1, loss=loss, grad_norm=norm, lr=learning_rate(self.spec, step, self.plan.steps), tokens=tokens,
            labels=labels, capacity=len(rows) * self.job.chunk_tokens, flops=self.flops(tokens, labels),
            memory_bytes=self._peak_memory())

    # ------------------------------------------------------------------ beside the steps

    def _is_asked_to_finish(self, done: int) -> bool:
        """Whether a person wants the weights; ranks that were started again first come as far as they were then."""
        try:
            return done >= int((self.run / FINISH).read_text() or 0)
        except FileNotFoundError:
            return False

    def validates_after(self, done: int) -> bool:
        """When it is due, and where a person ends the steps."""
        wanted = self.spec.run_validation and len(self.held_out) > 0
        return wanted and (self._is_due(done) or self.wants_finish)

    def _is_due(self, done: int) -> bool:
        """Every validation_steps, or after every epoch; always at the end."""
        return done % (self.spec.validation_steps or self.plan.steps_per_epoch) == 0 or done == self.plan.steps

    def validate(self, done: int) -> bool:
        """Mean cross-entropy at the labelled held-out tokens. True when it is time to stop early.

        One that a person caused is told, and judges nothing: the whole training, which may go on here, has none there.
        """
        self.look_back(all_of_them=True)
        self.events.emit("pause", step=done, what="validation")
        value = held_out_loss(
            self.built.loss, self.held_out, self.ranks, self.spec.validation_batch_size, self.built.precision)
        self.built.loss.train()
        progress = self.progress
        progress.loss_validation = value
        self.events.emit("validation", step=done, loss=value, perplexity=math.exp(min(value, 700)))
        if not self._is_due(done):
            return False
        if progress.last_is_best():
            progress.loss_best, progress.best_step, progress.not_better = value, done, 0
            if self.spec.keep_weights == "best":
                self.checkpoints.save_best(done, self.built.loss, {"key": self.job.key}, time.monotonic())
        else:
            progress.not_better += 1
        patience = self.spec.early_stopping_patience
        if patience and progress.not_better >= patience and done < self.plan.steps:
            self.events.emit("stopped_early", step=done, best_step=progress.best_step)
            return True
        return False

    def save(self, done: int) -> None:
        """Checkpoint after `done` finished steps."""
        began = time.monotonic()
        self.look_back(all_of_them=True)  # a step that is not finite never gets into one
        self.events.emit("pause", step=done, what="checkpoint")
        self.progress.seconds = self._seconds()
        self.checkpoints.save(done, self.built.loss, self.optimizer, {
            "key": self.job.key, "progress": asdict(self.progress)}, began)

    def resume(self) -> int:
        """Load the newest good checkpoint; returns the number of finished steps."""
        found, started = self.checkpoints.latest(self.job.key, with_best=self.spec.keep_weights == "best"), 0
        if found is not None:
            self.checkpoints.load(found, self.built.loss, self.optimizer)
            self.progress = TrainProgress(**found.record["progress"])
            started, self.events.seconds_before = found.step, self.progress.seconds
        proof = check_loss(self.built)
        self.events.emit("proven", **asdict(proof))
        if not proof.packed and self.ranks.is_first:
            print(f"Examples go through the model one at a time: {proof.why}.", flush=True)
        if reason := unrepeatable(self.built):
            self.events.emit("not_repeatable", reason=reason)
        self.feed = Feed(
            self.rows, self.plan, rank=self.ranks.rank, world=self.ranks.world, device=self.ranks.device,
            count=self.spec.gradient_accumulation_steps or 1, started=started, row_tokens=self.built.row_tokens)
        self.events.emit("resume" if found else "start", step=started, total=self.plan.steps, ranks=self.ranks.world,
                         parallelism=self.job.parallelism)
        return started

    def finish(self, started: int) -> None:
        """Write the trained weights, then the result."""
        self.look_back(all_of_them=True)
        if self.finished_early:
            self.events.emit("finished_early", step=self.progress.steps)
        self.events.emit("pause", step=self.progress.steps, what="weights")
        self.checkpoints.wait()
        if self.finished_early and self.progress.last_is_best():
            self.progress.loss_best, self.progress.best_step = self.progress.loss_validation, self.progress.steps
        elif self.spec.keep_weights == "best" and self.progress.best_step:
            self.checkpoints.load_best(self.job.key, self.built.loss)
        save_trained(self.built, self.run / "model", self.ranks)
        crashpoint("train.final.before_commit")
        if self.ranks.is_first:
            for part in self.run.glob("*.part"):
                shutil.rmtree(part, ignore_errors=True)
            self.job.finish(self._result(started))
            self.events.emit("done", step=self.progress.steps)

    @property
    def finished_early(self) -> bool:
        """The steps ended for a person."""
        return self.wants_finish and self.progress.steps < self.plan.steps

    def _result(self, started: int) -> dict[str, Any]:
        curve = {name: value for name, value in asdict(self.progress).items() if name != "not_better"}
        return {
            **curve, "ranks": self.ranks.world, "seconds": round(self._seconds(), 3),
            "tokens_per_s": round(self.events.tokens_per_s, 1),
            "trainable": sum(p.numel() for p in self.trainable), "peak_memory_bytes": self._peak_memory(),
            "resumed_from": started, "planned_steps": self.plan.steps if self.finished_early else 0,
            "auto_class": auto_class(self.built.causal.config).__name__}

    def _peak_memory(self) -> int:
        """The most bytes that this rank has held: on its GPU, or in the process."""
        if self.ranks.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _seconds(self) -> float:
        return self.events.seconds_before + time.monotonic() - self.began


def main(job: TrainJob) -> int:
    """Train; say in our own words what torch says in its own."""
    try:
        if train_rank(job) == EXIT_PREEMPTED:
            raise Preempted("the training was told to stop and saved a checkpoint", where="training",
                            fix="Start it again; it goes on from there.")
        return EXIT_DONE
    except torch.distributed.DistError as error:
        raise Transient(f"a rank lost the others ({str(error).splitlines()[0]})", where="training") from error
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and NO_MEMORY not in str(error):
            raise
        raise OutOfMemory(
            f"out of memory ({(str(error).splitlines() or ['the machine has no more'])[0]})", where="training",
            fix="Lower chunk_size or train_batch_size, or use more GPUs.") from error


if __name__ == "__main__":
    main_of(TrainJob, main)
