"""Write a version as a whole model, its adapter merged into the base: a folder that plain transformers loads.

In:   a version, its base model     Out: <folder>: config, safetensors, tokenizer, model card; a Merged
The work and the comparison of logits are done by tasks/distributed/merge.py, a child process.
On disk meanwhile: <folder>.part, renamed when everything has passed, and <folder>.part.lock.
Dies half-way: there is no <folder>; the same command removes what was left behind and starts anew.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from deployments.cli.shareable import copy_tokenizer, origin_of, values_of, where_of, write_whole_card
from infra.errors import UserError, from_os_error
from infra.files import flushed, lock_file, sync_folder, try_lock
from infra.models.base_models import find_same
from infra.models.registry import Registry
from infra.models.version_folder import LINEAGE_FILE, SERVE_FILE
from infra.records import Base, Record, Split, Version
from infra.settings import Settings
from infra.spec import Precision
from infra.storage.store import Store
from tasks.distributed.contract import MergeJob, rows_name
from tasks.evaluate import work_folder
from tasks.launcher.jobs import run_child


@dataclass(frozen=True, kw_only=True)
class Merged(Record):
    """A version as a whole model in a folder, and how far its logits are from the adapter's.

    A difference is {"max_absolute", "max_relative", "same_argmax", "bound"}: relative to the largest logit, like
    its bound; same_argmax is the share of positions with the same likeliest token, 0..1.
    """

    folder: str
    version: Version
    dtype: str
    bytes: int
    """Of all files."""
    probe: str
    """What the logits were compared on."""
    probe_tokens: int
    effect: float
    """What the adapter changes: the largest difference to the base's logits, relative to the largest logit."""
    merged: dict[str, float]
    """The merged model in fp32 against the adapter on its base."""
    reloaded: dict[str, float]
    """The model loaded from the files against the merged one in fp32: the rounding to `dtype`."""


def merge(settings: Settings, target: str, folder: Path, *, dtype: Precision = "auto", base_model: str = "") -> Merged:
    """Write the version of that name (infra/models/version_names.py) as a whole model. `dtype` auto: of an adapter,
    fp32 if the base's weights are, else bf16; of all weights, the format in which they were trained and evaluated.

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
        copy_tokenizer(source, part)
        job = job_of(store, source, base, work, part, dtype)
        result = run_child(settings, job, "tasks.distributed.merge")
        write_whole_card(source, part)  # saving a model removes the card that libraries write
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


def base_of(settings: Settings, version: Version, source: Path, base_model: str) -> Base | None:
    """The base that the version's adapter belongs to; None of all weights. Raises BaseModelError."""
    origin = origin_of(source)
    if origin["method"] != "lora":
        return None
    return find_same(settings, origin["name"], origin["digest"], where_of(version), base_model)


def job_of(store: Store, source: Path, base: Base | None, work: Path, part: Path, dtype: Precision) -> MergeJob:
    """What the child is told; the held-out rows are taken from the store if they are still there."""
    lineage = values_of(source / LINEAGE_FILE)
    if base is None and dtype == "auto" and origin_of(source)["dtype"] in get_args(Precision):
        dtype = origin_of(source)["dtype"]
    manifest = store.find(f"splits/{lineage['data_digest'][:32]}")
    split = Split.kept(manifest.record if manifest else None)
    has_rows = split is not None and split.validation_rows
    return MergeJob(
        out=str(work), base=base.path if base else str(source), tuned=str(source) if base else "", folder=str(part),
        dtype=dtype,
        rows=str(store.fetch(split.folder) / rows_name("validation")) if split and has_rows else "",
        kind=split.kind if split else "text", separator=split.separator if split else "",
        context_tokens=base.context_tokens if base else int(values_of(source / SERVE_FILE)["context_tokens"]))


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
        raise UserError("it is there and was not left by an export", where=str(part), fix="Move it away.")
    with lock_file(lock) as held:
        if not try_lock(held):
            raise UserError("another export writes there", where=str(part), fix="Wait for it, or name another folder.")
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
