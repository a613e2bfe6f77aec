"""Merge a version's adapter into its base: a folder that plain transformers loads.

In:   owner/name[:version], its base model     Out: <folder>: config, safetensors, tokenizer; a Merged
The work and the comparison of logits are done by tasks/distributed/merge.py, a child process.
On disk meanwhile: <folder>.part, renamed when everything has passed, and <folder>.part.lock.
Dies half-way: there is no <folder>; the same command removes what was left behind and starts anew.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.errors import UserError, from_os_error
from infra.files import flushed, lock_file, sync_folder, try_lock
from infra.models.base_models import find_same
from infra.models.registry import Registry
from infra.records import Base, Merged, Split, Version
from infra.settings import Settings
from infra.spec import Precision
from infra.storage.store import Store
from tasks.distributed.contract import MergeJob
from tasks.evaluate import work_folder
from tasks.launcher.jobs import run_child
from tasks.register import TOKENIZER_FILES


def merge(settings: Settings, target: str, folder: Path, *, dtype: Precision = "auto", base_model: str = "") -> Merged:
    """Write the version `target`, an owner/name[:version], as a whole model.

    Raises:
        UserError: no such version, nothing to merge, another base, or a folder that is in use.
        Broken: the merged model does not answer as the adapter does; nothing was written.
        Transient: the store or the registry does not answer, or the child was killed.
    """
    folder = folder.expanduser().absolute()
    with writing(folder):
        check_free(folder)
    version = Registry(settings).named(target)
    store = Store(settings)
    source = store.fetch(version.folder)
    base = base_of(settings, version, source, base_model)
    with writing(folder), part_of(folder) as part, work_folder(settings) as work:
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, part / name)
        job = job_of(store, source, base, work, part, dtype)
        result = run_child(settings, job, "tasks.distributed.merge")
        written = finish(part, folder)
    probe = "held-out rows" if job.rows else "token ids from all over the vocabulary"
    return Merged.of({**result, "folder": str(folder), "version": version, "bytes": written, "probe": probe})


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say what a failed read or write means to the user."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, str(folder)) from error


def check_free(folder: Path) -> None:
    """Raise UserError if something is in the way."""
    is_folder = folder.is_dir() and not folder.is_symlink()
    if (folder.exists() or folder.is_symlink()) and not (is_folder and not any(folder.iterdir())):
        found = "the folder is not empty" if is_folder else "it is not a folder"
        raise UserError(found, where=str(folder), allowed="a folder that is new or empty", fix="Name another one.")


def base_of(settings: Settings, version: Version, source: Path, base_model: str) -> Base:
    """The base that the version's adapter belongs to. Raises UserError for a full fine-tune, BaseModelError."""
    where = f"version {version.number} of {version.destination}"
    origin = json.loads((source / "base.json").read_text(encoding="utf-8"))
    if origin["method"] != "lora":
        raise UserError(
            "it is a full fine-tune and has no adapter", where=where, allowed="a version trained with lora or qlora",
            fix=f"It is a whole model already: copy {source}.")
    return find_same(settings, origin["name"], origin["digest"], where, base_model)


def job_of(store: Store, source: Path, base: Base, work: Path, part: Path, dtype: Precision) -> MergeJob:
    """What the child is told; the held-out rows are taken from the store if they are still there."""
    lineage: dict[str, Any] = json.loads((source / "training.json").read_text(encoding="utf-8"))
    manifest = store.find(f"splits/{lineage['data_digest'][:32]}")
    split = Split.kept(manifest.record if manifest else None)
    has_rows = split is not None and split.validation_rows
    return MergeJob(
        out=str(work), base=base.path, tuned=str(source), folder=str(part), dtype=dtype,
        rows=str(store.fetch(split.folder) / "validation.jsonl") if split and has_rows else "",
        kind=split.kind if split else "text", separator=split.separator if split else "",
        context_tokens=base.context_tokens)


@contextmanager
def part_of(folder: Path) -> Iterator[Path]:
    """The folder that becomes `folder`; what a merge that was killed left there is removed first.

    The kernel drops the lock beside it when this process dies. Raises UserError if a merge that runs writes there,
    something that is not ours stands there, or others could put a link in its place.
    """
    part, lock = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".part.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if everybody_writes(folder.parent):
        for path in filter(os.path.lexists, (part, lock)):
            if path.lstat().st_uid != os.getuid():
                raise UserError("it belongs to another user", where=str(path), fix="Name another folder.")
    if part.exists() and not lock.exists():
        raise UserError("it is there and was not left by a merge", where=str(part), fix="Move it away.")
    with lock_file(lock) as held:
        if not try_lock(held):
            raise UserError("another merge writes there", where=str(part), fix="Wait for it, or name another folder.")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.unlink(missing_ok=True)


def everybody_writes(parent: Path) -> bool:
    """Whether all users may put files there, as in /tmp. Raises UserError where they may also take ours away."""
    mode = parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise UserError("all users may write there, and put links in place of what is written", where=str(parent),
                        fix="Name a folder somewhere else, or take that right away: chmod o-w.")
    return bool(mode & stat.S_IWOTH)


def finish(part: Path, folder: Path) -> int:
    """Make the files durable and give the folder its name; returns their size in bytes."""
    written = sum(path.stat().st_size for path in flushed(part))
    sync_folder(part)
    part.rename(folder)
    sync_folder(folder.parent)
    return written
