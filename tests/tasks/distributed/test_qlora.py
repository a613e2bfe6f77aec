"""QLoRA for real: bitsandbytes quantizes on a CPU too. Its wheel is in the extra gpu; .ci/run installs it."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from infra.files import sha256_of
from tasks.distributed import model as model_module
from tasks.distributed.model import load_base, load_tuned
from tests.support import ranks
from tests.tasks.distributed.conftest import MakeJob, events_of, losses

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
KNOBS = {"peft_method": "qlora", "num_train_epochs": 6, "learning_rate": 5e-3, "lora_dropout": 0.1, "precision": "fp32"}


@pytest.fixture(autouse=True)
def bitsandbytes() -> None:
    if find_spec("bitsandbytes") is None:
        reason = "needs bitsandbytes: pip install 'anneal[gpu]'"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def test_adapters_learn_beside_a_base_of_four_bits(make_job: MakeJob, stories: Path) -> None:
    job = make_job("run", **KNOBS)
    assert ranks.run(job, 1) == [0], (Path(job.out) / "log.txt").read_text()[-2000:]
    assert losses(job)[-1] < 0.9 * losses(job)[0]
    folder = Path(job.out) / "model"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    ids = torch.arange(10, 40).unsqueeze(0)
    with torch.inference_mode():
        tuned = load_tuned(stories, folder, dtype=torch.float32, device=CPU)
        base = load_base(stories, dtype=torch.float32, device=CPU)
        assert not torch.allclose(tuned(input_ids=ids).logits, base(input_ids=ids).logits)


def test_the_base_is_held_in_four_bits(stories: Path) -> None:
    quantized = load_base(stories, dtype=torch.float32, device=CPU, quantized=True)
    weight = quantized.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.uint8 and weight.numel() * 2 == 64 * 172


def test_the_cut_of_the_work_changes_nothing_but_the_last_digits(make_job: MakeJob) -> None:
    knobs = {**KNOBS, "lora_dropout": 0.0}
    alone, both = make_job("alone", **knobs), make_job("both", **knobs, activation_checkpointing=True)
    assert ranks.run(alone, 1) == [0] and ranks.run(both, 2) == [0, 0]
    assert losses(both) == pytest.approx(losses(alone), rel=1e-5)


def test_a_kill_changes_nothing(make_job: MakeJob, tmp_path: Path) -> None:
    smooth, killed = (make_job(name, **KNOBS, checkpoint_steps=2) for name in ("smooth", "killed"))
    assert ranks.run(smooth, 2) == [0, 0]
    ended = ranks.run(killed, 2, ANNEAL_CRASH_AT="train.after_backward:SIGKILL:7:1", ANNEAL_CRASH_FIRED=tmp_path / "f")
    assert ended != [0, 0] and (tmp_path / "f").exists()
    assert ranks.run(killed, 2) == [0, 0]
    assert {e["step"]: e["loss"] for e in events_of(killed)} == {e["step"]: e["loss"] for e in events_of(smooth)}
    one, other = (sha256_of(Path(job.out) / "model" / "adapter_model.safetensors") for job in (smooth, killed))
    assert one == other


def test_without_bitsandbytes_it_is_said_what_to_install(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"bitsandbytes is not installed; expected lora or full. .*anneal\[gpu\]"):
        load_base(stories, dtype=torch.float32, device=CPU, quantized=True)
