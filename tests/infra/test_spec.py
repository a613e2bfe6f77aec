"""infra/spec.py: every knob is checked, with its name in the message."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from infra.errors import UserError
from infra.spec import TrainingSpec

NEEDED: dict[str, Any] = {"train_data": "d.jsonl", "base_model": "m", "destination": "acme/summarizer"}


def test_a_spec_travels_as_json() -> None:
    spec = TrainingSpec(**NEEDED, learning_rate=3e-4)
    assert TrainingSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(("name", "value"), [
    ("num_train_epochs", 0), ("learning_rate", -1.0), ("learning_rate", float("nan")), ("lora_dropout", 1.1),
    ("peft_method", "prefix"), ("seed", True), ("seed", 1.5), ("pack_sequences", 1), ("train_data", " "),
    ("chunk_size", "2048"), ("destination", "../x"), ("destination", "Acme/x"), ("destination", "a/b/c"),
    ("destination", "a--b/c"), ("destination", "acme/" + "x" * 200)])
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        TrainingSpec(**{**NEEDED, name: value})


def test_an_unknown_parameter_is_refused_by_name() -> None:
    with pytest.raises(UserError, match='unknown parameter "lerning_rate"'):
        TrainingSpec.of({**NEEDED, "lerning_rate": 1})


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(UserError, match="destination is missing"):
        TrainingSpec.of({"train_data": "d", "base_model": "m"})


def test_what_shapes_the_weights_is_apart_from_where_they_are_trained() -> None:
    spec = TrainingSpec(**NEEDED)
    elsewhere = dataclasses.replace(spec, num_ranks=8, gradient_accumulation_steps=4, destination="acme/other",
                                    deploy=False, checkpoint_steps=7, train_data="copy.jsonl")
    assert elsewhere.numbers("weights") == spec.numbers("weights")
    assert dataclasses.replace(spec, seed=1).numbers("weights") != spec.numbers("weights")


def test_every_knob_has_a_sentence_of_help() -> None:
    for field in dataclasses.fields(TrainingSpec):
        assert field.metadata["help"].endswith("."), field.name
