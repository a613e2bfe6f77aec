"""Which rows say nearly the same as an earlier one: MinHash signatures, compared where a band of them is equal.

In:   the texts of rows, in order     Out: for every row the first one that it nearly repeats, or itself
On disk meanwhile: the signatures, of which a band, or those of the rows just compared, are in memory at a time.
A row is the set of its word 5-grams, in lower case; two rows are near duplicates if the Jaccard similarity of these
sets is estimated as 0.8 or more. 5-grams and 0.8 are those of K. Lee et al., "Deduplicating Training Data Makes
Language Models Better" (ACL 2022), section 4.2; signatures by A. Broder, "On the resemblance and containment of
documents" (1997), made by Rensa. Of its 128 values 16 bits are kept (P. Li and A. C. Koenig, "b-Bit Minwise
Hashing", WWW 2010): 256 bytes a row. The estimate's standard error at 0.8 is 0.035; of pairs that are that similar
95 % share a band of 8 values, of pairs of 0.9 all but 0.01 %. Deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

GRAM_WORDS = 5
SIMILAR = 0.8
VALUES, BANDS = 128, 16
SEED = 1
MOST_ROWS = 2_000_000
"""Rows that are compared, the first ones: 512 MB of signatures, on disk."""
WORD_AND_SPACE = (1).__add__
COMPARED_ROWS = 1 << 16
"""Pairs whose signatures are compared at a time."""
BLOCK_ROWS = 1 << 12
"""Signatures that are read at a time, a megabyte of them."""


def grams_of(words: list[str]) -> list[str]:
    """The word 5-grams of a text; none if it is shorter."""
    text = " ".join(words)
    behind = list(accumulate(map(WORD_AND_SPACE, map(len, words))))
    return [text[start : end - 1] for start, end in zip([0, *behind], behind[GRAM_WORDS - 1 :], strict=False)]


def sketch_of(grams: list[str]) -> bytes:
    """The signature of a text that has 5-grams, 256 bytes."""
    sketch = RMinHash(num_perm=VALUES, seed=SEED)
    sketch.update(grams)
    return np.array(sketch.digest(), dtype=np.uint32).astype(np.uint16).tobytes()


@dataclass(frozen=True)
class Sketches:
    """Signatures of rows."""

    file: Path
    """They themselves, VALUES numbers of 16 bits each, in the order of `rows`."""
    rows: NDArray[np.int64]
    """Numbers of those rows, ascending."""

    def __len__(self) -> int:
        return len(self.rows)

    def first(self) -> NDArray[np.int64]:
        """Of each of `rows` the first one that it nearly repeats, or itself."""
        first = np.arange(len(self))
        for start in range(0, VALUES, VALUES // BANDS):
            self._take_equal(self._keys(slice(start, start + VALUES // BANDS)), first)
        for i in np.flatnonzero(first != np.arange(len(self))).tolist():
            first[i] = first[first[i]]  # an earlier row, which is resolved already
        return self.rows[first]

    def _take_equal(self, keys: NDArray[np.uint64], first: NDArray[np.int64]) -> None:
        """Lower `first` of every row to the earliest one with the same key, if the two are similar."""
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        begins = np.flatnonzero(np.diff(keys, prepend=keys[:1] + np.uint64(1)))
        del keys  # 16 MB of two million rows, as each of these arrays
        earliest = np.repeat(order[begins], np.diff(begins, append=len(order)))
        fresh = earliest < first[order]
        rows, others = order[fresh], earliest[fresh]
        for start in range(0, len(rows), COMPARED_ROWS):
            part = slice(start, start + COMPARED_ROWS)
            alike = (self._values(rows[part]) == self._values(others[part])).mean(axis=1) >= SIMILAR
            first[rows[part][alike]] = others[part][alike]

    def _keys(self, columns: slice) -> NDArray[np.uint64]:
        """A number for those values of each signature; equal values have equal numbers."""
        keys = np.empty(len(self), np.uint64)
        for start in range(0, len(self), BLOCK_ROWS):
            halves = np.ascontiguousarray(self._block(start)[:, columns]).view(np.uint64)
            keys[start : start + BLOCK_ROWS] = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ halves[:, 1]
        return keys

    def _values(self, wanted: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Whole signatures, by their places; only blocks with one of them are read."""
        order = np.argsort(wanted, kind="stable")
        values = np.empty((len(wanted), VALUES), np.uint16)
        blocks, begins = np.unique(wanted[order] // BLOCK_ROWS, return_index=True)
        for block, places in zip(blocks.tolist(), np.split(order, begins[1:]), strict=True):
            start = block * BLOCK_ROWS
            values[places] = self._block(start)[wanted[places] - start]
        return values

    def _block(self, start: int) -> NDArray[np.uint16]:
        size = VALUES * np.dtype(np.uint16).itemsize
        return np.fromfile(self.file, np.uint16, BLOCK_ROWS * VALUES, offset=start * size).reshape(-1, VALUES)
