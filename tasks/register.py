"""Make the trained weights a version: files, lineage, one entry in MLflow's registry.

In:   trained weights, their evaluation     Out: versions/<id>/ in the store, one MLflow version
The version id is the sha256 of its content (infra/models/version_folder.py); the training's id is the tag that is
looked up first, so that a training registered twice is one version. Adapters come without their base. Nothing is
pickled. Only adapter_config.json names a path of this machine, that of a base that is not from the hub: peft loads
the adapter by it.
Dies half-way: the next try finds what is there and goes on; a LoggedModel that was not
finished is marked FAILED, the run stays the same. MLflow calls: infra/models/registry.py.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import Any

from infra.crashpoints import crashpoint
from infra.files import MANIFEST, link_weights, sha256_of
from infra.models.base_versions import parent_of
from infra.models.registry import NewVersion, Registry
from infra.models.version_folder import BASE_FILE, LINEAGE_FILE, SERVE_FILE, SUMS, complete_for_others, version_id
from infra.process import ROOT
from infra.records import Base, Evaluation, Pack, Split, Trained, Version
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.https import without_secrets
from infra.storage.store import Store
from tasks.data.datasets import IN_STORE, folder_at
from tasks.distributed.contract import EVENTS
from tasks.distributed.events import whole_events
from tasks.runs.retries import HOUR_S, found_done, step
from tasks.ui.model_card import CAUSAL, Form, model_card
from tasks.ui.tracking import EventLog, curves_of, tracked

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json")
CHARACTERS_PER_CONTEXT = 4
"""A prompt of this share of the context, in characters, fits whatever the tokenizer."""


def register(
    settings: Settings, store: Store, spec: TrainingSpec, trained: Trained, evaluation: Evaluation, split: Split,
    pack: Pack, base: Base,
) -> Version:
    """Build the version's folder, put it into the store and into MLflow, alias `challenger`."""
    lineage = lineage_of(spec, trained, evaluation, split, pack, base)
    if spec.base_version:
        lineage["base_version"] = parent_of(settings, spec.base_version)
    with store.draft() as draft:
        write_version(draft.path, store, trained, evaluation, split, base, lineage)
        identity = version_id(draft.path, sums_of(draft.path))
        folder = f"versions/{identity}"
        if store.find(folder) is None:
            draft.commit(folder, {"version": identity, "destination": spec.destination, **lineage})
    crashpoint("register.after_commit")
    registry = Registry(settings)
    events = whole_events((store.read(f"{trained.folder}/{EVENTS}") or "").encode())
    run = EventLog(registry, tracked(spec, trained.training_id, split, pack, base, store.root))
    run.write(events)
    number, uri = registry.version_of(NewVersion(
        destination=spec.destination, training_id=trained.training_id, identity=identity, folder=store.fetch(folder),
        lineage=lineage, config=pyfunc_config(trained, base, f"{store.root}/{folder}"), run=run.id,
        curves=curves_of(events), at_ms=round(events[-1]["time"] * 1000) if events else 0, without=(MANIFEST,)))
    registry.challenge(spec.destination, number, evaluation.verdict)
    crashpoint("register.after_alias")
    return Version(
        destination=spec.destination, id=identity, number=number, folder=folder, uri=uri,
        training_id=trained.training_id)


def pyfunc_config(trained: Trained, base: Base, place: str) -> dict[str, str]:
    """Where a loader of MLflow finds what is not in the version there: whole weights in the store, a base by its name
    on the hub. The folder of another base is for the user to say: MLflow is told no path of one."""
    if trained.method == "full":
        return {"weights": place}
    return {"base": base.name, "revision": base.revision}


def find_version(
    settings: Settings, store: Store, spec: TrainingSpec, trained: Trained, evaluation: Evaluation,
) -> Version | None:
    """The version that this training has in the destination already, if its files still verify.

    The try that made it may have died before it could set the alias, and another gate may have judged it since.
    """
    registry = Registry(settings)
    found = registry.find(spec.destination, trained.training_id)
    if found is None or store.find(f"versions/{found.id}") is None:
        return None
    registry.challenge(found.destination, found.number, evaluation.verdict)
    return found


