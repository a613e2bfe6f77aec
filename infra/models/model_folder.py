"""What the JSON files of a model that came from elsewhere may say, and the folder that transformers sees of it.

In:   a folder in Hugging Face format     Out: BaseModelError, or a folder of links that lives as long as a `with`
A configuration can name code: a kernel of the hub in place of attention, a class in a file beside it, a folder with
another file of weights. transformers follows some of that without asking. So it is given a folder in which nothing
names code, and no file can hold code. Sizes are judged too: what they say is made before weights are looked at.
A process that is killed leaves a folder of links, anneal-model-*, where temporary files are.
Standard library only: the flow imports this file too.
"""

from __future__ import annotations

import errno
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from infra.errors import AnnealError, BaseModelError, from_os_error, shown
from infra.files import model_files

CONFIG, GENERATION = "config.json", "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
OBJECTS = (CONFIG, GENERATION, TOKENIZER_CONFIG, "tokenizer.json", SPECIAL_TOKENS, "added_tokens.json", "vocab.json")
"""The JSON files that transformers reads of a language model; each is an object."""
MOST_BYTES, MOST_TOKENIZER_BYTES = 1 << 24, 1 << 27
"""Known ones have up to 9 MB (the index of DeepSeek-V3), and a tokenizer.json 35 MB."""
MOST_LEVELS = 64
NAMES_ITS_PLACE = ("_name_or_path", "name_or_path")
"""Where transformers notes from which folder a model came."""
TOKENS_OF_GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id")
SEEN_SUFFIXES = frozenset({"", ".json", ".jinja", ".model", ".safetensors", ".spm", ".tiktoken", ".txt", ".vocab"})
"""Of the model's files, none with another ending is shown to transformers: tokenizer.py is code."""
FIX = "Take the model's files from where they were published once more."
OF_THE_MACHINE = frozenset({
    errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE})
"""Errors of reading and writing that no file of a model is the cause of."""

# What names code, an implementation, or a file, in config.json at any depth.
DROPPED = frozenset({
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal", "auto_map",
    "custom_pipelines", "custom_generate", "trust_remote_code", "code_revision", "_commit_hash", "use_kernels",
    "kernel_config", "allow_all_kernels", "fusion_config", "distributed_config", "device_map", "device_mesh", "tp_plan",
    "tp_size", "gguf_file", "adapter_kwargs", "_adapter_model_path"})
OF_THE_HUB = re.compile(r"implementation|kernel", re.IGNORECASE)
"""In the names of fields whose value may name a kernel owner/name."""
OTHER_WEIGHTS = "transformers_weights"
"""The field by which a config says that its weights are in another file."""
TOKENIZER_DROPPED = frozenset({"init_inputs", "gguf_file", "tokenizer_object", "backend_tokenizer", "_commit_hash"})
"""`auto_map` stays: without trust_remote_code, transformers refuses a tokenizer that is only there as code."""
NAMES_A_FILE = re.compile(r"(_file|_path|_spm|_dir)$")

# Numbers.
TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "decoder")
SIZES = frozenset({"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"})
"""Numbers in every family that has them."""
SIZES_OR_NONE = frozenset({
    "n_embd", "d_model", "n_layer", "n_layers", "num_layers", "head_dim", "n_positions", "n_ctx"})
HEADS = frozenset({"num_attention_heads", "n_head", "n_heads", "num_heads"})
"""Some families have a list with one for each layer."""
SIZES_OF_LAYERS = frozenset({"num_key_value_heads", "num_kv_heads", "num_query_heads", "intermediate_size", "n_inner",
                             "ffn_dim", "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok",
                             "num_nextn_predict_layers"})
"""Such a list too, and 0 where there is no such part."""
POSITIONS = "max_position_embeddings"
CONTEXT_NAMES = (POSITIONS, "n_positions", "max_seq_len", "n_ctx", "context_length", "max_sequence_length",
                 "seq_length")
