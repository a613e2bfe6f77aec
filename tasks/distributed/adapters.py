"""What adapter_config.json of an adapter that came from elsewhere may say.

In:   a folder with an adapter     Out: nothing, or UserError
PEFT can import a module that the file names, read other files, copy layers, and match layers by a regular expression.
An adapter that was trained here needs none of that.
Standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from infra.errors import BaseModelError, UserError, shown
from infra.models.model_folder import ADAPTER_CONFIG, read_object

ADAPTER_WEIGHTS = "adapter_model.safetensors"
FREE = frozenset({"base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "lora_alpha",
                  "lora_dropout", "bias", "peft_type", "init_lora_weights", "qalora_group_size", "megatron_core"})
"""Plain values that name no code here, or, such as megatron_core, only beside another field."""
NAMES = frozenset({"target_modules", "modules_to_save", "exclude_modules", "layers_pattern", "target_parameters"})
"""Names of layers; as a text it would be a regular expression."""
SWITCHES = frozenset({"fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"})
MOST_RANK = 1 << 14
FIX = "Train the version with peft_method lora or full."


def check_adapter(folder: Path, where: str) -> None:
    """Raises UserError for anything but plain LoRA."""
    try:
        config = read_object(folder / ADAPTER_CONFIG, where)
    except BaseModelError as error:
        raise UserError(error.found, where=where, allowed=error.allowed, fix="Register the version again.") from error
    if config.get("peft_type") != "LORA":
        raise UserError(f"peft_type is {shown(config.get('peft_type'))}", where=where, allowed="LORA", fix=FIX)
    for name, value in config.items():
        if not _is_plain(name, value):
            raise UserError(f'"{name}" in {ADAPTER_CONFIG} is {shown(value)}', where=where, allowed="plain LoRA",
                            fix=FIX)


def _is_plain(name: str, value: Any) -> bool:
    if name in FREE:
        return value is None or isinstance(value, (bool, str, int, float))
    if name == "r":
        return type(value) is int and 0 < value <= MOST_RANK
    if name in ("rank_pattern", "alpha_pattern"):  # names are matched as regular expressions
        return isinstance(value, dict) and all(re.fullmatch(r"[\w.]*", layer) and isinstance(rank, (int, float))
                                               and 0 < rank <= MOST_RANK for layer, rank in value.items())
    if name == "layers_to_transform":
        return value is None or isinstance(value, (int, list))
    if name in NAMES and value:
        return value == "all-linear" or isinstance(value, list)
    return name in SWITCHES or not value or (name == "runtime_config" and value == {"ephemeral_gpu_offload": False})
