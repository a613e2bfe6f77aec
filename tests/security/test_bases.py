"""A base model from elsewhere is judged before anything is read or loaded: pytest tests/security/test_bases.py

Each input made a library raise, hang or take all memory, or was followed to code or files of the sender's choice.

Tests infra/models/model_folder.py, tasks/distributed/adapters.py too.
"""

from __future__ import annotations

import errno
import json
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from infra.errors import BaseModelError, Transient, UserError
from infra.files import model_files
from infra.models.base_models import find_base, look_for_base
from infra.models.model_folder import cleaned, cleaned_tokenizer, view
from infra.settings import Settings
from tasks.distributed.adapters import check_adapter
from tests.conftest import ROOT

DEMO = ROOT / "deployments" / "examples" / "base"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DEEP = "[" * 100_000
ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "auto_mapping": None,
           "megatron_core": "megatron.core", "runtime_config": {"ephemeral_gpu_offload": False}}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A whole base of one's own."""
    return Path(shutil.copytree(DEMO, tmp_path / "base"))


def change(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(settings: Settings, folder: Path) -> str:
    """What the step says, and what is said before any data is read."""
    said = set()
    for find in (find_base, look_for_base):
        with pytest.raises(BaseModelError) as error:
            find(settings, str(folder))
        said.add(str(error.value))
    (sentence,) = said
    assert "Traceback" not in sentence and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("content", ["[]", "7", "null", '"text"', "{", '{"a": ' + DEEP, DEEP, "\xff", "9" * 5000])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_that_is_no_object_is_told(settings: Settings, base: Path, file: str, content: str) -> None:
    (base / file).write_bytes(content.encode("latin-1"))
    assert file in refused(settings, base)


HARMLESS = [("max_position_embeddings", 0), ("max_position_embeddings", -1), ("num_attention_heads", [4])]


@pytest.mark.parametrize(("name", "value"), [
    (name, value) for value in (0, -1, 10**30, "lots", 4.5, float("nan"), float("inf"), [4], {"a": 1})
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings",
                 "head_dim", "max_seq_len") if (name.replace("max_seq_len", "max_position_embeddings"), value)
    not in HARMLESS])
def test_a_size_that_no_model_has_is_told(settings: Settings, base: Path, name: str, value: object) -> None:
    change(base, "config.json", **{name: value})
    assert f'"{name}" in config.json is' in refused(settings, base)


@pytest.mark.parametrize(("value", "tokens"), [
    (-1, 2048), (0, 2048), (False, 2048), (True, 2048), (None, 2048), (64.0, 64), (64, 64)])
def test_a_base_without_a_longest_text_has_the_usual_one(
    settings: Settings, base: Path, value: object, tokens: int,
) -> None:
    change(base, max_position_embeddings=value, max_seq_len=value)
    assert find_base(settings, str(base)).context_tokens == tokens


@pytest.mark.parametrize("name", ["num_attention_heads", "num_key_value_heads", "num_query_heads", "num_kv_heads"])
def test_layers_may_differ_in_their_heads(settings: Settings, base: Path, name: str) -> None:
    change(base, "config.json", **{name: [4, 4, 0, 2]})
    find_base(settings, str(base))
    change(base, "config.json", **{name: [4, 10**30]})
    assert f'"{name}" in config.json is [4, 1000' in refused(settings, base)


def test_as_many_experts_as_the_weights_have_rows_are_no_fault(settings: Settings, base: Path) -> None:
    change(base, num_experts=16384)
    assert '"num_experts" in config.json is 16384; expected no more than' in refused(settings, base)
    table = {"model.layers.0.mlp.down_embed.weight": np.zeros((16384, 1), np.float32)}
    save_file({**load_file(base / WEIGHTS), **table}, base / WEIGHTS)
    find_base(settings, str(base))
    change(base, num_experts=1 << 20)
    assert '"num_experts" in config.json is 1048576; expected at most 65536' in refused(settings, base)


@pytest.mark.parametrize("name", ["head_dim", "hidden_size", "intermediate_size", "num_labels", "vocab_size"])
def test_a_size_beyond_the_weights_is_told_before_it_is_made(settings: Settings, base: Path, name: str) -> None:
    change(base, "config.json", **{name: 10**9})
    assert f'"{name}" in config.json is 1000000000' in refused(settings, base)


