"""tasks/scoring/metrics.py: values counted by hand, and what holds for any answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from infra.spec import TaskType
from tasks.scoring import metrics
from tasks.scoring.metrics import Table, classification, extraction, fields_of, label_of, question_scores, style

Metric = Callable[[Sequence[str], Sequence[str]], Table]
REFERENCES: dict[Metric, list[str]] = {
    classification: ["food", "food", "travel", "lost things"],
    question_scores: ["in Verona", "the 3rd of May", "Zoë", "20 euros"],
    extraction: ['{"a": 1}', '{"people": ["Ann", "Bob"], "at": {"day": "Friday"}}', "{}", "[]"]}


def values(table: Table) -> dict[str, float]:
    return {metric: value for metric, (_, value, _) in table.items()}


# ---- what holds for all

@pytest.mark.parametrize("metric", REFERENCES)
def test_perfect_answers_score_one(metric: Metric) -> None:
    found = metric(REFERENCES[metric], REFERENCES[metric])
    assert {name: edges for name, edges in found.items() if name != "no_label"} == {
        name: [1, 1, 1] for name in found if name != "no_label"}


@pytest.mark.parametrize("metric", REFERENCES)
def test_empty_answers_score_nothing(metric: Metric) -> None:
    found = values(metric(REFERENCES[metric], [""] * 4))
    assert found.pop("no_label", 1) == 1 and set(found.values()) == {0}


@pytest.mark.parametrize("metric", REFERENCES)
def test_the_order_of_the_rows_does_not_matter(metric: Metric) -> None:
    references, answers = REFERENCES[metric], [*REFERENCES[metric][1:], "x"]
    order = [2, 0, 3, 1]
    shuffled = metric([references[i] for i in order], [answers[i] for i in order])
    assert values(shuffled) == values(metric(references, answers))


@pytest.mark.parametrize("metric", REFERENCES)
def test_the_interval_holds_the_value(metric: Metric) -> None:
    references, answers = REFERENCES[metric], [REFERENCES[metric][0]] * 4
    assert all(low <= value <= high for low, value, high in metric(references * 10, answers * 10).values())


# ---- classification

@pytest.mark.parametrize(("answer", "label"), [
    (" Food\nBecause it is eaten", "food"), ("STRASSE", "strasse"), ("Straße", "strasse"), ("  ", ""), ("ÉTÉ", "été")])
def test_a_label_is_the_first_line_in_one_case(answer: str, label: str) -> None:
    assert label_of(answer) == label


def test_accuracy_and_macro_f1_by_hand() -> None:
    # a: 1 right of 2 wanted, answered 2 times: F1 2/4; b: 1 right of 1, answered once: F1 1; c: none right
    found = values(classification(["a", "a", "b", "c"], ["A ", "zebra", "b", "a"]))
    assert found == {"accuracy": 0.5, "macro_f1": 0.5, "no_label": 0.25}


def test_a_label_of_the_training_rows_is_wrong_but_a_label() -> None:
    assert values(classification(["a"], ["b"], known=["b"]))["no_label"] == 0
    assert values(classification(["a"], ["b"]))["no_label"] == 1


def test_scikit_learn_counts_the_same() -> None:
    draw = np.random.default_rng(0)
    wanted, answered = draw.choice(list("abc"), 200).tolist(), draw.choice(list("abcd"), 200).tolist()
    found = values(classification(wanted, answered))
    assert found["accuracy"] == pytest.approx(accuracy_score(wanted, answered), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(f1_score(wanted, answered, labels=["a", "b", "c"], average="macro"),
                                              abs=1e-6)


def test_the_most_frequent_mistakes_come_first() -> None:
    rows = [{"reference": wanted, "tuned": answer} for wanted, answer in [
        ("a", "b"), ("b", "b"), ("a", "what?"), ("a", "b"), ("a", ""), ("c", "a"), ("a", "huh")]]
    assert metrics.confusions(rows) == [["a", "", 3], ["a", "b", 2], ["c", "a", 1]]
    assert metrics.confusions(rows[:2], known=["b"]) == [["a", "b", 1]]


# ---- question answering

@pytest.mark.parametrize(("reference", "answer", "exact", "f1"), [
    ("the Eiffel Tower", "Eiffel tower.", 1, 1), ("in Verona", "Verona", 0, 2 / 3), ("a", "an", 1, 1),
    ("red red blue", "red", 0, 0.5), ("Zoë", "zoë!", 1, 1), ("Zoë", "Zoe", 0, 0), ("theory", "the ory", 0, 0),
    ("20 euros", "", 0, 0), ("U.S.", "us", 1, 1)])
def test_squads_exact_match_and_f1(reference: str, answer: str, exact: float, f1: float) -> None:
    assert values(question_scores([reference], [answer])) == {
        "exact_match": exact, "f1": pytest.approx(f1, abs=1e-6)}


# ---- extraction

@pytest.mark.parametrize(("answer", "found", "answered"), [
    ('{"day": "Friday", "people": ["Bob", "Ann"], "at": {"town": "Cork"}}', 4, 4),  # lists have no order
    ('{"day": "Friday", "people": ["Ann", "Ann"]}', 2, 3), ('{"day": "friday"}', 0, 1),
    ('{"day": "Friday", "day": "Friday"}', 1, 2), ('{"town": "Cork"}', 0, 1),
    ('{"at": {"town": "Cork", "x": null}}', 1, 2),
    ('{"people": "Ann"}', 0, 1), ("{}", 0, 1), ('{"day": "Friday"', 0, 0), ('{"day": NaN}', 0, 0),
    ("[" * 100_000, 0, 0), ('Here: {"day": "Friday"}', 0, 0)])
def test_fields_are_counted(answer: str, found: int, answered: int) -> None:
    reference = '{"day": "Friday", "people": ["Ann", "Bob"], "at": {"town": "Cork"}}'
    scores = values(extraction([reference], [answer]))
    assert scores == {
        "field_precision": pytest.approx(found / max(answered, 1), abs=1e-6), "field_recall": found / 4,
        "field_f1": pytest.approx(2 * found / (answered + 4), abs=1e-6), "parsed": float(answered > 0),
        "same": float(found == answered == 4)}


@pytest.mark.parametrize(("one", "other", "same"), [
    ("1", "1.0", True), ("1", "true", False), ("1", '"1"', False), ("null", '"null"', False), ("[]", "{}", False),
    ('"\\u00e9"', '"é"', True), ('[{"a": 1}, {"a": 2}]', '[{"a": 2}, {"a": 1}]', True),
    ('{"a.b": 1}', '{"a": {"b": 1}}', False), ('{"a": [1]}', '{"a": 1}', False), ('{"a": []}', "{}", False)])
def test_when_two_json_texts_are_the_same(one: str, other: str, same: bool) -> None:
    assert (fields_of(one) == fields_of(other)) is same


def test_field_f1_is_over_all_rows_together() -> None:
    wanted = [json.dumps({"a": 1}), json.dumps({"a": 1, "b": 2, "c": 3})]
    assert values(extraction(wanted, [wanted[0], "broken"]))["field_f1"] == pytest.approx(2 / 5)


# ---- losses

def test_perplexity_and_bits_per_byte_are_of_all_tokens_together() -> None:
    found = values(style(np.array([[2.0, 4, 10], [4.0, 4, 6]])))
    assert found == pytest.approx({"loss": 0.75, "perplexity": math.exp(0.75), "bits_per_byte": 6 / 16 / math.log(2)},
                                  abs=1e-6)


def test_an_endless_loss_is_told_and_not_raised() -> None:
    assert style(np.array([[1e6, 1.0, 1.0]]))["perplexity"][1] > 1e300


def test_a_chat_has_rouge_and_perplexity() -> None:
    found = metrics.chat(["Hello Ann!"], ["hello ann"], np.array([[2.0, 2, 10]]))
    assert values(found) == pytest.approx({"rougeL": 1, "loss": 1, "perplexity": math.e}, abs=1e-6)


@pytest.mark.parametrize("task", ["question", "extraction", "classification", "chat", "style"])
def test_without_rows_there_are_no_scores(task: TaskType) -> None:
    assert metrics.scored(task, [], {"tuned": np.zeros((0, 3)), "base": np.zeros((0, 3))}, ()) == {}
