"""tasks/distributed/loss.py: packed rows give the numbers of single examples.

Tests tasks/distributed/attention.py, tasks/distributed/batches.py, tasks/distributed/cross_entropy.py too.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLayer
from torch.nn.utils.rnn import pad_sequence

from tasks.distributed import cross_entropy as head_module
from tasks.distributed.attention import packed_attention
from tasks.distributed.batches import Batch, BatchPlan, Filled, batch_of, micro_batches
from tasks.distributed.cross_entropy import LinearCrossEntropy, head_loss
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import load_base
from tasks.distributed.packs import PackedRows
from tests.tasks.distributed.conftest import CHUNK, gradient_of, write_pack


@pytest.fixture
def rows(tmp_path: Path) -> PackedRows:
    return PackedRows(write_pack(tmp_path / "packs") / "train")


def reference(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The loss by plain transformers, one example at a time."""
    bounds, labelled = batch.bounds_S1.tolist(), set((batch.predicts_N + 1).tolist())
    total = torch.zeros(())
    for start, end in pairwise(bounds):
        ids = batch.ids_T[start:end].unsqueeze(0)
        labels = torch.tensor([[t if start + i in labelled else -100 for i, t in enumerate(ids[0].tolist())]])
        logits = model(input_ids=ids).logits[0, :-1].float()
        total = total + torch.nn.functional.cross_entropy(
            logits, labels[0, 1:], reduction="sum", ignore_index=-100)
    return total


@pytest.mark.parametrize("chunk_logits", [1 << 26, 512 * 7])
def test_packed_loss_and_gradient_equal_single_examples(
    rows: PackedRows, stories: Path, monkeypatch: pytest.MonkeyPatch, chunk_logits: int,
) -> None:
    monkeypatch.setattr(head_module, "CHUNK_LOGITS", chunk_logits)
    cpu: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    plain, packed = load_base(stories, **cpu), PackedLoss(load_base(stories, **cpu))
    batch = batch_of(rows, np.arange(3))
    expected, found = reference(plain, batch), packed(batch)
    expected.backward()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(plain.parameters(), packed.parameters(), strict=True):
        wanted = gradient_of(a)
        assert torch.allclose(wanted, gradient_of(b), rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_and_padded_gradients_agree_to_one_in_a_million(
    rows: PackedRows, stories: Path, attention: str,
) -> None:
    """The usual way with transformers: a rectangle of padded examples, a mask, -100 where nothing is learnt."""
    cpu: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    plain, packed = load_base(stories, **cpu), PackedLoss(load_base(stories, **cpu))
    plain.set_attn_implementation(attention)
    batch = batch_of(rows, np.arange(len(rows)))
    learnt = torch.full_like(batch.ids_T, -100)
    learnt[batch.predicts_N + 1] = batch.labels_N
    sizes = np.diff(batch.bounds_S1).tolist()
    ids, labels, mask = (
        pad_sequence(list(values.split(sizes)), batch_first=True, padding_value=nothing)
        for values, nothing in ((batch.ids_T, 0), (learnt, -100), (torch.ones_like(batch.ids_T), 0)))
    mean = plain(input_ids=ids, attention_mask=mask, labels=labels).loss
    mean.backward()
    (packed(batch) / len(batch.labels_N)).backward()
    theirs, ours = (
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) for model in (plain, packed))
    assert float((theirs - ours).norm() / theirs.norm()) <= 1e-6
    assert len(sizes) > len(rows) and mask.sum() < mask.numel()


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_logits", [1 << 25, 50 * 4])
def test_the_head_and_its_gradients_are_those_of_autograd(
    monkeypatch: pytest.MonkeyPatch, scale: float, cap: float | None, bias: bool, chunk_logits: int,
) -> None:
    monkeypatch.setattr(head_module, "CHUNK_LOGITS", chunk_logits)
    torch.manual_seed(0)
    hidden, weight = torch.randn(33, 16).double(), torch.randn(50, 16).double()
    inputs = [hidden, weight, *([torch.randn(50).double()] if bias else [])]
    labels = torch.randint(0, 50, (33,))
    for tensor in inputs:
        tensor.requires_grad_()
    logits = torch.nn.functional.linear(*inputs) * scale
    expected = torch.nn.functional.cross_entropy(
        torch.tanh(logits / cap) * cap if cap else logits, labels, reduction="sum")
    found = LinearCrossEntropy.apply(hidden, weight, inputs[2] if bias else None, labels, scale, cap)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(3 * loss, inputs) for loss in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


def test_the_head_in_bf16_is_near_the_head_in_fp32_and_leaves_a_frozen_weight_alone() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(40, 64, requires_grad=True), torch.nn.Linear(64, 300, bias=False)
    labels = torch.randint(0, 300, (40,))
    head.weight.requires_grad_(False)
    exact = head_loss(head, hidden, labels, 1.0, None)
    (wanted,) = torch.autograd.grad(exact, hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head_loss(head, hidden, labels, 1.0, None)
    rough.backward()
    assert rough.item() == pytest.approx(exact.item(), rel=2e-3) and hidden.grad is not None
    assert hidden.grad.dtype == torch.float32 and head.weight.grad is None
    assert float((hidden.grad - wanted).norm() / wanted.norm()) < 1e-2


def test_a_head_with_an_adapter_or_without_gradients_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_LOGITS", 50 * 7)
    torch.manual_seed(0)
    hidden, head, labels = torch.randn(33, 16), torch.nn.Linear(16, 50), torch.randint(0, 50, (33,))
    adapted = LoraLayer(head, "default", config=LoraConfig(r=4, lora_alpha=8), r=4, lora_alpha=8)
    expected = head_loss(head, hidden, labels, 0.5, 3.0)
    with torch.no_grad():
        assert head_loss(head, hidden, labels, 0.5, 3.0).item() == pytest.approx(expected.item(), rel=1e-6)
    assert head_loss(adapted, hidden, labels, 0.5, 3.0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_label_that_the_model_finds_impossible_has_a_finite_loss() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [300.0]])
    loss = LinearCrossEntropy.apply(hidden, weight, None, torch.tensor([0]), 1.0, None)
    assert loss.item() == 300.0


