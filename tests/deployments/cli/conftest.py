"""Registered versions with random adapters on the demo's base, for commands that write versions somewhere."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.models.base_models import find_base
from infra.records import Version
from infra.settings import Settings
from infra.storage.store import Store
from tasks.register import register
from tests.conftest import ROOT
from tests.support.past import Past

DEMO = ROOT / "deployments" / "examples" / "base"
Make = Callable[..., Version]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The demo's base in a folder that is not known to belong to the project."""
    shutil.copytree(DEMO, tmp_path / "secret-place" / "tiny")
    return tmp_path / "secret-place" / "tiny"


@pytest.fixture
def make(settings: Settings, store: Store, past: Past, base: Path) -> Make:
    """Registers a version with a random adapter that is not zero; `change` may spoil its weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tasks.distributed.model import save_model

    def made(seed: int = 0, method: str = "lora", change: Callable[[Path], None] | None = None) -> Version:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        if method == "lora":
            config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
            model = get_peft_model(model, config)
        with store.draft() as draft:
            save_model(model, draft.path / "model")
            if change:
                change(draft.path / "model" / "adapter_model.safetensors")
            draft.commit(f"trainings/{seed}", {})
        trained = dataclasses.replace(past.trained, folder=f"trainings/{seed}", training_id=f"t{seed}", method=method)
        known = find_base(settings, str(base))
        return register(settings, store, past.spec, trained, past.evaluation, past.split, past.pack, known)

    return made


@pytest.fixture
def held_out(store: Store, past: Past) -> None:
    """The rows that the version was evaluated on."""
    folder = f"splits/{past.split.digest[:32]}"
    with store.draft() as draft:
        rows = [{"prompt": f"Anna: See you at {hour}.", "completion": " They meet."} for hour in range(6)]
        (draft.path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        draft.commit(folder, dataclasses.replace(past.split, folder=folder).to_json())
