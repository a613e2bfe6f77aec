"""What only a CUDA device can show: pytest -m gpu."""

from __future__ import annotations

import pytest
import torch

from tasks.distributed.attention import packed_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_gives_what_the_cpu_gives(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 40, 64, dtype=torch.bfloat16) for heads in (8, 4, 4))
    bounds = torch.tensor([0, 7, 8, 40], dtype=torch.int32)
    on_cpu, _ = packed_attention(
        torch.nn.Module(), q, k, v, None, cu_seq_lens_q=bounds, max_length_q=32, sliding_window=window)
    on_gpu, _ = packed_attention(
        torch.nn.Module(), q.cuda(), k.cuda(), v.cuda(), None, cu_seq_lens_q=bounds.cuda(), max_length_q=32,
        sliding_window=window)
    assert torch.allclose(on_cpu, on_gpu.cpu(), atol=2e-2)
