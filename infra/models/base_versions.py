"""The version that a training goes on from: found, made exact, and judged before anything starts.

In:   a spec with a `base_version` in any form     Out: the spec with <owner>/<name>:<id>, or one sentence
A name such as acme/x:champion stands for another version tomorrow. So a run notes what it stood for, and a run that is
started again goes on from the same version.
On disk: <store>/runs/<flow run id>.start, which goes with the run's other notes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from infra.errors import UserError, shown
from infra.models.registry import Registry
from infra.models.version_folder import BASE_FILE, LINEAGE_FILE
from infra.records import Base, Version
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store

SAME = ("lora_rank", "lora_alpha", "lora_targets", "use_rslora")
"""Knobs that say which adapters there are and how they count."""


def resolved(settings: Settings, store: Store, spec: TrainingSpec, note: str = "") -> TrainingSpec:
    """The spec with its base version by id. `note`: name in the store of what the run found at its first start.

    Raises UserError for a version that is gone, or that a training with this spec cannot go on from; Transient.
    """
    if not spec.base_version:
        return spec
    kept = store.read(note) if note else None
    version = Registry(settings).named(kept or spec.base_version)
    check_knobs(store, spec, version)
    exact = f"{version.destination}:{version.id}"
    if note and not kept:
        store.write(note, exact)
    return replace(spec, base_version=exact)


def check_knobs(store: Store, spec: TrainingSpec, version: Version) -> None:
    """Raise UserError unless the version has the adapters, or all the weights, that the spec trains."""
    where = f"base_version {version.destination}:{version.number}"
    origin, lineage = (_read(store, version.folder, name, where) for name in (BASE_FILE, LINEAGE_FILE))
    has, wants = ("all weights" if way == "full" else "adapters" for way in (origin["method"], spec.peft_method))
    if has != wants:
        raise UserError(f"it has {has}, and peft_method is {spec.peft_method}", where=where,
                        allowed=f"one with {wants}",
                        fix="Set peft_method as that version has it; or write the version as a whole model by `anneal "
                            "export --format merged`, and name that folder as base_model.")
    if spec.peft_method == "full":
        return
    before = {"use_rslora": False, **lineage["spec"]}
    for name in SAME:
        ours, theirs = getattr(spec, name), before[name]
        if name == "lora_targets":
            ours, theirs = (sorted(part.strip() for part in text.split(",")) for text in (ours, theirs))
        if ours != theirs:
            raise UserError(f"{name} is {shown(getattr(spec, name))}", where=where,
                            allowed=f"{shown(before[name])}, as that version has it", fix=f"Set {name} so.")


def check_same_base(store: Store, spec: TrainingSpec, base: Base) -> None:
    """Raise UserError unless the base version, which is exact, stands on this base."""
    if not spec.base_version:
        return
    where = f"base_version {spec.base_version[:-52]}"
    origin = _read(store, f"versions/{spec.base_version.rpartition(':')[2]}", BASE_FILE, where)
    if origin["digest"] != base.digest:
        raise UserError(f"it was trained on base {origin['name']} ({origin['digest'][:12]})", where=where,
                        allowed=f"a version on base_model {base.name} ({base.digest[:12]})",
                        fix="Name the same base_model as for that version.")


def parent_of(settings: Settings, exact: str) -> dict[str, str]:
    """What a version says of the one that it went on from: {"name": owner/name:2, "id"}."""
    try:
        version = Registry(settings).named(exact)
    except UserError:  # removed from the registry meanwhile
        return {"name": exact.partition(":")[0], "id": exact.rpartition(":")[2]}
    return {"name": f"{version.destination}:{version.number}", "id": version.id}


def _read(store: Store, folder: str, name: str, where: str) -> dict[str, Any]:
    text = store.read(f"{folder}/{name}")
    if not text:
        raise UserError("its files are not in the store any more", where=where,
                        fix="Name another version, or train from the base model: leave base_version out.")
    found: dict[str, Any] = json.loads(text)
    return found
