"""Is one model better than another on the same rows? The paired bootstrap of the difference.

In:   of both models parts_N2: (numerator, denominator) of each row; a score is the ratio of their sums
Out:  a Comparison: better, no difference seen, or worse; interval, rows won and lost, smallest difference to be seen
The difference is resampled over rows, the same rows for both models (Koehn 2004, W04-3250, section 4), as a percentile
interval that is widened for few rows (Hesterberg 2015, arXiv 1411.5279, section 4.4: expanded percentile). On 10 to 20
rows it still calls up to 4 % of equal models worse, so the sign-flip test must agree (approximate randomization:
Noreen 1989; Riezler and Maxwell 2005, W05-0908), whose error is known on any number of rows.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from infra.records import Comparison
from tasks.scoring.bootstrap import AT_A_TIME, Floats, resampled

ERROR = 0.025
"""One-sided: the share of equal models that may be called worse."""
FLIP_ERROR = 0.0225
"""Of the sign-flip test: a little less, so that both tests together stay below ERROR whatever is drawn."""
POWER = 0.8
FLIPS = 10_000
"""Of rows that change sides; with 1,000 the share of errors would be known to half a point only."""
FEWEST_ROWS = 10
"""With fewer rows nothing is called better or worse."""


def ratio(sums_R2: Floats) -> Floats:
    """The score of summed parts; an empty denominator, as of a row without labelled tokens, counts as one."""
    return sums_R2[:, 0] / np.maximum(sums_R2[:, 1], 1)


def compare(metric: str, ours_N2: Floats, theirs_N2: Floats, *, lower_is_better: bool = False) -> Comparison:
    """Our model beside theirs. The difference is ours less theirs; for a loss, below zero is better."""
    rows = len(ours_N2)
    value, other = (float(ratio(parts.sum(axis=0, keepdims=True))[0]) for parts in (ours_N2, theirs_N2))
    by_row = np.sign(ratio(ours_N2) - ratio(theirs_N2)) * (-1 if lower_is_better else 1)
    drawn = resampled(rows, lambda weights_RN: (ratio(weights_RN @ ours_N2) - ratio(weights_RN @ theirs_N2))[:, None])
    low, high = np.quantile(drawn, [cut_off(rows), 1 - cut_off(rows)])
    return Comparison(
        metric=metric, value=round(value, 6), other=round(other, 6),
        difference=[round(float(edge), 6) for edge in (low, value - other, high)],
        outcome=outcome(ours_N2, theirs_N2, (low, high), lower_is_better), rows=rows, won=int((by_row > 0).sum()),
        lost=int((by_row < 0).sum()), tied=int((by_row == 0).sum()), least=least_seen(drawn, rows))


def cut_off(rows: int) -> float:
    """What is cut off on each side of the resampled differences: ERROR, and less where rows are few."""
    if rows < 2:
        return 0.0
    return NormalDist().cdf(math.sqrt(rows / (rows - 1)) * _student(rows, ERROR))


def outcome(ours_N2: Floats, theirs_N2: Floats, interval: tuple[float, float], lower_is_better: bool) -> str:
    """In one word or three. Both tests must agree on a difference."""
    if len(ours_N2) < FEWEST_ROWS or interval[0] <= 0 <= interval[1] or not flips_agree(ours_N2, theirs_N2):
        return "no difference seen"
    return "better" if (interval[0] > 0) != lower_is_better else "worse"


def flips_agree(ours_N2: Floats, theirs_N2: Floats, seed: int = 1) -> bool:
    """Whether at most FLIP_ERROR of the differences that arise when rows change sides by chance lie as far out, on the
    same side of zero."""
    random, rows = np.random.default_rng(seed), len(ours_N2)
    total, apart_N2 = ours_N2 + theirs_N2, ours_N2 - theirs_N2

    def differences(sides_RN: Floats) -> Floats:
        moved = sides_RN @ apart_N2
        return ratio((total.sum(axis=0) + moved) / 2) - ratio((total.sum(axis=0) - moved) / 2)

    seen = float(differences(np.ones((1, rows)))[0])
    as_far, most = 1, FLIP_ERROR * (FLIPS + 1)  # the one that was seen counts
    for _ in range(FLIPS // AT_A_TIME):
        sides_RN = (2 * random.integers(0, 2, (AT_A_TIME, rows)) - 1).astype(np.float64)
        as_far += int((differences(sides_RN) * np.sign(seen) >= abs(seen) - 1e-12).sum())
        if as_far > most:
            return False
    return True


def least_seen(drawn: Floats, rows: int) -> float | None:
    """The smallest true difference that so many rows show with POWER: (t_ERROR + t_POWER) standard errors, t of Student
    with rows - 1 degrees of freedom, about 2.8 (Cohen 1988, section 2.4; Card et al. 2020, 2020.emnlp-main.745).

    The standard error is that of the resampled differences. None where it is zero: no row tells the models apart.
    """
    error = float(np.std(drawn))
    if rows < 2 or error == 0:
        return None
    return round((_student(rows, 1 - ERROR) + _student(rows, POWER)) * error, 6)


def _student(rows: int, probability: float) -> float:
    from scipy.special import stdtrit  # rouge-score and MLflow bring it

    return float(stdtrit(rows - 1, probability))
