"""Weights are all there and are numbers, wherever a model is loaded: pytest tests/security/test_weights.py

Tests tasks/distributed/weight_check.py too.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.exc import InternalTorchDynamoError
from torch._inductor.exc import CppCompileError
from transformers.integrations import hub_kernels

from deployments.predictor.loading import Card, load_codecs, open_engine
from infra.errors import AnnealError, BaseModelError, Transient, UserError
from infra.models import model_folder
from tasks.distributed import train as trainer
from tasks.distributed.merge import CPU, check_reloaded
from tasks.distributed.model import load_base, load_tokenizer
from tasks.distributed.sharding import empty_base
from tasks.distributed.weight_check import translate_loading_errors
from tests.conftest import ROOT
from tests.tasks.distributed.conftest import MakeJob, make_job, one_rank  # noqa: F401  (fixtures)

DEMO = ROOT / "deployments" / "examples" / "base"
WEIGHTS = "model.safetensors"
CARD = Card(method="full", base_name="b", base_digest="0" * 64, precision="fp32", kind="prompt",
            prompt_template="{prompt}", context_tokens=64, stop_ids=frozenset(), smoke_prompt="")
Weights = dict[str, torch.Tensor]


def plain(folder: Path) -> None:
    load_base(folder, dtype=torch.float32, device=CPU)


def four_bits(folder: Path) -> None:
    load_base(folder, dtype=torch.float32, device=CPU, quantized=True)


def sharded(folder: Path) -> None:
    empty_base(folder, torch.float32)


def predictor(folder: Path) -> None:
    open_engine(CARD, folder, None, "v" * 64)


def merged(folder: Path) -> None:
    check_reloaded(folder, "", torch.zeros(1), torch.zeros(1), [], 0.0)


LOADERS = [plain, four_bits, sharded, predictor, merged]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A whole base of one's own."""
    torch.set_num_threads(1)
    return Path(shutil.copytree(DEMO, tmp_path / "base"))


