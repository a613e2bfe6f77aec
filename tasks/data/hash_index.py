"""Which rows share a hash: kept on disk, so that memory does not grow with the rows.

In:   (hash, row number), rows ascending     Out: the rows of every hash, in the order of the hashes
Hashes that begin alike are a partition, which is sorted by itself, in about 70 bytes of memory a row; very many rows of
one hash are in one. A few rows stay in memory altogether.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 16
BITS = 6
"""Of a hash's first byte, which choose one of 64 partitions."""
SPILL_BYTES = 1 << 18
"""A partition keeps fewer in memory."""
RECORD = np.dtype([("high", ">u8"), ("low", ">u8"), ("row", ">i8")])

Flags = NDArray[np.bool_]
"""One a row."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of one partition, those of a hash side by side and ascending."""

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    """Where each group begins in `rows`."""

    def count(self, flags: Flags) -> NDArray[np.int64]:
        """How many rows of each group are flagged."""
        return np.add.reduceat(flags[self.rows], self.starts, dtype=np.int64)

    def group(self, number: int) -> NDArray[np.int64]:
        """The rows of one group."""
        end = self.starts[number + 1] if number + 1 < len(self.starts) else None
        return self.rows[self.starts[number] : end]

    def repeats(self) -> NDArray[np.int64]:
        """The rows that stand behind another one of their group."""
        return np.delete(self.rows, self.starts)


class Hashes:
    """Hashes of rows. `folder` is used for those that memory should not hold."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = [bytearray() for _ in range(1 << BITS)]

    def add(self, digest: bytes, row: int) -> None:
        """Take the hash (16 bytes) of a row."""
        part = self._parts[number := digest[0] >> 8 - BITS]
        part += digest
        part += row.to_bytes(8, "big")
        if len(part) >= SPILL_BYTES:
            with self._file(number).open("ab") as file:
                file.write(part)
            part.clear()

    def groups(self) -> Iterator[Groups]:
        """All rows, by ascending hashes."""
        for number, part in enumerate(self._parts):
            file = self._file(number)
            records = np.frombuffer(part, RECORD)
            if file.exists():
                records = np.concatenate([np.fromfile(file, RECORD), records])
            if len(records):
                yield _grouped(records)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:02}.hashes"


def _grouped(records: NDArray[np.void]) -> Groups:
    high, low = (records[name].astype(np.uint64) for name in ("high", "low"))
    order = np.lexsort((low, high))  # stable: rows stay ascending
    high, low = high[order], low[order]
    begins = np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])])
    return Groups(records["row"][order].astype(np.int64), np.flatnonzero(begins))
