"""tasks/distributed/preflight.py: a loss that is not the model's own is not trained on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from infra.errors import BaseModelError
from tasks.distributed import loss as loss_module
from tasks.distributed import preflight
from tasks.distributed.head import Head
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import load_base
from tasks.distributed.preflight import prove
from tests.conftest import ROOT
from tests.support.families import tiny

CPU = torch.device("cpu")
RIGHT = 1e-6
"""Relative error of a loss in fp32 that is right."""


def proof_of(model: Any) -> preflight.Proof:
    return prove(PackedLoss(model), torch.float32, CPU)


@pytest.mark.parametrize(("case", "packed"), [
    ("gemma4-softcap", True), ("moe-isolation-mixtral", True), ("gemma2-message", True), ("crash-stablelm", True),
    ("crash-llama4", False), ("crash-qwen3_5", False), ("moe-experts-frozen", True), ("context-gpt2", True),
    ("merge-gemma3", True)])
def test_a_base_that_failed_is_right(shared: Path, case: str, packed: bool) -> None:
    torch.set_num_threads(1)
    found = proof_of(load_base(shared / "cases" / case / "base", dtype=torch.float32, device=CPU))
    assert found.packed == packed and found.loss_error < RIGHT and found.gradient_error < 1e-5
    assert packed == (not found.why)


def test_a_head_that_leaves_out_the_cap_is_caught_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "head_of", lambda _: Head())
    loss = PackedLoss(tiny("gemma2"))
    loss.model.config.final_logit_softcapping = 1.0
    found = prove(loss, torch.float32, CPU)
    assert found.packed and found.loss_error < 1e-5 and loss.head is None


def test_a_loss_that_no_way_makes_right_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loss_module.own_logits
    monkeypatch.setattr(loss_module, "own_logits", lambda *inputs, **more: plain(*inputs) * torch.rand(()))
    monkeypatch.setattr(loss_module, "head_of", lambda _: None)
    with pytest.raises(BaseModelError, match=r"expected a loss within 1e-05 of its own\. Choose"):
        proof_of(tiny("llama"))


def test_what_a_first_pass_raises_is_a_refusal() -> None:
    class Odd(hf.LlamaForCausalLM):
        def forward(self, *inputs: object, **options: object) -> object:
            raise KeyError("rotary")

    with pytest.raises(BaseModelError, match=r"it cannot be run \(KeyError: 'rotary'\)"):
        proof_of(Odd(tiny("llama").config))


def test_a_window_that_a_family_keeps_in_its_masks_is_not_lost() -> None:
    model: Any = tiny("gemma3_text")
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    found = proof_of(model)
    assert not found.packed and found.why == "it keeps its windows in masks, which packed rows do without"


def test_the_proof_of_the_demos_base_takes_less_than_two_seconds() -> None:
    torch.set_num_threads(1)
    loss = PackedLoss(load_base(ROOT / "deployments" / "examples" / "base", dtype=torch.float32, device=CPU))
    began = time.process_time()
    assert prove(loss, torch.float32, CPU).packed
    assert time.process_time() - began < 2
    assert not any(parameter.grad is not None for parameter in loss.parameters())
