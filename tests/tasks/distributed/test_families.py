"""Tiny random models of every family: `make families`, and ten of them in `make test`.

Each is proven by the preflight: the loss and its gradient against plain transformers, packed against alone.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy

from tasks.distributed.batches import Batch
from tasks.distributed.loss import PackedLoss
from tasks.distributed.preflight import Proof, prove
from tests.support.families import FAMILIES, NOT_BUILT, VOCABULARY, tiny

TEN = ("llama", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "mixtral", "deepseek_v3", "stablelm", "gptj", "mamba")
RIGHT = 1e-6


def proof_of(family: str) -> Proof:
    """Packed rows as the preflight settles them, and the first loss against plain transformers."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = tiny(family)
    ids_T, bounds = torch.randint(5, VOCABULARY, (21,)), [0, 9, 21]
    parts = [ids_T[first:end] for first, end in pairwise(bounds)]
    with torch.no_grad():
        logits = [model(input_ids=part[None], use_cache=False).logits[0, :-1].float() for part in parts]
    plain = sum(cross_entropy(given, part[1:], reduction="sum").item()
                for given, part in zip(logits, parts, strict=True))
    loss = PackedLoss(model)
    found = prove(loss, torch.float32, torch.device("cpu"))
    places_T = torch.cat([torch.arange(len(part)) for part in parts])
    predicts_N = torch.tensor([place for first, end in pairwise(bounds) for place in range(first, end - 1)])
    with torch.no_grad():
        ours = loss(Batch(ids_T, places_T, torch.tensor(bounds, dtype=torch.int32), 12, predicts_N,
                          ids_T[predicts_N + 1]))
    assert ours.item() == pytest.approx(plain, rel=RIGHT)
    return found


@pytest.mark.parametrize("family", TEN)
def test_the_loss_of_a_family_is_its_own(family: str) -> None:
    found = proof_of(family)
    assert found.loss_error < RIGHT and found.gradient_error < 1e-5
    assert found.packed == (family not in ("gptj", "mamba"))


@pytest.mark.chaos
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_right_or_refused(family: str) -> None:
    if family in NOT_BUILT:
        pytest.skip(NOT_BUILT[family])
    found = proof_of(family)
    assert found.loss_error < RIGHT and found.gradient_error < 1e-4
