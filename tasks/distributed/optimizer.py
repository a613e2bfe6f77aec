"""AdamW (arXiv 1711.05101), also with its state in 8 bits, and the learning rates of LoRA+.

In:   the module whose parameters train, the spec     Out: an optimizer, and one update of it
The fused kernel of torch skips an update by itself where a figure is not finite, and scales gradients on the way; that
of bitsandbytes does neither, so that its updates wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infra.spec import TrainingSpec

BETAS = (0.9, 0.999)
EPSILON = 1e-8
RATIO = "lr_ratio"
"""In a group of parameters: its learning rate over that of the others."""


def make_optimizer(module: nn.Module, spec: TrainingSpec) -> torch.optim.Optimizer:
    """Matrices with weight decay, vectors without; of LoRA+ (arXiv 2402.12354), the B matrices apart."""
    named = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    faster = {name for name, weight in named if spec.loraplus_lr_ratio != 1 and "lora_B" in name and weight.ndim > 1}
    groups: list[dict[str, Any]] = [
        {"params": [w for name, w in named if w.ndim > 1 and name not in faster], "weight_decay": spec.weight_decay},
        {"params": [w for _, w in named if w.ndim <= 1], "weight_decay": 0.0}]
    if faster:  # not last: torch 2.13 restores a group without parameters, as the vectors' may be, only from there
        groups.insert(1, {"params": [w for name, w in named if name in faster], "weight_decay": spec.weight_decay,
                          RATIO: spec.loraplus_lr_ratio})
    if spec.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        small: torch.optim.Optimizer = AdamW8bit(
            [group for group in groups if group["params"]], lr=0.0, betas=BETAS, eps=EPSILON)
        return small
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)


def update(optimizer: torch.optim.Optimizer, rate: float, bad: Tensor, scale: Tensor | None) -> None:
    """One step at this learning rate, unless `bad` is 1; gradients are divided by `scale` before."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[RATIO] if RATIO in group else rate
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        if scale is not None:
            optimizer.grad_scale = scale.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not bad.item():
        if scale is not None:
            gradients = [w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
            torch._foreach_div_(gradients, scale)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
