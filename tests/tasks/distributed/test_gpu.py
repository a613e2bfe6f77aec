"""What only a CUDA device can show: pytest -m gpu."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.distributed.attention import packed_attention
from tasks.distributed.batches import Batch, BatchPlan, Feed
from tasks.distributed.codec import Codec
from tasks.distributed.decode import Sampling, decode_all
from tasks.distributed.model import load_base, load_tokenizer
from tasks.distributed.packs import PackedRows
from tests.conftest import ROOT
from tests.tasks.distributed.conftest import gradient_of, write_pack

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BASE = ROOT / "deployments" / "examples" / "base"
TOLERANCE = 2e-2
"""Of the largest value: bf16 keeps 8 bits."""


@pytest.mark.parametrize("heads", [8, 4])
@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_and_its_gradient_are_those_of_fp32_on_the_cpu(window: int | None, heads: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(1, number, 40, 64, dtype=torch.bfloat16) for number in (8, heads, heads)]
    outer, bounds = torch.randn(1, 40, 8, 64), torch.tensor([0, 7, 8, 40], dtype=torch.int32)
    found = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        q, k, v = (x.to(device, dtype).requires_grad_() for x in tensors)
        out, _ = packed_attention(torch.nn.Module(), q, k, v, None, cu_seq_lens_q=bounds.to(device), max_length_q=32,
                                  sliding_window=window)
        out.backward(outer.to(device, dtype))
        found.append([x.float().cpu() for x in (out, *map(gradient_of, (q, k, v)))])
    for wanted, got in zip(*found, strict=True):
        assert (wanted - got).abs().max() <= TOLERANCE * wanted.abs().max()


def test_greedy_answers_are_those_of_the_cpu() -> None:
    codec = Codec(load_tokenizer(BASE))
    ids = [codec.prompt(text) for text in ("Anna: Where are you?", "Tom: Lunch?\nEva: At noon, in the park.")]
    found = [decode_all(load_base(BASE, dtype=torch.float32, device=torch.device(device)), ids,
                     [Sampling(max_new_tokens=24)] * 2, stop_ids=codec.stop_ids) for device in ("cpu", "cuda")]
    assert found[0] == found[1] and all(found[0])


def test_batches_are_copied_from_page_locked_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = PackedRows(write_pack(tmp_path / "packs") / "train")
    plan, found, locked = BatchPlan(len(rows), batch=4, epochs=1, max_steps=0, seed=0), {}, []
    move = Batch.to

    def noted(batch: Batch, device: torch.device) -> Batch:
        locked.append(all(tensor.is_pinned() for tensor in (batch.ids_T, batch.positions_T, batch.labels_N)))
        return move(batch, device)

    monkeypatch.setattr(Batch, "to", noted)
    for device in ("cpu", "cuda"):
        feed = Feed(rows, plan, rank=0, world=1, count=2, device=torch.device(device), started=0)
        found[device] = [(batch.ids_T.tolist(), batch.labels_N.tolist()) for batch in feed]
    assert found["cpu"] == found["cuda"] and len(found["cpu"]) > 2
    assert locked == [False] * len(found["cpu"]) + [True] * len(found["cuda"])
