"""Remove from the store what no version needs and nobody has made for a while: `anneal gc`.

In:   the store, MLflow's registry      Out: fewer folders; a list of what went, or would go
Kept is what registered versions were made from (data, split, pack, training), every version's own files, and whatever
is younger than the retention, and data from `anneal upload` unless it is asked for. All else can be made again from the
data: the next run takes longer, and no number changes.
Dies half-way: a folder loses its manifest first, and a name without one is absent; the next call removes the rest.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.errors import UserError
from infra.files import try_lock
from infra.models.registry import Registry
from infra.run_listener import listener
from infra.settings import Settings
from infra.storage.store import Store
from tasks.data.datasets import UPLOADS
from tasks.launcher.answers import ANSWERS
from tasks.launcher.checkpoint_copies import CHECKPOINTS

KINDS = ("datasets", "splits", "packs", CHECKPOINTS, "trainings", "evaluations", ANSWERS)
"""Folders of the store that are collected. Predictions are somebody's results and stay."""
LINEAGE = (("splits", "data_digest"), ("packs", "pack_digest"), ("trainings", "training_id"))
"""Where versions without a list of what they were made from say it."""
COPY = re.compile(r"[0-9a-f]{64}")
"""Name in <home>/cache of a copy of a remote folder; base models lie beside them and stay."""


@dataclass(frozen=True, slots=True)
class Gone:
    """What is, or would be, removed."""

    name: str
    bytes: int
    modified: datetime


def collect(
    settings: Settings, store: Store, retention: timedelta, *, dry_run: bool, uploads: bool = False,
) -> list[Gone]:
    """Remove them unless `dry_run`; returns them, the oldest first.

    Raises UserError while a run could be using them, Transient when store or registry do not answer.
    """
    if not dry_run:
        refuse_while_runs_use_them(settings)
    needed, before = set(needed_by_versions(settings, store)), datetime.now(UTC) - retention
    uploaded = {f"datasets/{mark.rsplit('/', 1)[-1]}": mark for mark in store.names(UPLOADS)}
    if not uploads:
        needed |= uploaded.keys()
    listener().step_begins("gc")
    gone = [
        Gone(name, size, modified)
        for kind in KINDS for name, (size, modified) in store.sizes(kind).items()
        if modified < before and name not in needed]
    for number, one in enumerate(gone if not dry_run else []):
        listener().gets_on(number, len(gone), f"removed: {number} of {len(gone)} folders")
        if one.name in uploaded:
            store.discard(uploaded[one.name])
        store.remove(one.name)
    gone += list(_left_here(settings, before, dry_run=dry_run))
    return sorted(gone, key=lambda one: one.modified)


def needed_by_versions(settings: Settings, store: Store) -> Iterator[str]:
    """Names in the store of what registered versions were made from."""
    for identity in Registry(settings).identities():
        manifest = store.find(f"versions/{identity}")
        if manifest is None:
            continue
        older = [(kind, manifest.record.get(key, "")) for kind, key in LINEAGE]
        yield from manifest.record.get("made_from", [f"{kind}/{found[:32]}" for kind, found in older])


def refuse_while_runs_use_them(settings: Settings) -> None:
    """Raise UserError if a run is on its way: it may have found its pack long ago."""
    if not settings.prefect_api:
        return
    from prefect.client.schemas.objects import StateType

    from tasks.runs.queries import LOOK_BACK, RECOVERED, runs_in
    from tasks.runs.start import client_of

    now = datetime.now(UTC)
    with client_of(settings) as client:
        busy = runs_in(client, RECOVERED, StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
        waiting = runs_in(client, RECOVERED, StateType.SCHEDULED)
        busy += [run for run in waiting if run.expected_start_time is None or run.expected_start_time <= now]
        busy += [run for run in runs_in(client, RECOVERED, StateType.CRASHED, ended_after=now - LOOK_BACK)
                 if run.deployment_id]  # these are started again
    if busy:
        raise UserError(f"runs are on their way: {len(busy)}, such as {busy[0].name}", where="store",
                        fix="Wait until they have ended; --dry-run shows what would go.")


def _left_here(settings: Settings, before: datetime, *, dry_run: bool) -> Iterator[Gone]:
    """Trainings that did not end, and copies of remote folders, on this machine."""
    home = settings.home_path
    copies = [path for path in (home / "cache").glob("*") if COPY.fullmatch(path.name)]
    for folder in sorted(path for path in [*(home / "trainings").glob("*"), *copies] if path.is_dir()):
        size, modified = _weighed(folder)
        if modified >= before:
            continue
        lock = folder.with_suffix(".lock")
        with lock.open("a") if lock.exists() else nullcontext() as file:
            if file is not None and not try_lock(file):
                continue
            if not dry_run:
                shutil.rmtree(folder, ignore_errors=True)
        yield Gone(str(folder), size, modified)


def _weighed(folder: Path) -> tuple[int, datetime]:
    """Bytes, and the time of the newest file; files that go meanwhile do not count."""
    size, newest = 0, folder.stat().st_mtime
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            size, newest = size + (status.st_size if path.is_file() else 0), max(newest, status.st_mtime)
    return size, datetime.fromtimestamp(newest, UTC)
