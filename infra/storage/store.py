"""The object store: finished folders under names, on a local folder or S3.

In:   a draft folder and its record     Out: `<root>/<name>/...` with manifest.json
Dies half-way: locally the folder is renamed into place as a whole; on S3 the manifest object is
written last, and a name without a manifest is absent. Drafts of processes that died are swept by the next.
S3 is read through `open()`, which pins the ETag: `get_file` can mix two versions of an object
and leaves right-sized files full of NULs when killed.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from infra.crashpoints import crashpoint
from infra.errors import Missing, Transient, UserError, shown
from infra.files import MANIFEST, READ_BYTES, Manifest, seal, sync_folder, verify, write_atomic
from infra.redaction import secret_in
from infra.settings import Settings
from infra.storage.clouds import cloud, cloud_of
from infra.storage.s3 import AHEAD_BYTES, Parts, s3
from infra.storage.store_errors import existing, translate_storage_errors

BUCKET = re.compile(r"[A-Za-z0-9._-]{0,63}")
"""What botocore takes for a bucket's name, and not for an access point somewhere else; empty: the server itself."""


class Draft:
    """A folder under construction. Nothing is in the store until `commit`."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store, self.path = store, path

    def commit(
        self, name: str, record: Mapping[str, Any], hashed: Mapping[str, str] | None = None, *, kept: bool = True,
    ) -> Manifest:
        """Seal the folder and put it into the store under `name`. `hashed`: as for `seal`; `kept`: a remote store's is
        also kept here, where the next step finds it without reading it back."""
        manifest = seal(self.path, record, hashed)
        self._store._publish(name, self.path, manifest)
        if kept and not self._store.is_local:
            self._store._keep(self.path, manifest)
        return manifest


class Store:
    """Folders by name. Raises Transient for a store that does not answer, UserError for a wrong one."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.store_root
        self.is_local = not self.root.startswith("s3://")
        self._scratch = Path(self.root) / ".drafts" if self.is_local else settings.home_path / "drafts"
        self._cache = settings.home_path / "cache"
        self._fs = filesystem(self.root, settings)

    def find(self, name: str) -> Manifest | None:
        """The manifest of a finished folder; local files are hashed again, remote ones counted."""
        if self.is_local:
            return verify(self._local(name))
        with translate_storage_errors(self.root):
            try:
                manifest = Manifest.from_json(self._fs.cat_file(self._key(name, MANIFEST)))
                found = self._fs.find(self._key(name), detail=True, refresh=True)
            except (FileNotFoundError, ValueError):
                return None
        sizes = {key[len(self._key(name)) - len("s3://") + 1:]: entry["size"] for key, entry in found.items()}
        complete = all(sizes.get(file) == entry.bytes for file, entry in manifest.files.items())
        return manifest if complete else None

    def fetch(self, name: str) -> Path:
        """A local folder with the verified files of `name`. Raises Transient if it is not there."""
        manifest = self.find(name)
        if manifest is None:
            raise Missing(f"{name} is missing or damaged", where=f"store {self.root}",
                          fix="Run the same training again; the step that made it is repeated.")
        if self.is_local:
            return self._local(name)
        folder = self._cache / manifest.digest
        if verify(folder) is None:
            with scratch_folder(self._cache) as draft:
                for file, entry in manifest.files.items():
                    self._download(self._key(name, file), draft / file, entry.sha256)
                seal(draft, manifest.record)
                self._keep(draft, manifest)
        return folder

    def write(self, name: str, text: str) -> None:
        """Put one small file, whole or not at all; unlike a folder it may be written again."""
        with translate_storage_errors(self.root):
            if self.is_local:
                write_atomic(self._local(name), text)
            else:
                self._fs.pipe_file(self._key(name), text.encode())

    def read(self, name: str) -> str | None:
        """The text of one small file, or None."""
        with translate_storage_errors(self.root):
            try:
                found: bytes = self._local(name).read_bytes() if self.is_local else self._fs.cat_file(self._key(name))
            except FileNotFoundError:
                return None
        return found.decode()

    def discard(self, name: str) -> None:
        """Take one small file away, if it is there."""
        with translate_storage_errors(self.root), suppress(FileNotFoundError):
            self._fs.rm_file(self._key(name))

    def names(self, prefix: str) -> list[str]:
        """Names directly below `prefix`, sorted; finished or not. Those that begin with a dot are being written."""
        with translate_storage_errors(self.root):
            try:
                found = self._fs.ls(self._key(prefix), detail=False)
            except FileNotFoundError:
                return []
        names = (str(key).rstrip("/").rsplit("/", 1)[-1] for key in found)
        return sorted(f"{prefix}/{name}" for name in names if not name.startswith("."))

    def sizes(self, prefix: str) -> dict[str, tuple[int, datetime]]:
        """Bytes, and the time of the newest file, of each folder directly below `prefix`; finished or not."""
        found: dict[str, tuple[int, datetime]] = {}
        with translate_storage_errors(self.root):
            try:
                files = self._fs.find(self._key(prefix), detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._key(prefix).removeprefix("s3://")) + 1
        for key, entry in files.items():
            name = f"{prefix}/{key[start:].split('/', 1)[0]}"
            modified = entry.get("LastModified") or datetime.fromtimestamp(entry["mtime"], UTC)
            size, newest = found.get(name, (0, modified))
            found[name] = (size + entry["size"], max(newest, modified))
        return found

    def remove(self, name: str) -> None:
        """Take a folder away, its manifest first."""
        with translate_storage_errors(self.root):
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._key(name, MANIFEST))
            with suppress(FileNotFoundError):
                self._fs.rm(self._key(name), recursive=True)

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """A fresh folder to fill and `commit`; thrown away if the block fails before that."""
        with translate_storage_errors(self.root), scratch_folder(self._scratch) as path:
            yield Draft(self, path)

    def scratch(self) -> AbstractContextManager[Path]:
        """An empty local folder, gone after the block."""
        return scratch_folder(self._scratch)

    def _publish(self, name: str, path: Path, manifest: Manifest) -> None:
        if self.is_local:
            move_into_place(path, self._local(name))
            return
        for file in [*manifest.files, MANIFEST]:
            with (path / file).open("rb") as source, self._fs.open(self._key(name, file), "wb") as target:
                shutil.copyfileobj(source, target, READ_BYTES)
            crashpoint("store.mid_publish")

    def _keep(self, path: Path, manifest: Manifest) -> None:
        """Take a sealed folder as the copy of a remote one."""
        self._cache.mkdir(parents=True, exist_ok=True)
        move_into_place(path, self._cache / manifest.digest)

    def _download(self, key: str, path: Path, sha256: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with translate_storage_errors(self.root), self._fs.open(key, "rb") as source, path.open("wb") as target:
            while chunk := source.read(READ_BYTES):
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        if digest.hexdigest() != sha256:
            raise Transient("the bytes do not match the manifest", where=key, fix="The download is repeated.")

    def _local(self, name: str) -> Path:
        return Path(self.root) / name

    def _key(self, *parts: str) -> str:
        return "/".join([self.root, *parts])


def filesystem(address: str, settings: Settings) -> Any:
    """The fsspec filesystem of a path or an address in an object store; keys and the S3 endpoint are the environment's.

    Raises UserError for an address that names another endpoint in place of its bucket (user@host, host:port, an ARN).
    """
    if cloud_of(address):
        return cloud(address)
    if not address.startswith("s3://"):
        return fsspec.filesystem("file")
    bucket = address.removeprefix("s3://").partition("/")[0]
    if not BUCKET.fullmatch(bucket):
        raise UserError(f"the bucket's name is {shown(bucket.rpartition('@')[2])}", where="s3:// address",
                        allowed="letters, digits, dots and hyphens",
                        fix="The endpoint is set by ANNEAL_S3_ENDPOINT_URL, never in an address.")
    endpoint = settings.s3_endpoint_url or os.environ.get("AWS_ENDPOINT_URL", "")
    if found := secret_in(endpoint):
        raise UserError(f"the address has {found}", where="ANNEAL_S3_ENDPOINT_URL",
                        allowed="the server's address alone", fix="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    return s3(endpoint)


def open_remote(address: str, settings: Settings) -> BinaryIO:
    """Open one object for reading. Raises UserError when it is not there or not ours to read."""
    with translate_storage_errors(address), existing(address):
        file = filesystem(address, settings).open(address, "rb", block_size=AHEAD_BYTES)
    return file if cloud_of(address) else cast(BinaryIO, Parts(file, address))


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    path = Path(tempfile.mkdtemp(prefix=f"{_drafts()}{os.getpid()}-", dir=parent))
    path.chmod(0o755)  # readable for a predictor under another user, unlike mkdtemp's 0o700
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove the drafts of this machine's processes that are gone; another's cannot be seen from here."""
    for draft in parent.glob(f"{glob.escape(_drafts())}*-*"):
        if not Path("/proc", draft.name.removeprefix(_drafts()).split("-")[0]).exists():
            shutil.rmtree(draft, ignore_errors=True)


def _drafts() -> str:
    return f"draft-{socket.gethostname()}-"


def move_into_place(path: Path, target: Path) -> None:
    """Rename a sealed folder to its name; a damaged or older folder there steps aside."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            path.rename(target)
            break
        except OSError:
            if not target.exists():
                raise
            aside = Path(tempfile.mkdtemp(prefix=f"{_drafts()}{os.getpid()}-", dir=path.parent)) / "folder"
            with suppress(FileNotFoundError):
                target.rename(aside)
            shutil.rmtree(aside.parent, ignore_errors=True)
    sync_folder(target.parent)
