"""ROUGE with bootstrap confidence intervals, and the LEAD-3 baseline.

ROUGE: C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL 2004; computed
by Google's rouge-score, with stemming; with tokens of tasks/scoring/tokens.py where the references need them.
F-measures, 0..1. Intervals: tasks/scoring/bootstrap.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infra.records import METRICS, Scores
from tasks.scoring.bootstrap import intervals, mean_of
from tasks.scoring.tokens import UnicodeTokenizer, needs_unicode

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f\uff61\u0964\u0965\u06d4\u061f\u104b\u17d4])\s*")
"""After a full stop, an exclamation or a question mark; those of Chinese, Japanese, Hindi, Urdu, Arabic, Burmese and
Khmer need no space after them."""
LEAD = 3
AROUND_TURN = re.compile(
    r"^\s*(?:(?:system|developer|user|human|assistant|model|tool)\s*\n)?(?:\s*\[INST\])?|\[/INST\]\s*$")


def score_rows(
    references: Sequence[str], answers: Sequence[str], metrics: Sequence[str] = METRICS, *, stem: bool = True,
) -> NDArray[np.float64]:
    """F-measures, one row per pair, one column per metric. rougeLsum takes lines as sentences. `references` are those
    of the whole set: they decide on the tokens."""
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk, scipy, sklearn and pandas: half of a run's imports

    tokenizer = UnicodeTokenizer(stem=stem) if needs_unicode(references) else None
    scorer = RougeScorer(list(metrics), use_stemmer=stem, tokenizer=tokenizer)
    found = [scorer.score(reference, answer) for reference, answer in zip(references, answers, strict=True)]
    return np.array([[row[metric].fmeasure for metric in metrics] for row in found]).reshape(-1, len(metrics))


def summarize(values: NDArray[np.float64], seed: int = 0) -> Scores:
    """Mean of each metric with its interval: (low, mean, high)."""
    bounds = intervals(len(values), mean_of(values), seed)
    return Scores(**{metric: tuple(row) for metric, row in zip(METRICS, bounds.tolist(), strict=True)})


def longest_turn(prompt: str, marks: re.Pattern[str]) -> str:
    """The longest text between the special tokens of a prompt that a template wrote, without the role before it and
    Llama 2's [INST]: in it is the document."""
    return max((AROUND_TURN.sub("", turn).strip() for turn in marks.split(prompt)), key=len)


def lead(prompt: str, count: int = LEAD) -> str:
    """The first three utterances of the document in a prompt: LEAD-3.

    The document is the longest block between blank lines, so that an instruction above it and a
    cue below it do not count. A document on one line is cut into sentences instead.
    """
    document = max(re.split(r"\n\s*\n", prompt.strip()), key=len)
    lines = [line.strip() for line in document.split("\n") if line.strip()]
    if len(lines) == 1:
        ends = [end.start() for end in SENTENCE_END.finditer(lines[0])]
        return lines[0][: ends[count - 1]] if len(ends) >= count else lines[0]
    return "\n".join(lines[:count])
