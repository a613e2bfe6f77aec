"""Packed rows on disk: written part by part, read by memory map.

On disk, per split:   tokens-00000.npy  uint16 or int32  the tokens of the first part's segments, one after the other
                      labels-00000.npy  bool             True: predicted from the token before it
                      parts.npy     int64 (parts+1)      the first segment of each part
                      segments.npy  int64 (segments+1)   where each isolated segment starts, in tokens of all parts
                      order.npy     int32 or int64 (segments)  the segments, row after row
                      rows.npy      int64 (rows+1)       where each row starts in `order`
                      row_tokens.npy, row_labels.npy  int64 (rows)  tokens and labelled tokens of each row
Tokens stay in the order of the data, and a row only names its segments: packing moves none of them, parts are written
by many processes at once, and ranks of a machine share the pages that they read. The bytes depend on the data, the
tokenizer and the options, not on how many processes wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.crashpoints import crashpoint
from tasks.distributed.bin_packing import Rows

OPEN_PARTS = 256
"""Each is two files; 1024 is a usual limit for a process."""
LOOKED_AT = 1 << 20
"""Segments at a time."""
Ids = NDArray[np.integer]
Marks = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PackPart:
    """What is remembered of a part that is on disk, per segment: counts in as few bytes as they need."""

    tokens: NDArray[np.integer]
    labelled: NDArray[np.integer]


def write_part(folder: Path, number: int, ids: Sequence[Ids], labels: Sequence[Marks], *, vocabulary: int) -> PackPart:
    """Write the segments of one part. Token ids are below `vocabulary`."""
    kind = np.uint16 if vocabulary <= 1 << 16 else np.int32
    tokens = np.concatenate([np.zeros(0, np.int32), *ids])
    if tokens.max(initial=0) >= vocabulary:
        raise ValueError(f"token id {tokens.max()} of a vocabulary of {vocabulary}")
    np.save(folder / f"tokens-{number:05}.npy", tokens.astype(kind, copy=False))
    crashpoint("pack.mid_file")
    np.save(folder / f"labels-{number:05}.npy", np.concatenate([np.zeros(0, bool), *labels]))
    return PackPart(counted([len(one) for one in ids]), counted([int(one.sum()) for one in labels]))


def counted(counts: Sequence[int]) -> NDArray[np.integer]:
    """Counts in two bytes each if that is enough, else in four."""
    return np.array(counts, np.uint16 if max(counts, default=0) < 1 << 16 else np.int32)


def write_index(folder: Path, parts: Sequence[PackPart], rows: Rows) -> None:
    """Write what leads from rows to the segments of all parts."""
    tokens, labelled = joined([part.tokens for part in parts]), joined([part.labelled for part in parts])
    np.save(folder / "parts.npy", _starts(np.array([len(part.tokens) for part in parts], np.int64)))
    _save(folder / "segments.npy", len(tokens) + 1, _starts_of(tokens))
    np.save(folder / "order.npy", rows.order)
    np.save(folder / "rows.npy", rows.starts)
    for name, counts in (("row_tokens", tokens), ("row_labels", labelled)):
        _save(folder / f"{name}.npy", len(rows), _sums(counts, rows))


def joined(counts: Sequence[NDArray[np.integer]]) -> NDArray[np.integer]:
    """The same counts of all parts in one array."""
    return np.concatenate([np.zeros(0, np.uint16), *counts])


def _save(path: Path, count: int, pieces: Iterable[NDArray[np.int64]]) -> None:
    """The file that `np.save` writes of all pieces in one array of so many, without that array."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (count,)})
        for piece in pieces:
            file.write(piece.astype("<i8", copy=False).data)


def _starts_of(counts: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
    """`_starts` in pieces."""
    start = np.zeros(1, np.int64)
    yield start
    for at in range(0, len(counts), LOOKED_AT):
        piece = start + np.cumsum(counts[at : at + LOOKED_AT], dtype=np.int64)
        yield piece
        start = piece[-1:]


def _sums(counts: NDArray[np.integer], rows: Rows) -> Iterator[NDArray[np.int64]]:
    """The counts of each row, in pieces."""
    for at in range(0, len(rows), LOOKED_AT >> 3):
        starts = rows.starts[at : at + (LOOKED_AT >> 3) + 1]
        some = counts[rows.order[starts[0] : starts[-1]]]
        yield np.add.reduceat(some, starts[:-1] - starts[0], dtype=np.int64)


class PackedRows:
    """The rows of one split."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = np.load(folder / "parts.npy")
        self._segments, self._order, self._rows = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("segments", "order", "rows"))
        self._part = lru_cache(OPEN_PARTS)(self._opened)
        self.tokens_in: NDArray[np.int64] = np.load(folder / "row_tokens.npy", mmap_mode="r")
        """Tokens of each row."""
        self.labels_in: NDArray[np.int64] = np.load(folder / "row_labels.npy", mmap_mode="r")
        """Labelled tokens of each row."""

    def __len__(self) -> int:
        return len(self._rows) - 1

    @property
    def segments(self) -> int:
        """How many segments there are in all rows."""
        return len(self._order)

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        starts = range(0, self.segments, LOOKED_AT)
        return max((int(np.diff(self._segments[at : at + LOOKED_AT + 1]).max()) for at in starts), default=0)

    def segment(self, number: int) -> tuple[Ids, Marks]:
        """Token ids and labels of one segment, counted in the order of the data: views of what is on disk."""
        part = int(np.searchsorted(self._parts, number, side="right")) - 1
        ids, labels = self._part(part)
        first = self._segments[self._parts[part]]
        span = slice(self._segments[number] - first, self._segments[number + 1] - first)
        return ids[span], labels[span]

    def row(self, number: int) -> list[tuple[Ids, Marks]]:
        """The segments of one row, in their order."""
        return [self.segment(int(one)) for one in self._order[self._rows[number] : self._rows[number + 1]]]

    def _opened(self, part: int) -> tuple[Ids, Marks]:
        ids, labels = (np.load(self._folder / f"{name}-{part:05}.npy", mmap_mode="r") for name in ("tokens", "labels"))
        return ids, labels


def _starts(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
