"""tasks/scoring/rouge.py: the published numbers, digit by digit.

Tests tasks/scoring/bootstrap.py too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.records import METRICS
from tasks.scoring.rouge import lead, score_rows, summarize


def vectors(shared: Path, name: str) -> Any:
    return json.loads((shared / "data" / "rouge_vectors" / name).read_text(encoding="utf-8"))


def test_googles_vectors_are_met(shared: Path) -> None:
    for case in vectors(shared, "google_rouge_expected.json"):
        found = score_rows([case["target"]], [case["prediction"]], stem=case["use_stemmer"])
        value = found[0][METRICS.index(case["metric"])]
        assert round(value, case["decimals"]) == round(case["fmeasure"], case["decimals"]), case["id"]


def test_edge_cases_are_met(shared: Path) -> None:
    cases = vectors(shared, "edge_cases_rouge_score_0.1.2.json")
    assert cases
    for case in cases:
        for key, stem in (("nostem", False), ("stem", True)):
            found = score_rows([case["target"]], [case["prediction"]], stem=stem)[0]
            assert found == pytest.approx([case[key][m][2] for m in METRICS], abs=1e-6)


def test_lead3_on_mts_dialog_gives_the_recorded_mean(shared: Path) -> None:
    path = shared / "data" / "rouge_vectors" / "mts_valid_lead3_rouge_score_0.1.2.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    data = (shared / "data" / "mts_dialog" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    ours = [lead(json.loads(line)["prompt"]) for line in data]
    stripped = [[part.strip() for part in row["prediction"].split("\n")] for row in rows]
    assert sum(a.split("\n") == b for a, b in zip(ours, stripped, strict=True)) >= 95
    recorded = vectors(shared, "mts_valid_lead3_rouge_score_0.1.2.mean.json")["mean_percent_PRF"]["stem"]
    scores = score_rows([row["target"] for row in rows], [row["prediction"] for row in rows])
    assert 100 * scores.mean(axis=0) == pytest.approx([recorded[m][2] for m in METRICS], abs=1e-4)


def test_the_interval_holds_the_mean_and_shrinks_with_rows() -> None:
    draw = np.random.default_rng(0)
    few, many = (summarize(draw.random((n, 4))).rougeL for n in (20, 2000))
    assert few[0] < few[1] < few[2]
    assert many[2] - many[0] < few[2] - few[0]


def test_the_interval_is_the_same_every_time() -> None:
    values = np.random.default_rng(0).random((30, 4))
    assert summarize(values) == summarize(values)


@pytest.mark.parametrize(("prompt", "expected"), [
    ("Summarize.\n\nA: one\nB: two\nA: three\nB: four\n\nSummary:", "A: one\nB: two\nA: three"),
    ("One is first. Two is next! Three? Four.", "One is first. Two is next! Three?"), ("", "")])
def test_lead3_takes_the_first_three_utterances_of_the_document(prompt: str, expected: str) -> None:
    assert lead(prompt) == expected
