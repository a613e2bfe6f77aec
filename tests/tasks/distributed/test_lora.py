"""tasks/distributed/lora.py: adapters on experts, and layers beside which none may stand."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from infra.errors import UserError
from infra.spec import TrainingSpec
from tasks.distributed.decode import BARE_BASE, Sampling, decode_all
from tasks.distributed.lora import add_adapter
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import load_base, load_tuned, save_model
from tasks.distributed.preflight import prove
from tests.support.families import tiny

CPU = torch.device("cpu")
NEEDED: dict[str, Any] = {"train_data": "d", "base_model": "m", "destination": "a/b"}


@pytest.mark.parametrize("case", ["moe-lora-dropout", "moe-experts-frozen"])
def test_all_linear_reaches_the_experts_and_leaves_dropout_to_the_others(shared: Path, case: str) -> None:
    base = load_base(shared / "cases" / case / "base", dtype=torch.float32, device=CPU)
    adapted = add_adapter(base, TrainingSpec(**NEEDED, lora_dropout=0.05))
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    of_experts = [layer for layer in layers if isinstance(layer, ParamWrapper)]
    drops = {isinstance(layer, ParamWrapper): type(layer.lora_dropout["default"]) for layer in layers}
    assert of_experts and drops == {True: nn.Identity, False: nn.Dropout}
    assert prove(PackedLoss(base), torch.float32, CPU).loss_error < 1e-6


def test_pefts_own_reason_is_told() -> None:
    with pytest.raises(UserError, match=r"PEFT says: .*not found in the base model.*some of .*in_proj"):
        add_adapter(tiny("mamba"), TrainingSpec(**NEEDED, lora_targets="q_proj"))


@pytest.mark.parametrize(("family", "targets", "vain"), [
    ("mamba", "in_proj,out_proj,x_proj", "out_proj, x_proj"), ("mamba", "mixer.dt_proj", "mixer.dt_proj"),
    ("falcon_mamba", "in_proj, out_proj", "out_proj"), ("falcon_h1", "q_proj,in_proj,out_proj", "out_proj"),
    ("nemotron_h", "out_proj", "out_proj"), ("llama4_text", "q_proj,router", "router")])
def test_a_named_layer_whose_adapter_would_do_nothing_is_refused(family: str, targets: str, vain: str) -> None:
    with pytest.raises(UserError) as caught:
        add_adapter(tiny(family), TrainingSpec(**NEEDED, lora_targets=targets))
    assert caught.value.found.startswith(f"lora_targets names {vain}, whose weights")
    allowed = str(caught.value.allowed).removeprefix("all-linear, or some of ").split(", ")
    assert allowed and not {"out_proj", "x_proj", "dt_proj", "router"} & set(allowed)
    named = TrainingSpec(**NEEDED, lora_targets=allowed[0])
    assert any("lora_" in name for name, _ in add_adapter(tiny(family), named).named_parameters())


@pytest.mark.parametrize(("family", "target"), [("jamba", "out_proj"), ("jamba", "x_proj")])
def test_a_mixer_that_calls_its_layers_takes_adapters_beside_them(family: str, target: str) -> None:
    torch.manual_seed(0)
    model = tiny(family)
    adapted = add_adapter(model, TrainingSpec(**NEEDED, lora_targets=target))
    ids = torch.arange(5, 21)[None]
    adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    weights = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert weights and all(weight.grad is not None for weight in weights.values())


def test_a_version_with_such_adapters_can_be_gone_on_from() -> None:
    spec = TrainingSpec(**NEEDED, lora_targets="in_proj,out_proj", base_version="a/b:1")
    assert any("out_proj.lora_A" in name for name, _ in add_adapter(tiny("bamba"), spec).named_parameters())


def test_two_adapters_of_experts_answer_in_one_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny("mixtral").save_pretrained(tmp_path / "base")
    for name in ("one", "two"):
        tuned = add_adapter(load_base(tmp_path / "base", dtype=torch.float32, device=CPU), TrainingSpec(**NEEDED))
        for weight_name, weight in tuned.named_parameters():
            if "lora_" in weight_name:
                nn.init.normal_(weight, std=0.2)
        save_model(tuned, tmp_path / name)
    both: Any = load_tuned(tmp_path / "base", tmp_path / "one", dtype=torch.float32, device=CPU)
    both.load_adapter(str(tmp_path / "two"), adapter_name="two")
    prompts, rows = [[7, 8, 9]] * 3, [Sampling(max_new_tokens=6)] * 3
    found = decode_all(both, prompts, rows, stop_ids=frozenset(), adapters=["default", "two", BARE_BASE])
    alone = [load_tuned(tmp_path / "base", tmp_path / name, dtype=torch.float32, device=CPU) for name in ("one", "two")]
    alone.append(load_base(tmp_path / "base", dtype=torch.float32, device=CPU))
    assert found == [decode_all(model, prompts[:1], rows[:1], stop_ids=frozenset())[0] for model in alone]
    assert len(set(map(tuple, found))) == 3


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'anneal[gpu]'")
def test_a_base_of_four_bits_is_trained_as_it_is(shared: Path) -> None:
    base = load_base(shared / "cases" / "base-bnb4" / "base", dtype=torch.float32, device=CPU, quantized=True)
    adapted = add_adapter(base, TrainingSpec(**NEEDED, peft_method="qlora", lora_dropout=0.0))
    loss = PackedLoss(base)
    assert prove(loss, torch.float32, CPU).loss_error < 1e-5
    assert any(parameter.requires_grad for parameter in adapted.parameters())


@pytest.mark.parametrize("family", ["mamba", "qwen3_5_text"])
def test_a_model_with_a_state_answers_a_batch_as_each_prompt_alone(family: str) -> None:
    torch.manual_seed(0)
    model, prompts = tiny(family), [[7, 8, 9, 10, 11, 12], [20, 21]]
    rows = [Sampling(max_new_tokens=5)] * 2
    found = decode_all(model, prompts, rows, stop_ids=frozenset())
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        for token in answer:
            with torch.no_grad():
                assert int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
