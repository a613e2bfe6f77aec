"""Atomic files and manifests: the one rule that says when a step is done.

A folder is done if and only if its `manifest.json` verifies. The manifest is written last and
lists every file with its size and sha256; whoever dies before that has written nothing.

In:   a folder of finished files, a JSON record      Out: the same folder with manifest.json
Dies half-way: no manifest (a `.tmp` file at most); the folder counts as absent.
Standard library only: ranks import this file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from infra.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1
READ_BYTES = 1 << 20
NO_LINKS = os.O_NOFOLLOW | os.O_NONBLOCK
"""For opening: not what a link names, and without waiting for the other end of a pipe."""
NOT_PLAIN = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""What opening says of a link, of a folder and of a socket."""
MODEL_FILES = ("*.json", "*.safetensors", "tokenizer*", "*.jinja", "*.model", "merges.txt", "vocab*")
"""The files that make a model what it is: fetched, hashed, and shown to transformers; no others are."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a manifest."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished folder holds. `record` is the step's result, as plain JSON."""

    files: Mapping[str, FileEntry]
    record: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 (64 hex) over the names and contents of the files."""
        return digest_of({name: entry.sha256 for name, entry in self.files.items()})

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        files = {name: {"bytes": f.bytes, "sha256": f.sha256} for name, f in sorted(self.files.items())}
        return json.dumps({"format": FORMAT, "record": self.record, "files": files}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read `manifest.json`. Raises ValueError for anything that is not one of ours."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise ValueError(f"manifest format {raw['format']} is not {FORMAT}")
            files = {str(name): FileEntry(f["bytes"], f["sha256"]) for name, f in raw["files"].items()}
            if any(name.startswith("/") or ".." in name.split("/") for name in files):
                raise ValueError("a manifest names a file outside its folder")
            return cls(files, raw["record"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a manifest: {error!r}") from error


def digest_of(value: object) -> str:
    """sha256 (64 hex) of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files in a folder that make the model what it is, by name."""
    found = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name != MANIFEST)


def sha256_of(path: Path) -> str:
    """sha256 (64 hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or none: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a process that died and had our number, or a link that others put there
    try:
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def link_weights(source: str, target: str) -> None:
    """Copy a file, for `shutil.copytree`; weights get a second name on the same disk and are stored once. Neither may
    be written to afterwards, only replaced."""
    if source.endswith(".safetensors"):
        with suppress(OSError):  # another disk, or one without hard links
            os.link(source, target)
            return
    shutil.copy2(source, target)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path) -> IO[str]:
    """The lock file of that name, made if need be, to be read and appended to.

    Where others may write, the name may be a link of theirs to a file of ours. Raises UserError for anything but a
    plain file with one name, and OSError for one that may not be opened.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_LINKS, 0o666), "a+", encoding="utf-8")
    except OSError as error:
        if error.errno not in NOT_PLAIN and not path.is_symlink():  # where all may write, Linux follows none of others
            raise
        raise not_plain(path) from error
    if not is_plain(file.fileno(), os.stat(path.parent)):
        file.close()
        raise not_plain(path)
    return file


def is_plain(descriptor: int, folder: os.stat_result) -> bool:
    """Whether it is a file, and where others may write to its folder, one that has no other name: a hard link is
    another user's way to name a file of ours."""
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and (status.st_nlink <= 1 or not folder.st_mode & 0o022)


def not_plain(path: Path) -> UserError:
    """What to do about a lock file that is none."""
    return UserError("it is a link, a pipe or has a second name", where=str(path), allowed="a plain file or folder",
                     fix="Find out who put it there, and remove it.")


def try_lock(file: IO[Any]) -> bool:
    """Whether this process now holds the file's lock, which goes with it. Does not wait."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Hold the lock file of that name, once whoever has it lets go. In a folder that this process may not write there
    is nothing to be alone with. Raises UserError, OSError."""
    if not os.access(path.parent, os.W_OK):
        yield
        return
    with lock_file(path) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def seal(folder: Path, record: Mapping[str, Any], hashed: Mapping[str, str] | None = None) -> Manifest:
    """Hash and fsync every file below `folder`, then write its manifest last. Raises OSError, ValueError.

    `hashed`: the sha256 (hex) of files that were hashed while they were written.
    """
    files = {}
    for path in flushed(folder):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            files[name] = FileEntry(path.stat().st_size, (hashed or {}).get(name) or sha256_of(path))
    manifest = Manifest(files, record)
    write_atomic(folder / MANIFEST, manifest.to_json())
    return manifest


def flushed(folder: Path) -> Iterator[Path]:
    """Every file below `folder` by name, once it is on the disk and readable by whoever the umask lets: safetensors
    writes for the owner alone. Raises OSError, also where there is no folder, and ValueError for a link."""
    mode = _mode_of_new_files(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a manifest lists plain files only")
        if path.is_dir():
            continue
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        yield path


def _mode_of_new_files(folder: Path) -> int:
    """By the umask, which cannot be read without changing it for other threads."""
    probe = folder / f".{os.getpid()}.mode"
    probe.touch()  # fails where the folder has gone: nothing would be sealed
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def verify(folder: Path) -> Manifest | None:
    """The folder's manifest if every file is there with the right bytes, else None."""
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
        for name, entry in manifest.files.items():
            path = folder / name
            if path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
                return None
    except (OSError, ValueError):
        return None
    return manifest
