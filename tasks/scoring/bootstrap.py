"""The one rule for intervals: resample the held-out rows, look where the statistic falls.

The interval is the 2.5 and 97.5 percentile over resampled rows (Koehn 2004, "Statistical Significance Tests for
Machine Translation Evaluation"), from a fixed seed. A statistic gets how often each row was drawn, so that a mean,
an F1 over summed counts and a perplexity are resampled alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
AT_A_TIME = 50
"""Resamples in memory together: 100,000 rows need 0.1 GB so."""
LEVEL = 0.95
Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""weights_RN (how often resample R holds row N) to values_RK (its K metrics)."""


def intervals(rows: int, statistic: Statistic, seed: int = 0) -> Floats:
    """bounds_K3: (low, value of all rows, high) of each metric."""
    low, high = np.quantile(resampled(rows, statistic, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.stack([low, statistic(np.ones((1, rows)))[0], high], axis=1)


def resampled(rows: int, statistic: Statistic, seed: int = 0) -> Floats:
    """values_RK of RESAMPLES resampled sets of rows."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES // AT_A_TIME):
        places = random.integers(0, rows, (AT_A_TIME, rows)) + rows * np.arange(AT_A_TIME)[:, None]
        drawn = np.bincount(places.ravel(), minlength=AT_A_TIME * rows)
        found.append(statistic(drawn.reshape(AT_A_TIME, rows).astype(np.float64)))
    return np.concatenate(found)


def mean_of(values_NK: Floats) -> Statistic:
    """The mean of each column."""
    return lambda weights_RN: weights_RN @ values_NK / weights_RN.sum(axis=1, keepdims=True)
