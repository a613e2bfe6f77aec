"""Load base models and put adapters on them.

In:   a folder in Hugging Face format     Out: a causal language model on one device
Only safetensors are read and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from infra.errors import BaseModelError, UserError, shown
from infra.models.model_folder import view
from infra.models.weight_headers import tensors_of
from infra.spec import Precision, TrainingSpec
from tasks.distributed.adapters import ADAPTER_CONFIG, check_adapter
from tasks.distributed.contract import GPUS_SEEN
from tasks.distributed.weight_check import check_finite, check_headers, check_loaded, translate_loading_errors

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

RELATIVE_BASE = "base"


def torch_device(local_rank: int = 0) -> torch.device:
    """The accelerator of this rank, or the CPU. Raises UserError where there are GPUs that torch cannot use."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    if int(os.environ.get(GPUS_SEEN, 0)):
        raise UserError(
            f"nvidia-smi lists GPUs, but torch {torch.__version__} cannot use them", where="this machine",
            fix="Install a driver that fits torch's CUDA, or the torch that fits the driver (pytorch.org). "
                "CUDA_VISIBLE_DEVICES= (empty) trains on the CPU.")
    return torch.device("cpu")


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Number format of the forward pass. The pipeline settles `auto` before; else fp32 on a CPU."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def precision(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def load_base(
    path: Path, *, dtype: torch.dtype, device: torch.device, quantized: bool = False,
) -> PreTrainedModel:
    """The base model in evaluation mode; `quantized`: its linear layers in 4-bit NF4.

    Raises BaseModelError for a folder that is not one, UserError where 4 bits are not to be had.
    """
    options = {"quantization_config": _four_bits(dtype), "device_map": {"": device}} if quantized else {}
    where = f"base model {path}"
    with view(path, where) as folder, translate_loading_errors(where, "transformers cannot load it"):
        config, tensors = config_of(folder), tensors_of(folder, where)
        packed = getattr(config, "quantization_config", None) is not None
        if not packed:
            check_headers(config, tensors, where)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            attn_implementation="sdpa", output_loading_info=True, **options)
        check_loaded(model, info, where, set(tensors), packed=packed)
        check_finite(model, where)
    model.name_or_path = model.config.name_or_path = str(path)
    model.config.use_cache = False
    if not quantized:
        return model.eval().to(device)
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            # bitsandbytes 0.50 packs weights anew for a CPU at the first pass without gradients (Linear4bit.forward),
            # and has no gradient for them. Delete this when a training test passes without it.
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def config_of(folder: Path) -> PreTrainedConfig:
    """The configuration in a folder that `view` has made."""
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with doubly quantized constants (arXiv 2305.14314, section 3). Raises UserError without bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        raise UserError("peft_method is qlora, and bitsandbytes is not installed", allowed="lora or full",
                        fix="Install the extra: pip install 'anneal[gpu]'.")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises BaseModelError if there is none or it has no end token."""
    return load_tokenizers(path, 1)[0]


def load_tokenizers(path: Path, count: int) -> list[PreTrainedTokenizerBase]:
    """Several equal tokenizers that share nothing: one cannot be used by two threads at once."""
    where = f"base model {path}"
    fix = "Copy the tokenizer's files anew."
    with view(path, where) as folder, translate_loading_errors(where, "no tokenizer can be loaded", fix):
        try:
            tokenizers: list[PreTrainedTokenizerBase] = [
                AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                for _ in range(count)]
        except RecursionError as error:  # transformers 5.17 looks for the unknown token's id by the unknown token
            raise BaseModelError(
                "the names of the tokenizer's special tokens are empty", where=where,
                fix='Set "bos_token", "eos_token" and "unk_token" in tokenizer_config.json.') from error
        tokenizers[0].decode(tokenizers[0]("Is it whole?")["input_ids"])
        for names in [part for one in tokenizers for part in (vars(one), one.init_kwargs)]:
            # Some read their file again when they are pickled.
            names.update({name: value.replace(str(folder), str(path)) for name, value in names.items()
                          if isinstance(value, str) and value.startswith(str(folder))})
    if tokenizers[0].eos_token_id is None:
        raise BaseModelError(
            "the tokenizer has no end-of-sequence token", where=where,
            fix='Set "eos_token" in tokenizer_config.json; without it a trained model never stops.')
    return tokenizers


def add_adapter(model: PreTrainedModel, spec: TrainingSpec) -> PeftModel:
    """Freeze the base and put LoRA beside its linear layers (arXiv 2106.09685, section 4.1), in fp32.

    The adapters' values are made by `start_adapter`, once they lie where they are to be trained.
    """
    from peft import get_peft_model  # three seconds that tokenising does without
    from peft.tuners.lora import LoraLayer

    try:
        adapted = get_peft_model(model, adapter_config(spec), autocast_adapter_dtype=True)
    except ValueError as error:
        names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise UserError(
            f"lora_targets is {shown(spec.lora_targets)}, which names no layer of the base model",
            allowed="all-linear, or some of " + ", ".join(names)) from error
    for module in adapted.modules():
        if isinstance(module, LoraLayer):  # autocast makes the adapters narrow; peft would make their inputs wide first
            module.cast_input_dtype_enabled = False
    return adapted


def adapter_config(spec: TrainingSpec) -> LoraConfig:
    """The spec's adapters in peft's words."""
    from peft import LoraConfig

    targets: str | list[str] = spec.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in spec.lora_targets.split(",") if name.strip()]
    return LoraConfig(
        r=spec.lora_rank, lora_alpha=spec.lora_alpha, lora_dropout=spec.lora_dropout,
        target_modules=targets, task_type="CAUSAL_LM")


def load_tuned(base: Path, tuned: Path, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel | PeftModel:
    """A trained model from its folder: an adapter on its base, or full weights."""
    if not (tuned / ADAPTER_CONFIG).exists():
        return load_base(tuned, dtype=dtype, device=device)
    from peft import PeftModel

    check_adapter(tuned, "the trained adapter")
    model = load_base(base, dtype=dtype, device=device)
    return PeftModel.from_pretrained(model, str(tuned), local_files_only=True).eval()


def save_model(
    model: PreTrainedModel | PeftModel, folder: Path, weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write safetensors and configuration; an adapter names its base by a relative token.

    `weights`: the state dict to write instead of the model's own, which may be in shards.
    """
    model.save_pretrained(str(folder), safe_serialization=True, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    if config.exists():
        values = json.loads(config.read_text(encoding="utf-8"))
        values["base_model_name_or_path"] = RELATIVE_BASE
        if isinstance(values["target_modules"], list):  # a set in peft: each process would write another order
            values["target_modules"].sort()
        config.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
    else:
        _drop_path(folder / "config.json")


def _drop_path(config: Path) -> None:
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
