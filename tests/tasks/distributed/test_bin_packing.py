"""tasks/distributed/bin_packing.py: nothing lost, nothing twice, nearly nothing wasted."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.distributed.bin_packing import Rows, best_fit, one_each


def check(rows: Rows, lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Every example exactly once, no row too long; returns the fill of each row."""
    assert np.array_equal(np.sort(rows.order), np.arange(len(lengths)))
    fills = np.add.reduceat(lengths[rows.order], rows.starts[:-1])
    assert fills.max() <= capacity and fills.min() > 0
    return fills


@pytest.mark.parametrize("seed", range(200))
def test_every_example_is_in_exactly_one_row(seed: int) -> None:
    draw = np.random.default_rng(seed)
    capacity = int(draw.integers(1, 50))
    lengths = draw.integers(1, capacity + 1, int(draw.integers(1, 100)))
    check(best_fit(lengths, capacity), lengths, capacity)


@pytest.mark.parametrize("seed", range(50))
def test_it_packs_at_least_as_well_as_textbook_best_fit_decreasing(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 30, 80)
    spaces: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else 30) - length)
    assert len(best_fit(lengths, 30)) <= len(spaces)


def test_a_row_ends_with_examples_that_fit_exactly() -> None:
    lengths = np.array([5, 4, 3, 3, 3, 2])  # best-fit decreasing: 5 4, 3 3 3, 2
    rows = best_fit(lengths, 10)
    assert check(rows, lengths, 10).tolist() == [10, 10]


@pytest.mark.parametrize("shortest", [1, 20])
def test_dialogue_like_lengths_fill_rows_to_within_two_of_the_bound(shortest: int) -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 0.7, 14_732).astype(int) + 1, shortest, 2048)
    rows = best_fit(lengths, 2048)
    fills = check(rows, lengths, 2048)
    assert len(rows) - -(-lengths.sum() // 2048) <= 2
    assert fills.sum() / (len(rows) * 2048) >= 0.9985


def test_the_same_lengths_give_the_same_rows() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, 1000)
    assert np.array_equal(best_fit(lengths, 128).order, best_fit(lengths.copy(), 128).order)


def test_no_examples_give_no_rows() -> None:
    assert len(best_fit(np.zeros(0, dtype=int), 8)) == 0 and len(one_each(3)) == 3


@pytest.mark.parametrize("length", [0, 9])
def test_a_length_that_cannot_fit_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"expected 1\.\.8"):
        best_fit(np.array([3, length]), 8)
