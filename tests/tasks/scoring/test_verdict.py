"""tasks/scoring/verdict.py: the words of the gate, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import pytest

from infra.records import Comparison, Evaluation
from infra.spec import Gate
from tasks.scoring.verdict import Standing, judge

CHAMPION = Standing(3)


def beside(outcome: str, value: float = 0.3, other: float = 0.4, rows: int = 50) -> Comparison:
    return Comparison(metric="rougeL", value=value, other=other, difference=[-0.15, value - other, 0.05],
                      outcome=outcome, rows=rows, won=rows - 3, lost=2, tied=1, least=0.04)


def evaluation(loss: float = 1.0, **compared: Comparison) -> Evaluation:
    return Evaluation(folder="e", samples=50, rouge={}, loss={"tuned": loss}, passed=True, verdict="",
                      compared=compared)


BETTER, SAME, WORSE = beside("better"), beside("no difference seen"), beside("worse")


@pytest.mark.parametrize(("gate", "base", "champion", "passes"), [
    ("auto", SAME, SAME, True), ("auto", WORSE, SAME, True), ("auto", BETTER, WORSE, False),
    ("auto", WORSE, None, False), ("auto", SAME, None, True), ("not_worse_than_base", SAME, WORSE, True),
    ("not_worse_than_base", WORSE, BETTER, False), ("not_worse_than_champion", BETTER, WORSE, False),
    ("not_worse_than_champion", SAME, BETTER, True), ("off", WORSE, WORSE, True)])
def test_only_what_is_not_worse_replaces_what_the_gate_names(
    gate: Gate, base: Comparison, champion: Comparison | None, passes: bool,
) -> None:
    found = evaluation(base=base, champion=champion) if champion else evaluation(base=base)
    passed, verdict = judge(found, gate, CHAMPION if champion else None, held_out=50)
    assert passed is passes and "Passed" not in verdict
    assert ("keeps the version from being deployed" in verdict) is not passes


def test_the_verdict_gives_difference_interval_rows_and_what_could_have_been_seen() -> None:
    verdict = judge(evaluation(base=SAME, lead3=BETTER, champion=WORSE), "auto", CHAMPION, held_out=50)[1]
    assert verdict == (
        "Worse than the champion (version 3): ROUGE-L 0.300 against 0.400 (difference -0.100, 95 % interval -0.150 to "
        "0.050; of 50 held-out rows 47 won, 2 lost, 1 tied). "
        "No difference seen from the base: ROUGE-L 0.300 against 0.400 (difference -0.100, 95 % interval -0.150 to "
        "0.050; of 50 held-out rows 47 won, 2 lost, 1 tied); a difference below 0.040 would mostly not have been seen "
        "(power 80 %). Better than LEAD-3: ROUGE-L 0.300 against 0.400 (difference -0.100, 95 % interval -0.150 to "
        "0.050; of 50 held-out rows 47 won, 2 lost, 1 tied). "
        "The gate keeps the version from being deployed: it is worse than the champion, version 3.")


def test_zero_against_zero_is_no_difference_and_says_zero() -> None:
    zero = dataclasses.replace(beside("no difference seen", 0, 0), difference=[0, 0, 0], won=0, lost=0, tied=50,
                               least=None, metric="accuracy")
    passed, verdict = judge(evaluation(base=zero), "auto", None, held_out=50)
    assert passed and verdict == (
        "No difference seen from the base: accuracy 0.000 against 0.000 (difference 0.000, 95 % interval 0.000 to "
        "0.000; of 50 held-out rows 0 won, 0 lost, 50 tied); no row tells them apart. Every answer scores 0.")


def test_below_ten_rows_the_verdict_says_why_nothing_is_refused() -> None:
    passed, verdict = judge(evaluation(base=beside("no difference seen", rows=1)), "auto", None, held_out=1)
    assert passed and verdict.endswith(
        "Nothing is called better or worse, and nothing refused, on 1 held-out row: at least 10 are needed.")


def test_a_champion_that_cannot_be_compared_with_is_not_replaced() -> None:
    standing = Standing(3, reason="its base model is not known on this machine")
    passed, verdict = judge(evaluation(base=BETTER), "auto", standing, held_out=50)
    assert not passed and verdict.endswith("version 3 (its base model is not known on this machine).")
    assert judge(evaluation(base=BETTER), "not_worse_than_base", standing, held_out=50)[0]


def test_the_champion_itself_is_judged_by_its_base() -> None:
    passed, verdict = judge(evaluation(base=SAME), "auto", Standing(3, is_itself=True), held_out=50)
    assert passed and verdict.endswith("It is the champion itself (version 3).")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused_whatever_the_rows_say(loss: float) -> None:
    assert not judge(evaluation(loss, base=BETTER), "auto", None, held_out=50)[0]
    assert judge(evaluation(loss, base=BETTER), "off", None, held_out=50)[0]


@pytest.mark.parametrize("gate", get_args(Gate))
def test_without_held_out_rows_nothing_is_judged(gate: Gate) -> None:
    assert judge(evaluation(math.nan), gate, None, held_out=0) == (True, "Not judged: there are no held-out rows.")


def test_a_gate_that_is_off_is_told_before_the_verdict() -> None:
    passed, verdict = judge(evaluation(base=WORSE, champion=WORSE), "off", CHAMPION, held_out=50)
    assert passed and verdict.startswith("Not gated (gate=off). Worse than the champion (version 3): ")
