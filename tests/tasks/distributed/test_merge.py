"""Merging proves itself: the right weights pass, any other ones do not. Real models, in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from infra.errors import Broken, UserError
from infra.models.model_folder import GENERATION
from infra.spec import Precision
from tasks.distributed import merge as child
from tasks.distributed.contract import MergeJob
from tasks.distributed.model import load_base, save_model
from tests.conftest import ROOT

DEMO = ROOT / "deployments" / "examples" / "base"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
IDS = torch.tensor([[5, 300, 17, 42, 99, 250, 7, 3]])
"""Not what the check itself looks at."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["stories", "demo", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Tied with grouped queries; tied; untied with grouped queries, random, in bf16."""
    if request.param == "stories":
        found: Path = request.getfixturevalue("stories")
        return found
    if request.param == "demo":
        return DEMO
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=2048, tie_word_embeddings=False, initializer_range=0.2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "untied")
    return with_tokenizer(DEMO, tmp_path / "untied")


def with_tokenizer(base: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in TOKENIZER:
        if (base / name).exists():
            shutil.copy(base / name, folder / name)
    return folder


def job_for(base: Path, tmp_path: Path, targets: str | list[str] = "all-linear", *, scale: float = 0.2,
            **values: Any) -> MergeJob:
    """A random adapter that is not zero, and the job to merge it."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_base(base, dtype=torch.float32, device=child.CPU), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(scale if "lora_B" in name or "lora_embedding_B" in name else 1.0)
    save_model(model, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    given = {"dtype": "auto", "rows": "", "kind": "text", "separator": "", "context_tokens": 512, **values}
    return MergeJob(
        out=str(tmp_path / "out"), base=str(base), tuned=str(tmp_path / "adapter"),
        folder=str(with_tokenizer(base, tmp_path / "merged")), **given)


def result_of(job: MergeJob) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(job.out) / "result.json").read_text(encoding="utf-8"))
    return found


def plain(folder: str, **options: Any) -> torch.Tensor:
    """Logits by transformers alone."""
    logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, **options)(input_ids=IDS).logits
    return logits.detach()


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["lm_head"], ["embed_tokens", "up_proj"]],
                         ids=lambda targets: "+".join([targets] if isinstance(targets, str) else targets))
def test_plain_transformers_answers_as_plain_peft(
    base: Path, targets: str | list[str], tmp_path: Path,
) -> None:
    job = job_for(base, tmp_path, targets, dtype="fp32")
    assert child.merge(job) == 0
    found, ours = result_of(job), plain(job.folder)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32), job.tuned)
    theirs = tuned(input_ids=IDS).logits.detach()
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert found["merged"]["max_relative"] <= 1e-5 < 0.01 < found["effect"]
    assert found["reloaded"]["max_absolute"] == 0 and found["reloaded"]["same_argmax"] == 1


def test_bf16_is_the_merge_in_fp32_rounded_once(base: Path, tmp_path: Path) -> None:
    job = job_for(base, tmp_path, dtype="bf16")
    child.merge(job)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32), job.tuned)
    whole = tuned.merge_and_unload().state_dict()
    written = load_file(Path(job.folder) / "model.safetensors")
    assert written and all(torch.equal(weight, whole[name].to(torch.bfloat16)) for name, weight in written.items())
    assert json.loads((Path(job.folder) / "config.json").read_text())["dtype"] == "bfloat16"
    found = result_of(job)
    assert 0 < found["reloaded"]["max_relative"] < found["reloaded"]["bound"]
    assert plain(job.folder).dtype == torch.bfloat16


def test_auto_is_the_bases_own_format(base: Path, tmp_path: Path) -> None:
    job = job_for(base, tmp_path)
    child.merge(job)
    expected, stored = ("bf16", "BF16") if base.name == "untied" else ("fp32", "F32")
    assert result_of(job)["dtype"] == expected
    with safe_open(Path(job.folder) / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {stored}  # noqa: SIM118


def test_a_base_in_fp16_becomes_bf16(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(8, 8, dtype=torch.float16), "norm": torch.zeros(8)}, tmp_path / "model.safetensors")
    assert child.stored_dtype(tmp_path) == "bf16"


def test_the_configuration_is_the_bases(base: Path, tmp_path: Path) -> None:
    job = job_for(base, tmp_path, dtype="fp32")
    child.merge(job)
    skipped = {"dtype", "transformers_version"}
    before, after = (
        {k: v for k, v in json.loads((Path(folder) / "config.json").read_text()).items() if k not in skipped}
        for folder in (job.base, job.folder))
    assert after == before


def test_the_generation_config_is_copied_even_if_transformers_would_not_write_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(DEMO, base)
    strange = {"do_sample": False, "temperature": 0.6, "_name_or_path": str(tmp_path), "eos_token_id": 1}
    (base / GENERATION).write_text(json.dumps(strange))
    job = job_for(base, tmp_path)
    child.merge(job)
    written = json.loads((Path(job.folder) / GENERATION).read_text())
    assert written == {name: value for name, value in strange.items() if name != "_name_or_path"}


def test_a_base_without_a_generation_config_gets_one_with_its_tokens(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(DEMO, base, ignore=shutil.ignore_patterns(GENERATION))
    job = job_for(base, tmp_path)
    child.merge(job)
    written = json.loads((Path(job.folder) / GENERATION).read_text())
    assert written == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def test_held_out_rows_are_what_is_compared(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Anna: {i}", "completion": " Yes"}) + "\n" for i in range(9)))
    job = job_for(DEMO, tmp_path, rows=str(rows), kind="prompt", context_tokens=6)
    child.merge(job)
    assert result_of(job)["probe_tokens"] == child.PROBE_ROWS * 6


# The check must fail for every model that is not the right one.


def test_another_scale_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unload(tuned: PeftModel) -> Any:
        for name, module in tuned.named_modules():
            if name.endswith("layers.2.mlp.down_proj"):
                module.scaling["default"] *= 1.05
        return tuned.merge_and_unload()

    monkeypatch.setattr(child, "unload", unload)
    with pytest.raises(Broken, match="the merged model: its logits are off by"):
        child.merge(job_for(DEMO, tmp_path))


def test_a_small_adapter_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(child, "unload", lambda tuned: tuned.unload())
    job = job_for(DEMO, tmp_path, scale=5e-5)
    with pytest.raises(Broken, match="the merged model: its logits are off by") as caught:
        child.merge(job)
    assert float(str(caught.value).split("off by ")[1].split()[0]) < child.MERGED_BOUND


def test_tied_weights_that_are_merged_into_both_are_noticed(
    stories: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    monkeypatch.setattr(child, "untie", lambda tuned: None)
    with pytest.raises(Broken, match="the merged model"):
        child.merge(job_for(stories, tmp_path, ["lm_head"]))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_one_bit_in_the_file_is_noticed(dtype: Precision, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = child.save_rounded

    def save(merged: Any, base: Path, folder: Path, dtype: Precision) -> None:
        real(merged, base, folder, dtype)
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-2 if dtype == "bf16" else -4] ^= 1  # the last digit of the last weight, too small for any logit
        path.write_bytes(bytes(data))

    monkeypatch.setattr(child, "save_rounded", save)
    with pytest.raises(Broken, match="the weights that are read back are not those that were written"):
        child.merge(job_for(DEMO, tmp_path, dtype=dtype))


def test_an_adapter_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    job = job_for(DEMO, tmp_path)
    path = Path(job.tuned) / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, path)
    with pytest.raises(UserError, match="adapter: it cannot be merged"):
        child.merge(job)
