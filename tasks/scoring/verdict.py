"""The gate, and its verdict in a few sentences: better, no difference seen, or worse.

In:   Comparisons with the base, a baseline and the champion     Out: whether to deploy, and the sentences
Pure functions. A version is refused by a comparison that says "worse", and by nothing else but a loss that is no
number, or a champion that it cannot be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from infra.records import Comparison, Evaluation
from infra.spec import Gate
from tasks.scoring.paired import FEWEST_ROWS

METRIC_NAMES = {"rougeL": "ROUGE-L", "accuracy": "accuracy", "f1": "F1", "field_f1": "field F1",
                "loss": "held-out loss"}
"""How the verdict calls them."""
OTHERS = {"base": "the base", "lead3": "LEAD-3", "most_frequent": "the most frequent label"}
FROM = {"better": "Better than", "worse": "Worse than", "no difference seen": "No difference seen from"}


@dataclass(frozen=True)
class Standing:
    """The destination's champion, as it stands in a verdict."""

    number: int
    is_itself: bool = False
    """The champion is the version of this very training."""
    reason: str = ""
    """Why it could not be compared with."""


def judge(
    evaluation: Evaluation, gate: Gate, champion: Standing | None, *, held_out: int,
) -> tuple[bool, str]:
    """Whether the version may be deployed, and why in full sentences."""
    if not held_out:
        return True, "Not judged: there are no held-out rows."
    if not math.isfinite(evaluation.loss["tuned"]):
        told, by = f"Worse than any model: the held-out loss is {evaluation.loss['tuned']}.", "a loss that is no number"
    else:
        told = " ".join(sentences(evaluation.compared, champion))
        by = refused_by(evaluation.compared, gate, champion)
    if gate == "off":
        return True, f"Not gated (gate=off). {told}"
    if by:
        return False, f"{told} The gate keeps the version from being deployed: {by}."
    return True, told or "Not judged: the held-out rows were not compared."


def refused_by(compared: Mapping[str, Comparison], gate: Gate, champion: Standing | None) -> str:
    """What the gate refuses the version for; empty if it may be deployed.

    Without a champion, and for a training whose version is the champion, the base takes its place.
    """
    base = compared.get("base")
    if champion is None or champion.is_itself or gate == "not_worse_than_base":
        return "it is worse than the base" if base and base.outcome == "worse" else ""
    beside = compared.get("champion")
    if beside is None:
        return f"it could not be compared with the champion, version {champion.number} ({champion.reason})"
    return f"it is worse than the champion, version {champion.number}" if beside.outcome == "worse" else ""


def sentences(compared: Mapping[str, Comparison], champion: Standing | None) -> list[str]:
    """One for each comparison, the champion's first, and what else has to be known."""
    names = dict(OTHERS)
    if champion:
        names = {"champion": f"the champion (version {champion.number})", **names}
    found = [sentence(compared[key], name) for key, name in names.items() if key in compared]
    if champion and champion.is_itself:
        found.append(f"It is the champion itself (version {champion.number}).")
    some = next(iter(compared.values()), None)
    if some and some.rows < FEWEST_ROWS:
        found.append(f"Nothing is called better or worse, and nothing refused, on {rows_in_words(some.rows)}: at least "
                     f"{FEWEST_ROWS} are needed.")
    if some and some.metric != "loss" and some.value == 0:
        found.append("Every answer scores 0.")
    return found


def sentence(found: Comparison, name: str) -> str:
    """Such as "Better than the base: ROUGE-L 0.512 against 0.301 (difference 0.211, 95 % interval 0.150 to 0.270; of 50
    held-out rows 40 won, 6 lost, 4 tied)."."""
    digits = 4 if found.metric == "loss" else 3
    low, difference, high = (f"{edge:.{digits}f}" for edge in found.difference)
    text = (f"{FROM[found.outcome]} {name}: {METRIC_NAMES[found.metric]} {found.value:.{digits}f} against "
            f"{found.other:.{digits}f} (difference {difference}, 95 % interval {low} to {high}; of "
            f"{rows_in_words(found.rows)} {found.won} won, {found.lost} lost, {found.tied} tied)")
    if found.outcome != "no difference seen" or found.rows < FEWEST_ROWS:
        return f"{text}."
    if found.least is None:
        return f"{text}; no row tells them apart."
    return f"{text}; a difference below {found.least:.{digits}f} would mostly not have been seen (power 80 %)."


def rows_in_words(rows: int) -> str:
    """With its noun."""
    return f"{rows} held-out row{'' if rows == 1 else 's'}"