def test_sizes_of_a_nested_configuration_are_judged_too(settings: Settings, base: Path) -> None:
    change(base, text_config={"num_attention_heads": 0})
    assert '"num_attention_heads" in config.json is 0' in refused(settings, base)
    change(base, text_config=7)
    assert '"text_config" in config.json is 7; expected an object' in refused(settings, base)


def header(path: Path, entries: object, data: bytes = bytes(8), length: int | None = None) -> None:
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.mark.parametrize("entries", [
    {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
    {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "v": {
        "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    {"w": {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [1] * 17 + [2], "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [10**4000] * 1000, "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [1 << 60] * 100_000, "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 62]}},
    {"w": {"dtype": ["F32"], "shape": 2, "data_offsets": 0}}, {"w": 7}, [], 7, {"w": {}}, DEEP.encode(), b"\xff{"])
def test_a_header_that_is_none_is_told(settings: Settings, base: Path, entries: object) -> None:
    header(base / WEIGHTS, entries)
    assert f"{WEIGHTS} is no whole safetensors file" in refused(settings, base)


@pytest.mark.parametrize("length", [0, 1 << 30, 1 << 62, (1 << 64) - 1])
def test_a_header_of_any_length_is_told(settings: Settings, base: Path, length: int) -> None:
    header(base / WEIGHTS, {}, length=length)
    assert f"its header would have {length} bytes" in refused(settings, base)


@pytest.mark.parametrize("size", [0, 4, 100, 1_000_000])
def test_a_file_that_was_cut_is_told(settings: Settings, base: Path, size: int) -> None:
    (base / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes()[:size])
    assert f"{WEIGHTS} is no whole safetensors file" in refused(settings, base)


@pytest.mark.parametrize(("index", "said"), [
    ({"weight_map": {"w": "../secret.safetensors"}}, "names the file"),
    ({"weight_map": {"w": "/etc/passwd"}}, "names the file"), ({"weight_map": {"w": 7}}, "names the file"),
    ({"weight_map": {"w": "other.safetensors"}}, "other.safetensors is missing"),
    ({"weight_map": {"no.such": "a.safetensors"}}, "lists no.such, which no file holds"),
    ({"weight_map": [1]}, '"weight_map"'), ({}, '"weight_map"'), ([], "a JSON object")])
def test_an_index_names_files_of_its_folder(settings: Settings, base: Path, index: object, said: str) -> None:
    (base / WEIGHTS).rename(base / "a.safetensors")
    (base / INDEX).write_text(json.dumps(index))
    assert said in refused(settings, base)


def test_weights_in_several_files_are_found(settings: Settings, base: Path) -> None:
    weights = load_file(base / WEIGHTS)
    (base / WEIGHTS).unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, base / file)
    where = {name: file for file, part in parts.items() for name in part}
    (base / INDEX).write_text(json.dumps({"weight_map": where}))
    assert find_base(settings, str(base)).context_tokens == 512


@pytest.mark.parametrize(("values", "said"), [
    ({"num_hidden_layers": 6}, "hold 4 layers, and 2 are missing"),
    ({"tie_word_embeddings": False}, "no weights of the head")])
def test_a_config_of_another_model_is_told(
    settings: Settings, base: Path, values: dict[str, Any], said: str,
) -> None:
    change(base, **values)
    assert said in refused(settings, base)


@pytest.mark.parametrize("values", [
    {"text_config": {"tie_word_embeddings": False}}, {"text_config": {}, "tie_word_embeddings": False},
    {"text_config": {"vocab_size": 2040, "hidden_size": 128}}])
def test_what_only_the_class_of_the_model_knows_is_left_to_loading(
    settings: Settings, base: Path, values: dict[str, Any],
) -> None:
    change(base, **values)
    find_base(settings, str(base))


def test_weights_of_a_wrapped_model_are_told(settings: Settings, base: Path) -> None:
    weights: dict[str, np.ndarray[Any, Any]] = load_file(base / WEIGHTS)
    save_file({f"base_model.model.{name}": weight for name, weight in weights.items()}, base / WEIGHTS)
    assert 'the names of all its 38 weights begin with "base_model.model."' in refused(settings, base)


