"""Whether a base's parts fit each other, the method and this machine, as its JSON files and headers say.

In:   what config.json and the tokenizer's files hold, the headers of the weights     Out: nothing, or BaseModelError
Asked where a base is found: before data is read, and without loading anything. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from infra.errors import BaseModelError, shown
from infra.models.model_folder import CONFIG, TEXT_CONFIGS, TOKENIZER_CONFIG
from infra.models.weight_headers import Stored
from infra.spec import Method

LIBRARIES = {"bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel",
             "compressed-tensors": "compressed_tensors"}
"""Kinds of weights that are quantized already and can carry adapters, and the module that reads them."""
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tokens_embed)\.weight$")
"""A decoder's table of token embeddings, whatever the family calls it; one row an id."""
FOUR_BITS = ("load_in_4bit", "_load_in_4bit")


def check_vocabulary(objects: dict[str, dict[str, Any]], tensors: dict[str, Stored], where: str) -> None:
    """Raises BaseModelError if the tokenizer gives ids for which the embeddings have no row."""
    tables = [tensor.shape[0] for name, tensor in tensors.items() if EMBEDDING.search(name) and len(tensor.shape) == 2]
    size = text_config(objects[CONFIG]).get("vocab_size")
    rows = max([*tables, *([size] if tables and type(size) is int else [])], default=0)
    ids = max(_ids(objects), default=-1) + 1
    if rows and ids > rows:
        raise BaseModelError(
            f"its tokenizer has ids up to {ids - 1}, and its embeddings have {rows} rows", where=where,
            allowed="a row for every id",
            fix="Take the tokenizer that was published with the model; or add rows with "
                "model.resize_token_embeddings(len(tokenizer)), save it, and train it with peft_method full: "
                "new rows are random.")


def _ids(objects: dict[str, dict[str, Any]]) -> Iterator[int]:
    """Every token id that the tokenizer's JSON files name."""
    whole = objects.get("tokenizer.json", {})
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # Unigram: [token, score], in the order of their ids
        yield len(vocabulary) - 1
    for table in (vocabulary, objects.get("vocab.json") if not whole else None, objects.get("added_tokens.json")):
        if isinstance(table, dict):
            yield from (index for index in table.values() if type(index) is int)
    added = whole.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and type(token.get("id")) is int:
            yield token["id"]
    decoder = objects.get(TOKENIZER_CONFIG, {}).get("added_tokens_decoder")
    yield from (int(index) for index in (decoder if isinstance(decoder, dict) else {}) if index.isdecimal())


def quantized_by(config: dict[str, Any]) -> str:
    """The method by which the weights are quantized already; empty where they are not."""
    found = config.get("quantization_config") or text_config(config).get("quantization_config")
    if not isinstance(found, dict):
        return ""
    method = str(found.get("quant_method") or "bitsandbytes")
    return method if method != "bitsandbytes" or any(found.get(name) for name in FOUR_BITS) else "bitsandbytes, 8 bits"


def check_quantization(config: dict[str, Any], where: str, method: Method | None = None) -> None:
    """Raises BaseModelError for weights that are quantized in a way that cannot be trained here, or not by `method`."""
    found = quantized_by(config)
    if not found:
        return
    if found not in LIBRARIES:
        raise BaseModelError(f"its weights are quantized already ({shown(found)})", where=where,
                             allowed="4 bits of bitsandbytes, GPTQ, AWQ, compressed-tensors, or plain weights",
                             fix="Take the model as it was published in bf16; peft_method qlora quantizes it.")
    if find_spec(LIBRARIES[found]) is None:
        raise BaseModelError(f"its weights are quantized by {found}, and {LIBRARIES[found]} is not installed",
                             where=where, fix=f"Install {LIBRARIES[found]}, or take the model in bf16.")
    if method == "full" or (method == "qlora" and found != "bitsandbytes"):
        allowed = "qlora or lora" if found == "bitsandbytes" else "lora"
        raise BaseModelError(f"its weights are quantized by {found}, and peft_method is {method}", where=where,
                             allowed=f"peft_method {allowed}", fix="Or take the model in bf16.")


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that is about text, of a wrapper for pictures and sound too."""
    inner: dict[str, Any] = next((config[name] for name in TEXT_CONFIGS if isinstance(config.get(name), dict)), {})
    return {**config, **inner}
