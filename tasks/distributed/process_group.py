"""The process group of a training: join it, talk in it, leave it.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK and OMP_NUM_THREADS for each rank.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from infra.crashpoints import crashpoint
from tasks.distributed.model import torch_device

T = TypeVar("T")
TIMEOUT = timedelta(seconds=60)
"""For collectives within a step. A rank that dies is noticed at once, by its closed connection."""
PATIENCE = timedelta(hours=2)
UNORDERED = {"cuda"}
"""Kinds of devices whose kernels add in any order unless they are told."""


@dataclass(frozen=True, slots=True)
class Group:
    """This rank among the others."""

    rank: int
    world: int
    device: torch.device
    patient: dist.ProcessGroup
    """For waits on work that one rank does alone, such as writing the weights; CPU tensors only."""
    saving: dist.ProcessGroup
    """For checkpoints that are written while the next steps run."""

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over all ranks, in place."""
        dist.all_reduce(values)
        return values

    def patient_sum(self, values: Tensor) -> Tensor:
        """The same for a CPU tensor, after work that takes the ranks unequally long."""
        dist.all_reduce(values, group=self.patient)
        return values

    def from_first(self, value: T) -> T:
        """What the first rank has, on all of them: they must not decide the same thing apart."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks, however long one of them takes."""
        dist.barrier(group=self.patient)


@contextmanager
def group() -> Iterator[Group]:
    """Join the group that torchrun set up, leave it in order."""
    crashpoint("train.before_init")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = torch_device(int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    patient, saving = (dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
    joined = Group(dist.get_rank(), dist.get_world_size(), device, patient, saving)
    try:
        crashpoint("train.after_init")
        yield joined
        joined.barrier()  # gloo aborts at exit now and then without it
    finally:
        dist.destroy_process_group()


def repeatable(device: torch.device, *, strict: bool = True) -> None:
    """Let CUDA's kernels add in one order, so that the same step gives the same bits: the gradient of attention does
    not by itself. `strict`: an operation that has no such kernel raises RuntimeError; else it warns, and attention too
    adds as it comes. Call it before the first use of cuBLAS."""
    if device.type not in UNORDERED:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a help that costs time
    torch.use_deterministic_algorithms(True, warn_only=not strict)


class Later:
    """Figures that the device is still working on; asking for them waits for these alone."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._ready = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def get(self) -> list[float]:
        """The figures."""
        if self._ready is not None:
            self._ready.synchronize()
        return list(self._values.tolist())


class StopFlag:
    """Set by SIGTERM; the ranks agree on it at the next step."""

    def __init__(self) -> None:
        self.is_set = False
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
