"""What a task type is scored with: one table of numbers for each, with the intervals of tasks/scoring/bootstrap.py.

In:   references and answers as text, or the held-out losses of rows     Out: {metric: [low, value, high]}
Pure functions. ROUGE: tasks/scoring/rouge.py. All but the metrics of LOWER_IS_BETTER lie in 0..1, 1 for perfect
answers.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from infra.spec import TaskType
from tasks.scoring.bootstrap import Floats, Statistic, intervals, mean_of
from tasks.scoring.rouge import score_rows

Table = dict[str, list[float]]
PRIMARY: dict[TaskType, str] = {
    "auto": "rougeL", "summary": "rougeL", "classification": "accuracy", "question": "f1", "extraction": "field_f1",
    "chat": "rougeL", "style": "loss"}
"""The metric that the gate compares; of text rows it is the loss."""
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "bits_per_byte"})
BY_LOSS: frozenset[TaskType] = frozenset({"chat", "style"})
"""Scored with the held-out loss of each row too."""
BY_ROUGE: frozenset[TaskType] = frozenset({"auto", "summary"})
"""Scored with all of ROUGE, beside LEAD-3: tasks/evaluate.py."""
MOST_FREQUENT = "most_frequent"
"""The baseline of a classification: always the most frequent label of the training rows."""
SHOWN_CONFUSIONS = 10
Pair = tuple[tuple[str, ...], str, Any]
"""A field and its value: path, kind of the value, value."""


def scored(
    task: TaskType, rows: Sequence[dict[str, str]], losses_N3: dict[str, Floats], known: Collection[str],
) -> dict[str, Table]:
    """The table of a task type: a row for each model that answered, or whose losses are known."""
    if task == "style":
        return {model: style(losses) for model, losses in losses_N3.items() if len(losses)}
    if not rows:
        return {}
    references = [row["reference"] for row in rows]
    answers = {model: [row[model] for row in rows] for model in ("tuned", "base", MOST_FREQUENT) if model in rows[0]}
    if task == "chat":
        return {model: chat(references, texts, losses_N3[model]) for model, texts in answers.items()}
    if task == "classification":
        return {model: classification(references, texts, known) for model, texts in answers.items()}
    of = question_scores if task == "question" else extraction
    return {model: of(references, texts) for model, texts in answers.items()}


def parts_of(
    metric: str, references: Sequence[str], answers: Sequence[str], losses_N3: Floats, rouge_l: Floats | None = None,
) -> Floats:
    """parts_N2 of a task type's first metric: over any rows it is the sum of the first part by that of the second.

    `rouge_l`: the rows' ROUGE-L if it is known.
    """
    if metric == "loss":
        return losses_N3[:, :2]
    pairs = list(zip(references, answers, strict=True))
    if metric == "field_f1":
        counts = [_counts(wanted, answer)[:3] for wanted, answer in pairs]
        return np.array([[2 * true, answered + wanted] for true, answered, wanted in counts], np.float64)
    if metric == "rougeL":
        values = rouge_l if rouge_l is not None else score_rows(references, answers, ("rougeL",))[:, 0]
    elif metric == "accuracy":
        values = np.array([label_of(wanted) == label_of(answer) for wanted, answer in pairs], np.float64)
    else:
        values = np.array([_answer(plain_words(wanted), plain_words(answer))[1] for wanted, answer in pairs])
    return np.stack([values, np.ones(len(pairs))], axis=1)


def table(names: Iterable[str], rows: int, statistic: Statistic) -> Table:
    """[low, value, high] of each metric, rounded for reading; six digits."""
    bounds_K3 = intervals(rows, statistic)
    return {name: [round(edge, 6) for edge in row] for name, row in zip(names, bounds_K3.tolist(), strict=True)}


def chat(references: Sequence[str], answers: Sequence[str], losses_N3: Floats) -> Table:
    """ROUGE-L of the next message, and how likely the reference was: loss and perplexity."""
    rouge = score_rows(references, answers, ("rougeL",))
    return {**table(("rougeL",), len(rouge), mean_of(rouge)), **_first(style(losses_N3), ("loss", "perplexity"))}


def style(losses_N3: Floats) -> Table:
    """Of each row (nats, labelled tokens, their bytes): nats a token, its exponential, bits a byte of text.

    Perplexities of models with different tokenizers cannot be compared, bits per byte can (Gao et al. 2020,
    "The Pile", section 3.1). The end token's nats count, it has no bytes.
    """
    def statistic(weights_RN: Floats) -> Floats:
        nats, tokens, size = (weights_RN @ losses_N3).T
        loss = nats / np.maximum(tokens, 1)
        return np.stack([loss, np.exp(np.minimum(loss, 700)), nats / np.log(2) / np.maximum(size, 1)], axis=1)

    return table(("loss", "perplexity", "bits_per_byte"), len(losses_N3), statistic)


# ---- classification

def label_of(text: str) -> str:
    """An answer's first line without outer space, in one case."""
    return text.strip().split("\n", 1)[0].strip().casefold()


