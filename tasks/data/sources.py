"""Find the files that a data source stands for, and say later which of them a line came from.

In:   a path, https:// or s3:// address of a file; a folder; a pattern with * ? [ ] and **
Out:  its files in the order of their full names; only names, sizes and times are read
In a folder, at any depth, what is named like JSONL counts. Names that begin with . or _ never do, nor do the empty
objects that stand for folders in S3. What was joined of several files has shards.json beside it.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsspec.core import strip_protocol
from fsspec.implementations.local import LocalFileSystem

from infra.errors import DataError, near_names, shown_path
from infra.records import Dataset, Record
from infra.settings import Settings
from infra.storage.addresses import Form, form_of
from infra.storage.clouds import cloud_of, in_object_store, mark_of
from infra.storage.https import without_secrets
from infra.storage.store import Store, filesystem
from infra.storage.store_errors import existing, translate_storage_errors

FILE = "shards.json"
ENDINGS: dict[Form, str] = {
    "jsonl": "names that end in .jsonl, .ndjson or .json, each also with .gz or .zst",
    "alpaca": "names that end in .jsonl or .json", "sharegpt": "names that end in .jsonl or .json",
    "csv": "names that end in .csv, also with .gz or .zst", "parquet": "names that end in .parquet"}
NAMED_LIKE_JSONL = re.compile(r"\.(jsonl|ndjson|json)(\.(gz|zst))?$", re.IGNORECASE)
NAMED_LIKE_DATA: dict[Form, re.Pattern[str]] = {
    "jsonl": NAMED_LIKE_JSONL, "alpaca": NAMED_LIKE_JSONL, "sharegpt": NAMED_LIKE_JSONL,
    "csv": re.compile(r"\.csv(\.(gz|zst))?$", re.IGNORECASE),
    "parquet": re.compile(r"\.parquet$", re.IGNORECASE)}
MAGIC = re.compile(r"[*?[]")
MORE = re.compile(r"(^|/)\*\*(?=[^/])")
"""**.jsonl, which fsspec does not take; **/*.jsonl is meant."""
FOLDER_MARK = "_$folder$"
"""Hadoop's ending of the empty object that stands for a folder; others end in a slash."""
SHOWN_NAMES = 5


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    address: str
    name: str
    """Below the folder, or below the part of a pattern that comes before its first sign."""
    bytes: int | None = None
    """As it lies there, perhaps packed; None if only reading it would tell."""
    mark: str = ""
    """Another one whenever the content is: an ETag, or the time of the last change."""


@dataclass(frozen=True, kw_only=True)
class Shard(Record):
    """Where one file stands in data.jsonl."""

    name: str
    line: int
    """Its first one, from 1."""
    lines: int
    bytes: int
    """Of its content, unpacked, without a byte-order mark; sha256 too."""
    sha256: str


@dataclass(frozen=True)
class Places:
    """Says where a line of data.jsonl came from."""

    name: str
    """Of all of it."""
    shards: tuple[Shard, ...] = ()
    unit: str = "line"

    def of(self, number: int) -> str:
        """The place of a line, as people look for it."""
        if not self.shards:
            return f"{self.name} {self.unit} {number}"
        shard = self.shards[bisect_right(self.shards, number, key=lambda shard: shard.line) - 1]
        return f"{shard.name} {self.unit} {number - shard.line + 1}"


def find_shards(settings: Settings, source: str, say: Callable[[str], None] = lambda _: None) -> list[SourceFile]:
    """The files of a source; what was left out is said in a line.

    Raises DataError for none, UserError or Transient when the store does not answer.
    """
    form, source = form_of(source)
    if not source:
        raise DataError(f"there is no address behind {form}:", where="data source",
                        fix="Write the path or address of the file behind it.")
    is_remote = in_object_store(source)
    if "://" in source and not is_remote:
        return [SourceFile(source, without_secrets(source))]
    files = filesystem(source, settings)
    if is_remote:
        path = strip_protocol(source) if cloud_of(source) else source.removeprefix("s3://")
        with translate_storage_errors(source), existing(source):
            return _find(files, path, source, form, say)
    with readable(source):
        return _find(files, os.path.abspath(Path(source).expanduser()), source, form, say)


def places_of(folder: Path, data: Dataset) -> Places:
    """Where the lines of a data set came from; `folder` is its local one."""
    if data.shards == 1:
        return Places(Path(data.source).name, unit=data.unit)
    return Places(data.source, tuple(_read((folder / FILE).read_text(encoding="utf-8"))), data.unit)


def shards_in(store: Store, folder: str) -> list[Shard]:
    """The shards of a data set, without fetching its data; empty if it was one file, or is gone."""
    return _read(store.read(f"{folder}/{FILE}") or "[]")


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Say what is wrong with a path on this machine."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=shown_path(source),
                        allowed="a path, an https:// or an s3:// address", fix=near_names(source).strip()) from error
    except OSError as error:
        raise DataError(f"it cannot be opened ({error.strerror})", where=shown_path(source),
                        fix="Check its path and its permissions.") from error


def _read(text: str) -> list[Shard]:
    return [Shard.of(values) for values in json.loads(text)]


def _find(files: Any, path: str, source: str, form: Form, say: Callable[[str], None]) -> list[SourceFile]:
    try:
        about = files.info(path)
    except FileNotFoundError:
        if not MAGIC.search(path):
            raise
        return _by_pattern(files, path, source)
    if about["type"] == "directory" or path.endswith("/"):
        return _in_folder(files, path.rstrip("/"), source, form, say)
    return [replace(_found(path, about, without_secrets(source), source), address=source)]


def _in_folder(files: Any, root: str, source: str, form: Form, say: Callable[[str], None]) -> list[SourceFile]:
    entries = files.find(root, detail=True, **_strictly(files))
    names = [name for name in _visible(entries, root) if NAMED_LIKE_DATA[form].search(name)]
    others = sorted({_below(root, path) for path in entries}.difference(names))
    if not names:
        raise DataError("no data is in the folder", where=shown_path(source), allowed=ENDINGS[form],
                        fix=f"There {_listed(others)}")
    if others:
        say(f"Left out beside the data of {_spelled(source)}: there {_listed(others)}")
    return [_found(f"{root}/{name}", entries[f"{root}/{name}"], name, source) for name in names]


def _by_pattern(files: Any, pattern: str, source: str) -> list[SourceFile]:
    root = MAGIC.split(pattern)[0].rpartition("/")[0]
    if not root or not files.exists(root):
        raise DataError("the pattern begins in a folder that does not exist", where=shown_path(source),
                        fix="Check bucket and folders before the first * or ?.")
    try:
        entries = files.glob(MORE.sub(r"\1**/*", pattern), detail=True, **_strictly(files))
    except ValueError as error:
        raise DataError(f"the pattern cannot be used ({error})", where=shown_path(source),
                        fix="** stands for whole folders: write day=*/**/*.jsonl.") from error
    names = _visible(entries, root)
    if not names:
        there = sorted(_below(root, path) for path in files.ls(root, detail=False))
        raise DataError("no file fits the pattern", where=shown_path(source),
                        allowed="names without . or _ at their front",
                        fix=f"In {root} there {_listed(there)}")
    return [_found(f"{root}/{name}", entries[f"{root}/{name}"], name, source) for name in names]


