"""Bases whose layers are not all for text, or not all for adapters: wrappers for pictures, Mamba mixers.

Tests tasks/distributed/model.py, weight_check.py and preflight.py; test_families.py has the other families.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import BaseModelError
from infra.spec import TrainingSpec
from tasks.distributed import merge
from tasks.distributed.batches import Batch
from tasks.distributed.contract import MergeJob
from tasks.distributed.lora import add_adapter, freeze_other_parts
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import load_base, save_model
from tasks.distributed.preflight import prove
from tests.support.families import tiny
from tests.support.family_table import _batch as a_batch

CPU = torch.device("cpu")
SPEC = TrainingSpec(train_data="d", base_model="m", destination="a/b")


def without_gradient(loss: PackedLoss) -> list[str]:
    """The weights that are trained and that a batch gives no gradient: DDP waits for them in vain."""
    batch: Batch = a_batch()
    loss.train()(batch).backward()
    return [name for name, weight in loss.named_parameters() if weight.requires_grad and weight.grad is None]


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_only_the_text_part_of_a_wrapper_has_adapters(family: str) -> None:
    torch.manual_seed(0)
    loss = PackedLoss(tiny(family))
    adapted = add_adapter(loss.model, SPEC)
    found = prove(loss, torch.float32, CPU)
    names = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert found.packed and found.loss_error < 1e-6 and names
    assert not [name for name in names if "vision" in name or "visual" in name or "projector" in name]
    assert without_gradient(loss) == []


def test_only_the_text_part_of_a_wrapper_is_trained_in_full() -> None:
    torch.manual_seed(0)
    loss = PackedLoss(tiny("gemma3"))
    freeze_other_parts(loss.model)
    assert without_gradient(loss) == [] and any(not weight.requires_grad for weight in loss.parameters())


def test_a_plain_model_is_trained_whole() -> None:
    model = tiny("llama")
    freeze_other_parts(model)
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("family", ["mamba", "falcon_h1"])
def test_adapters_of_a_mamba_mixer_stand_where_they_have_an_effect(family: str) -> None:
    torch.manual_seed(0)
    loss = PackedLoss(tiny(family))
    adapted = add_adapter(loss.model, SPEC)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert any("in_proj" in name for name in trained)
    assert not [name for name in trained if "x_proj" in name or "dt_proj" in name or "mamba.out_proj" in name]
    prove(loss, torch.float32, CPU)
    assert without_gradient(loss) == []


def test_linear_layers_of_a_familys_own_class_have_adapters_and_routers_have_none() -> None:
    trained = [name for family in ("falcon", "llama4_text") for name, weight in add_adapter(
        tiny(family), SPEC).named_parameters() if weight.requires_grad]
    assert any("query_key_value" in name for name in trained) and not any("router" in name for name in trained)


def test_a_base_that_reads_in_both_directions_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(BaseModelError, match="it reads in both directions: what stands behind an answer would tell it"):
        prove(PackedLoss(tiny("paligemma")), torch.float32, CPU)


@pytest.mark.slow
def test_the_case_of_a_wrapper_is_merged_whole(shared: Path, tmp_path: Path) -> None:
    """Case merge-gemma3: an adapter on a wrapper, merged by the child of `anneal merge`, loaded again."""
    base = shared / "cases" / "merge-gemma3" / "base"
    if not base.is_dir():
        pytest.skip("needs ../shared/cases/merge-gemma3")
    torch.manual_seed(0)
    tuned: Any = add_adapter(load_base(base, dtype=torch.float32, device=CPU), SPEC)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.05)
    save_model(tuned, tmp_path / "adapter")
    merged = tmp_path / "merged"
    for folder in (merged, tmp_path / "out"):
        folder.mkdir()
    for path in base.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            (merged / path.name).write_bytes(path.read_bytes())
    job = MergeJob(out=str(tmp_path / "out"), base=str(base), tuned=str(tmp_path / "adapter"), folder=str(merged),
                   dtype="fp32", rows="", kind="text", separator="", context_tokens=64)
    assert merge.merge(job) == 0
    ids = torch.arange(5, 14)[None]
    with torch.inference_mode():
        wanted = tuned.eval()(input_ids=ids, use_cache=False).logits
        found = load_base(merged, dtype=torch.float32, device=CPU)(input_ids=ids, use_cache=False).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    config = json.loads((merged / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"] and "vision_config" in config
