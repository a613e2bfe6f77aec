"""tasks/launcher/weights.py: what is in a base's files, and what is trained of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from infra.spec import TrainingSpec
from tasks.distributed.lora import adapter_config, add_adapter
from tasks.launcher.weights import weights_of
from tests.conftest import ROOT
from tests.support.families import tiny

NEEDED: dict[str, Any] = {"train_data": "d", "base_model": "m", "destination": "a/b"}
DEMO = ROOT / "deployments" / "examples" / "base"


def config_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_all_experts_of_the_case_are_counted_and_only_the_chosen_ones_are_active(shared: Path) -> None:
    base = shared / "cases" / "forecast-moe" / "base"
    found = weights_of(config_in(base), TrainingSpec(**NEEDED), base)
    assert found.total == 238_400 and found.kinds["experts"][0] == 147_456
    assert found.active == 238_400 - 147_456 // 2
    assert found.coverage["experts"] == 1.0 and found.coverage["attention"] > 0.99
    assert found.coverage["embeddings and head"] == found.coverage["other"] == 0


def test_adapters_of_a_llama_are_counted_as_they_are_made() -> None:
    spec = TrainingSpec(**NEEDED, lora_rank=4)
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = get_peft_model(
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(DEMO)), adapter_config(spec))
    made = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
    assert weights_of(config_in(DEMO), spec, DEMO).trained == made


def test_adapters_of_experts_are_counted_and_told(tmp_path: Path) -> None:
    spec = TrainingSpec(**NEEDED, lora_rank=4)
    tiny("llama4_text").save_pretrained(tmp_path)
    found = weights_of(config_in(tmp_path), spec, tmp_path)
    made = sum(weight.numel() for name, weight in add_adapter(tiny("llama4_text"), spec).named_parameters()
               if "lora_" in name)
    assert found.coverage["experts"] == 1.0 and 0.7 * made < found.trained < 1.3 * made


def test_names_of_layers_leave_the_others_out() -> None:
    found = weights_of(config_in(DEMO), TrainingSpec(**NEEDED, lora_targets="q_proj,v_proj"), DEMO)
    assert found.coverage["feed-forward"] == 0 and 0 < found.coverage["attention"] < 1
    assert weights_of(config_in(DEMO), TrainingSpec(**NEEDED, peft_method="full"), DEMO).trained == found.total
