"""Which weights a base has, which of them a token goes through, and which the method trains.

In:   its configuration, the headers of its weight files, the spec     Out: Weights
Nothing of the weights is read. What adapters add is an estimate where a family's names are unusual; the training's
result has the real number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.models.weight_headers import Stored, tensors_of
from infra.spec import TrainingSpec

IN_A_LAYER = re.compile(r"\.\d+\.")
KINDS = {
    "experts": re.compile(r"experts?\b(?!_)"), "attention": re.compile(r"attn|attention|mixer|conv|ssm"),
    "feed-forward": re.compile(r"mlp|feed_forward|ffn|fc\d|dense")}
"""Of layers, the first that fits a weight's name."""
NO_EXPERTS = re.compile(r"shared_expert|router|experts?_(bias|score)|gate\.weight$")
OTHER_PARTS = re.compile(r"vision|visual|audio|image|multi_modal|mm_")
"""Parts of wrappers that are not trained: nothing here shows them a picture."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "num_experts_per_token", "top_k_experts")
"""How families call the numbers of experts of a layer, and of those that a token goes through."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of weights."""

    total: int
    active: int
    """Those that a token goes through."""
    trained: int
    kinds: dict[str, tuple[int, int]]
    """Kind of layer: its weights, and those of them that are trained or have an adapter."""

    @property
    def coverage(self) -> dict[str, float]:
        """Share of each kind that is trained or has an adapter."""
        return {kind: round(covered / weights, 4) for kind, (weights, covered) in self.kinds.items() if weights}


def weights_of(config: dict[str, Any], spec: TrainingSpec, folder: Path) -> Weights:
    """Count them by the headers in a folder. Raises BaseModelError."""
    tensors = tensors_of(folder, "base model")
    total = sum(math.prod(tensor.shape) for tensor in tensors.values())
    kinds = dict.fromkeys(("attention", "feed-forward", "experts", "embeddings and head", "other"), (0, 0))
    trained = 0
    for name, tensor in tensors.items():
        size, kind = math.prod(tensor.shape), layer_kind_of(name)
        full = size if not OTHER_PARTS.search(name) else 0
        added = full if spec.peft_method == "full" else adapter_of(name, tensor, kind, spec)
        trained += added
        weights, covered = kinds[kind]
        kinds[kind] = (weights + size, covered + (size if added else 0))
    experts, chosen = (next((int(config[key]) for key in keys if type(config.get(key)) is int), 0)
                       for keys in (EXPERTS, CHOSEN))
    idle = kinds["experts"][0] * (1 - min(chosen / experts, 1)) if experts and chosen else 0
    return Weights(total, total - round(idle), trained, kinds)


def layer_kind_of(name: str) -> str:
    """The kind of layer that a weight is of."""
    if OTHER_PARTS.search(name):
        return "other"
    if not IN_A_LAYER.search(name):
        return "embeddings and head"
    found = next((kind for kind, names in KINDS.items() if names.search(name)), "other")
    return "feed-forward" if found == "experts" and NO_EXPERTS.search(name) else found


def adapter_of(name: str, tensor: Stored, kind: str, spec: TrainingSpec) -> int:
    """Weights of the adapter beside a weight: rank x (inputs + outputs), for each expert of a layer."""
    sides, router = len(tensor.shape), NO_EXPERTS.search(name) and "shared" not in name
    if kind in ("embeddings and head", "other") or router or sides not in (2, 3) or (sides == 3 and kind != "experts"):
        return 0
    last = name.removesuffix(".weight").rsplit(".", 1)[-1]
    wanted = [target.strip() for target in spec.lora_targets.split(",")]
    if spec.lora_targets != "all-linear" and last not in wanted:
        return 0
    return spec.lora_rank * (tensor.shape[-1] + tensor.shape[-2]) * (tensor.shape[0] if sides == 3 else 1)
