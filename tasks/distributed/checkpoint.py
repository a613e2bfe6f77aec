"""Checkpoints of a training: trained weights and optimizer state, by torch's DCP, written in the background.

On disk:   <run>/step-000100/   DCP files and manifest.json, renamed into place when complete
           <run>/best/          the same, weights only, of the lowest validation loss so far
Dies half-way: a `.part` folder that the next save removes; the checkpoint before it stands.
There is no random state to save: seeds are functions of (seed, step, rank), like the data order.
A checkpoint whose manifest does not verify is passed over, said so, and put aside as `.damaged`. Training waits only
while the state is copied to host memory. Weights are saved by their names in the model, whole or in
shards: another number of ranks, or the other kind of parallelism, can read them.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from infra.crashpoints import crashpoint
from infra.errors import Transient
from infra.files import seal, sync_folder, verify
from tasks.distributed.contract import BEST, checkpoint_folders, checkpoint_name
from tasks.distributed.process_group import Group

KEPT = 2
DAMAGED = ".damaged"
FULL_BYTES = 1 << 20
"""With less than this left, a failed write is a full disk."""
OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)
Report = Callable[..., None]


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint that verifies."""

    folder: Path
    step: int
    record: Mapping[str, Any]


@dataclass
class TrainProgress:
    """What a checkpoint remembers beside weights and optimizer."""

    steps: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    loss_validation: float | None = None
    loss_best: float | None = None
    best_step: int = 0
    not_better: int = 0
    """Validations since the best one."""
    seconds: float = 0.0

    def last_is_best(self) -> bool:
        """Whether the last validation has a lower loss than the best one before it."""
        last, best = self.loss_validation, self.loss_best
        return last is not None and (best is None or last < best)


class Checkpoints:
    """The checkpoints of one run. All ranks call its methods together."""

    def __init__(self, run: Path, ranks: Group, tell: Report) -> None:
        """`tell` gets an event's name and values when a checkpoint is in place, and when one is passed over."""
        self._run, self._ranks, self._tell = run, ranks, tell
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, record: Mapping[str, Any],
        began: float,
    ) -> None:
        """Copy the state after `step` finished steps, and write it while the next ones run.

        Training has stood still since `began` (of time.monotonic): that is where stall_s counts from.
        """
        weights, state = get_state_dict(model, optimizer, options=OPTIONS)
        self._start(checkpoint_name(step), {"model": weights, "optimizer": state}, {"step": step, **record}, began)

    def save_best(self, step: int, model: torch.nn.Module, record: Mapping[str, Any], began: float) -> None:
        """The same for the weights alone, in the place of the best."""
        self._start(BEST, {"model": get_model_state_dict(model, options=OPTIONS)}, {"step": step, **record}, began)

    def wait(self) -> None:
        """Until the last save is in place. Raises OSError, of a full disk among others, and Transient."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def latest(self, key: str, *, with_best: bool = False) -> SavedCheckpoint | None:
        """The newest checkpoint that verifies and belongs to the training `key`, as the first rank sees it.

        `with_best`: one that knows of a best step is of no use without the weights of it.
        """
        return self._ranks.from_first(self._newest(key, with_best) if self._ranks.is_first else None)

    def _newest(self, key: str, with_best: bool) -> SavedCheckpoint | None:
        for folder in checkpoint_folders(self._run):
            found, reason = _read(folder, key), "damaged, or of another training"
            if found is not None:
                if not (with_best and found.record["progress"]["best_step"]) or _read(self._run / BEST, key):
                    return found
                reason = "the best weights, which it counts on, are damaged or missing"
            self._tell("checkpoint_passed_over", folder=folder.name, reason=reason)
            aside = folder.with_name(f"{folder.name}{DAMAGED}")  # else it would take the place of a good one
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        return None

    def load(self, found: SavedCheckpoint, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put a checkpoint back into the model and the optimizer."""
        weights, state = get_state_dict(model, optimizer, options=OPTIONS)
        both: dict[str, Any] = {"model": weights, "optimizer": state}
        load(both, checkpoint_id=found.folder)
        set_state_dict(
            model, optimizer, model_state_dict=both["model"], optim_state_dict=both["optimizer"], options=OPTIONS)

    def load_best(self, key: str, model: torch.nn.Module) -> None:
        """Put the best weights back. Raises Transient if they are damaged."""
        found = _read(self._run / BEST, key)
        if found is None:
            raise Transient("the best weights are damaged", where=str(self._run / BEST),
                            fix="The next try trains again from a checkpoint before them, or from the start.")
        weights = {"model": get_model_state_dict(model, options=OPTIONS)}
        load(weights, checkpoint_id=found.folder)
        set_model_state_dict(model, weights["model"], options=OPTIONS)

    def _start(self, name: str, state: dict[str, Any], record: Mapping[str, Any], began: float) -> None:
        self.wait()
        part = self._run / f"{name}.part"
        if self._ranks.is_first:
            shutil.rmtree(part, ignore_errors=True)
        self._ranks.barrier()
        written = async_save(state, checkpoint_id=part, process_group=self._ranks.saving)
        stall_s = time.monotonic() - began
        crashpoint("train.checkpoint.mid_write")
        self._writing = self._writer.submit(self._finish, written, part, record, began, stall_s)

    def _finish(self, written: Any, part: Path, record: Mapping[str, Any], began: float, stall_s: float) -> None:
        """In the writer's thread: hash, and rename into place."""
        try:
            written.result()
        except CheckpointException as error:
            causes = (cause for cause, _ in error.failures.values())
            raise error_of_writing(error, part, *causes) from error
        crashpoint("train.checkpoint.before_commit")
        if not self._ranks.is_first:
            return
        try:
            seal(part, record)
        except OSError as error:
            raise error_of_writing(error, part, error) from error
        target = part.with_suffix("")
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        sync_folder(self._run)
        crashpoint("train.checkpoint.after_commit")
        for old in checkpoint_folders(self._run)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        self._tell("checkpoint", step=record["step"], folder=target.name, stall_s=round(stall_s, 4),
                   seconds=round(time.monotonic() - began, 3))


def _read(folder: Path, key: str) -> SavedCheckpoint | None:
    manifest = verify(folder)
    if manifest is None or manifest.record.get("key") != key:
        return None
    return SavedCheckpoint(folder, int(manifest.record["step"]), manifest.record)


def error_of_writing(error: BaseException, part: Path, *causes: BaseException) -> Exception:
    """What stopped the writing of a folder: an OSError or Transient. What is written of it goes, to make room.

    torch's writer says "unexpected pos" where the disk is full, that of safetensors something else.
    """
    is_full = shutil.disk_usage(part.parent).free < FULL_BYTES
    shutil.rmtree(part, ignore_errors=True)
    for cause in causes:
        if isinstance(cause, OSError):
            return cause
    if is_full:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
    return Transient(f"it could not be written ({error})", where=part.name)
