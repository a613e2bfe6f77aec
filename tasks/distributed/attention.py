"""Attention over packed segments: one name, one code path, on CPU and CUDA alike.

Segments never see each other. Registered with transformers under a name of our own, which also
makes the model skip building masks. CUDA: torch's `varlen_attn` (bf16 or fp16), which torch.compile
takes into its graph. CPU: plain matrix products, which are faster there (cpu_attention.py), or segment
by segment where one is long.
Shapes: B=1, H heads (K of keys and values), T tokens, D head size, S segments.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from infra.errors import BaseModelError
from tasks.distributed.cpu_attention import SHORT, short_segments

NAME = "anneal_packed"
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""torch 2.11 takes fewer heads of keys and values as they are, newer ones want to be told."""


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
    if q_BHTD.is_cuda and torch.is_autocast_enabled("cuda"):  # full fine-tuning: rotary angles are in fp32
        q_BHTD, k_BHTD, v_BHTD = (x.to(torch.get_autocast_dtype("cuda")) for x in (q_BHTD, k_BHTD, v_BHTD))
    if q_BHTD.is_cuda and q_BHTD.dtype != torch.float32:  # the kernel takes bf16 and fp16 only
        return _on_cuda(q_BHTD, k_BHTD, v_BHTD, scaling, cu_seq_lens_q, max_length_q, window), None
    bounds = cu_seq_lens_q.tolist()
    if q_BHTD.device.type == "cpu" and max_length_q <= SHORT and not window:
        return short_segments(q_BHTD, k_BHTD, v_BHTD, bounds, scaling), None
    segments = zip(*(x.split(np.diff(bounds).tolist(), dim=2) for x in (q_BHTD, k_BHTD, v_BHTD)), strict=True)
    return torch.cat([_segment(q, k, v, scaling, window) for q, k, v in segments], dim=1), None


def _segment(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """(1, T, H, D). How it is done depends on this segment alone: the cut of a batch must not change its numbers."""
    if q.device.type == "cpu" and q.shape[2] <= SHORT and not window:
        return short_segments(q, k, v, [0, q.shape[2]], scaling)
    mask = None
    if window:
        distance = torch.arange(q.shape[2], device=q.device)[:, None] - torch.arange(q.shape[2], device=q.device)
        mask = (distance >= 0) & (distance < window)
    out_BHTD = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    return out_BHTD.transpose(1, 2)


def _on_cuda(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, bounds: Tensor, longest: int, window: int | None,
) -> Tensor:
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (q, k, v))
    out_THD = varlen_attn(
        q_THD, k_THD, v_THD, bounds, bounds, longest, longest, scale=scaling,
        window_size=(window - 1 if window else -1, 0), **(GROUPED if q.shape[1] != k.shape[1] else {}))
    return out_THD.unsqueeze(0)  # type: ignore[union-attr]


AttentionInterface.register(NAME, packed_attention)