def configure(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(("part", "said"), [
    ("layers.2.mlp.up_proj.weight", "1 of its weights are in no file: model.layers.2.mlp.up_proj.weight"),
    ("layernorm", r"8 of its weights are in no file: .*input_layernorm.weight.* and 5 more")])
def test_a_missing_weight_is_named(base: Path, load: Callable[[Path], None], part: str, said: str) -> None:
    rewrite(base, without(part))
    with pytest.raises(UserError, match=said):
        load(base)


def more_layers(folder: Path) -> None:
    configure(folder, num_hidden_layers=6)


def fewer_layers(folder: Path) -> None:
    configure(folder, num_hidden_layers=3)


def wrapped(folder: Path) -> None:
    rewrite(folder, lambda weights: {f"base_model.model.{name}": weight for name, weight in weights.items()})


def wrapped_otherwise(folder: Path) -> None:
    rewrite(folder, lambda weights: {f"module.{name}": weight for name, weight in weights.items()})


def biased(folder: Path) -> None:
    rewrite(folder, lambda weights: {**weights, "model.layers.0.self_attn.q_proj.bias": torch.ones(128)})


def wants_biases(folder: Path) -> None:
    configure(folder, attention_bias=True)


def untied(folder: Path) -> None:
    configure(folder, tie_word_embeddings=False)


def narrow(folder: Path) -> None:
    configure(folder, intermediate_size=383)


def more_words(folder: Path) -> None:
    configure(folder, vocab_size=2049)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(("change", "said"), [
    (more_layers, "hold 4 layers, and 2 are missing"),
    (fewer_layers, "hold 9 weights for which config.json leaves no place: model.layers.3"),
    (wrapped, 'begin with "base_model.model."'), (wrapped_otherwise, 'begin with "module."'),
    (biased, "leaves no place: model.layers.0.self_attn.q_proj.bias"),
    (wants_biases, "16 of its weights are in no file"), (untied, "no weights of the head"),
    (more_words, r"another shape .*embed_tokens.weight has \[2048, 128\]; expected \[2049, 128\]"),
    (narrow, r"12 of its weights have another shape .* has \[128, 384\]; expected \[128, 383\]")])
def test_weights_of_another_model_are_told(
    base: Path, load: Callable[[Path], None], change: Callable[[Path], None], said: str,
) -> None:
    change(base)
    with pytest.raises(UserError, match=said):
        load(base)


@pytest.mark.parametrize("load", [plain, predictor, merged])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(base: Path, load: Callable[[Path], None], value: float) -> None:
    def spoil(weights: Weights) -> Weights:
        weights["model.embed_tokens.weight"][2000, 5] = value
        return weights

    rewrite(base, spoil)
    with pytest.raises(UserError, match=r"1 of its weights hold NaN or infinity: model\.embed_tokens"):
        load(base)


@pytest.mark.parametrize("extra", [
    "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.cos_cached",
    "model.layers.0.attn.causal_mask",
    "vision_tower.blocks.0.weight", "v_head.weight", "mtp.0.weight",
    "lm_head.weight"])
@pytest.mark.parametrize("load", [plain, sharded])
def test_weights_beside_the_decoder_are_no_fault(base: Path, load: Callable[[Path], None], extra: str) -> None:
    embedding = load_file(base / WEIGHTS)["model.embed_tokens.weight"]
    rewrite(base, lambda weights: {**weights, extra: embedding.clone() if "lm_head" in extra else torch.ones(16)})
    load(base)


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation"])
def test_no_kernel_of_the_hub_is_fetched(base: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[object] = []
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *names, **_: asked.append(names))
    configure(base, **{name: "owner/kernel"})
    for load in LOADERS:
        with pytest.raises(UserError, match="names a kernel"):
            load(base)
    configure(base, **{name: "flash_attention_2"})
    model = load_base(base, dtype=torch.float32, device=CPU)
    assert model.config._attn_implementation == "sdpa" and asked == []


@pytest.mark.parametrize("values", [
    {"model_max_length": "lots"}, {"added_tokens_decoder": [1]}, {"extra_special_tokens": 7}, {"eos_token": 7},
    {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "T"}, {"auto_map": 7}, {"tokenizer_class": 7}])
def test_a_tokenizer_that_cannot_be_loaded_is_told(base: Path, values: dict[str, Any]) -> None:
    configure(base, "tokenizer_config.json", **values)
    with pytest.raises(BaseModelError, match=r"base model .*(token|auto_map)"):
        load_tokenizer(base)


def test_a_tokenizer_reads_no_file_of_its_own_choice(base: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"secret": 0}')
    secret = str(tmp_path / "secret.json")
    configure(base, "tokenizer_config.json", vocab_file=secret, tokenizer_file=secret, init_inputs=[secret])
    assert load_tokenizer(base).get_vocab() == load_tokenizer(DEMO).get_vocab()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(("values", "said"), [
    ({"rms_norm_eps": float("nan")}, "its loss is nan before the first step"),
    ({"num_key_value_heads": 3, "num_attention_heads": 8}, "base model")])
def test_a_model_that_cannot_be_run_is_told(
    make_job: MakeJob, tmp_path: Path, stories: Path, values: dict[str, Any], said: str,  # noqa: F811
) -> None:
    base = Path(shutil.copytree(stories, tmp_path / "base"))
    for path in (base, *base.iterdir()):
        path.chmod(0o755)
    configure(base, **values)
    with pytest.raises(BaseModelError, match=said):
        trainer.train_rank(dataclasses.replace(make_job("cannot"), base=str(base)))


@pytest.mark.parametrize(("error", "kind", "said"), [
    (OSError(errno.ENOSPC, "No space left on device"), UserError, "base b: the disk is full"),
    (OSError(errno.EIO, "Input/output error"), Transient, "base b: Input/output error"),
    (OSError(errno.EMFILE, "Too many open files", "x"), Transient, "base b: Too many open files"),
    (OSError("no file named x"), BaseModelError, r"base b: it fails \(OSError: no file named x\)"),
    (FileNotFoundError(errno.ENOENT, "No such file"), BaseModelError, "base b: it fails"),
    (ValueError("It is so. Please open an issue at x."), BaseModelError, r"\(ValueError: It is so\.\)\. Take")])
def test_an_error_of_the_disk_is_not_the_models(error: Exception, kind: type[AnnealError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught, translate_loading_errors("base b", "it fails"):
        raise error
    assert type(caught.value) is kind


@pytest.mark.parametrize("error", [InternalTorchDynamoError("x"), CppCompileError(["g++"], "x")])
def test_an_error_of_the_compiler_is_not_the_models(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translate_loading_errors("base b", "it fails"):
        raise error
    assert caught.value is error


def test_the_tokenizers_of_a_version_share_nothing_and_its_files_are_judged_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: list[str] = []
    read = model_folder.read_object

    def noted(path: Path, where: str) -> dict[str, Any]:
        judged.append(path.name)
        return read(path, where)

    monkeypatch.setattr(model_folder, "read_object", noted)
    encoder, decoder = load_codecs(DEMO)
    assert judged.count("tokenizer.json") == 1
    parts = [codec.tokenizer for codec in (encoder._short[1], encoder._long[1], decoder)]
    assert len({id(part) for part in parts}) == len({id(part.backend_tokenizer) for part in parts}) == 3
    assert {part("Once upon a time")["input_ids"][0] for part in parts} == {parts[0]("Once")["input_ids"][0]}