"""What families call the longest text, the usual name first."""
CONTEXTS = frozenset(CONTEXT_NAMES) - {"n_positions", "n_ctx"}
"""Families without a table of positions have -1, false or null there; transformers takes no false and no 64.0."""
MOST = 1 << 30
MADE_ONE_BY_ONE = re.compile(r"(^|_)(layers?|depth|blocks|experts|heads?|labels)$")
EXPERTS = re.compile(r"(^|_)experts$")
MOST_PARTS, MOST_EXPERTS = 4096, 1 << 16
"""Of parts that Python makes one after the other: a million take hours. Known ones have up to 512 experts, and
16384 where these are rows of a table (Doge); headers.py compares many with the weights."""


def read_object(path: Path, where: str) -> dict[str, Any]:
    """A JSON file that is an object. Raises BaseModelError."""
    most = MOST_TOKENIZER_BYTES if path.name in ("tokenizer.json", "vocab.json") else MOST_BYTES
    try:
        if not path.is_file():  # a pipe would keep us waiting
            raise BaseModelError(f"{path.name} is missing", where=where, allowed="a folder in Hugging Face format")
        if (size := path.stat().st_size) > most:
            raise BaseModelError(f"{path.name} has {size} bytes", where=where, allowed=f"at most {most}", fix=FIX)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unread(error, path, where) from error
    except ValueError as error:
        raise BaseModelError(f"{path.name} is not JSON ({error})", where=where, fix=FIX) from error
    except RecursionError as error:
        raise BaseModelError(f"{path.name} is nested too deeply", where=where, fix=FIX) from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path.name} is {shown(value)}", where=where, allowed="a JSON object", fix=FIX)
    return value


def unread(error: OSError, path: Path, where: str) -> AnnealError:
    """What a failed read of a model's file means to the user."""
    if error.errno in OF_THE_MACHINE:
        return from_os_error(error, where)
    return BaseModelError(f"{path.name} cannot be read ({error.strerror})", where=where, fix=FIX)


def check_objects(folder: Path, where: str) -> dict[str, dict[str, Any]]:
    """Judge the JSON files of a model's folder or a tokenizer's, and return them. Raises BaseModelError."""
    read = {name: read_object(folder / name, where) for name in OBJECTS if (folder / name).exists()}
    check_config(read.get(CONFIG, {}), where)
    return read


def check_config(config: dict[str, Any], where: str) -> None:
    """Raises BaseModelError for a configuration that names code, or has sizes that no model has."""
    for part in (config, *(config[name] for name in TEXT_CONFIGS if isinstance(config.get(name), dict))):
        _check_sizes(part, where)
    for name, value in fields(config, where):
        if OF_THE_HUB.search(name) and "/" in str(value):
            raise BaseModelError(
                f'{CONFIG} names a kernel: "{name}" is {shown(value)}', where=where,
                allowed="no code from the hub", fix=f'Delete "{name}" from {CONFIG} if you trust the rest.')
        if name == OTHER_WEIGHTS and value is not None:
            raise BaseModelError(f'"{name}" in {CONFIG} is {shown(value)}', where=where,
                                 allowed="weights in model.safetensors or by its index", fix="Rename the file.")
        if name.endswith("_config") and value is not None and not isinstance(value, dict):
            raise _refused(name, value, "an object", where)
        most = MOST_EXPERTS if EXPERTS.search(name) else MOST_PARTS if MADE_ONE_BY_ONE.search(name) else (1 << 63) - 1
        if any(isinstance(size, int) and abs(size) > most for size in (value if isinstance(value, list) else [value])):
            raise _refused(name, value, f"at most {most}", where)


