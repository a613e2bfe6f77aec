"""Put examples into rows: two packings over the histogram of lengths, of which the one with fewer rows is used.

In:   lengths in tokens, the capacity of a row     Out: every example exactly once, in rows
Examples of one length are interchangeable, and so are rows filled alike, so whole groups move at
once: the work grows with the number of distinct lengths, not with the number of examples.
Best-fit decreasing (D. S. Johnson, "Near-optimal bin packing algorithms", MIT 1973) puts the
next-longest example into the fullest row that still takes it; it is never far from the best.
Filling row by row, and ending a row with one or two examples that fit exactly, leaves less over
where lengths are many (in the spirit of J. N. D. Gupta and J. C. Ho, "A new heuristic algorithm
for the one-dimensional bin-packing problem", 1999). Deterministic.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pattern = tuple[tuple[int, int], ...]
"""(length, how many of it), ...: what a group of rows holds."""
Group = tuple[int, Pattern]
"""How many rows, and what each of them holds."""
SORTED_AT_ONCE = 1 << 20
"""Examples; each takes 40 bytes meanwhile."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Row i holds the examples `order[starts[i]:starts[i + 1]]`."""

    order: NDArray[np.integer]
    """int32, or int64 where there are more examples than that can count."""
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1


def one_each(count: int) -> Rows:
    """Every example in a row of its own."""
    return Rows(np.arange(count, dtype=_index(count)), np.arange(count + 1, dtype=np.int64))


def best_fit(lengths: NDArray[np.integer], capacity: int) -> Rows:
    """Pack examples of `lengths` tokens into rows of at most `capacity` tokens.

    Raises ValueError for a length outside 1..capacity: cut or split such examples first.
    """
    if len(lengths) == 0:
        return one_each(0)
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(f"lengths are {lengths.min()}..{lengths.max()}; expected 1..{capacity}")
    histogram = _histogram(lengths, capacity + 1)
    groups = _best_fit_decreasing(histogram, capacity)
    if _rows_in(groups) * capacity - int(lengths.sum(dtype=np.int64)) >= capacity:  # fewer rows may do
        groups = min(groups, _row_by_row(histogram, capacity), key=_rows_in)
    return _expand(groups, lengths)


def _rows_in(groups: list[Group]) -> int:
    return sum(rows for rows, _ in groups)


def _best_fit_decreasing(histogram: NDArray[np.integer], capacity: int) -> list[Group]:
    """Groups that hold `histogram[n]` examples of each length n."""
    groups: dict[int, list[Group]] = {}
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


def _row_by_row(histogram: NDArray[np.integer], capacity: int) -> list[Group]:
    """The same by filling one row after the other, each as often as the examples allow."""
    left = histogram.copy()
    groups: list[Group] = []
    while left.any():
        row: dict[int, int] = {}
        space = capacity
        while lengths := _next_lengths(left, space, first=not row):
            for length in lengths:
                row[length] = row.get(length, 0) + 1
                left[length] -= 1
                space -= length
        more = min(int(left[length]) // each for length, each in row.items())
        for length, each in row.items():
            left[length] -= more * each
        groups.append((1 + more, tuple(row.items())))
    return groups


def _next_lengths(left: NDArray[np.integer], space: int, *, first: bool) -> tuple[int, ...]:
    """Which lengths to put into a row with `space` tokens free: one or two that fill it, else the longest that fits.

    The `first` one is the longest of all. Empty: nothing fits.
    """
    there = left[: space + 1] > 0
    fitting = np.flatnonzero(there)
    if len(fitting) == 0:
        return ()
    longest = int(fitting[-1])
    if first or longest == space:
        return (longest,)
    shorter = (space - 1) // 2  # of two different lengths that fill the space, one is at most this
    pairs = there[1 : shorter + 1] & there[space - 1 : space - shorter - 1 : -1]
    if pairs.any():
        short = 1 + int(pairs.argmax())
        return (short, space - short)
    half = space // 2
    return (half, half) if space == 2 * half and left[half] > 1 else (longest,)


def _expand(groups: list[Group], lengths: NDArray[np.integer]) -> Rows:
    """Hand the examples out, those of one length in their own order."""
    by_length, next_of = _by_length(lengths)
    order, filled = np.empty(len(lengths), by_length.dtype), 0
    widths: list[NDArray[np.int64]] = []
    for rows, pattern in groups:
        columns = []
        for length, each in pattern:
            start = next_of[length]
            next_of[length] += rows * each
            columns.append(by_length[start : start + rows * each].reshape(rows, each))
        block = np.concatenate(columns, axis=1)
        order[filled : filled + block.size] = block.ravel()
        filled += block.size
        widths.append(np.full(rows, block.shape[1], dtype=np.int64))
    return Rows(order, np.concatenate([[0], np.cumsum(np.concatenate(widths))]))


def _by_length(lengths: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """The examples by their lengths, those of one length in their own order; and where each length begins.

    Some at a time: sorting all at once takes 16 bytes of memory an example on top.
    """
    begins = np.concatenate([[0], np.cumsum(_histogram(lengths))])
    free = begins.copy()
    found = np.empty(len(lengths), _index(len(lengths)))
    for start in range(0, len(lengths), SORTED_AT_ONCE):
        some = lengths[start : start + SORTED_AT_ONCE]
        order = np.argsort(some.astype(np.min_scalar_type(int(some.max()))), kind="stable")  # linear for 16 bits
        counts = np.bincount(some, minlength=len(free) - 1)
        behind = np.arange(len(some)) - np.repeat(np.cumsum(counts) - counts, counts)
        found[np.repeat(free[:-1], counts) + behind] = start + order
        free[:-1] += counts
    return found, begins


def _histogram(lengths: NDArray[np.integer], least: int = 0) -> NDArray[np.int64]:
    """How many examples there are of each length; as many lengths as `least`."""
    size = max(int(lengths.max()) + 1, least)
    found = np.zeros(size, np.int64)
    for start in range(0, len(lengths), SORTED_AT_ONCE):
        found += np.bincount(lengths[start : start + SORTED_AT_ONCE], minlength=size)
    return found


def _index(count: int) -> type[np.signedinteger[Any]]:
    return np.int32 if count <= np.iinfo(np.int32).max else np.int64
