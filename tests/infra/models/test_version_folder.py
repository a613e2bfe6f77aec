"""A version's folder as others load it: plain peft and transformers, in a process without our code."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from infra.errors import BaseModelError
from infra.files import sha256_of
from infra.models.version_folder import complete_for_others, name_base, version_id
from infra.records import Base
from infra.spec import TrainingSpec
from tasks.distributed.build import start_adapter
from tasks.distributed.lora import add_adapter
from tasks.distributed.model import load_base, save_model
from tests.conftest import ROOT

DEMO = ROOT / "deployments" / "examples" / "base"
BASE = Base(name="base", path=str(DEMO), digest="d" * 64, context_tokens=512)
LOAD = """
import sys, torch
from {library} import {kind}
model = {kind}.from_pretrained(sys.argv[1])
print(model(input_ids=torch.tensor([[5, 300, 17, 42]])).logits.double().sum().item().hex())
assert not any(name.split(".")[0] in ("infra", "tasks") for name in sys.modules)
"""


def loaded_by(library: str, kind: str, folder: Path, work: Path) -> str:
    """The sum of some logits, from a fresh process that has none of our code, whose cache of the hub is in `work`."""
    code = LOAD.format(library=library, kind=kind)
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(work),
                   "HF_HUB_CACHE": str(work / "hub")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder)], cwd=work, env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def sum_of(model: torch.nn.Module) -> str:
    value: float = model(input_ids=torch.tensor([[5, 300, 17, 42]])).logits.double().sum().item()
    return value.hex()


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, str]:
    """A random adapter as a training leaves it, and what it answers."""
    torch.set_num_threads(1)
    spec = TrainingSpec(train_data="d", base_model="b", destination="a/b")
    model = add_adapter(load_base(DEMO, dtype=torch.float32, device=torch.device("cpu")), spec)
    start_adapter(model, 1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    save_model(model, tmp_path / "adapter")
    return tmp_path / "adapter", sum_of(model.eval())


@pytest.mark.slow
def test_plain_peft_loads_an_adapter_on_a_local_base(adapter: tuple[Path, str], tmp_path: Path) -> None:
    folder, answer = adapter
    complete_for_others(folder, BASE)
    assert loaded_by("peft", "AutoPeftModelForCausalLM", folder, tmp_path) == answer


@pytest.mark.slow
def test_plain_peft_loads_an_adapter_on_a_base_of_the_hub(adapter: tuple[Path, str], tmp_path: Path) -> None:
    """The base at that commit is in the hub's cache; `main` is another one, without files."""
    folder, answer = adapter
    complete_for_others(folder, dataclasses.replace(BASE, name="org/tiny", revision="c" * 40))
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(DEMO, repository / "snapshots" / ("c" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("d" * 40)
    assert loaded_by("peft", "AutoPeftModelForCausalLM", folder, tmp_path) == answer


@pytest.mark.slow
def test_plain_transformers_loads_all_weights(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = load_base(DEMO, dtype=torch.float32, device=torch.device("cpu"))
    save_model(model, tmp_path / "whole")
    complete_for_others(tmp_path / "whole", BASE)
    assert loaded_by("transformers", "AutoModelForCausalLM", tmp_path / "whole", tmp_path) == sum_of(model)


def test_config_and_generation_config_are_the_bases(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO)
    model.config.use_cache = False  # as in training
    save_model(model, tmp_path / "whole")
    complete_for_others(tmp_path / "whole", BASE)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "whole" / name).read_text()) == json.loads((DEMO / name).read_text())


def test_the_id_is_blind_to_the_bases_place_and_to_nothing_else(tmp_path: Path) -> None:
    def identity(**config: object) -> str:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, **config}))
        return version_id(tmp_path, {path.name: sha256_of(path) for path in tmp_path.iterdir()})

    plain = identity(base_model_name_or_path="base")
    assert identity(base_model_name_or_path="/home/me/llama", revision="c0ffee") == plain
    (tmp_path / "MANIFEST.sha256").write_text("follows from the others")
    assert identity() == plain != identity(r=4)


def test_what_is_no_adapter_configuration_has_no_id(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(BaseModelError, match="expected a JSON object"):
        version_id(tmp_path, {"adapter_config.json": "0"})


def test_naming_a_base_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "base_model_name_or_path": "base"}')
    name_base(tmp_path, "org/tiny", "c0ffee")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "r": 8, "base_model_name_or_path": "org/tiny", "revision": "c0ffee"}