def _check_sizes(part: dict[str, Any], where: str) -> None:
    for name in (SIZES | SIZES_OR_NONE | HEADS | SIZES_OF_LAYERS) & part.keys():
        value, in_layers = part[name], isinstance(part[name], list) and name in HEADS | SIZES_OF_LAYERS
        least = 0 if in_layers or name in SIZES_OF_LAYERS else 1
        for size in value if in_layers else [value]:
            if (size is not None or name in SIZES) and (type(size) is not int or not least <= size <= MOST):
                raise _refused(name, value, f"a whole number from {least} to {MOST}", where)
    for name in CONTEXTS & part.keys():
        value = part[name]
        if value is not None and not (isinstance(value, (int, float)) and value == value // 1 and abs(value) <= MOST):
            raise _refused(name, value, f"a whole number up to {MOST}", where)


def context_tokens_of(config: dict[str, Any]) -> int | None:
    """The longest text of a model whose configuration was judged; None where it does not say."""
    inner = [config[name] for name in TEXT_CONFIGS if isinstance(config.get(name), dict)]
    for value in (part.get(name) for part in (*inner, config) for name in CONTEXT_NAMES):
        if value is not None and not isinstance(value, bool) and value >= 1:
            return int(value)
    return None


def _refused(name: str, value: object, allowed: str, where: str) -> BaseModelError:
    return BaseModelError(f'"{name}" in {CONFIG} is {shown(value)}', where=where, allowed=allowed, fix=FIX)


def fields(config: dict[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Every field at any depth, without recursion. Raises BaseModelError where that is too deep."""
    left: list[tuple[int, Any]] = [(1, config)]
    while left:
        level, value = left.pop()
        if level > MOST_LEVELS:
            raise BaseModelError(f"{CONFIG} is nested too deeply", where=where, allowed=f"{MOST_LEVELS} levels",
                                 fix=FIX)
        if isinstance(value, dict):
            yield from value.items()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left += [(level + 1, item) for item in inner if isinstance(item, (dict, list))]


def cleaned(value: Any) -> Any:
    """A configuration without what names code or an implementation."""
    if isinstance(value, dict):
        return {name: int(item) if name in CONTEXTS and isinstance(item, float) else cleaned(item)
                for name, item in value.items()
                if name not in DROPPED and not (name in CONTEXTS and isinstance(item, bool))}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


def cleaned_tokenizer(values: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's fields without those by which it would read a file of its own choice."""
    return {name: value for name, value in values.items() if name not in TOKENIZER_DROPPED
            and not (NAMES_A_FILE.search(name) and isinstance(value, str) and re.search(r"[/\\]", value))}


def write_config(folder: Path, base: Path, dtype: str, *, is_tied: bool = True) -> None:
    """Give weights that transformers has saved, in `dtype` (float32, bfloat16), the config.json that their base has.

    Without what names code: the files of code do not go with the weights. Where transformers saves another kind of
    model, such as the text part of a larger one, its own config stays. Raises BaseModelError, OSError.
    """
    saved, theirs = (read_object(place / CONFIG, f"model {place}") for place in (folder, base))
    if saved.get("model_type") == theirs.get("model_type"):
        config = {name: value for name, value in cleaned(theirs).items()
                  if name not in (*NAMES_ITS_PLACE, "quantization_config")}
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    else:
        config = {**saved, "use_cache": theirs.get("use_cache", True)}
    if not is_tied:
        config["tie_word_embeddings"] = False
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_generation_config(folder: Path, base: Path) -> None:
    """generation_config.json as the base has it; of a base without one, the tokens that its config.json names."""
    try:
        has_one = (base / GENERATION).exists()
        read = read_object(base / (GENERATION if has_one else CONFIG), f"base model {base}")
    except BaseModelError:  # transformers loads a base in spite of it
        return
    values = {name: value for name, value in read.items()
              if name not in NAMES_ITS_PLACE and (has_one or (name in TOKENS_OF_GENERATION and value is not None))}
    (folder / GENERATION).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextmanager
def view(folder: Path, where: str) -> Iterator[Path]:
    """The folder as transformers may see it. Raises BaseModelError for JSON files that are none of a model,
    and what `from_os_error` says of a temporary folder that cannot be written."""
    read = check_objects(folder, where)
    with ExitStack() as stack:
        try:
            seen = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anneal-model-")))
            _show(folder, read, seen)
        except OSError as error:
            raise from_os_error(error, where) from error
        yield seen


def _show(folder: Path, read: dict[str, dict[str, Any]], seen: Path) -> None:
    """Put into `seen` what was read, cleaned, and links to the other files that are hashed. Raises OSError."""
    clean = {CONFIG: cleaned, GENERATION: cleaned, TOKENIZER_CONFIG: cleaned_tokenizer,
             SPECIAL_TOKENS: cleaned_tokenizer}
    for name in clean.keys() & read.keys():
        (seen / name).write_text(json.dumps(clean[name](read[name])), encoding="utf-8")
    for path in model_files(folder):
        if path.name not in clean and path.suffix in SEEN_SUFFIXES and not path.name.startswith(("adapter_", ".")):
            (seen / path.name).symlink_to(path.resolve())
