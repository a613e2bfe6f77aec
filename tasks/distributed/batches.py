"""Batches of packed rows, and the order in which training takes them.

The rows of a step are a function of (seed, step) only, so a resumed run, or one on another
number of ranks, takes the same rows at the same step. Shapes: T tokens, S segments, N labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.distributed.packs import PackedRows


@dataclass(frozen=True, slots=True)
class Batch:
    """One flattened micro-batch: no attention mask, positions restart per segment, padding only where it is filled."""

    ids_T: Tensor
    positions_T: Tensor
    bounds_S1: Tensor
    """int32: start of each segment, and the end of the last."""
    longest: int
    """No segment has more tokens."""
    predicts_N: Tensor
    """Places whose next token is labelled."""
    labels_N: Tensor
    """Those next tokens."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; from pinned memory without waiting for it."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(change(self.ids_T), change(self.positions_T), change(self.bounds_S1), self.longest,
                     change(self.predicts_N), change(self.labels_N))


@dataclass(frozen=True, slots=True)
class Filled:
    """The shape of a batch that is filled up."""

    rows: int
    tokens: int
    """Of a row."""
    longest: int
    """Tokens of the longest segment of all batches."""


def batch_of(
    packs: PackedRows, rows: NDArray[np.int64], *, labelled: bool = True, filled: Filled | None = None,
) -> Batch:
    """The given rows flattened into one. `labelled=False` keeps the shape but learns nothing.

    `filled`: unlabelled segments fill it up to so many rows of so many tokens, for code that is compiled.
    """
    segments = [segment for row in rows.tolist() for segment in packs.row(row)]
    ids = np.concatenate([ids for ids, _ in segments])
    marks = np.concatenate([marks for _, marks in segments])
    lengths = np.array([len(ids) for ids, _ in segments])
    if filled:
        missing = filled.rows * filled.tokens - len(ids)
        lengths = np.concatenate([lengths, np.diff([*range(0, missing, filled.longest), missing])])
        ids, marks = np.pad(ids, (0, missing)), np.pad(marks, (0, missing))
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)
    targets = np.flatnonzero(marks) if labelled else np.zeros(0, dtype=np.int64)
    return Batch(
        torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(positions),
        torch.from_numpy(bounds.astype(np.int32)), filled.longest if filled else int(lengths.max()),
        torch.from_numpy(targets - 1), torch.from_numpy(ids[targets].astype(np.int64)))


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How many steps there are, and which rows each takes."""

    rows: int
    batch: int
    epochs: int
    max_steps: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass; the last one may take fewer rows."""
        return math.ceil(self.rows / self.batch)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        steps = self.steps_per_epoch * self.epochs
        return min(steps, self.max_steps) if self.max_steps else steps

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """Rows of the step after `step` finished ones: a fresh order every epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(self.rows, self.seed, epoch)
        return order[place * self.batch : (place + 1) * self.batch]


@lru_cache(maxsize=2)  # a step asks for its rows several times; the feed may be an epoch ahead
def _order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    order.setflags(write=False)
    return order


def micro_batches(rows: NDArray[np.int64], *, rank: int, world: int, count: int) -> list[NDArray[np.int64]]:
    """A rank's share of a batch in `count` parts, or fewer where there are not as many rows.

    Every rank has the same number of parts; some may be empty when rows are few.
    """
    return np.array_split(rows[rank::world], min(count, math.ceil(len(rows) / world)))


class Feed(Iterator[Batch]):
    """A rank's micro-batches in their order; a thread makes the next one ready while one is used."""

    def __init__(
        self, rows: PackedRows, plan: BatchPlan, *, rank: int, world: int, count: int, device: torch.device,
        started: int, row_tokens: int = 0,
    ) -> None:
        """`row_tokens`: every micro-batch of every rank is filled up to one shape, of rows of that many tokens."""
        self._rows, self._plan, self._device = rows, plan, device
        largest = math.ceil(math.ceil(min(plan.batch, plan.rows) / world) / count)
        self._filled = Filled(largest, row_tokens, rows.longest) if row_tokens else None
        self._share = {"rank": rank, "world": world, "count": count}
        self._order = (
            part for step in range(started, plan.steps) for part in self._parts(step))
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._coming = self._ask()

    def parts_of(self, step: int) -> int:
        """Micro-batches of a step."""
        return len(self._parts(step))

    def __next__(self) -> Batch:
        if self._coming is None:
            raise StopIteration
        batch = self._coming.result()
        self._coming = self._ask()
        return batch.to(self._device)

    def _parts(self, step: int) -> list[tuple[NDArray[np.int64], bool]]:
        """Rows, and whether they are labelled: a rank without rows of its own goes along on another's."""
        rows = self._plan.rows_of(step)
        parts = micro_batches(rows, **self._share)
        return [(part, True) if len(part) else (rows[:1], False) for part in parts]

    def _ask(self) -> Future[Batch] | None:
        following = next(self._order, None)
        return None if following is None else self._maker.submit(self._make, *following)

    def _make(self, rows: NDArray[np.int64], labelled: bool) -> Batch:
        batch = batch_of(self._rows, rows, labelled=labelled, filled=self._filled)
        return batch.pinned() if self._device.type == "cuda" else batch
