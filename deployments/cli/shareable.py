"""The files of a version that other tools read, without those that only Anneal needs.

In:   the folder of a version     Out: tokenizer, chat template, model card, weights in a folder that may be given away
Versions of earlier releases have no card and name their base by a token: both are made anew here.
Dies half-way: the folder is a draft.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.models.base_models import find_same
from infra.models.model_folder import (
    ADAPTER_CONFIG,
    GENERATION,
    NAMES_ITS_PLACE,
    TOKENIZER_CONFIG,
    write_generation_config,
)
from infra.models.version_folder import BASE_FILE, LINEAGE_FILE, RELATIVE_BASE, SERVE_FILE, name_base
from infra.records import Version
from infra.settings import Settings
from tasks.register import TOKENIZER_FILES
from tasks.ui.model_card import Form, model_card

ADAPTER = "adapter_model.safetensors"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
TURNS = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}")
"""How conversations are put where the base has no template: PLAIN_TURN of tasks/distributed/conversation.py, as Jinja.
transformers cuts off a line break that stands after a tag."""
BEGIN = "{{ bos_token }}"


def write_whole_card(source: Path, target: Path) -> None:
    """Put the model card of a version into the folder of a whole model."""
    _write_card(source, target, "merged" if origin_of(source)["method"] == "lora" else "full")


def copy_adapter(settings: Settings, version: Version, source: Path, target: Path, base_model: str) -> str:
    """Put an adapter with all that peft needs into a folder. Returns what it names as its base.

    Raises UserError for all weights, and for another base than the one that it was trained on.
    """
    origin = origin_of(source)
    if origin["method"] != "lora":
        raise UserError("it is a full fine-tune and has no adapter", where=where_of(version), allowed="merged or gguf",
                        fix="Use --format merged.")
    for name in (ADAPTER, ADAPTER_CONFIG, GENERATION):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    copy_tokenizer(source, target)
    _write_card(source, target, "lora")
    if base_model or values_of(source / ADAPTER_CONFIG).get("base_model_name_or_path") == RELATIVE_BASE:
        base = find_same(settings, origin["name"], origin["digest"], where_of(version), base_model)
        name_base(target, base.name if base.revision else base.path, base.revision or None)
        write_generation_config(target, Path(base.path))
    return str(values_of(target / ADAPTER_CONFIG)["base_model_name_or_path"])


def where_of(version: Version) -> str:
    """How a sentence names a version."""
    return f"version {version.number} of {version.destination}"


def origin_of(source: Path) -> dict[str, Any]:
    """What base.json of a version says."""
    return values_of(source / BASE_FILE)


def values_of(path: Path) -> dict[str, Any]:
    """A JSON object of a version; empty where there is no such file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put tokenizer and chat template of a version into another folder."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    config = values_of(source / TOKENIZER_CONFIG)
    if shared := {name: value for name, value in config.items() if name not in NAMES_ITS_PLACE}:
        (target / TOKENIZER_CONFIG).write_text(json.dumps(shared, indent=2, ensure_ascii=False), encoding="utf-8")
    has_template = "chat_template" in config or any((source / name).exists() for name in TEMPLATES)
    if values_of(source / SERVE_FILE).get("kind") == "messages" and not has_template:
        begin = BEGIN if _begins(source, config) else ""
        (target / TEMPLATES[0]).write_text(begin + TURNS, encoding="utf-8")


def _begins(source: Path, config: dict[str, Any]) -> bool:
    """Whether the tokenizer puts its begin token in front of a text."""
    token = config.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    rules = json.dumps(values_of(source / "tokenizer.json").get("post_processor"), ensure_ascii=False)
    return bool(token) and (bool(config.get("add_bos_token")) or json.dumps(token, ensure_ascii=False) in rules)


def _write_card(source: Path, target: Path, form: Form) -> None:
    serve = values_of(source / SERVE_FILE)
    separator = str(serve["prompt_template"]).removeprefix("{prompt}")
    card = model_card(values_of(source / LINEAGE_FILE), form, serve.get("kind", "prompt"), separator)
    (target / "README.md").write_text(card, encoding="utf-8")
