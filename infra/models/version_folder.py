"""The folder of a version: its id, and the files by which peft and transformers load it.

In:   a folder with trained weights, the base     Out: adapter_config.json, config.json and generation_config.json there
An adapter names its base by hub name and commit, or by the folder where the base lies on the machine that trained.
That place is for people and other tools: it is no part of a version's id, and the predictor never follows it.
Dies half-way: the folder is a draft.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.files import MANIFEST, digest_of
from infra.models.model_folder import (
    ADAPTER_CONFIG,
    read_object,
    write_config,
    write_generation_config,
)
from infra.records import Base

SUMS = "MANIFEST.sha256"
BASE_FILE, SERVE_FILE, LINEAGE_FILE = "base.json", "serve.json", "training.json"
"""Of a version: which base it needs, how prompts are made for it, and where it comes from."""
RELATIVE_BASE = "base"
"""What adapter_config.json says of a base while nobody has said where it is."""
STORED = "float32"
"""Number format of the weights that training leaves."""


def version_id(folder: Path, files: Mapping[str, str]) -> str:
    """sha256 (64 hex) over names and contents of a version's files, given as {name: sha256}.

    adapter_config.json counts as it is without a base's place, and SUMS, which follows from the others, not at all:
    the same version has the same id on every machine. Raises BaseModelError for a file that is no JSON object.
    """
    counted = {name: sha256 for name, sha256 in files.items() if name not in (MANIFEST, SUMS)}
    if ADAPTER_CONFIG in counted:
        text = adapter_text(read_object(folder / ADAPTER_CONFIG, "version"), RELATIVE_BASE, None)
        counted[ADAPTER_CONFIG] = hashlib.sha256(text.encode()).hexdigest()
    return digest_of(counted)


def adapter_text(config: Mapping[str, Any], place: str, revision: str | None) -> str:
    """The text of adapter_config.json with this base."""
    return json.dumps({**config, "base_model_name_or_path": place, "revision": revision}, indent=2, sort_keys=True)


def name_base(folder: Path, place: str, revision: str | None) -> None:
    """Let an adapter's configuration name its base."""
    config = read_object(folder / ADAPTER_CONFIG, "adapter")
    (folder / ADAPTER_CONFIG).write_text(adapter_text(config, place, revision), encoding="utf-8")


def complete_for_others(folder: Path, base: Base) -> None:
    """Write the JSON files that peft and transformers read beside the weights."""
    if (folder / ADAPTER_CONFIG).exists():
        name_base(folder, base.name if base.revision else base.path, base.revision or None)
    else:
        write_config(folder, Path(base.path), STORED)
    write_generation_config(folder, Path(base.path))
