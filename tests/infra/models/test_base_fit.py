"""infra/models/base_fit.py: a base whose parts do not fit is refused where it is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.errors import BaseModelError
from infra.models import base_fit
from infra.models.base_fit import check_quantization, quantized_by
from infra.models.base_models import find_base, look_for_base
from infra.models.model_folder import context_tokens_of
from infra.settings import Settings
from tests.conftest import ROOT

DEMO = ROOT / "deployments" / "examples" / "base"


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused_before_data_is_read(
    settings: Settings, shared: Path,
) -> None:
    with pytest.raises(BaseModelError, match=r"its tokenizer has ids up to \d+, and its embeddings have 512 rows"):
        look_for_base(settings, str(shared / "cases" / "tokens-added" / "base"))


def test_added_tokens_beyond_the_embeddings_are_seen(settings: Settings, tmp_path: Path) -> None:
    base = Path(shutil.copytree(DEMO, tmp_path / "base"))
    (base / "added_tokens.json").write_text(json.dumps({"<one_more>": 99_999}))
    with pytest.raises(BaseModelError, match="ids up to 99999"):
        look_for_base(settings, str(base))


@pytest.mark.parametrize(("config", "context"), [
    ({"n_positions": 256}, 256), ({"max_seq_len": 2048}, 2048),
    ({"max_position_embeddings": 4096, "n_positions": 9}, 4096),
    ({"text_config": {"max_position_embeddings": 8192}, "max_position_embeddings": 64}, 8192),
    ({"max_position_embeddings": -1, "n_ctx": 64}, 64), ({}, None)])
def test_the_context_is_read_by_the_familys_own_name(config: dict[str, Any], context: int | None) -> None:
    assert context_tokens_of(config) == context


def test_the_context_of_gpt2_is_its_table_of_positions(settings: Settings, shared: Path) -> None:
    assert find_base(settings, str(shared / "cases" / "context-gpt2" / "base")).context_tokens == 256


@pytest.mark.parametrize(("found", "method", "said"), [
    ({"quant_method": "gptq"}, "full", "peft_method lora"), ({"quant_method": "awq"}, "qlora", "peft_method lora"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "full", "peft_method qlora or lora"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "lora", "take|Take the model"),
    ({"quant_method": "aqlm"}, "lora", "quantized already")])
def test_quantized_weights_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], method: Any, said: str,
) -> None:
    monkeypatch.setattr(base_fit, "find_spec", lambda _: object())
    with pytest.raises(BaseModelError, match=said):
        check_quantization({"quantization_config": found}, "base", method)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_fit, "find_spec", lambda _: None)
    with pytest.raises(BaseModelError, match="compressed_tensors is not installed"):
        check_quantization({"quantization_config": {"quant_method": "compressed-tensors"}}, "base", "lora")


def test_plain_weights_and_four_bits_pass(shared: Path) -> None:
    config = json.loads((shared / "cases" / "base-bnb4" / "base" / "config.json").read_text())
    assert quantized_by(config) == "bitsandbytes" and not quantized_by({"quantization_config": None})
    check_quantization({}, "base", "full")
