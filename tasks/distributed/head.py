"""The vocabulary head and its cross-entropy in one step, a chunk of labels at a time.

The logits of a chunk live only until their gradient is known: both passes are done in the forward
pass, so nothing is computed twice and no more than one chunk of logits is ever held. The idea is
that of Liger kernel's FusedLinearCrossEntropy (arXiv 2410.10989, section 3.2), here in plain torch.
Gradients add up in fp32. Shapes: N labels, D hidden size, V vocabulary, C labels of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

CHUNK_LOGITS = 1 << 25
"""Largest number of logits held at a time: 128 MiB in fp32."""


def head_loss(head: nn.Module, hidden_ND: Tensor, labels_N: Tensor, scale: float, cap: float | None) -> Tensor:
    """Sum of the cross-entropy in nats of the labels (a scalar, fp32).

    `scale` multiplies the logits (Cohere, Granite), `cap` bends them to cap * tanh(logits / cap) (Gemma 2).
    """
    if isinstance(head, nn.Linear):
        loss: Tensor = LinearCrossEntropy.apply(hidden_ND, head.weight, head.bias, labels_N, scale, cap)
        return loss
    logits_NV = head(hidden_ND).float() * scale  # a head with an adapter
    return cross_entropy(torch.tanh(logits_NV / cap) * cap if cap else logits_NV, labels_N, reduction="sum")


class LinearCrossEntropy(torch.autograd.Function):
    """head_loss for the logits hidden_ND @ weight_VD.T + bias_V."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor,
        scale: float, cap: float | None,
    ) -> Tensor:
        compute = torch.get_autocast_dtype(hidden_ND.device.type) if torch.is_autocast_enabled(
            hidden_ND.device.type) else hidden_ND.dtype
        weight = weight_VD.to(compute)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden_ND = torch.empty_like(hidden_ND, dtype=compute) if wants_hidden else None
        grad_weight_VD = grad_bias_V = None
        total = torch.zeros((), device=hidden_ND.device)
        size = max(1, CHUNK_LOGITS // weight_VD.shape[0])
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(labels_N), size):
                part = slice(start, start + size)
                hidden_CD, labels_C = hidden_ND[part].to(compute), labels_N[part]
                logits_CV = linear(hidden_CD, weight, None if bias_V is None else bias_V.to(compute)).float()
                loss, grad_CV = loss_and_gradient(logits_CV, labels_C, scale, cap)
                total += loss
                grad = grad_CV.to(compute)
                if grad_hidden_ND is not None:
                    torch.mm(grad, weight, out=grad_hidden_ND[part])
                if wants_weight:
                    grad_weight_VD = added(grad_weight_VD, grad.T @ hidden_CD)
                if wants_bias:
                    grad_bias_V = added(grad_bias_V, grad_CV.sum(0))
        ctx.gradients = (grad_hidden_ND, grad_weight_VD, grad_bias_V)
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if gradient is None else (gradient.mul_(outer)).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)]
        ctx.gradients = None
        return (*scaled, None, None, None)


def added(total: Tensor | None, more: Tensor) -> Tensor:
    """The sum in fp32 or wider; most batches have one chunk, and then there is nothing to add to."""
    return more.to(torch.promote_types(more.dtype, torch.float32)) if total is None else total.add_(more)


def loss_and_gradient(
    logits_CV: Tensor, labels_C: Tensor, scale: float, cap: float | None,
) -> tuple[Tensor, Tensor]:
    """The summed loss, and its derivative by the unscaled logits: softmax minus one at the label.

    Changes `logits_CV`.
    """
    if scale != 1.0:
        logits_CV *= scale
    slope_CV = None
    if cap:
        logits_CV.div_(cap).tanh_()
        slope_CV = 1 - logits_CV**2
        logits_CV *= cap
    places = labels_C.unsqueeze(1)
    grad_CV = torch.softmax(logits_CV, 1)
    top, at = logits_CV.max(1, keepdim=True)
    normalizers = top - grad_CV.gather(1, at).log()  # logsumexp; the largest softmax is never near 0
    loss = (normalizers - logits_CV.gather(1, places)).sum()
    grad_CV.scatter_add_(1, places, torch.full_like(places, -1, dtype=grad_CV.dtype))
    if slope_CV is not None:
        grad_CV *= slope_CV
    if scale != 1.0:
        grad_CV *= scale
    return loss, grad_CV
