"""How the weights are spread over the ranks: a copy on each (DDP), or a shard on each (FSDP2).

In:   the loss module          Out: a `Spread`, which is called in its place
Shards: the model is built without memory, cut, and each rank reads only its own rows of every
tensor, so no rank ever holds the whole base. Several nodes: shards within a node, copies over nodes
(HSDP). FSDP2: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from infra.errors import BaseModelError
from infra.models.model_folder import FIX, view
from infra.models.weight_headers import tensors_of
from tasks.distributed.model import config_of
from tasks.distributed.process_group import Group
from tasks.distributed.weight_check import auto_class, check_headers, is_finite, translate_loading_errors


@dataclass(frozen=True, slots=True)
class Spread:
    """The module that computes the loss on all ranks together."""

    call: nn.Module
    ddp: DistributedDataParallel | None = None

    def accumulate(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """Within it, backward passes keep their gradients to themselves.

        Shards always reduce at once: whole gradients are what they do without.
        """
        return self.ddp.no_sync() if self.ddp and wanted else contextlib.nullcontext()


def replicate(loss: nn.Module, ranks: Group) -> Spread:
    """A copy of the weights on each rank; gradients are averaged in the backward pass."""
    if ranks.world == 1:
        return Spread(loss)
    ddp = DistributedDataParallel(loss, gradient_as_bucket_view=True)
    return Spread(ddp, ddp)


def empty_base(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The base model without memory for its weights. Raises BaseModelError."""
    where = f"base model {path}"
    with view(path, where) as folder, translate_loading_errors(where, "transformers cannot build it"):
        config = config_of(folder)
        if getattr(config, "quantization_config", None) is not None:
            raise BaseModelError("its weights are quantized, and cannot be cut into shards", where=where,
                                 allowed="fp32, bf16 or fp16", fix="Train it with parallelism ddp.")
        check_headers(config, tensors_of(folder, where), where)
        with init_empty_weights(include_buffers=False):
            model = auto_class(config).from_config(
                config, dtype=dtype, trust_remote_code=False)
    model.name_or_path = model.config.name_or_path = str(path)
    model.tie_weights()
    model.config.use_cache = False
    return model.eval()


def shard(
    loss: nn.Module, model: PreTrainedModel, ranks: Group, parallelism: str, compute: torch.dtype,
) -> Spread:
    """Cut the weights of `loss`, layer by layer; forward and backward in `compute`, gradients in fp32."""
    narrow = compute if compute != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": mesh_of(ranks, parallelism), "mp_policy": policy}
    for layer in layers_of(model):
        fully_shard(layer, **options)
    fully_shard(loss, **options)
    loss._apply(lambda x: torch.empty_like(x, device=ranks.device) if x.is_meta else x.to(ranks.device))
    return Spread(loss)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers, by what transformers says must stay together."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def mesh_of(ranks: Group, parallelism: str) -> DeviceMesh:
    """All ranks in a line; for hsdp nodes x ranks of a node, in torchrun's order."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))
    if parallelism == "hsdp" and local < ranks.world:
        return init_device_mesh(ranks.device.type, (ranks.world // local, local), mesh_dim_names=("copies", "shards"))
    return init_device_mesh(ranks.device.type, (ranks.world,), mesh_dim_names=("shards",))


def fill(parameter: Tensor, whole: Any) -> None:
    """Put this rank's rows of `whole`, a tensor or a slice of a file, into a parameter."""
    if not isinstance(parameter, DTensor):
        parameter.data.copy_(whole[:] if not isinstance(whole, Tensor) else whole)
        return
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements)
    if 0 not in shape:
        parameter.to_local().data.copy_(whole[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))])


def load_shards(model: nn.Module, path: Path, tied: bool) -> None:
    """Read this rank's part of every weight from safetensors; adapters are left alone.

    Raises BaseModelError for files whose names are not the model's own.
    """
    where = f"base model {path}"
    files = {name: tensor.file for name, tensor in tensors_of(path, where).items()}
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(safe_open(path / name, "pt")) for name in sorted(set(files.values()))}
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                continue
            own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            key = own if own in files or not tied else "lm_head.weight"
            if key not in files:
                raise BaseModelError(
                    f"there is no tensor {own} in its files", where=where,
                    fix="Save it once more with transformers 5, or train with parallelism ddp.")
            fill(parameter, opened[files[key]].get_slice(key))
            if not is_finite(parameter.to_local() if isinstance(parameter, DTensor) else parameter):
                raise BaseModelError(f"its weight {key} holds NaN or infinity", where=where, fix=FIX)
