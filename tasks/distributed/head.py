"""What a causal language model does between its last hidden states and its logits.

The model's own forward pass is asked, not the names in its configuration: its body and its head are replaced by known
numbers, and what comes out is compared with them. So a scale (Cohere, Granite), a cap (Gemma) or a factor before the
head (MiniCPM) is found wherever the family keeps it. No weight is read, nothing is computed on the device.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

KNOWN = (1.0, -1.0, 0.5, 2.0, 8.0, 64.0, 512.0, 1e6)
"""Logits that the head is made to give; the last one is beyond every cap."""
NEAR = 1e-5
"""Relative: a fit is in fp32."""


@dataclass(frozen=True, slots=True)
class Head:
    """logits = scale * head(hidden), then cap * tanh(logits / cap) where there is a cap."""

    scale: float = 1.0
    cap: float | None = None


class _Hidden(BaseModelOutputWithPast):
    """What a body returns; all that a family's own output has beside it is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def body_of(model: PreTrainedModel) -> PreTrainedModel | None:
    """The part that makes the last hidden states. Some classes name none that they have (Llama 4)."""
    if model.base_model is not model:
        return model.base_model
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), None)


def state_of(model: PreTrainedModel) -> str:
    """What carries a state from token to token, as its class and configuration tell; "" where attention alone mixes
    them. Such layers keep neither examples of a row nor padding apart."""
    kinds = {str(kind) for kind in getattr(model.config.get_text_config(), "layer_types", None) or ()}
    if other := sorted(kind for kind in kinds if "attention" not in kind or "linear" in kind):
        return f"its layers of kind {', '.join(other)} carry a state from token to token"
    return "its layers carry a state from token to token" if getattr(model, "_is_stateful", False) else ""


def accepted(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those of the options that a function takes; some families take no more than their own."""
    names = inspect.signature(function).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in names.values()):
        return options
    return {name: value for name, value in options.items() if name in names}


def head_of(model: PreTrainedModel) -> Head | None:
    """What its forward pass does, or None where that is more than a scale and a cap."""
    body, linear = body_of(model), model.get_output_embeddings()
    if body is None or not isinstance(linear, nn.Linear):
        return None
    with torch.no_grad(), torch.device("cpu"):
        seen: list[Tensor] = []
        known_V = torch.tensor(KNOWN).repeat(math.ceil(linear.out_features / len(KNOWN)))[: linear.out_features]
        hidden_BTD = torch.ones(1, 1, linear.in_features)

        def head(states_BTD: Tensor) -> Tensor:
            seen.append(states_BTD)
            return known_V.expand(*states_BTD.shape[:-1], -1).clone()

        with _answers(body, lambda *_, **__: _Hidden(last_hidden_state=hidden_BTD)), _answers(linear, head):
            try:
                found = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits
            except Exception:  # noqa: BLE001  (a family's forward pass may want anything: its own logits are taken then)
                return None
        logits_V = found.flatten().float()
    if len(seen) != 1 or seen[0].shape != hidden_BTD.shape or seen[0].min() != seen[0].max():
        return None
    before = float(seen[0].max())
    if len(logits_V) < linear.out_features or (before != 1.0 and linear.bias is not None):
        return None
    return _fitted(known_V.double(), logits_V[: linear.out_features].double(), before)


def _fitted(known_V: Tensor, logits_V: Tensor, before: float) -> Head | None:
    """The scale and cap by which the known numbers became the logits."""
    cap = float(logits_V.max()) if logits_V.max() < KNOWN[-1] / 2 * float(logits_V[0]) else None
    scale = float(logits_V[0]) if cap is None else cap * math.atanh(float(logits_V[0]) / cap)
    if scale == 0 or not math.isfinite(scale):
        return None
    made_V = known_V * scale
    made_V = made_V if cap is None else cap * torch.tanh(made_V / cap)
    if not torch.allclose(made_V, logits_V, rtol=NEAR):
        return None
    scale *= before
    return Head(1.0 if abs(scale - 1.0) < NEAR else scale, cap)


@contextmanager
def _answers(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it, the module's forward pass is another function."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
