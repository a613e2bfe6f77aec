"""The vocabulary head and its cross-entropy in one step, a chunk of labels at a time.

In training both passes are done in the forward pass, so nothing is computed twice, and the gradient of a
chunk's logits takes their place, a block at a time: the blocks stay in the processor's cache. The idea is
that of Liger kernel's FusedLinearCrossEntropy (arXiv 2410.10989, section 3.2), here in plain torch. A
chunk takes 4 bytes a logit in fp32, 2 in bf16; a block 8 more. Gradients add up in fp32.
Shapes: N labels, D hidden size, V vocabulary, C labels of a chunk, B labels of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from tasks.distributed.contract import BLOCK_LOGITS, CHUNK_LOGITS


def head_loss(head: nn.Module, hidden_ND: Tensor, labels_N: Tensor, scale: float, cap: float | None) -> Tensor:
    """Sum of the cross-entropy in nats of the labels (a scalar, fp32).

    `scale` multiplies the logits (Cohere, Granite), `cap` bends them to cap * tanh(logits / cap) (Gemma 2).
    """
    if isinstance(head, nn.Linear) and torch.is_grad_enabled():
        loss: Tensor = LinearCrossEntropy.apply(hidden_ND, head.weight, head.bias, labels_N, scale, cap)
        return loss
    # A head with an adapter, or no gradients wanted: autograd, which keeps no chunk either.
    size = chunk_of(head.weight)
    losses = [
        checkpoint(_plain_loss, head, hidden_CD, labels_C, scale, cap, use_reentrant=False)
        for hidden_CD, labels_C in zip(hidden_ND.split(size), labels_N.split(size), strict=True)]
    return torch.stack(losses).sum()


def chunk_of(weight_VD: Any) -> int:
    """Labels of a chunk."""
    return max(1, CHUNK_LOGITS // int(weight_VD.shape[0]))


def _plain_loss(head: nn.Module, hidden_CD: Tensor, labels_C: Tensor, scale: float, cap: float | None) -> Tensor:
    logits_CV = head(hidden_CD).float() * scale
    return cross_entropy(torch.tanh(logits_CV / cap) * cap if cap else logits_CV, labels_C, reduction="sum")


class LinearCrossEntropy(torch.autograd.Function):
    """head_loss for the logits hidden_ND @ weight_VD.T + bias_V."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor,
        scale: float, cap: float | None,
    ) -> Tensor:
        device = hidden_ND.device.type
        mixed = torch.is_autocast_enabled(device)
        compute = torch.get_autocast_dtype(device) if mixed else hidden_ND.dtype
        weight, bias = weight_VD.to(compute), None if bias_V is None else bias_V.to(compute)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden_ND = torch.empty_like(hidden_ND, dtype=compute) if wants_hidden else None
        grad_weight_VD = grad_bias_V = None
        total = torch.zeros((), device=hidden_ND.device)
        size = chunk_of(weight_VD)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(labels_N), size):
                part = slice(start, start + size)
                hidden_CD = hidden_ND[part].to(compute)
                grad_CV = linear(hidden_CD, weight, bias)
                total += turn_into_gradient(grad_CV, labels_N[part], scale, cap)
                if wants_bias:
                    grad_bias_V = added(grad_bias_V, grad_CV.sum(0, dtype=torch.float32))
                if grad_hidden_ND is not None:
                    torch.mm(grad_CV, weight, out=grad_hidden_ND[part])
                if wants_weight:
                    grad_weight_VD = added(grad_weight_VD, grad_CV.T @ hidden_CD)
                del grad_CV  # before the next chunk is made
        ctx.gradients = (grad_hidden_ND, grad_weight_VD, grad_bias_V)
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if gradient is None else gradient.mul_(outer).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)]
        ctx.gradients = None
        return (*scaled, None, None, None)


def added(total: Tensor | None, more: Tensor) -> Tensor:
    """The sum in fp32 or wider; most batches have one chunk, and then there is nothing to add to."""
    return more.to(torch.promote_types(more.dtype, torch.float32)) if total is None else total.add_(more)


def turn_into_gradient(logits_CV: Tensor, labels_C: Tensor, scale: float, cap: float | None) -> Tensor:
    """Put the gradient of the loss in the place of the logits; returns the summed loss, in fp32."""
    size = max(1, BLOCK_LOGITS[logits_CV.device.type] // logits_CV.shape[1])
    losses = []
    for logits_BV, labels_B in zip(logits_CV.split(size), labels_C.split(size), strict=True):
        loss, grad_BV = loss_and_gradient(logits_BV.float(), labels_B, scale, cap)
        logits_BV.copy_(grad_BV)
        losses.append(loss)
    return torch.stack(losses).sum()


def loss_and_gradient(
    logits_BV: Tensor, labels_B: Tensor, scale: float, cap: float | None,
) -> tuple[Tensor, Tensor]:
    """The summed loss, and its derivative by the unscaled logits: softmax minus one at the label.

    Changes `logits_BV`.
    """
    if scale != 1.0:
        logits_BV *= scale
    slope_BV = None
    if cap:
        logits_BV.div_(cap).tanh_()
        slope_BV = 1 - logits_BV**2
        logits_BV *= cap
    places = labels_B.unsqueeze(1)
    grad_BV = torch.softmax(logits_BV, 1)
    top, at = logits_BV.max(1, keepdim=True)
    normalizers = top - grad_BV.gather(1, at).log()  # logsumexp; the largest softmax is never near 0
    loss = (normalizers - logits_BV.gather(1, places)).sum()
    grad_BV.scatter_(1, places, grad_BV.gather(1, places) - 1)
    if slope_BV is not None:
        grad_BV *= slope_BV
    if scale != 1.0:
        grad_BV *= scale
    return loss, grad_BV