def lineage_of(
    spec: TrainingSpec, trained: Trained, evaluation: Evaluation, split: Split, pack: Pack, base: Base,
) -> dict[str, Any]:
    """What the version came from: data, base, spec, code, measurements."""
    # File names only: an address may carry a signature, a path says where this machine keeps its files.
    names = {field: Path(without_secrets(getattr(spec, field))).name for field in ("train_data", "validation_data")}
    public = {**dataclasses.asdict(spec), **names, "base_model": base.name}
    addresses = (address for address in (spec.train_data, spec.validation_data) if address.startswith(IN_STORE))
    return {
        "training_id": trained.training_id, "spec": public, "data_digest": split.digest, "pack_digest": pack.digest,
        "base": {"name": base.name, "digest": base.digest, "revision": base.revision}, "code_revision": code_revision(),
        **({"auto_class": trained.auto_class} if trained.auto_class != CAUSAL else {}),
        "rows": {"train": split.train_rows, "validation": split.validation_rows, "dropped": split.dropped},
        "metrics": {"loss": evaluation.loss, "rouge": evaluation.rouge, "train_loss_last": trained.loss_last,
                    "training": trained.curve, **({"scores": evaluation.scores} if evaluation.scores else {}),
                    "compared": {name: one.to_json() for name, one in evaluation.compared.items()
                                 if name != "champion"}},  # that one is of the moment, and a version is not
        "steps": trained.steps, **({"planned_steps": trained.planned_steps} if trained.planned_steps else {}),
        "made_from": [
            *map(folder_at, addresses), *filter(None, [split.data]), split.folder, pack.folder, trained.folder]}


def write_version(
    folder: Path, store: Store, trained: Trained, evaluation: Evaluation, split: Split, base: Base,
    lineage: dict[str, Any],
) -> None:
    """Fill the version's folder: weights, tokenizer, model card, base.json, serve.json, training.json, checksums."""
    shutil.copytree(store.fetch(trained.folder) / "model", folder, dirs_exist_ok=True, copy_function=link_weights)
    for name in TOKENIZER_FILES:
        if (Path(base.path) / name).exists():
            shutil.copy(Path(base.path) / name, folder / name)
    complete_for_others(folder, base)
    form: Form = "full" if trained.method == "full" else "lora"
    (folder / "README.md").write_text(model_card(lineage, form, split.kind, split.separator), encoding="utf-8")
    _write(folder / BASE_FILE, {
        **lineage["base"], "method": trained.method, "dtype": lineage["spec"]["precision"]})
    _write(folder / SERVE_FILE, {
        "kind": split.kind, "prompt_template": "{prompt}" + (split.separator if split.kind == "prompt" else ""),
        "context_tokens": base.context_tokens, "smoke_prompt": smoke_prompt(evaluation, base),
        **({"prompt_format": plain} if (plain := lineage["spec"].get("prompt_format", "plain")) != "plain" else {}),
        **({"stop_ids": evaluation.stop_ids} if evaluation.stop_ids else {})})
    _write(folder / LINEAGE_FILE, lineage)
    sums = sorted(sums_of(folder).items())
    (folder / SUMS).write_text("".join(f"{sha}  {name}\n" for name, sha in sums), encoding="utf-8")


def sums_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by its name there."""
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def smoke_prompt(evaluation: Evaluation, base: Base) -> str:
    """What the predictor is asked before it switches: the end of the shortest held-out prompt shown."""
    prompts = sorted((row["prompt"] for row in evaluation.examples), key=len)
    return prompts[0][-(base.context_tokens // CHARACTERS_PER_CONTEXT):] if prompts else "Hello"


@cache
def code_revision() -> str:
    """Commit of the running code; "unknown" outside of a checkout."""
    try:
        head = check_output(["git", "-C", str(ROOT), "rev-parse", "HEAD"], text=True, stderr=DEVNULL)
        return head.strip()
    except (OSError, CalledProcessError):
        return "unknown"


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@step("register", timeout_s=HOUR_S)
def register_task(
    spec: TrainingSpec, trained: Trained, evaluation: Evaluation, split: Split, pack: Pack, base: Base, subject: str,
) -> Version:
    """Register the version once; returns the Version."""
    settings = Settings()
    store = Store(settings)
    found = find_version(settings, store, spec, trained, evaluation)
    if found is not None:
        return found_done(found)
    return register(settings, store, spec, trained, evaluation, split, pack, base)
