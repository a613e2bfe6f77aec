"""Make the trained weights a version: files, lineage, one entry in MLflow's registry.

In:   trained weights, their evaluation     Out: versions/<id>/ in the store, one MLflow version
The version id is the sha256 of its content; the training's id is the tag that is looked up
first, so that a training registered twice is one version. Adapters come without their base;
nothing is pickled and nothing names a path of this machine.
Dies half-way: the next try finds what is there and goes on; a LoggedModel that was not
finished is marked FAILED, its run KILLED. MLflow calls: infra/models/registry.py.
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
from infra.files import MANIFEST, digest_of, sha256_of
from infra.models.registry import Registry
from infra.process import ROOT
from infra.records import Base, Evaluation, Pack, Split, Trained, Version
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.https import without_secrets
from infra.storage.store import Store
from tasks.data.datasets import IN_STORE, folder_at
from tasks.launcher.jobs import settled
from tasks.runs.retries import HOUR_S, found_done, step

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja")
SUMS = "MANIFEST.sha256"
CHARACTERS_PER_CONTEXT = 4
"""A prompt of this share of the context, in characters, fits whatever the tokenizer."""


def register(
    settings: Settings, store: Store, spec: TrainingSpec, trained: Trained, evaluation: Evaluation, split: Split,
    pack: Pack, base: Base,
) -> Version:
    """Build the version's folder, put it into the store and into MLflow, alias `challenger`."""
    lineage = lineage_of(spec, trained, evaluation, split, pack, base)
    with store.draft() as draft:
        write_version(draft.path, store, trained, evaluation, split, base, lineage)
        identity = digest_of({
            p.relative_to(draft.path).as_posix(): sha256_of(p) for p in draft.path.rglob("*") if p.is_file()})
        folder = f"versions/{identity}"
        if store.find(folder) is None:
            draft.commit(folder, {"version": identity, "destination": spec.destination, **lineage})
    crashpoint("register.after_commit")
    registry = Registry(settings)
    number, uri = registry.version_of(
        spec.destination, trained.training_id, identity, store.fetch(folder), lineage, without=(MANIFEST,))
    registry.challenge(spec.destination, number, evaluation.verdict)
    crashpoint("register.after_alias")
    return Version(
        destination=spec.destination, id=identity, number=number, folder=folder, uri=uri,
        training_id=trained.training_id)


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
    public = {**dataclasses.asdict(settled(spec)), **names, "base_model": base.name}
    addresses = (address for address in (spec.train_data, spec.validation_data) if address.startswith(IN_STORE))
    return {
        "training_id": trained.training_id, "spec": public, "data_digest": split.digest, "pack_digest": pack.digest,
        "base": {"name": base.name, "digest": base.digest}, "code_revision": code_revision(),
        "rows": {"train": split.train_rows, "validation": split.validation_rows, "dropped": split.dropped},
        "metrics": {"loss": evaluation.loss, "rouge": evaluation.rouge, "train_loss_last": trained.loss_last,
                    "training": trained.curve, **({"scores": evaluation.scores} if evaluation.scores else {})},
        "steps": trained.steps,
        "made_from": [
            *map(folder_at, addresses), *filter(None, [split.data]), split.folder, pack.folder, trained.folder]}


def write_version(
    folder: Path, store: Store, trained: Trained, evaluation: Evaluation, split: Split, base: Base,
    lineage: dict[str, Any],
) -> None:
    """Fill the version's folder: weights, tokenizer, base.json, serve.json, training.json, checksums."""
    shutil.copytree(store.fetch(trained.folder) / "model", folder, dirs_exist_ok=True)
    for name in TOKENIZER_FILES:
        if (Path(base.path) / name).exists():
            shutil.copy(Path(base.path) / name, folder / name)
    _write(folder / "base.json", {
        "name": base.name, "digest": base.digest, "method": trained.method, "dtype": lineage["spec"]["precision"]})
    _write(folder / "serve.json", {
        "kind": split.kind, "prompt_template": "{prompt}" + (split.separator if split.kind == "prompt" else ""),
        "context_tokens": base.context_tokens, "smoke_prompt": smoke_prompt(evaluation, base)})
    _write(folder / "training.json", lineage)
    sums = {p.relative_to(folder).as_posix(): sha256_of(p) for p in folder.rglob("*") if p.is_file()}
    (folder / SUMS).write_text("".join(f"{sha}  {name}\n" for name, sha in sorted(sums.items())), encoding="utf-8")


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
