"""Attention over packed segments: one name, one code path, on CPU and CUDA alike.

Segments never see each other. Registered with transformers under a name of our own, which also
makes the model skip building masks. CUDA: torch's `varlen_attn` (bf16 or fp16). CPU: segment by
segment; up to SHORT tokens by plain matrix products, which are faster there (DECISIONS.md).
Shapes: B=1, H heads (K of keys and values), T tokens, D head size, S segments.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from infra.errors import BaseModelError

NAME = "anneal_packed"
SHORT = 1024
"""Longest segment whose T x T scores are held in memory, on a CPU."""
TILE = 192
"""Queries at a time, on a CPU."""


def packed_attention(
    module: torch.nn.Module, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, attention_mask: Tensor | None, *,
    cu_seq_lens_q: Tensor, max_length_q: int, scaling: float | None = None, sliding_window: int | None = None,
    softcap: float | None = None, **unused: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment; returns (1, T, H, D) and no weights.

    Raises BaseModelError for models that cap their attention scores: no kernel here does that.
    """
    assert attention_mask is None and q_BHTD.shape[0] == 1, "packed rows are flattened and carry no mask"
    if softcap:
        raise BaseModelError("the base model caps its attention scores (softcap), which is not supported",
                             fix="Choose a base of another family, such as Llama, Mistral or Qwen.")
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    if q_BHTD.is_cuda and q_BHTD.dtype != torch.float32:  # the kernel takes bf16 and fp16 only
        return _on_cuda(q_BHTD, k_BHTD, v_BHTD, scaling, cu_seq_lens_q, max_length_q, window), None
    bounds = cu_seq_lens_q.tolist()
    parts = [
        _segment(q_BHTD[:, :, a:b], k_BHTD[:, :, a:b], v_BHTD[:, :, a:b], scaling, window)
        for a, b in pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _segment(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None) -> Tensor:
    if q.device.type == "cpu" and q.shape[2] <= SHORT and not window:
        return _by_products(q, k, v, q.shape[3] ** -0.5 if scaling is None else scaling)
    mask = None
    if window:
        distance = torch.arange(q.shape[2], device=q.device)[:, None] - torch.arange(q.shape[2], device=q.device)
        mask = (distance >= 0) & (distance < window)
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])


def _by_products(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scaling: float) -> Tensor:
    """Attention of a short segment, some TILE queries at a time: later keys are not even looked at."""
    heads, tokens, size = q_BHTD.shape[1:]
    keys = k_BKTD.shape[1]
    shared = heads // keys  # query heads that share a key head lie one after the other
    dtype = v_BKTD.dtype  # the precision of the layers; rotary embedding widens q and k
    q_KGTD = (q_BHTD * scaling).to(dtype).view(keys, shared, tokens, size)
    k_KDT, v_KTD = k_BKTD[0].to(dtype).transpose(1, 2), v_BKTD[0]
    step = math.ceil(tokens / max(1, round(tokens / TILE)))
    parts = []
    with torch.autocast("cpu", enabled=False):
        for start in range(0, tokens, step):
            end = min(start + step, tokens)
            rows = shared * (end - start)
            future = _future(dtype)[start:end, :end].repeat(shared, 1).unsqueeze(0)
            scores = torch.baddbmm(future, q_KGTD[:, :, start:end].reshape(keys, rows, size), k_KDT[:, :, :end])
            parts.append(torch.bmm(scores.softmax(-1), v_KTD[:, :end]).view(keys, shared, end - start, size))
        return torch.cat(parts, dim=2).view(1, heads, tokens, size)


@lru_cache(maxsize=2)
def _future(dtype: torch.dtype) -> Tensor:
    """-inf where a token would look at a later one."""
    return torch.full((SHORT, SHORT), -math.inf, dtype=dtype).triu_(1)


def _on_cuda(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, bounds: Tensor, longest: int, window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (q, k, v))
    out_THD = varlen_attn(
        q_THD, k_THD, v_THD, bounds, bounds, longest, longest, scale=scaling,
        window_size=(window - 1 if window else -1, 0), enable_gqa=q.shape[1] != k.shape[1])
    return out_THD.unsqueeze(0)  # type: ignore[union-attr]


AttentionInterface.register(NAME, packed_attention)
