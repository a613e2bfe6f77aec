"""Which tensors a model's safetensors files hold, as their headers say: nothing of the weights is read.

In:   a folder in Hugging Face format     Out: {name of a tensor: its shape and file}, or BaseModelError
A header is checked as the format wants it (https://huggingface.co/docs/safetensors): every tensor has the bytes of its
shape, one after the other, up to the end of the file.
Standard library only: the flow imports this file too.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import BaseModelError, shown
from infra.models.model_folder import CONFIG, EXPERTS, FIX, MOST_PARTS, fields, read_object, unread

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LENGTH_BYTES, MOST_HEADER_BYTES = 8, 1 << 25
"""Known ones have up to 1 MB."""
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
        "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64}
"""Of a number of each kind; what is not known is left to safetensors."""
MOST_SIDES, MOST_LONG = 16, 1 << 48
"""Sides of a tensor, and the length of one: they are multiplied."""
LAYER = re.compile(r"(?:model|transformer|model\.language_model|language_model\.model)\.(?:layers|h)\.(\d+)\.")
"""Where decoders have their layers, in a tensor's name."""
LAYERS = ("num_hidden_layers", "n_layer")
WRAPPED = "base_model.model."
"""What PEFT puts in front of the names of a model's tensors."""
EMBEDDING = "model.embed_tokens.weight"
LENGTH = re.compile(r"(size|dim|dims|embd|hidden|inner|channels|rank|width|height)$")
"""In the name of a field that says how long a side of a weight is. Tables are computed from some, at once."""
SMALL, PACKED_IN_ONE = 1 << 16, 8
HEAD = re.compile(r"head|output|embed_out")
"""In the name of a head's weights, whatever the family calls it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file."""

    shape: tuple[int, ...]
    file: str


def tensors_of(folder: Path, where: str) -> dict[str, Stored]:
    """The tensors of the files that transformers takes. Raises BaseModelError, also if they are another model's."""
    tensors = _stored(folder, where)
    config = read_object(folder / CONFIG, where)
    _check_sizes(tensors, config, where)
    _check_names(tensors, config, where)
    return tensors


def _stored(folder: Path, where: str) -> dict[str, Stored]:
    if (folder / SINGLE).exists():
        return _header(folder / SINGLE, where)
    if not (folder / INDEX).exists():
        raise BaseModelError(f"there is neither {SINGLE} nor {INDEX}", where=where,
                             fix="Save the model once more with save_pretrained.")
    listed = read_object(folder / INDEX, where).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise BaseModelError(f'"weight_map" in {INDEX} is {shown(listed)}', where=where,
                             allowed="{name of a tensor: file}", fix=FIX)
    found: dict[str, Stored] = {}
    for name in sorted({str(file) for file in listed.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BaseModelError(f"{INDEX} names the file {shown(name)}", where=where,
                                 allowed="safetensors files in the same folder", fix=FIX)
        found |= _header(folder / name, where)
    if lost := listed.keys() - found.keys():
        raise BaseModelError(f"{INDEX} lists {some(lost)}, which no file holds", where=where, fix=FIX)
    return found


def _check_sizes(tensors: dict[str, Stored], config: dict[str, Any], where: str) -> None:
    """Refuse sizes far beyond those of the weights: what they say is made before the weights are looked at."""
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    in_layers = max((size for name, tensor in tensors.items() if LAYER.match(name) for size in tensor.shape), default=0)
    for name, value in fields(config, where):
        if not isinstance(value, int):
            continue
        if LENGTH.search(name) and value > max(SMALL, PACKED_IN_ONE * longest):
            raise BaseModelError(f'"{name}" in {CONFIG} is {value}', where=where,
                                 allowed=f"no more than its weights have, at most {longest} in a row", fix=FIX)
        if EXPERTS.search(name) and value > max(MOST_PARTS, in_layers):  # each has a row in a table of its layer
            raise BaseModelError(f'"{name}" in {CONFIG} is {value}', where=where,
                                 allowed="no more than there are weights for", fix=FIX)


def _check_names(tensors: dict[str, Stored], config: dict[str, Any], where: str) -> None:
    """Refuse early what is surely not the model that the configuration describes; loading tells the rest."""
    if tensors and all(name.startswith(WRAPPED) for name in tensors):
        raise wrapped(WRAPPED, len(tensors), where)
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, dict) else config
    layers = {int(found[1]) for name in tensors if (found := LAYER.match(name))}
    wanted = next((config[name] for name in LAYERS if type(config.get(name)) is int), 0)
    if layers and (lost := sorted(set(range(wanted)) - layers)):
        raise BaseModelError(
            f"its files hold {len(layers)} layers, and {len(lost)} are missing (the first is layer {lost[0]})",
            where=where, allowed=f"{wanted}, as config.json says", fix=FIX)
    untied = inner is None and EMBEDDING in tensors and config.get("tie_word_embeddings") is False
    if untied and not any(map(HEAD.search, tensors)):
        raise BaseModelError("its files hold no weights of the head (lm_head.weight)", where=where,
                             allowed='them, as "tie_word_embeddings" in config.json is false', fix=FIX)


def wrapped(prefix: str, count: int, where: str) -> BaseModelError:
    """All tensors are there, under other names."""
    return BaseModelError(
        f'the names of all its {count} weights begin with "{prefix}", which its class does not know', where=where,
        fix="Save the model itself with save_pretrained, not what it is wrapped in.")


def some(names: Any, most: int = 3) -> str:
    """The first of some names, and how many there are."""
    first = sorted(map(str, names))
    more = f" and {len(first) - most} more" if len(first) > most else ""
    return ", ".join(name[:200] for name in first[:most]) + more


def _header(path: Path, where: str) -> dict[str, Stored]:
    try:
        if not path.is_file():
            raise BaseModelError(f"{path.name} is missing", where=where, fix=FIX)
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 0 < length <= min(MOST_HEADER_BYTES, size - LENGTH_BYTES):
                raise _broken(path, f"its header would have {length} bytes, and the file has {size}", where)
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        found = sorted((begin, end, name, str(entry["dtype"]), tuple(entry["shape"]))
                       for name, entry in entries.items() for begin, end in [entry["data_offsets"]])
    except OSError as error:
        raise unread(error, path, where) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path, "its header cannot be read", where) from error
    at = 0
    for begin, end, name, kind, shape in found:
        whole = all(type(number) is int and 0 <= number <= MOST_LONG for number in (begin, end, *shape))
        if not whole or len(shape) > MOST_SIDES or begin != at or end < begin or (
                kind in BITS and (end - begin) * 8 != math.prod(shape) * BITS[kind]):
            raise _broken(path, f"tensor {shown(name)} has {shown([kind, shape, begin, end])}", where)
        at = end
    if LENGTH_BYTES + length + at != size:
        raise _broken(path, f"its tensors end at byte {LENGTH_BYTES + length + at} of {size}", where)
    return {name: Stored(shape, path.name) for _, _, name, _, shape in found}


def _broken(path: Path, found: str, where: str) -> BaseModelError:
    return BaseModelError(f"{path.name} is no whole safetensors file: {found}", where=where, fix=FIX)