def classification(references: Sequence[str], answers: Sequence[str], known: Collection[str] = ()) -> Table:
    """Accuracy, macro-F1 over the labels of the references, and the share of answers that are no label.

    `known`: further labels, such as those of the training rows. F1 of a label: 2 tp / (answered + wanted), as
    scikit-learn has it (tests compare); a resample without a label leaves it out.
    """
    wanted, answered = (np.array([label_of(text) for text in texts]) for texts in (references, answers))
    labels = sorted(set(wanted.tolist()))
    none = ~np.isin(answered, [*labels, *known])

    def statistic(weights_RN: Floats) -> Floats:
        found, total = np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
        for label in labels:
            of, to = wanted == label, answered == label
            true = weights_RN[:, of & to].sum(axis=1)
            seen = weights_RN[:, of].sum(axis=1) + weights_RN[:, to].sum(axis=1)
            found += 2 * true / np.maximum(seen, 1)
            total += seen > 0
        shares_R2 = mean_of(np.stack([wanted == answered, none], axis=1).astype(np.float64))(weights_RN)
        return np.stack([shares_R2[:, 0], found / total, shares_R2[:, 1]], axis=1)

    return table(("accuracy", "macro_f1", "no_label"), len(wanted), statistic)


def confusions(rows: Sequence[dict[str, str]], known: Collection[str] = ()) -> list[list[str | int]]:
    """The tuned model's most frequent mistakes as [label, answer, rows]; answers that are no label stand as ""."""
    pairs = [(label_of(row["reference"]), label_of(row["tuned"])) for row in rows]
    labels = {wanted for wanted, _ in pairs} | set(known)
    wrong = Counter((wanted, answer if answer in labels else "") for wanted, answer in pairs if wanted != answer)
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [[wanted, answer, count] for (wanted, answer), count in ranked[:SHOWN_CONFUSIONS]]


# ---- question answering

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain_words(text: str) -> list[str]:
    """Words in lower case, without ASCII punctuation and articles, as SQuAD's evaluation script has it."""
    return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def question_scores(references: Sequence[str], answers: Sequence[str]) -> Table:
    """Exact match and token F1 (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1)."""
    rows = [_answer(plain_words(wanted), plain_words(answer))
            for wanted, answer in zip(references, answers, strict=True)]
    return table(("exact_match", "f1"), len(rows), mean_of(np.array(rows)))


def _answer(wanted: list[str], found: list[str]) -> tuple[float, float]:
    """Where one side is empty, F1 is 1 if both are, else 0 (SQuAD 2.0, arXiv 1806.03822)."""
    same = float(wanted == found)
    if not wanted or not found:
        return same, same
    return same, 2 * (Counter(wanted) & Counter(found)).total() / (len(wanted) + len(found))


# ---- extraction

def fields_of(text: str) -> Counter[Pair] | None:
    """Field-value pairs of a JSON text with their number; None if it is no JSON (NaN is none).

    Objects are flattened to paths. Lists have no order, so the elements of a list of objects share their paths.
    A field given twice is two pairs. 1 and 1.0 are the same value, 1, "1" and true are not.
    """
    try:
        value = json.loads(text, object_pairs_hook=_Fields, parse_constant=_refuse)
        return Counter(_flat(value, ()))
    except (ValueError, RecursionError):
        return None


def extraction(references: Sequence[str], answers: Sequence[str]) -> Table:
    """Precision, recall and F1 over all field-value pairs of all rows; the shares that parse and that are the same.

    An answer that does not parse has no pairs. Raises ValueError if a reference is no JSON.
    """
    rows = np.array([_counts(wanted, answer) for wanted, answer in zip(references, answers, strict=True)], np.float64)

    def statistic(weights_RN: Floats) -> Floats:
        true, answered, wanted, parsed, same = (weights_RN @ rows).T
        number = weights_RN.sum(axis=1)
        return np.stack([true / np.maximum(answered, 1), true / wanted, 2 * true / (answered + wanted),
                         parsed / number, same / number], axis=1)

    return table(("field_precision", "field_recall", "field_f1", "parsed", "same"), len(rows), statistic)


def _counts(reference: str, answer: str) -> tuple[int, int, int, bool, bool]:
    """Pairs found, answered and wanted; whether the answer parses and equals the reference."""
    wanted, found = fields_of(reference), fields_of(answer)
    if wanted is None:
        raise ValueError(f"not JSON: {reference!r}")
    pairs = found or Counter()
    return (wanted & pairs).total(), pairs.total(), wanted.total(), found is not None, found == wanted


class _Fields(list[tuple[str, Any]]):
    """An object's fields in their order, repeated ones too."""


def _flat(value: Any, path: tuple[str, ...]) -> Iterable[Pair]:
    """An empty object or list is a value too, so that every text has a pair."""
    if isinstance(value, _Fields) and value:
        for name, inner in value:
            yield from _flat(inner, (*path, f".{name}"))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _flat(inner, (*path, "[]"))
    else:
        kind = "number" if type(value) in (int, float) else type(value).__name__
        yield path, kind, str(value) if isinstance(value, list) else value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _first(scores: Table, names: Iterable[str]) -> Table:
    return {name: scores[name] for name in names}

