"""From a job to a model that is ready to train, and from a trained model to files.

In:   TrainJob, spec, the ranks          Out: a `Built`; in the end <run>/model/ in safetensors
LoRA (arXiv 2106.09685) and QLoRA (arXiv 2305.14314) train adapters in fp32 beside a frozen base; full
fine-tuning trains fp32 weights. The forward pass runs in the spec's precision.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AttentionInterface, PreTrainedModel

from infra.errors import UserError
from infra.spec import TrainingSpec
from tasks.distributed import attention
from tasks.distributed.adapters import ADAPTER_WEIGHTS, check_adapter
from tasks.distributed.checkpoint import error_of_writing
from tasks.distributed.contract import TrainJob
from tasks.distributed.lora import add_adapter, freeze_other_parts
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import dtype_of, load_base, precision, save_model
from tasks.distributed.process_group import Group
from tasks.distributed.sharding import Spread, empty_base, fill, layers_of, load_shards, replicate, shard

if TYPE_CHECKING:
    from peft import PeftModel


CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "num_experts_per_token", "top_k_experts")
"""How families call the number of experts that a token goes through."""


@dataclass(frozen=True, slots=True)
class Built:
    """A model under training, from four sides."""

    model: PreTrainedModel | PeftModel
    """What is saved in the end."""
    causal: PreTrainedModel
    """The model below the adapters' wrapper."""
    loss: PackedLoss
    spread: Spread
    row_tokens: int
    """What a row of a batch is filled up to, for compiled layers; 0: rows stay as they are."""
    compute: torch.dtype
    device: torch.device

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        return precision(self.compute, self.device)


def build_model(job: TrainJob, spec: TrainingSpec, ranks: Group) -> Built:
    """Load the base, put adapters on it, spread it over the ranks. Raises BaseModelError, UserError."""
    compute = dtype_of(spec.precision, ranks.device)
    full = spec.peft_method == "full"
    stored = torch.float32 if full else compute
    path = Path(job.start if full and job.start else job.base)
    sharded = job.parallelism in ("fsdp", "hsdp")
    if sharded:
        base = empty_base(path, stored)
    else:
        base = load_base(path, dtype=stored, device=ranks.device, quantized=spec.peft_method == "qlora")
    if full:
        freeze_other_parts(base)
    model = base if full else add_adapter(base, spec)
    loss = PackedLoss(base, neftune_alpha=spec.neftune_alpha).train()
    if spec.activation_checkpointing:
        # transformers 5.17 has it under its older name only
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    row_tokens = compile_layers(loss, job, spec, compute, ranks.device)
    if sharded:
        spread = shard(loss, base, ranks, job.parallelism, compute)
        load_shards(model, path, tied=bool(base.config.tie_word_embeddings))
    if not full:
        start_adapter(model, spec.seed)
        if job.start:
            continue_adapter(model, Path(job.start))
    ranks.barrier()  # loading takes them unequally long, and what follows talks with little patience
    if not sharded:  # after the adapter has its start: DDP sends it round
        spread = replicate(loss, ranks)
    return Built(model, base, loss, spread, row_tokens, compute, ranks.device)


def compile_layers(
    loss: PackedLoss, job: TrainJob, spec: TrainingSpec, compute: torch.dtype, device: torch.device,
) -> int:
    """Compile the decoder layers if the spec wants it (`auto` is decided before: tasks/launcher/forecast.py); returns
    what rows are then to be filled up to, or 0."""
    if spec.compile_layers != "on":
        return 0
    loss.compiled = True
    if device.type != "cuda" or compute == torch.float32:
        # Attention by torch's own operations goes segment by segment, in any number: layers are cut where they attend.
        AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.packed_attention))
    for layer in layers_of(loss.model):
        layer.compile(dynamic=not spec.pack_sequences)
    return job.chunk_tokens if spec.pack_sequences else 0


def start_adapter(model: PeftModel, seed: int) -> None:
    """The adapters' first values: A uniform within 1 / sqrt(inputs), B zero, so that nothing changes at first.

    That is kaiming_uniform_ with a = sqrt(5), as in the LoRA authors' code. Every matrix has a generator of its
    own, so its values do not depend on where it lies.
    """
    for index, (name, parameter) in enumerate((n, p) for n, p in model.named_parameters() if p.requires_grad):
        whole = torch.zeros(parameter.shape)
        draw = torch.Generator().manual_seed(seed * 1_000_003 + index)
        if "lora_A" in name:
            bound = whole.shape[1] ** -0.5
            whole.uniform_(-bound, bound, generator=draw)
        elif "lora_embedding_B" in name:
            whole.normal_(generator=draw)
        fill(parameter, whole)


def continue_adapter(model: PeftModel, folder: Path) -> None:
    """Give the adapters the values of a version's. Raises UserError for one with other layers or another rank."""
    check_adapter(folder, "base_version")
    ours = {name.replace(".default", ""): weight for name, weight in model.named_parameters() if weight.requires_grad}
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (not a dict)
        if shapes != {name: list(weight.shape) for name, weight in ours.items()}:
            raise UserError("its adapter has other layers or another rank", where="base_version",
                            allowed="the layers of lora_targets with lora_rank",
                            fix="Set lora_targets and lora_rank as that version has them.")
        for name, weight in ours.items():
            fill(weight, file.get_tensor(name).to(weight.dtype))


def flops_of(causal: PreTrainedModel, *, full: bool) -> Callable[[int, int], float]:
    """FLOP of (tokens, labelled tokens): 2 per weight of a linear layer forward, 2 for the gradient of its
    input, 2 more for that of the weight if it is trained; the head at labelled tokens only. Adapters, norms
    and attention scores are left out."""
    head = causal.get_output_embeddings()
    body = sum(
        module.in_features * module.out_features for name, module in causal.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name)
    config = causal.config.get_text_config()
    chosen = next((int(getattr(config, name)) for name in CHOSEN if getattr(config, name, None)), 1)
    body += sum(  # of the experts those that a token goes through
        weight.numel() // weight.shape[0] * min(chosen, weight.shape[0]) for name, weight in causal.named_parameters()
        if weight.ndim == 3 and "experts" in name and "lora_" not in name)
    outputs, inputs = (0, 0) if head is None else head.weight.shape
    each = 6 if full else 4
    return lambda tokens, labels: float(each * (body * tokens + outputs * inputs * labels))


def save_trained(built: Built, folder: Path, ranks: Group) -> None:
    """Write the trained weights as safetensors; all ranks call it together, the first one writes.

    Raises OSError, of a full disk among others, and Transient.
    """
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=built.model is not built.causal, strict=False)
    weights: dict[str, Any] = dict(get_model_state_dict(built.model, options=options))
    if ranks.is_first:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            save_model(built.model, folder, weights)
        except (SafetensorError, OSError) as error:
            raise error_of_writing(error, folder, error) from error
    ranks.barrier()
