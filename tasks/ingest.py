"""Bring the training data into the store, unchanged but for unpacking.

In:   a path, https:// or s3:// address, plain or gzip     Out: datasets/<sha256>/data.jsonl
The bytes are hashed while they stream; files that are plainly not JSONL are refused by their
first bytes. Dies half-way: the draft is swept, nothing is in the store. The same bytes give the
same folder, however often they are brought in.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from infra.crash import crashpoint
from infra.errors import DataError, shown
from infra.fetch import open_https, without_secrets
from infra.files import READ_BYTES
from infra.records import Dataset
from infra.settings import Settings
from infra.store import Store, open_remote
from tasks.policy import HOUR_S, step

FILE = "data.jsonl"
GZIP_MAGIC = b"\x1f\x8b"
SNIFFED_BYTES = 512

NOT_JSONL = (
    (b"PK\x03\x04", "a zip archive", "Unpack it and give the JSONL file inside."),
    (b"(\xb5/\xfd", "a zstandard file", "Unpack it with `zstd -d`, or pack it with gzip."),
    (b"PAR1", "a Parquet file", "Export it with pandas: to_json(..., orient='records', lines=True)."),
    (b"%PDF", "a PDF document", "Extract the text into {\"text\"} rows."),
    (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8."),
    (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8."),
    (b"[", "one JSON array", "Write one object per line: jq -c '.[]' data.json > data.jsonl."),
)


def ingest(settings: Settings, store: Store, source: str) -> Dataset:
    """Copy `source` into the store.

    Raises:
        DataError: it does not exist, is empty, too large, damaged, or plainly not JSONL.
        Transient: the server or the store does not answer.
    """
    name = without_secrets(source)
    digest, size = hashlib.sha256(), 0
    with store.draft() as draft:
        with opened(settings, source) as raw, (draft.path / FILE).open("wb") as target:
            crashpoint("ingest.opened")
            for chunk in unpacked(raw, name):
                if size == 0:
                    refuse_other_formats(chunk[:SNIFFED_BYTES], name)
                size += len(chunk)
                if size > settings.max_data_bytes:
                    raise DataError(f"more than {settings.max_data_bytes} bytes after unpacking", where=name,
                                    fix="Raise ANNEAL_MAX_DATA_BYTES if that is meant.")
                digest.update(chunk)
                target.write(chunk)
                crashpoint("ingest.half_written")
        if size == 0:
            raise DataError("the file is empty", where=name, allowed="JSONL, one object per line",
                            fix="Check that it was written and copied whole.")
        folder = folder_of(digest.hexdigest())
        dataset = Dataset(folder=folder, sha256=digest.hexdigest(), bytes=size, source=name)
        if store.find(folder) is None:
            crashpoint("ingest.before_commit")
            draft.commit(folder, dataset.to_json())
    return dataset


def folder_of(sha256: str) -> str:
    """Name in the store of the data with this hash."""
    return f"datasets/{sha256[:32]}"


@contextmanager
def opened(settings: Settings, source: str) -> Iterator[BinaryIO]:
    """The raw bytes of a source."""
    if source.startswith("s3://"):
        with open_remote(source, settings) as remote:
            yield remote
    elif source.startswith(("https://", "http://")):
        with open_https(source, settings) as body:
            yield body
    else:
        path = Path(source.removeprefix("file://")).expanduser()
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise DataError("there is no such file", where=shown(source),
                            allowed="a path, an https:// or an s3:// address") from error
        except IsADirectoryError as error:
            raise DataError("it is a folder", where=shown(source), allowed="one JSONL file") from error
        except OSError as error:
            raise DataError(f"it cannot be opened ({error.strerror})", where=shown(source),
                            fix="Check its path and its permissions.") from error
        with file:
            yield file


def unpacked(raw: BinaryIO, name: str) -> Iterator[bytes]:
    """Chunks of the content, gunzipped if it begins like gzip. Raises DataError for a damaged archive."""
    head = raw.read(READ_BYTES)
    if not head.startswith(GZIP_MAGIC):
        while head:
            yield head
            head = raw.read(READ_BYTES)
        return
    try:
        with gzip.GzipFile(fileobj=_Rejoined(head, raw)) as file:  # type: ignore[call-overload]
            while chunk := file.read(READ_BYTES):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"the gzip file is damaged ({error})", where=name,
                        fix="Pack it again, or give the plain file.") from error


def refuse_other_formats(head: bytes, name: str) -> None:
    """Raise DataError for content that is recognisably something else."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, found, fix in NOT_JSONL:
        if text.startswith(magic):
            raise DataError(f"the file is {found}", where=name, allowed="JSONL, one object per line", fix=fix)
    if text[:1] == b"<":
        raise DataError("the file is a web page", where=name, allowed="JSONL, one object per line",
                        fix="Use the address of the file itself (the 'raw' or 'download' link).")


class _Rejoined:
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int = -1) -> bytes:
        if not self._head:
            return self._rest.read(size)
        size = len(self._head) if size < 0 else size
        taken, self._head = self._head[:size], self._head[size:]
        return taken


@step("ingest", timeout_s=6 * HOUR_S)
def ingest_task(source: str, subject: str) -> Dataset:
    """Bring one data file into the store; returns its Dataset."""
    settings = Settings()
    return ingest(settings, Store(settings), source)
