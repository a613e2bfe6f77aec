"""Attention over packed segments: one name, one code path, on CPU and CUDA alike.

Segments never see each other. Registered with transformers under a name of our own, which also
makes the model skip building masks. CUDA: torch's `varlen_attn` (bf16 or fp16), which torch.compile
takes into its graph. CPU: plain matrix products, which are faster there (cpu_attention.py), or segment
by segment where one is long. Capped scores (Gemma 2) and sinks (gpt-oss) are written out, segment by segment.
Shapes: B=1, H heads (K of keys and values), T tokens, D head size (E of values), S segments, n and m of one segment.
"""

from __future__ import annotations

import inspect
import math
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
WITHOUT_EFFECT = frozenset({
    "dropout", "is_causal", "position_ids", "position_embeddings", "cache_position", "use_cache", "cu_seq_lens_k",
    "max_length_k", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"})
"""Keywords that say what holds here anyway, or speak of other layers. A base's dropout of scores is not used."""
WIDEST = 256
"""Head size that `varlen_attn` takes."""


class Segments:
    """Those of the batch that is computed, for families that do not hand keywords down to their attention."""

    def __init__(self) -> None:
        self.bounds_S1: Tensor | None = None
        self.longest = 0
        self.windows: set[int | None] = set()
        """That layers have asked for: a family may keep its windows in masks, which are not made here."""

    def now(self, bounds_S1: Tensor, longest: int) -> None:
        """A batch begins; the layers that a backward pass computes again are of the same one."""
        self.bounds_S1, self.longest = bounds_S1, longest


segments = Segments()


def packed_attention(
    module: torch.nn.Module, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, attention_mask: Tensor | None, *,
    cu_seq_lens_q: Tensor | None = None, max_length_q: int | None = None, scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None, s_aux: Tensor | None = None, **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment; returns (1, T, H, E) and no weights.

    Raises BaseModelError for a mask or a keyword whose meaning is not known here.
    """
    unknown = sorted(name for name, value in others.items() if name not in WITHOUT_EFFECT and value is not None)
    if unknown or attention_mask is not None or others.get("is_causal") is False:
        found = f"by {', '.join(unknown)}" if unknown else "by a mask of its own"
        raise BaseModelError(f"its layers attend {found}, which packed rows do not know", where="base model")
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q, max_length_q = segments.bounds_S1, segments.longest
        assert cu_seq_lens_q is not None, "attention outside of a packed pass"
    if not torch.compiler.is_compiling():
        segments.windows.add(sliding_window)
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    if q_BHTD.is_cuda and torch.is_autocast_enabled("cuda"):  # full fine-tuning: rotary angles are in fp32
        q_BHTD, k_BHTD, v_BHTD = (x.to(torch.get_autocast_dtype("cuda")) for x in (q_BHTD, k_BHTD, v_BHTD))
    same = q_BHTD.shape[-1] == v_BHTD.shape[-1]
    written = softcap is not None or s_aux is not None
    if q_BHTD.is_cuda and q_BHTD.dtype != torch.float32 and not written and same and q_BHTD.shape[-1] <= WIDEST:
        return _on_cuda(q_BHTD, k_BHTD, v_BHTD, scaling, cu_seq_lens_q, max_length_q, window), None
    bounds = cu_seq_lens_q.tolist()
    if q_BHTD.device.type == "cpu" and max_length_q <= SHORT and not window and not written and same:
        return short_segments(q_BHTD, k_BHTD, v_BHTD, bounds, scaling), None
    parts = zip(*(x.split(np.diff(bounds).tolist(), dim=2) for x in (q_BHTD, k_BHTD, v_BHTD)), strict=True)
    if written:
        return torch.cat([_written(q, k, v, scaling, window, softcap, s_aux) for q, k, v in parts], dim=1), None
    return torch.cat([_segment(q, k, v, scaling, window) for q, k, v in parts], dim=1), None


def _segment(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """(1, n, H, E). How it is done depends on this segment alone: the cut of a batch must not change its numbers."""
    if q.device.type == "cpu" and q.shape[2] <= SHORT and not window and q.shape[-1] == v.shape[-1]:
        return short_segments(q, k, v, [0, q.shape[2]], scaling)
    mask = None if window is None else _seen(q.shape[2], window, q.device)
    out_BHTD = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    return out_BHTD.transpose(1, 2)


def _seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """(n, n): which keys a query sees."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < (window or length))


def _written(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None, cap: float | None, sinks: Tensor | None,
) -> Tensor:
    """(1, n, H, E) with scores bent to cap * tanh(scores / cap) (arXiv 2408.00118, section 2), and beside them a sink
    for each head that takes its share of the softmax (arXiv 2309.17453, section 3.3)."""
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    scores = scores.float().masked_fill(~_seen(length, window, q.device), -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(1, -1, 1, 1).expand(1, -1, length, 1)], dim=-1)
    return (scores.softmax(-1)[..., :length].to(v.dtype) @ v).transpose(1, 2)


def _on_cuda(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, bounds: Tensor, longest: int, window: int | None,
) -> Tensor:
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (q, k, v))
    out_THD = varlen_attn(
        q_THD, k_THD, v_THD, bounds, bounds, longest, longest, scale=scaling,
        window_size=(window - 1 if window else -1, 0), **(GROUPED if q.shape[1] != k.shape[1] else {}))
    return out_THD.unsqueeze(0)  # type: ignore[union-attr]


AttentionInterface.register(NAME, packed_attention)
