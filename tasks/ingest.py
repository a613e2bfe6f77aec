"""Bring the training data into the store, unchanged but for unpacking and joining.

In:   a path, https:// or s3:// address of a file, a folder or a pattern (tasks/data/sources.py), plain, gzip or
      zstandard; gs:// and others whose library is installed (infra/storage/clouds.py)
      with csv: or parquet: in front, tables of such records (tasks/data/tables.py)
      or store://datasets/<hash>/<name>, which is there already
Out:  datasets/<hash>/data.jsonl; shards.json beside it if it was joined of several files
The bytes are hashed while they stream; files that are plainly not JSONL are refused by their first bytes. One file
stays as it is. Of several, in the order of their names, each loses its byte-order mark and is followed by a line
break where it lacks one. Dies half-way: the draft is swept, nothing is in the store. The same bytes give the same
folder, however often they are brought in; the same rows in other files a folder of their own with the same data.jsonl.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from infra.crashpoints import crashpoint
from infra.errors import AnnealError, DataChanged, DataError
from infra.files import digest_of
from infra.models.base_models import find_base
from infra.records import Base, Dataset
from infra.settings import Settings
from infra.storage.addresses import columns_of, form_of
from infra.storage.clouds import cloud_of, in_object_store
from infra.storage.https import bytes_of, open_https, without_secrets
from infra.storage.store import Store, open_remote
from tasks.data import sources
from tasks.data.compression import JSONL
from tasks.data.datasets import FILE, IN_STORE, UPLOADS, folder_of, stored
from tasks.data.jsonl import BOM
from tasks.data.source_cache import known, note_source, source_key
from tasks.data.sources import Shard, SourceFile, find_shards, readable
from tasks.data.streams import Meter, ProgressListener, read_ahead
from tasks.data.tables import jsonl_of
from tasks.runs.retries import HOUR_S, found_done, step
from tasks.ui.progress import ReadingShown

LINE_BREAK = b"\n"


def ingest(settings: Settings, store: Store, source: str, teller: ProgressListener | None = None) -> Dataset:
    """Copy `source` into the store. One that changes meanwhile is read once more; the teller hears how far it is.

    Raises:
        DataError: it does not exist, is empty, too large, damaged, plainly not JSONL, or changed twice.
        Transient: the server or the store does not answer.
    """
    if source.startswith(IN_STORE):
        return stored(store, source)
    teller = teller or ProgressListener()
    try:
        return _brought(settings, store, source, teller)
    except DataChanged as error:
        teller.say(f"Read once more from the start: {error}")
        return _brought(settings, store, source, teller)


def upload(settings: Settings, store: Store, source: str) -> Dataset:
    """Bring data in to stay: the store may have the only copy of it. Raises what `ingest` does."""
    dataset = ingest(settings, store, source)
    store.write(f"{UPLOADS}/{dataset.folder.rsplit('/', 1)[-1]}", dataset.source)
    return dataset


@contextmanager
def opened(settings: Settings, source: str) -> Iterator[BinaryIO]:
    """The raw bytes of one file."""
    if in_object_store(source):
        with open_remote(source, settings) as remote:
            yield remote
    elif "://" in source:
        with open_https(source, settings) as body:
            yield body
    else:
        with readable(source):
            file = Path(source).expanduser().open("rb")
        with file:
            yield file


class Joined:
    """data.jsonl while it is written, and which lines of it came from where."""

    def __init__(self, target: BinaryIO, limit_bytes: int, name: str) -> None:
        self._target, self._limit, self._name = target, limit_bytes, name
        self._digest = hashlib.sha256()
        self._last = LINE_BREAK
        self.bytes = 0
        self.shards: list[Shard] = []

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._digest.hexdigest()

    def add(self, chunks: Iterator[bytes]) -> None:
        """Write them as they are."""
        for chunk in chunks:
            self._write(chunk)

    def add_shard(self, name: str, chunks: Iterator[bytes]) -> None:
        """Write one of several files, on a line of its own."""
        line = self.shards[-1].line + self.shards[-1].lines if self.shards else 1
        digest, size, breaks = hashlib.sha256(), 0, 0
        for chunk in chunks:
            own = chunk if size else chunk.removeprefix(BOM)
            if own and not size and self._last != LINE_BREAK:
                self._write(LINE_BREAK)
            digest.update(own)
            size, breaks = size + len(own), breaks + own.count(LINE_BREAK)
            self._write(own)
        lines = breaks + (1 if size and self._last != LINE_BREAK else 0)
        self.shards.append(Shard(name=name, line=line, lines=lines, bytes=size, sha256=digest.hexdigest()))

    def _write(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        if self.bytes > self._limit:
            raise DataError(f"more than {self._limit} bytes after unpacking", where=self._name,
                            fix="Raise ANNEAL_MAX_DATA_BYTES if that is meant.")
        self._target.write(chunk)
        self._digest.update(chunk)
        crashpoint("ingest.half_written")
        self._last = chunk[-1:] or self._last


def _brought(settings: Settings, store: Store, source: str, teller: ProgressListener) -> Dataset:
    form, address = form_of(source)
    columns, unused = columns_of(source)[0], list[str]()
    name, found = without_secrets(address), find_shards(settings, source, teller.say)
    meter = Meter(found, teller)
    with store.draft() as draft, store.scratch() as scratch:
        with (draft.path / FILE).open("wb") as target:
            joined = Joined(target, settings.max_data_bytes, name)
            for one in found:
                with opened(settings, one.address) as raw, read_ahead(raw) as stream:
                    crashpoint("ingest.opened")
                    counted = meter.counted(stream, one.name, bytes_of(raw))
                    rows = jsonl_of(form, counted, one.name, scratch, settings.max_data_bytes, columns, unused)
                    chunks = meter.lines_of(rows)
                    if len(found) == 1:
                        joined.add(chunks)
                    else:
                        joined.add_shard(one.name, chunks)
                if cloud_of(one.address) or Path(one.address).is_file():  # not a pipe
                    refuse_changed(settings, one)
        if joined.bytes == 0:
            raise DataError("the file is empty" if len(found) == 1 else f"all {len(found)} files are empty", where=name,
                            allowed="records" if form in ("csv", "parquet") else JSONL,
                            fix="Check that it was written and copied whole.")
        dataset = _described(draft.path, joined, found, name, "record" if form in ("csv", "parquet") else "line")
        dataset = replace(dataset, unused=sorted(set(unused)))
        if store.find(dataset.folder) is None:
            crashpoint("ingest.before_commit")
            draft.commit(dataset.folder, dataset.to_json(), {FILE: joined.sha256})
    return dataset


def refuse_changed(settings: Settings, one: SourceFile) -> None:
    """Raise DataChanged if a file is another one by now: readings of S3 and of the web are held to one."""
    (now,) = find_shards(settings, one.address)
    if (now.mark, now.bytes) != (one.mark, one.bytes):
        raise DataChanged("it changed while it was read", where=one.name, fix=DataChanged.FIX)


def _described(folder: Path, joined: Joined, found: list[SourceFile], name: str, unit: str) -> Dataset:
    """The record of a draft's data; several files are listed beside it."""
    if len(found) == 1:
        return Dataset(folder=folder_of(joined.sha256), sha256=joined.sha256, bytes=joined.bytes,
                       source=without_secrets(found[0].address), unit=unit)
    listed = [shard.to_json() for shard in joined.shards]
    (folder / sources.FILE).write_text(json.dumps(listed, indent=1), encoding="utf-8")
    return Dataset(folder=folder_of(digest_of([joined.sha256, listed])), sha256=joined.sha256, bytes=joined.bytes,
                   source=name, shards=len(found), unit=unit)


@step("ingest", timeout_s=6 * HOUR_S)
def ingest_task(source: str, subject: str) -> Dataset:
    """Bring one data source into the store; returns its Dataset."""
    settings = Settings()
    store = Store(settings)
    key = "" if source.startswith(IN_STORE) else source_key(settings, source)
    if (found := known(store, key)) is not None:
        return found_done(found)
    with ReadingShown(subject.replace(" ", "-")) as shown:
        dataset = ingest(settings, store, source, shown)
    with suppress(AnnealError):  # not noted, it is read once more some day
        if key and key == source_key(settings, source):
            note_source(store, key, dataset)
    return dataset


@step("base model", timeout_s=6 * HOUR_S)
def base_task(name: str, subject: str) -> Base:
    """Find the base model, downloading it if need be."""
    return find_base(Settings(), name)