def test_a_change_in_one_segment_does_not_reach_another(rows: PackedRows, stories: Path) -> None:
    model = PackedLoss(load_base(stories, dtype=torch.float32, device=torch.device("cpu"))).model
    batch = batch_of(rows, np.arange(1))

    def hidden(ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            states: torch.Tensor = model.base_model(
                input_ids=ids.unsqueeze(0), position_ids=batch.positions_T.unsqueeze(0), use_cache=False,
                cu_seq_lens_q=batch.bounds_S1, cu_seq_lens_k=batch.bounds_S1, max_length_q=batch.longest,
                max_length_k=batch.longest).last_hidden_state[0]
            return states

    end = int(batch.bounds_S1[1])
    changed = batch.ids_T.clone()
    changed[0] = (changed[0] + 1) % 500
    before, after = hidden(batch.ids_T), hidden(changed)
    assert not torch.equal(before[:end], after[:end])
    assert torch.equal(before[end:], after[end:])


@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
@pytest.mark.parametrize("sizes", [[1], [287], [288], [1024], [1025], [3, 1, 700, 288], [700, 1025, 30]])
def test_attention_by_products_is_attention(sizes: list[int], heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, count, sum(sizes), 4, requires_grad=True) for count in (heads[0], *[heads[1]] * 2))
    bounds = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32)
    found, _ = packed_attention(torch.nn.Module(), q, k, v, None, cu_seq_lens_q=bounds, max_length_q=max(sizes))
    expected = torch.cat([
        torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        for query, key, value in zip(*(x.split(sizes, dim=2) for x in (q, k, v)), strict=True)], dim=2)
    weights = torch.randn_like(expected)
    assert torch.allclose(found.transpose(1, 2), expected, atol=2e-6)
    ours, theirs = (
        torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (found.transpose(1, 2), expected))
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(ours, theirs, strict=True))


def test_a_sliding_window_hides_what_is_too_far() -> None:
    q = torch.randn(1, 2, 10, 8)
    bounds = torch.tensor([0, 10], dtype=torch.int32)
    args: dict[str, Any] = {"cu_seq_lens_q": bounds, "max_length_q": 10}
    near, _ = packed_attention(torch.nn.Module(), q, q, q, None, sliding_window=3, **args)
    other = q.clone()
    other[:, :, 0] += 1
    moved, _ = packed_attention(torch.nn.Module(), q, other, other, None, sliding_window=3, **args)
    assert torch.equal(near[0, 3:], moved[0, 3:]) and not torch.equal(near[0, :3], moved[0, :3])


def test_batches_restart_positions_and_keep_every_label(rows: PackedRows) -> None:
    everything = batch_of(rows, np.arange(len(rows)))
    assert len(everything.ids_T) == rows.tokens_in.sum()
    assert len(everything.labels_N) == rows.labels_in.sum()
    assert (everything.positions_T[everything.bounds_S1[:-1].long()] == 0).all()
    assert torch.equal(everything.labels_N, everything.ids_T[everything.predicts_N + 1])


def test_rows_are_filled_up_with_segments_that_teach_nothing(rows: PackedRows, stories: Path) -> None:
    model = PackedLoss(load_base(stories, dtype=torch.float32, device=torch.device("cpu")))
    taken = np.arange(len(rows) - 3, len(rows))
    plain, filled = batch_of(rows, taken), batch_of(rows, taken, filled=Filled(4, CHUNK, rows.longest))
    assert len(plain.ids_T) < len(filled.ids_T) == 4 * CHUNK == int(filled.bounds_S1[-1])
    assert int(np.diff(filled.bounds_S1).max()) <= filled.longest == rows.longest < CHUNK
    assert int(filled.positions_T.max()) < rows.longest
    assert torch.equal(plain.labels_N, filled.labels_N)
    gradients = []
    for batch in (plain, filled):
        model.zero_grad()
        model(batch).backward()
        gradients.append(torch.cat([gradient_of(parameter).flatten() for parameter in model.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) <= 1e-6
    assert rows.tokens_in[0] == CHUNK
    full = (None, Filled(1, CHUNK, CHUNK))
    assert torch.equal(*(batch_of(rows, np.arange(1), filled=filled).bounds_S1 for filled in full))


def test_an_unlabelled_batch_learns_nothing(rows: PackedRows) -> None:
    assert len(batch_of(rows, np.arange(2), labelled=False).labels_N) == 0


def test_every_row_is_taken_once_an_epoch_in_a_fresh_order() -> None:
    plan = BatchPlan(rows=10, batch=4, epochs=2, max_steps=0, seed=1)
    assert plan.steps == 6
    epochs = [np.concatenate([plan.rows_of(s) for s in range(e * 3, e * 3 + 3)]) for e in (0, 1)]
    assert all(sorted(order) == list(range(10)) for order in epochs)
    assert list(epochs[0]) != list(epochs[1])


@pytest.mark.parametrize(("world", "count"), [(1, 1), (2, 1), (2, 3), (3, 2), (5, 4)])
def test_the_shares_of_all_ranks_make_up_the_batch(world: int, count: int) -> None:
    rows = np.arange(100, 107)
    shares = [micro_batches(rows, rank=rank, world=world, count=count) for rank in range(world)]
    assert sorted(np.concatenate([part for share in shares for part in share])) == list(rows)
