"""Checkpoints of a training: trained weights and optimizer state, by torch's DCP.

On disk:   <run>/step-000100/   DCP files and manifest.json, renamed into place when complete
Dies half-way: a `.part` folder that the next save removes; the checkpoint before it stands.
There is no random state to save: seeds are functions of (seed, step, rank), like the data order.
A checkpoint whose manifest does not verify is passed over, and said so.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from infra.errors import Transient
from infra.files import seal, sync_folder, verify
from tasks.distributed.parallel import Group

KEPT = 2
FULL_BYTES = 1 << 20
"""With less than this left, a failed write is a full disk."""
OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that verifies."""

    folder: Path
    step: int
    record: Mapping[str, Any]


def save(run: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, group: Group,
         record: Mapping[str, Any]) -> None:
    """Write the checkpoint after `step` finished steps; all ranks call it together.

    Raises OSError, a full disk among others; the checkpoint before it stands.
    """
    target = run / f"step-{step:06d}"
    part = target.with_suffix(".part")
    if group.is_first:
        shutil.rmtree(part, ignore_errors=True)
    group.barrier()
    weights, state = get_state_dict(model, optimizer, options=OPTIONS)
    try:
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=part)  # type: ignore[attr-defined]
    except CheckpointException as error:
        raise _write_error(error, part) from error
    group.barrier()
    if group.is_first:
        seal(part, {"step": step, **record})
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        sync_folder(run)
        for old in _folders(run)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    group.barrier()


def _write_error(error: CheckpointException, part: Path) -> Exception:
    """What stopped the writing. The half-written folder goes, so that there is room to say it.

    torch's writer says "unexpected pos" where the disk is full.
    """
    causes = [cause for cause, _ in error.failures.values() if isinstance(cause, OSError)]
    is_full = shutil.disk_usage(part.parent).free < FULL_BYTES
    shutil.rmtree(part, ignore_errors=True)
    if causes:
        return causes[0]
    if is_full:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
    return Transient(f"the checkpoint could not be written ({error})", where=part.name)


def latest(run: Path, key: str) -> Found | None:
    """The newest checkpoint that verifies and belongs to the training `key`."""
    for folder in _folders(run):
        manifest = verify(folder)
        if manifest is not None and manifest.record.get("key") == key:
            return Found(folder, int(manifest.record["step"]), manifest.record)
        log.warning("checkpoint=%s damaged or foreign, using the one before it", folder.name)
    return None


def load(found: Found, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint back into the model and the optimizer; all ranks call it together."""
    weights, state = get_state_dict(model, optimizer, options=OPTIONS)
    both: dict[str, Any] = {"model": weights, "optimizer": state}
    dcp.load(both, checkpoint_id=found.folder)  # type: ignore[attr-defined]
    set_state_dict(
        model, optimizer, model_state_dict=both["model"], optim_state_dict=both["optimizer"], options=OPTIONS)


def _folders(run: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    return sorted((p for p in run.glob("step-*") if p.is_dir() and p.suffix != ".part"), reverse=True)
