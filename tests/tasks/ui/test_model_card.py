"""The model card: the hub's metadata, as its own library reads it, and words that are true of this version."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from infra.spec import TrainingSpec
from tasks.distributed.lora import add_adapter
from tasks.distributed.model import load_base, save_model
from tasks.distributed.weight_check import auto_class
from tasks.register import lineage_of
from tasks.ui.model_card import Form, model_card
from tests.support.families import tiny
from tests.support.past import Past


def card_of(past: Past, form: Form = "lora") -> ModelCard:
    lineage = lineage_of(past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)
    return ModelCard(model_card(lineage, form, past.split.kind, past.split.separator))


def test_the_hubs_library_reads_base_and_scores_with_intervals(past: Past) -> None:
    past.base = dataclasses.replace(past.base, name="org/tiny", revision="c0ffee")
    data = card_of(past).data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("org/tiny", "adapter", "peft")
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found["ROUGE-L (95 % interval 0.4000 to 0.6000)"] == 0.5 and found["loss"] == 3.0


def test_a_base_that_is_not_of_the_hub_is_no_metadata_and_its_folder_is_not_told(past: Past) -> None:
    card = card_of(past)
    assert card.data.base_model is None
    assert "The base model is not from the hub" in card.text and past.base.path not in card.content


def test_the_data_is_named_by_its_digest(past: Past) -> None:
    assert past.split.digest in card_of(past).text and "20 training rows, 2 held out" in card_of(past).text


@pytest.mark.parametrize(("kind", "words"), [
    ("prompt", r'''tokenizer("Your prompt" + '\n', '''), ("text", 'tokenizer("Your prompt", '),
    ("messages", "tokenizer.apply_chat_template(")])
def test_it_is_asked_as_it_was_trained(past: Past, kind: str, words: str) -> None:
    past.split = dataclasses.replace(past.split, kind=kind)  # type: ignore[arg-type]
    assert words in card_of(past).text


def test_all_weights_are_loaded_by_transformers(past: Past) -> None:
    card = card_of(past, "full")
    assert card.data.library_name == "transformers" and "peft" not in card.text.split("## Use")[1]
    assert "float32 master weights" in card.text and "lora_rank" not in card.text


def test_without_held_out_rows_there_are_no_scores(past: Past) -> None:
    past.evaluation = dataclasses.replace(past.evaluation, rouge={}, loss={})
    assert card_of(past).data.eval_results is None and "there are no scores" in card_of(past).text


@pytest.mark.parametrize("form", ["lora", "full"])
@pytest.mark.parametrize("family", ["mistral3", "qwen2_5_vl"])
def test_the_lines_of_a_wrappers_card_load_it(
    past: Past, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, form: Form,
) -> None:
    folder = tmp_path / "base" if form == "full" else tmp_path / "adapter"
    tiny(family).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", dtype=torch.float32, device=torch.device("cpu"))
    if form == "lora":
        spec = TrainingSpec(train_data="d", base_model="m", destination="a/b")
        save_model(add_adapter(base, spec), folder)
    past.base = dataclasses.replace(past.base, path=str(tmp_path / "base"), name="../base", revision="c0ffee")
    past.trained = dataclasses.replace(past.trained, auto_class=auto_class(base.config).__name__)
    code = card_of(past, form).text.partition("```python\n")[2].partition("tokenizer =")[0]
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code, found)  # what a reader of the card would paste
    names = {name for name, _ in found["model"].named_parameters()}
    assert any("vision" in name or "visual" in name for name in names)
    assert any("lora_" in name for name in names) == (form == "lora")
