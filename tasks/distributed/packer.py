"""Put examples into rows: global best-fit decreasing over the histogram of lengths.

In:   lengths in tokens, the capacity of a row     Out: every example exactly once, in rows
Best fit puts the next-longest example into the fullest row that still takes it. Examples of one
length are interchangeable, and so are rows filled alike, so whole groups move at once: the work
grows with the number of distinct lengths, not with the number of examples. Deterministic.
Best-fit decreasing: D. S. Johnson, "Near-optimal bin packing algorithms", MIT 1973.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pattern = tuple[tuple[int, int], ...]
"""(length, how many of it), ...: what a group of rows holds."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Row i holds the examples `order[starts[i]:starts[i + 1]]`."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1


def one_each(count: int) -> Rows:
    """Every example in a row of its own."""
    return Rows(np.arange(count, dtype=np.int64), np.arange(count + 1, dtype=np.int64))


def best_fit(lengths: NDArray[np.integer], capacity: int) -> Rows:
    """Pack examples of `lengths` tokens into rows of at most `capacity` tokens.

    Raises ValueError for a length outside 1..capacity: cut or split such examples first.
    """
    if len(lengths) == 0:
        return one_each(0)
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(f"lengths are {lengths.min()}..{lengths.max()}; expected 1..{capacity}")
    return _expand(_group(np.bincount(lengths), capacity), lengths)


def _group(histogram: NDArray[np.integer], capacity: int) -> list[tuple[int, Pattern]]:
    """(number of rows, pattern) groups that hold `histogram[n]` examples of each length n."""
    groups: dict[int, list[tuple[int, Pattern]]] = {}
    spaces: list[int] = []  # the free spaces that some group has, ascending

    def add(space: int, rows: int, pattern: Pattern) -> None:
        if space not in groups:
            groups[space] = []
            insort(spaces, space)
        groups[space].append((rows, pattern))

    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            at = bisect_left(spaces, length)
            space = spaces[at] if at < len(spaces) else capacity
            rows, pattern = groups[space].pop() if at < len(spaces) else (left, ())
            if at < len(spaces) and not groups[space]:
                del groups[space], spaces[at]
            each = min(space // length, left)
            filled = min(rows, left // each)
            left -= filled * each
            add(space - each * length, filled, (*pattern, (length, each)))
            if rows > filled and pattern:
                add(space, rows - filled, pattern)
    return [group for space in spaces for group in groups[space]]




def _expand(groups: list[tuple[int, Pattern]], lengths: NDArray[np.integer]) -> Rows:
    """Hand the examples out, those of one length in their own order."""
    by_length = np.argsort(lengths, kind="stable").astype(np.int64)
    sorted_lengths = lengths[by_length]
    next_of = {int(n): int(np.searchsorted(sorted_lengths, n)) for n in np.unique(lengths)}
    order: list[NDArray[np.int64]] = []
    widths: list[NDArray[np.int64]] = []
    for rows, pattern in groups:
        columns = []
        for length, each in pattern:
            start = next_of[length]
            next_of[length] = start + rows * each
            columns.append(by_length[start : start + rows * each].reshape(rows, each))
        block = np.concatenate(columns, axis=1)
        order.append(block.ravel())
        widths.append(np.full(rows, block.shape[1], dtype=np.int64))
    return Rows(np.concatenate(order), np.concatenate([[0], np.cumsum(np.concatenate(widths))]))
