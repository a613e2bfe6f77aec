"""Versions in forms that other programs load, each loaded there; and nothing half."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.cli import main as cli
from deployments.cli.export import CONVERTER, convert, converter_of, export
from infra.errors import BaseModelError, UserError
from infra.settings import Settings
from infra.storage.store import Store
from tests.deployments.cli.conftest import Make
from tests.support.past import Past

pytestmark = pytest.mark.usefixtures("database")
NAME = "acme/summarizer"
IDS = torch.tensor([[5, 300, 17, 42]])
FAKE = """import pathlib, sys
model, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
if {fails}: sys.exit("ValueError: Model FooForCausalLM is not supported")
out.write_bytes(b"GGUF" + (model / "config.json").read_bytes() + sys.argv[-1].encode())
"""


@pytest.fixture
def converter(settings: Settings, tmp_path: Path) -> Settings:
    """A program in the converter's place, which is called and answers as it does."""
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / CONVERTER).write_text(FAKE.format(fails=False))
    return settings.model_copy(update={"llama_cpp": str(tmp_path / "llama.cpp")})


def test_peft_loads_what_is_exported_for_it(settings: Settings, make: Make, base: Path, tmp_path: Path) -> None:
    version = make()
    done = export(settings, f"{NAME}:1", tmp_path / "out", "peft")
    assert (done.version, done.base) == (version, str(base))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json"}, "nothing that only Anneal reads"
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_version_of_an_earlier_release_is_exported_with_its_base(
    settings: Settings, store: Store, make: Make, base: Path, tmp_path: Path,
) -> None:
    source = store.fetch(make().folder)
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    lineage = json.loads((source / "training.json").read_text())
    del lineage["base"]["revision"]
    (source / "training.json").write_text(json.dumps(lineage))
    (source / "README.md").unlink()
    from deployments.cli.shareable import copy_adapter
    from infra.models.registry import Registry

    (tmp_path / "out").mkdir()
    assert copy_adapter(settings, Registry(settings).named(NAME), source, tmp_path / "out", "") == str(base)
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert "# acme/summarizer" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_all_weights_are_exported_in_bf16_and_the_version_keeps_fp32(
    settings: Settings, store: Store, make: Make, base: Path, tmp_path: Path,
) -> None:
    version = make(method="full")
    done = export(settings, NAME, tmp_path / "out", "merged", dtype="bf16")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    whole = AutoModelForCausalLM.from_pretrained(store.fetch(version.folder))
    assert (written.dtype, whole.dtype) == (torch.bfloat16, torch.float32) and done.merged is not None
    rounded = AutoModelForCausalLM.from_pretrained(store.fetch(version.folder), dtype=torch.bfloat16)
    assert torch.equal(written(IDS).logits, rounded(IDS).logits)
    config, theirs = (json.loads((place / "config.json").read_text()) for place in (tmp_path / "out", base))
    assert config["use_cache"] is theirs["use_cache"]
    assert "full-fine-tuning" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_gguf_is_made_by_the_converter_from_a_whole_model(converter: Settings, make: Make, tmp_path: Path) -> None:
    make()
    done = export(converter, NAME, tmp_path / "out", "gguf")
    (file,) = (tmp_path / "out").iterdir()
    assert file.name == "summarizer-1-fp32.gguf" and file.read_bytes().endswith(b"f32")
    assert done.bytes == file.stat().st_size and b"LlamaForCausalLM" in file.read_bytes()


@pytest.mark.slow
def test_a_model_that_the_converter_does_not_know_is_one_sentence(
    converter: Settings, make: Make, tmp_path: Path,
) -> None:
    make()
    (Path(converter.llama_cpp) / CONVERTER).write_text(FAKE.format(fails=True))
    with pytest.raises(UserError, match=r"does not convert this model .*FooForCausalLM is not supported"):
        export(converter, NAME, tmp_path / "out", "gguf")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no folder of llama.cpp's sources")
def test_llama_cpps_own_converter_converts_a_llama(settings: Settings, stories: Path, tmp_path: Path) -> None:
    """Not the demo's base: llama.cpp refuses tokenizers that it does not know by name."""
    own = settings.model_copy(update={"llama_cpp": os.environ["LLAMA_CPP"]})
    convert(converter_of(own), stories, tmp_path / "out.gguf", "fp32")
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(("folder", "sentence"), [
    ("", "llama.cpp's convert_hf_to_gguf.py is not installed"), ("nowhere", "convert_hf_to_gguf.py is not there")])
def test_gguf_without_llama_cpp_says_how_to_get_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, sentence: str,
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    without = settings.model_copy(update={"llama_cpp": folder})
    with pytest.raises(UserError, match=f"{sentence}.*git clone"):
        export(without, NAME, tmp_path / "out", "gguf")
    assert not list(tmp_path.glob("out*"))


def test_a_target_that_exists_ends_with_2(
    settings: Settings, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    make()
    monkeypatch.setenv("ANNEAL_HOME", str(settings.home_path))
    monkeypatch.setattr("infra.stack.services.for_runs", lambda _: {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert cli.main(["export", NAME, str(tmp_path / "out")]) == 2
    assert "the folder is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    assert cli.main(["export", NAME, str(tmp_path / "other")]) == 0
    assert f"version 1 of {NAME}" in capsys.readouterr().out


def test_all_weights_have_no_adapter(settings: Settings, make: Make, tmp_path: Path) -> None:
    make(method="full")
    with pytest.raises(UserError, match=r"it is a full fine-tune and has no adapter.*--format merged"):
        export(settings, NAME, tmp_path / "out", "peft")
    assert not list(tmp_path.glob("out*"))


def test_another_base_is_not_named(settings: Settings, make: Make, base: Path, tmp_path: Path) -> None:
    make()
    shutil.copytree(base, tmp_path / "other")
    (tmp_path / "other" / "generation_config.json").unlink()
    with pytest.raises(BaseModelError, match="the one that it was trained on"):
        export(settings, NAME, tmp_path / "out", "peft", base_model=str(tmp_path / "other"))


def test_conversations_without_a_template_get_the_one_that_was_learned(
    settings: Settings, past: Past, make: Make, tmp_path: Path,
) -> None:
    past.split = dataclasses.replace(past.split, kind="messages", separator="")
    make()
    export(settings, NAME, tmp_path / "out", "peft")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert str(text).removeprefix(tokenizer.bos_token) == "user: Hi\nassistant: "
    from tasks.distributed.codec import Codec

    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    codec = Codec(AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert ids[:1] == (codec.bos or ids[:1])
