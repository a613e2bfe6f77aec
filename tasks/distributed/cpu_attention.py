"""Attention over short packed segments on a CPU, by plain matrix products with their gradient written out.

Left to autograd, every slice of a segment would make a gradient of the whole row, filled with zeros, to add
to the others; here each segment's part is written once. Forward and backward as in arXiv 2205.14135,
appendix B.2, without its recomputation: the weights P of short segments are kept.
Shapes: T tokens, K heads of keys, G query heads for each of them, D head size; n queries of a tile, m keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORT = 1024
"""Longest segment whose scores are held in memory."""
TILE = 192
"""Queries at a time: the keys after a tile are not even looked at."""


class ShortSegments(torch.autograd.Function):
    """softmax(q k^T) v, causal within each segment. q comes scaled; all three have one dtype."""

    @staticmethod
    def forward(ctx: Any, q_KGTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, bounds: list[int]) -> Tensor:
        """(T, K, G, D)."""
        keys, groups, tokens, size = q_KGTD.shape
        out_TKGD = q_KGTD.new_empty(tokens, keys, groups, size)
        out_KGTD = out_TKGD.permute(1, 2, 0, 3)
        weights = []
        for first, start, end in tiles(bounds):
            q_KnD = q_KGTD[:, :, start:end].reshape(keys, -1, size)
            future = _future(q_KGTD.dtype)[start - first : end - first, : end - first].repeat(groups, 1)
            p_Knm = torch.baddbmm(future.unsqueeze(0), q_KnD, k_KTD[:, first:end].transpose(1, 2)).softmax(-1)
            out_KGTD[:, :, start:end] = torch.bmm(p_Knm, v_KTD[:, first:end]).view(keys, groups, end - start, size)
            weights.append(p_Knm)
        ctx.save_for_backward(q_KGTD, k_KTD, v_KTD, *weights)
        ctx.bounds = bounds
        return out_TKGD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer_TKGD: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v; they add up over a segment's tiles."""
        q_KGTD, k_KTD, v_KTD, *weights = ctx.saved_tensors
        keys, groups, _, size = q_KGTD.shape
        outer_KGTD = outer_TKGD.permute(1, 2, 0, 3)
        grad_q_KGTD, grad_k_KTD, grad_v_KTD = (torch.empty_like(x) for x in (q_KGTD, k_KTD, v_KTD))
        for (first, start, end), p_Knm in zip(reversed(list(tiles(ctx.bounds))), reversed(weights), strict=True):
            q_KnD, outer_KnD = (x[:, :, start:end].reshape(keys, -1, size) for x in (q_KGTD, outer_KGTD))
            grad_p_Knm = torch.bmm(outer_KnD, v_KTD[:, first:end].transpose(1, 2))
            grad_s_Knm = torch.ops.aten._softmax_backward_data(grad_p_Knm, p_Knm, -1, p_Knm.dtype)
            grad_q_KGTD[:, :, start:end] = torch.bmm(grad_s_Knm, k_KTD[:, first:end]).view(
                keys, groups, end - start, size)
            for gradient, left, right in ((grad_k_KTD, grad_s_Knm, q_KnD), (grad_v_KTD, p_Knm, outer_KnD)):
                part = torch.bmm(left.transpose(1, 2), right)
                if end in ctx.bounds:  # a segment's last tile comes first, and has all its keys
                    gradient[:, first:end] = part
                else:
                    gradient[:, first:end] += part
        return grad_q_KGTD, grad_k_KTD, grad_v_KTD, None


def short_segments(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, bounds: list[int], scaling: float | None,
) -> Tensor:
    """Causal attention within segments of at most SHORT tokens; (1, T, H, D)."""
    heads, tokens, size = q_BHTD.shape[1:]
    keys, dtype = k_BKTD.shape[1], v_BKTD.dtype  # the precision of the layers; rotary embedding widens q and k
    q_KGTD = (q_BHTD * (size**-0.5 if scaling is None else scaling)).to(dtype).view(keys, heads // keys, tokens, size)
    with torch.autocast("cpu", enabled=False):
        out_TKGD: Tensor = ShortSegments.apply(q_KGTD, k_BKTD[0].to(dtype), v_BKTD[0], bounds)
    return out_TKGD.view(1, tokens, heads, size)


def tiles(bounds: list[int]) -> Iterator[tuple[int, int, int]]:
    """(first token of the segment, start and end of some TILE of its queries), over all segments."""
    for first, last in pairwise(bounds):
        step = math.ceil((last - first) / max(1, round((last - first) / TILE)))
        for start in range(first, last, step):
            yield first, start, min(start + step, last)


@lru_cache(maxsize=3)
def _future(dtype: torch.dtype) -> Tensor:
    """-inf where a token would look at a later one."""
    return torch.full((SHORT, SHORT), -math.inf, dtype=dtype).triu_(1)
