"""tasks/scoring/paired.py: how often equal models are refused, and worse ones; what is said of a difference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from infra.records import Comparison
from tasks.scoring.bootstrap import Floats
from tasks.scoring.paired import ERROR, compare

Draw = Callable[[np.random.Generator, int], Floats]
SPREADS = {
    "answers right or wrong": lambda draw, n: draw.choice([-1.0, 0, 1], n, p=[0.15, 0.7, 0.15]),
    "scores of text": lambda draw, n: draw.normal(0, 0.15, n),
    "most rows the same": lambda draw, n: draw.normal(0, 0.2, n) * (draw.random(n) < 0.3),
    "some far out": lambda draw, n: draw.standard_t(3, n) * 0.1}
"""How rows of two equal models differ."""


def pair(difference_N: Floats, weights_N: Floats | None = None) -> tuple[Floats, Floats]:
    """Parts of two models whose rows differ by so much."""
    below = np.ones(len(difference_N)) if weights_N is None else weights_N
    return np.stack([(0.5 + difference_N) * below, below], axis=1), np.stack([0.5 * below, below], axis=1)


def outcomes(spread: Draw, rows: int, sets: int, shift: float = 0.0, seed: int = 7) -> list[str]:
    draw = np.random.default_rng(seed)
    return [compare("f1", *pair(spread(draw, rows) + shift)).outcome for _ in range(sets)]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "sets"), [(10, 300), (20, 300), (50, 300)])
@pytest.mark.parametrize("spread", SPREADS)
def test_equal_models_are_called_worse_no_more_often_than_the_test_says(spread: str, rows: int, sets: int) -> None:
    found = outcomes(SPREADS[spread], rows, sets)
    print(f"{spread}, {rows} rows: {found.count('worse') / sets:.2%} worse, {found.count('better') / sets:.2%} better")
    most = binom.ppf(0.999, sets, ERROR)  # so many sets tell a share of errors to a point
    assert found.count("worse") <= most and found.count("better") <= most


@pytest.mark.slow
def test_of_equal_models_with_few_rows_and_many_at_most_three_of_a_hundred_are_refused() -> None:
    found = [one for rows in (10, 20, 50, 200) for place, spread in enumerate(SPREADS.values())
             for one in outcomes(spread, rows, 100, seed=rows + place)]
    print(f"{found.count('worse') / len(found):.2%} of {len(found)} equal models are called worse")
    assert found.count("worse") <= 0.03 * len(found)


@pytest.mark.parametrize(("deviation", "least", "most"), [(0.098, 0.75, 0.90), (0.238, 0.15, 0.30)])
def test_of_models_two_points_worse_a_fifth_to_four_fifths_are_seen_on_200_rows(
    deviation: float, least: float, most: float,
) -> None:
    """The two ends of what was measured: 22 % where rows differ by 0.24, 82 % where they differ by 0.1."""
    found = outcomes(lambda draw, n: draw.normal(0, deviation, n), 200, 150, shift=-0.02)
    print(f"deviation {deviation}: {found.count('worse') / 150:.0%} refused")
    assert least <= found.count("worse") / 150 <= most and "better" not in found


def test_equal_models_on_200_rows_are_not_called_worse() -> None:
    found = outcomes(lambda draw, n: draw.normal(0, 0.15, n), 200, 300)
    assert found.count("worse") <= binom.ppf(0.999, 300, ERROR)


@pytest.mark.parametrize("rows", range(1, 10))
def test_below_ten_rows_nothing_is_better_or_worse(rows: int) -> None:
    found = compare("accuracy", *pair(np.full(rows, -0.5)))
    assert (found.outcome, found.lost, found.rows) == ("no difference seen", rows, rows)


def test_at_ten_rows_a_model_that_loses_all_is_worse() -> None:
    ours, theirs = pair(np.full(10, -0.5))
    assert compare("accuracy", ours, theirs).outcome == "worse"
    assert compare("accuracy", theirs, ours).outcome == "better"


def test_rows_won_lost_and_tied_and_the_difference() -> None:
    found = compare("f1", *pair(np.array([0.1] * 8 + [-0.1] * 2 + [0.0] * 10)))
    assert (found.won, found.lost, found.tied, found.rows) == (8, 2, 10, 20)
    low, difference, high = found.difference
    assert low < difference < high
    assert [difference, found.value, found.other] == pytest.approx([0.03, 0.53, 0.5])


def test_a_lower_loss_is_better_and_long_rows_count_more() -> None:
    tokens = np.array([1000.0] + [1.0] * 19)
    ours, theirs = pair(np.array([-0.4] + [0.1] * 19), tokens)
    found = compare("loss", ours, theirs, lower_is_better=True)
    assert found.difference[1] < -0.38 and (found.won, found.lost) == (1, 19)
    even = compare("loss", *pair(np.full(20, -0.1)), lower_is_better=True)
    assert even.outcome == "better" and even.won == 20


def test_models_that_answer_the_same_are_not_told_apart() -> None:
    found = compare("accuracy", *pair(np.zeros(50)))
    assert (found.outcome, found.difference, found.least, found.tied) == ("no difference seen", [0, 0, 0], None, 50)


def test_the_smallest_difference_to_be_seen_is_2_8_standard_errors() -> None:
    spread = np.random.default_rng(3).normal(0, 0.2, 400)
    found = compare("f1", *pair(spread))
    assert found.least == pytest.approx(2.8 * 0.2 / 20, rel=0.1)


@pytest.mark.slow
def test_a_model_worse_by_the_smallest_difference_is_seen_four_times_of_five() -> None:
    def spread(draw: np.random.Generator, n: int) -> Floats:
        return draw.normal(0, 0.2, n)

    least = compare("f1", *pair(spread(np.random.default_rng(0), 5000))).least
    assert least is not None
    found = outcomes(spread, 100, 400, shift=-least * np.sqrt(5000 / 100))
    print(f"{found.count('worse') / 400:.0%} of models worse by the smallest difference are seen")
    assert 0.73 <= found.count("worse") / 400 <= 0.87


def test_a_comparison_is_the_same_every_time_and_survives_json() -> None:
    parts = pair(np.random.default_rng(0).normal(0, 0.1, 30))
    found = compare("f1", *parts)
    assert found == compare("f1", *parts) == Comparison.of(found.to_json())
