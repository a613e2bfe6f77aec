"""infra/spec.py: every knob is checked, with its name in the message."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from infra.errors import UserError
from infra.spec import LATER, TrainingSpec

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


def test_later_knobs_leave_the_digests_of_earlier_trainings_alone() -> None:
    spec = TrainingSpec(**NEEDED)
    assert set(LATER).isdisjoint(spec.numbers("weights"))
    changed: dict[str, Any] = {"base_version": "a/b:" + "c" * 64, "use_rslora": True, "loraplus_lr_ratio": 16.0,
                               "neftune_alpha": 5.0, "optimizer": "adamw_8bit", "prompt_format": "templated"}
    assert set(changed) == set(LATER)
    for name, value in changed.items():
        assert name in dataclasses.replace(spec, **{name: value}).numbers("weights"), name


@pytest.mark.parametrize(("knobs", "sentence"), [
    ({"peft_method": "full", "use_rslora": True}, "there are no adapters"),
    ({"peft_method": "full", "loraplus_lr_ratio": 4.0}, "there are no adapters"),
    ({"optimizer": "adamw_8bit", "parallelism": "fsdp"}, "expected auto or ddp with adamw_8bit"),
    ({"loraplus_lr_ratio": 0.5}, "loraplus_lr_ratio is 0.5; expected at least 1"),
    ({"neftune_alpha": -1.0}, "neftune_alpha is -1.0")])
def test_knobs_that_contradict_each_other_are_refused(knobs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainingSpec(**NEEDED, **knobs)
