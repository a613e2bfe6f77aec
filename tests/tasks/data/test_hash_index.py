"""tasks/data/hash_index.py: the rows of every hash, whether they are held in memory or on disk."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tasks.data import hash_index
from tasks.data.hash_index import Hashes


@pytest.mark.parametrize("spill_bytes", [1, 100, 1 << 20])
def test_the_rows_of_a_hash_are_found_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spill_bytes: int,
) -> None:
    monkeypatch.setattr(hash_index, "SPILL_BYTES", spill_bytes)
    draw = random.Random(spill_bytes)
    kinds = [draw.randbytes(16) for _ in range(300)]
    kinds += [kind[:8] + bytes(8) for kind in kinds[:50]] + [bytes(8) + kind[8:] for kind in kinds[:50]]
    rows = [draw.choice(kinds) for _ in range(2000)]
    found = Hashes(tmp_path)
    for row, hash in enumerate(rows):
        found.add(hash, row)
    groups = [part.group(number).tolist() for part in found.groups() for number in range(len(part.starts))]
    assert groups == [[row for row, other in enumerate(rows) if other == hash] for hash in sorted(set(rows))]
    repeated = sorted(row for part in found.groups() for row in part.repeats().tolist())
    assert repeated == [row for row, hash in enumerate(rows) if hash in rows[:row]]
    even = np.arange(2000) % 2 == 0
    counts = [count for part in found.groups() for count in part.count(even).tolist()]
    assert counts == [sum(row % 2 == 0 for row in group) for group in groups]
    assert any(tmp_path.iterdir()) is (spill_bytes < 1 << 20)


def test_no_rows_are_no_groups(tmp_path: Path) -> None:
    assert list(Hashes(tmp_path).groups()) == []
