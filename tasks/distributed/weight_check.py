"""Whether a model's files hold every weight that its configuration asks for, and only numbers.

In:   a folder that transformers may see, its headers     Out: nothing, or BaseModelError with the weights' names
transformers fills a weight that is missing with random numbers and warns. It is asked first to load the model on the
meta device from the headers alone, in milliseconds and without memory, and what it says of names and shapes is judged;
the same is judged again when the weights are loaded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from infra.errors import AnnealError, BaseModelError, from_os_error
from infra.models.model_folder import FIX, OF_THE_MACHINE
from infra.models.weight_headers import Stored, some, wrapped

META = torch.device("meta")
MOST_TABLE_BYTES = 1 << 30
"""Of tables that a model computes and that no file holds: angles, masks."""
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""torch has no error of its own for that."""
NOT_REPEATABLE = "does not have a deterministic implementation"
"""What tasks/distributed/preflight.py waits for."""
NOT_OF_THE_MODEL = (AnnealError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError,
                    torch.distributed.DistError, KeyboardInterrupt, SystemExit, GeneratorExit)
COMPILERS = ("torch._dynamo", "torch._inductor", "triton")
"""Modules whose errors are of the machine's compiler."""
OTHER_FAMILY = {
    "for this kind of AutoModel": "Choose a base of a family that transformers loads as a causal language model."}
"""What transformers says of families that cannot be trained here, and what to do."""
NO_REASON = re.compile(r" *(Please request|If you believe|Model type should be one of|[Pp]lease (open|file|report) ).*")
"""From here on a text is no reason, but what a library asks of its own users, or a list of all that it knows."""
OLD_TABLES = re.compile(
    r"(rotary_emb\.(inv_freq|(cos|sin)_cached)|\.masked_bias|\.(attn|attention)\.bias|\.attn\.causal_mask"
    r"|(^|\.)position_ids)$")
"""Tables that checkpoints of older releases hold, and that models compute by now."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WORDS = 300


@contextmanager
def translate_loading_errors(where: str, found: str, fix: str = FIX) -> Iterator[None]:
    """Whatever a library raises for a model that came from elsewhere, as one sentence.

    Errors of the machine (memory, devices, compilers) are raised unchanged; those of its disk by `from_os_error`.
    """
    try:
        yield
    except NOT_OF_THE_MODEL:
        raise
    except BaseException as error:  # a panic in Rust (tokenizers) is no Exception
        text = " ".join(str(error).split())
        if NO_MEMORY in text or NOT_REPEATABLE in text or _of_a_compiler(error):
            raise
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            raise from_os_error(error, where) from error
        fix = next((other for said, other in OTHER_FAMILY.items() if said in text), fix)
        text = NO_REASON.sub("", text)
        text = text if len(text) <= WORDS else text[: WORDS - 3] + "..."
        raise BaseModelError(f"{found} ({type(error).__name__}: {text})", where=where, fix=fix) from error


def _of_a_compiler(error: BaseException) -> bool:
    return any(kind.__module__.startswith(COMPILERS) for kind in type(error).__mro__)


def check_headers(config: PreTrainedConfig, tensors: dict[str, Stored], where: str) -> None:
    """Load the model without its weights, and judge what transformers says. Raises BaseModelError."""
    options: dict[str, Any] = {"dtype": torch.float32}
    with META:
        made = auto_class(config).from_config(config, trust_remote_code=False, **options)
    state = {name: torch.empty(tensor.shape, device=META) for name, tensor in tensors.items()}
    with quiet():
        model, info = type(made).from_pretrained(
            None, config=made.config, state_dict=state, device_map={"": META}, output_loading_info=True,
            ignore_mismatched_sizes=True, **options)
    check_loaded(model, info, where, set(tensors))
    tables = sum(table.numel() * table.element_size() for _, table in model.named_non_persistent_buffers())
    if tables > MOST_TABLE_BYTES:
        raise BaseModelError(f"its tables of positions and masks would take {tables} bytes", where=where,
                             allowed=f"at most {MOST_TABLE_BYTES}", fix="Check the sizes in config.json.")


def auto_class(config: PreTrainedConfig) -> Any:
    """What loads a base: the class for causal language models, and for wrappers around one that transformers does not
    count among them (Mistral 3, Qwen-VL, LLaVA) the class of models that take pictures beside text."""
    wraps = (config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
             and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return AutoModelForImageTextToText if wraps else AutoModelForCausalLM


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own report: what is in it is told by an error."""
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def check_loaded(
    model: PreTrainedModel, info: dict[str, Any], where: str, stored: set[str], *, packed: bool = False,
) -> None:
    """Judge what transformers says of names and shapes.

    Args:
        info: its `output_loading_info`; it leaves out what is tied and what the model's class says may be ignored.
        stored: the names in the files.
        packed: whether the files hold packed weights, beside which there is more than the model's own.

    Raises:
        BaseModelError: a weight is missing, has another shape, or belongs to a part that the configuration leaves out.
    """
    if missing := set(info["missing_keys"]):
        prefix = _common_prefix(stored, missing)
        if prefix:
            raise wrapped(prefix, len(stored), where)
        raise BaseModelError(
            f"{len(missing)} of its weights are in no file: {some(missing)}", where=where,
            allowed="all that config.json asks for", fix=FIX)
    if mismatched := {name: (list(found), list(wanted)) for name, found, wanted in info["mismatched_keys"]}:
        name = min(mismatched)
        found, wanted = mismatched[name]
        raise BaseModelError(
            f"{len(mismatched)} of its weights have another shape than config.json says: {name} has {found}",
            where=where, allowed=str(wanted), fix=FIX)
    if info["error_msgs"]:
        raise BaseModelError(f"its weights do not fit ({info['error_msgs'][0]})", where=where, fix=FIX)
    modules = dict(model.named_modules())
    if not packed and (left := {name for name in info["unexpected_keys"] if _belongs(model, modules, name)}):
        raise BaseModelError(
            f"its files hold {len(left)} weights for which config.json leaves no place: {some(left)}", where=where,
            allowed="the layers and biases that config.json describes", fix=FIX)


