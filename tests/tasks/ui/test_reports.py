"""tasks/ui/reports.py: what the evaluation's report says."""

from __future__ import annotations

import dataclasses

import pytest

from tasks.ui import reports
from tests.support.past import Past


@pytest.mark.parametrize(("tokenizer", "told"), [
    ("unicode", "ROUGE counts words of every script, and characters where a script puts no spaces"),
    ("rouge-score", "ROUGE counts the words of rouge-score: runs of ASCII letters and digits, stemmed")])
def test_the_report_names_the_tokenizer(past: Past, tokenizer: str, told: str) -> None:
    text = reports.rouge_report(dataclasses.replace(past.evaluation, tokenizer=tokenizer))
    assert told in text and f"(tokenizer `{tokenizer}`)" in text
    assert "ROUGE counts" not in reports.rouge_report(past.evaluation), "an earlier release did not say"