def _visible(entries: dict[str, dict[str, Any]], root: str) -> list[str]:
    """Names below the root of the files that are not hidden, sorted."""
    names = (_below(root, path) for path, entry in entries.items() if _is_file(path, entry))
    return sorted(name for name in names if not any(part.startswith((".", "_")) for part in name.split("/")))


def _is_file(path: str, entry: dict[str, Any]) -> bool:
    if entry["type"] == "other":  # on a disk; a link that leads nowhere is found out by whoever looks at it
        return bool(entry["islink"]) and not os.path.isdir(path)
    return bool(entry["type"] == "file") and not path.endswith(("/", FOLDER_MARK))


def _found(path: str, about: dict[str, Any], name: str, source: str) -> SourceFile:
    if in_object_store(source):
        scheme = source.partition("://")[0]
        return SourceFile(f"{scheme}://{path.lstrip('/')}", name, about["size"], mark_of(about))
    if path != _spelled(path):
        raise DataError("its path is not UTF-8", where=shown_path(path), fix="Rename it.")
    with readable(path):
        status = os.stat(path)
    return SourceFile(path, name, status.st_size, str(status.st_mtime_ns))


def _strictly(files: Any) -> dict[str, Any]:
    """A folder on disk that cannot be listed is an error, not an empty one."""
    return {"on_error": "raise"} if isinstance(files, LocalFileSystem) else {}


def _below(root: str, path: str) -> str:
    return path.rstrip("/").removeprefix(f"{root}/")


def _listed(names: list[str]) -> str:
    """is nothing. | is a. | are a, b and 3 more."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{'are' if len(names) > 1 else 'is'} {', '.join(map(_spelled, names[:SHOWN_NAMES])) or 'nothing'}{more}."


def _spelled(name: str) -> str:
    """A name as it can be written down: bytes that are not UTF-8 as \\udcXX."""
    return name.encode(errors="backslashreplace").decode()
