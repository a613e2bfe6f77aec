"""Put LoRA adapters on a base (arXiv 2106.09685), and choose what a full fine-tuning trains.

In:   a base, the spec      Out: the base with adapters, everything else frozen
An adapter stands only where the forward pass goes through it: not beside towers for pictures, routers with a forward
pass of their own, or layers whose weights the code of a mixer reads itself.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from infra.errors import UserError, shown
from infra.spec import TrainingSpec
from tasks.distributed.weight_check import WORDS

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

SCANNED = ("x_proj", "dt_proj", "out_proj")
"""The layers of a Mamba mixer that have no adapter: see scan_layers."""


def add_adapter(model: PreTrainedModel, spec: TrainingSpec) -> PeftModel:
    """Freeze the base and put LoRA beside its linear layers (arXiv 2106.09685, section 4.1), in fp32.

    The adapters' values are made by `start_adapter`, once they lie where they are to be trained.
    """
    from peft import get_peft_model  # three seconds that tokenising does without
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    config = adapter_config(spec)
    left_out = other_parts(model)
    if spec.lora_targets == "all-linear":
        config.target_parameters = expert_names(model) or None
        left_out += router_names(model) + scan_layers(model)
    elif not spec.base_version:  # its adapters stand where they stand
        check_targets(model, spec)
    config.exclude_modules = left_out or None
    config.lora_dropout = 0.0  # put on below: peft refuses it where experts have adapters
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise UserError(
            f"lora_targets is {shown(spec.lora_targets)}, and PEFT says: {' '.join(str(error).split())[:WORDS]}",
            allowed=_choice(model)) from error
    for module in adapted.modules():
        if isinstance(module, LoraLayer):  # autocast makes the adapters narrow; peft would make their inputs wide first
            module.cast_input_dtype_enabled = False
        if isinstance(module, LoraLayer) and spec.lora_dropout and not isinstance(module, ParamWrapper):
            module.lora_dropout.update(dict.fromkeys(module.lora_A, torch.nn.Dropout(spec.lora_dropout)))
    made = adapted.peft_config["default"]
    made.lora_dropout = 0.0 if any(isinstance(module, ParamWrapper) for module in adapted.modules()) else (
        spec.lora_dropout)
    for name in ("rank_pattern", "alpha_pattern"):  # peft writes patterns for fused experts; plain names do the same
        setattr(made, name, {key.removeprefix(".*\\."): value for key, value in getattr(made, name).items()})
    return adapted


def check_targets(model: PreTrainedModel, spec: TrainingSpec) -> None:
    """Raise UserError for targets among the layers of `unadaptable`."""
    named, layers = [target.strip() for target in spec.lora_targets.split(",")], unadaptable(model)
    if refused := sorted({target for target in named if any(_matches(layer, target) for layer in layers)}):
        raise UserError(
            f"lora_targets names {', '.join(refused)}, whose weights this base's code reads itself: an adapter there "
            "has no effect, or does not fit", allowed=_choice(model), fix="Leave it out of lora_targets.")


def unadaptable(model: PreTrainedModel) -> set[str]:
    """The linear layers beside which no adapter can work: routers that return two tensors, and the layers of a mixer
    whose class reads their weights, as those do that hand them to a kernel (`self.out_proj.weight`)."""
    names, routers = dict(model.named_modules()), set(router_names(model))
    read = {layer for layer in scan_layers(model)
            if f"self.{layer.rpartition('.')[2]}.weight" in inspect.getsource(type(names[layer.rpartition(".")[0]]))}
    return read | {name for name in names if name.rpartition(".")[2] in routers}


def _matches(layer: str, target: str) -> bool:
    """Whether peft would put an adapter of that target beside the layer."""
    return layer == target or layer.endswith(f".{target}")


def _choice(model: PreTrainedModel) -> str:
    """What lora_targets may name."""
    left_out = unadaptable(model)
    refused, others = {name.rpartition(".")[2] for name in left_out}, left_out | set(other_parts(model))
    names = {name.rpartition(".")[2] for name, module in model.named_modules()
             if isinstance(module, torch.nn.Linear) and name not in others}
    return "all-linear, or some of " + ", ".join(sorted(names - refused))


def other_parts(model: PreTrainedModel) -> list[str]:
    """The linear layers of a wrapper that text does not go through: towers for pictures and sound, what leads from them
    into the decoder. Trained, they would get no gradient, which DDP does not forgive."""
    text = _of_text(model)
    return sorted(name for name, module in model.named_modules()
                  if isinstance(module, torch.nn.Linear) and id(module.weight) not in text) if text else []


def freeze_other_parts(model: PreTrainedModel) -> None:
    """Let a full fine-tuning train what text goes through."""
    text = _of_text(model)
    for weight in model.parameters() if text else ():
        weight.requires_grad_(id(weight) in text)


def _of_text(model: PreTrainedModel) -> set[int]:
    """The ids of a wrapper's weights for text; empty where the model is no wrapper."""
    if model.config.get_text_config() is model.config:
        return set()
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    return {id(weight) for part in parts if part is not None for weight in part.parameters()}


def router_names(model: PreTrainedModel) -> list[str]:
    """The last names of linear layers that a family has given a forward pass of its own, such as Llama 4's router,
    which returns two tensors: an adapter beside them would not fit."""
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules()
                   if isinstance(module, torch.nn.Linear) and type(module).__module__.startswith("transformers.models.")
                   and type(module).forward is not torch.nn.Linear.forward and not _gives_one_tensor(module)})


def _gives_one_tensor(module: torch.nn.Linear) -> bool:
    """Whether a layer of a family's own class answers as a linear one does (Falcon's), asked on the meta device."""
    with torch.no_grad(), contextlib.suppress(RuntimeError):
        weights = {name: weight.to("meta") for name, weight in module.named_parameters()}
        inputs = torch.ones(1, module.in_features, device="meta")
        return isinstance(torch.func.functional_call(module, weights, inputs), torch.Tensor)
    return False


def scan_layers(model: PreTrainedModel) -> list[str]:
    """The layers of each Mamba mixer but the first: their weights go into the kernels of the scan themselves, past an
    adapter beside them (transformers' modeling_mamba.py, mamba_ssm's mamba_split_conv1d_scan_combined)."""
    names = dict(model.named_modules())
    mixers = [name for name, one in names.items() if {"A_log", "D"} <= dict(one.named_parameters(recurse=False)).keys()]
    return [f"{mixer}.{layer}" for mixer in mixers for layer in SCANNED if f"{mixer}.{layer}" in names]


def expert_names(model: PreTrainedModel) -> list[str]:
    """The last names of the weights that hold all experts of a layer, (experts, inputs, outputs) or the reverse."""
    return sorted({name.rsplit(".", 1)[-1] for name, weight in model.named_parameters()
                   if weight.ndim == 3 and not name.endswith((".weight", ".bias")) and "experts" in name})


def adapter_config(spec: TrainingSpec) -> LoraConfig:
    """The spec's adapters in peft's words."""
    from peft import LoraConfig

    targets: str | list[str] = spec.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in spec.lora_targets.split(",") if name.strip()]
    return LoraConfig(
        r=spec.lora_rank, lora_alpha=spec.lora_alpha, lora_dropout=spec.lora_dropout,
        target_modules=targets, task_type="CAUSAL_LM", use_rslora=spec.use_rslora)