@pytest.mark.parametrize("values", [
    {"_attn_implementation": "owner/kernel"}, {"attn_implementation": {"text_config": "owner/kernel@main:f"}},
    {"_attn_implementation_internal": "owner/kernel"}, {"experts_implementation": "paged|owner/kernel"},
    {"text_config": {"_attn_implementation": "owner/kernel"}}, {"a": [{"b": {"kernel_config": {"x": "o/k:l"}}}]}])
def test_a_kernel_of_the_hub_is_refused(settings: Settings, base: Path, values: dict[str, Any]) -> None:
    change(base, **values)
    assert "config.json names a kernel" in refused(settings, base)


@pytest.mark.parametrize("value", ["other.safetensors", "../base.safetensors", "adapter_model.bin"])
def test_weights_under_another_name_are_refused(settings: Settings, base: Path, value: str) -> None:
    change(base, transformers_weights=value)
    assert '"transformers_weights"' in refused(settings, base)


def test_what_names_code_is_not_shown_to_transformers(base: Path) -> None:
    code = {"auto_map": {"AutoConfig": "code.py"}, "_attn_implementation": "flash_attention_2",
            "experts_implementation": "x", "use_kernels": True, "trust_remote_code": True, "fusion_config": {"a": True}}
    assert cleaned({**code, "text_config": {**code, "a": [code, 1]}}) == {"text_config": {"a": [{}, 1]}}
    names = {"vocab_file": "/etc/passwd", "tokenizer_file": "../x", "init_inputs": ["/etc/passwd"], "gguf_file": "x"}
    assert cleaned_tokenizer({**names, "unk_token": "a/b", "model_max_length": 5}) == {
        "unk_token": "a/b", "model_max_length": 5}
    for name in ("code.py", "adapter_config.json", "pytorch_model.bin", ".metadata", "x.gguf", "tokenizer.py",
                 "qwen.tiktoken", "source.spm", "notes.txt", "LICENSE", "manifest.json"):
        (base / name).write_text("{}")
    with view(base, "base") as seen:
        assert {path.name for path in seen.iterdir()} == {path.name for path in DEMO.iterdir()}
        assert {path.name for path in seen.iterdir()} <= {path.name for path in model_files(base)}
    assert not seen.exists()


def test_code_that_a_generation_config_names_is_not_shown(base: Path) -> None:
    change(base, "generation_config.json", custom_generate="owner/code", trust_remote_code=True, top_k=5)
    with view(base, "base") as seen:
        shown = json.loads((seen / "generation_config.json").read_text())
    assert shown["top_k"] == 5 and not shown.keys() & {"custom_generate", "trust_remote_code"}


@pytest.mark.parametrize("name", ["special_tokens_map.json", "generation_config.json", "chat_template.jinja"])
def test_a_link_to_a_file_that_is_gone_is_no_file(settings: Settings, base: Path, name: str) -> None:
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(base / "gone")
    find_base(settings, str(base))
    with view(base, "base") as seen:
        assert not (seen / name).is_symlink()


def test_a_temporary_folder_that_cannot_be_written_is_told(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(Transient, match="base b: No such file"), view(base, "base b"):
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match="of the caller"), view(base, "base b"):
        raise OSError(errno.EIO, "of the caller")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(UserError, match="base b: the disk is full"), view(base, "base b"):
        pass


@pytest.mark.parametrize("values", [
    {"auto_mapping": {"parent_library": "os"}}, {"megatron_config": {"a": 1}}, {"corda_config": {"cache_file": "/x"}},
    {"eva_config": {"rho": 2}}, {"lora_ga_config": {"a": 1}}, {"layer_replication": [[0, 4]] * 9}, {"r": 10**9},
    {"r": "x"}, {"target_modules": "(a+)+$"}, {"rank_pattern": {"(a+)+$": 4}}, {"peft_type": "XLORA"},
    {"arrow_config": {"a": 1}}, {"runtime_config": {"a": 1}}, {"layers_pattern": "(a+)+$"}, {"later": {"code": "x"}}])
def test_an_adapter_that_asks_for_more_than_lora_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(ADAPTER))
    check_adapter(tmp_path, "version x")
    path.write_text(json.dumps({**ADAPTER, **values}))
    with pytest.raises(UserError, match=r"version x: .*(peft_type|adapter_config)"):
        check_adapter(tmp_path, "version x")


@pytest.mark.parametrize("content", ["[]", "7", DEEP, "{"])
def test_an_adapter_config_that_is_no_object_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json is"):
        check_adapter(tmp_path, "version x")
