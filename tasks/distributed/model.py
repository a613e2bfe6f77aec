"""Load and save models: a base, and what was trained on it.

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
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from infra.errors import BaseModelError, UserError
from infra.models.base_fit import check_quantization
from infra.models.model_folder import ADAPTER_CONFIG, view
from infra.models.weight_headers import tensors_of
from infra.spec import Precision
from tasks.distributed.adapters import check_adapter
from tasks.distributed.contract import GPUS_SEEN
from tasks.distributed.weight_check import (
    auto_class,
    check_finite,
    check_headers,
    check_loaded,
    translate_loading_errors,
)

if TYPE_CHECKING:
    from peft import PeftModel

RELATIVE_BASE = "base"
TEMPLATE_JSON = "chat_template.json"
"""Where some bases, those with pictures among them, have their chat template; tokenizers do not read it themselves."""


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
    """The base model in evaluation mode; `quantized`: its linear layers in 4-bit NF4, if they are not packed already.

    Raises BaseModelError for a folder that is not one, UserError where 4 bits are not to be had.
    """
    where = f"base model {path}"
    with view(path, where) as folder, translate_loading_errors(where, "transformers cannot load it"):
        config, tensors = config_of(folder), tensors_of(folder, where)
        packed = getattr(config, "quantization_config", None) is not None
        options: dict[str, Any] = {"device_map": {"": device}} if quantized or packed else {}
        if packed:
            check_quantization(config.to_dict(), where)
        elif quantized:
            options["quantization_config"] = _four_bits(dtype)
        if not packed:
            check_headers(config, tensors, where)
        model, info = auto_class(config).from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            output_loading_info=True, **options)
        check_loaded(model, info, where, set(tensors), packed=packed)
        check_finite(model, where)
    model.name_or_path = model.config.name_or_path = str(path)
    model.config.use_cache = False
    if not quantized and not packed:
        return model.eval().to(device)
    if find_spec("bitsandbytes") is None:
        return model.eval()
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
        if not tokenizers[0].chat_template and (folder / TEMPLATE_JSON).exists():
            for one in tokenizers:
                one.chat_template = json.loads((folder / TEMPLATE_JSON).read_text(encoding="utf-8"))["chat_template"]
        for names in [part for one in tokenizers for part in (vars(one), one.init_kwargs)]:
            # Some read their file again when they are pickled.
            names.update({name: value.replace(str(folder), str(path)) for name, value in names.items()
                          if isinstance(value, str) and value.startswith(str(folder))})
    if tokenizers[0].eos_token_id is None:
        raise BaseModelError(
            "the tokenizer has no end-of-sequence token", where=where,
            fix='Set "eos_token" in tokenizer_config.json; without it a trained model never stops.')
    return tokenizers


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
    """Write safetensors and configuration; an adapter names its base by a relative token until it is registered.

    `weights`: the state dict to write instead of the model's own, which may be in shards.
    """
    model.save_pretrained(str(folder), safe_serialization=True, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    if config.exists():
        values = json.loads(config.read_text(encoding="utf-8"))
        values["base_model_name_or_path"] = RELATIVE_BASE
        for name in ("target_modules", "target_parameters", "exclude_modules"):  # sets in peft, of any order
            if isinstance(values.get(name), list):
                values[name].sort()
        config.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
    else:
        _drop_path(folder / "config.json")


def _drop_path(config: Path) -> None:
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