def _common_prefix(stored: set[str], missing: set[str]) -> str:
    """What stands in front of every name in the files, if the model's own names follow it."""
    parts = min(stored, default="").split(".")
    prefixes = (".".join(parts[:count]) + "." for count in range(1, len(parts)))
    return next((prefix for prefix in prefixes if all(name.startswith(prefix) for name in stored)
                 and any(name.removeprefix(prefix) in missing for name in stored)), "")


def _belongs(model: PreTrainedModel, modules: dict[str, torch.nn.Module], name: str) -> bool:
    """Whether a weight without a place is of the decoder: of one more layer, or of a part of a layer.

    A tower for pictures, a second head or layers that foretell more than one token are parts of their own.
    """
    if OLD_TABLES.search(name):
        return False
    parts = name.split(".")
    inner = max((count for count in range(1, len(parts)) if ".".join(parts[:count]) in modules), default=0)
    holder = modules[".".join(parts[:inner])]
    if isinstance(holder, torch.nn.ModuleList):  # one more layer; it may foretell tokens
        config = model.config.get_text_config()
        extra = getattr(config, "num_nextn_predict_layers", None) or 0
        return not (parts[inner].isdecimal() and len(holder) <= int(parts[inner]) < len(holder) + extra)
    return any(isinstance(modules[".".join(parts[:count])], torch.nn.ModuleList) for count in range(1, inner))


def check_finite(model: PreTrainedModel, where: str) -> None:
    """Raises BaseModelError for weights that are not numbers."""
    if bad := [name for name, weight in model.named_parameters() if not is_finite(weight)]:
        raise BaseModelError(f"{len(bad)} of its weights hold NaN or infinity: {some(bad)}", where=where, fix=FIX)


def is_finite(weight: torch.Tensor) -> bool:
    """Whether all numbers are finite; what is packed cannot be told."""
    if weight.dtype not in FLOATS or not weight.numel():
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all())
