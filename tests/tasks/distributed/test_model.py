"""tasks/distributed/model.py: the same model gives the same files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import get_peft_model

from infra.spec import TrainingSpec
from tasks.distributed.lora import adapter_config
from tasks.distributed.model import load_base, save_model
from tests.invariants.conftest import BASE


def test_an_adapters_configuration_is_written_in_one_order(tmp_path: Path) -> None:
    """Its hash is part of the training's digest, on which evaluation and version depend."""
    config = adapter_config(TrainingSpec(train_data="d", base_model=str(BASE), destination="a/b"))
    model = get_peft_model(load_base(BASE, dtype=torch.float32, device=torch.device("cpu")), config)
    save_model(model, tmp_path)
    named = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    assert named == sorted(named) and len(named) == 7
