"""Receive a file while it is sent: it goes to disk, never whole into memory.

In:   the stream of a multipart/form-data body, or of a bare one      Out: an Upload in a scratch folder, and the fields
Starlette's own form() puts whole uploads into /tmp first. The clients send metadata in three ways: a field with JSON
(1.x), a file part named blob with JSON (JavaScript), fields metadata[key] (2.0).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from deployments.gateway.errors import Refusal, parsed

BLOCK_BYTES = 1 << 20
FIELD_BYTES = 1 << 18
MOST_FIELDS = 100
STALL_S = 60
ODD = re.compile(r"[^A-Za-z0-9._-]+")
NAME_CHARACTERS = 100


@dataclass
class Upload:
    """A file that has arrived."""

    path: Path
    name: str = ""
    """What the client calls it."""
    content_type: str = "application/octet-stream"
    fields: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    sha256: str = ""
    md5: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        """In whichever of the three forms it was sent."""
        whole = self.fields.get("metadata", "")
        found = parsed(whole.encode()) if whole else {}
        keyed = {name[9:-1]: value for name, value in self.fields.items() if re.fullmatch(r"metadata\[.+\]", name)}
        return {**found, **keyed}


class Writer:
    """Writes and hashes a file in blocks, on another thread than the event loop's."""

    def __init__(self, upload: Upload, limit: int) -> None:
        self._upload, self._limit = upload, limit
        self._file: BinaryIO = upload.path.open("wb")
        self._sha256, self._md5, self._waiting = hashlib.sha256(), hashlib.md5(usedforsecurity=False), bytearray()

    def add(self, data: bytes) -> None:
        """Take some bytes. Raises Refusal 413."""
        self._upload.bytes += len(data)
        if self._upload.bytes > self._limit:
            raise too_large(self._limit)
        self._waiting += data

    async def flush(self, least: int = BLOCK_BYTES) -> None:
        """Write what waits, if it is at least so much."""
        if len(self._waiting) >= least:
            block, self._waiting = bytes(self._waiting), bytearray()
            await asyncio.to_thread(self._write, block)

    async def close(self) -> None:
        """Write the rest."""
        await self.flush(1)
        self._file.close()
        self._upload.sha256, self._upload.md5 = self._sha256.hexdigest(), self._md5.hexdigest()

    def abandon(self) -> None:
        """Nothing more comes."""
        self._file.close()

    def _write(self, block: bytes) -> None:
        self._file.write(block)
        self._sha256.update(block)
        self._md5.update(block)


class _Form:
    """What the parser calls."""

    def __init__(self, writer: Writer, upload: Upload, file_part: str) -> None:
        self._writer, self._upload, self._file_part = writer, upload, file_part
        self.has_file = False
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[str, bytes] = {}
        self._field, self._in_file, self._text = "", False, bytearray()

    def callbacks(self) -> dict[str, Any]:
        """By the parser's names."""
        return {
            "on_part_begin": self._begin, "on_header_field": self._on_header, "on_header_value": self._on_value,
            "on_header_end": self._on_header_end, "on_headers_finished": self._on_headers, "on_part_data": self._data,
            "on_part_end": self._end}

    def _begin(self) -> None:
        self._headers, self._text = {}, bytearray()

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        self._in_file = self._field == self._file_part
        if self._in_file and self.has_file:
            raise Refusal(422, f"There are two parts named {self._file_part}. Send one file at a time.")
        if self._in_file:
            self.has_file = True
            self._upload.name = options.get(b"filename", b"").decode("utf-8", "replace")
            if kind := self._headers.get("content-type"):
                self._upload.content_type = kind.decode("utf-8", "replace")
        elif len(self._upload.fields) >= MOST_FIELDS:
            raise Refusal(422, f"There are more than {MOST_FIELDS} fields.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._writer.add(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > FIELD_BYTES:
            raise Refusal(413, f"The field {self._field[:80]} is larger than {FIELD_BYTES} bytes.")

    def _end(self) -> None:
        if not self._in_file:
            self._upload.fields[self._field] = self._text.decode("utf-8", "replace")


async def receive_form(
    body: AsyncIterator[bytes], content_type: str, folder: Path, *, file_part: str, limit: int,
) -> Upload:
    """The file of a form, in `folder`. Raises Refusal for a form without one, one that is broken, or too large."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal(422, f"The body is not multipart/form-data. Send the file as its part {file_part}.")
    upload = Upload(folder / "received")
    writer = Writer(upload, limit)
    try:
        form = _Form(writer, upload, file_part)
        parser = MultipartParser(options[b"boundary"], callbacks=form.callbacks())  # type: ignore[arg-type]
        async for chunk in patiently(body):
            parser.write(chunk)
            await writer.flush()
        parser.finalize()
        await writer.close()
    except FormParserError:
        raise Refusal(400, "The form is broken off or badly made.") from None
    finally:
        writer.abandon()
    if not form.has_file:
        raise Refusal(422, f"The form has no part {file_part}. Send the file as that.")
    return upload


async def receive_bare(body: AsyncIterator[bytes], folder: Path, limit: int) -> Upload:
    """A body that is the file itself. Raises Refusal 413."""
    upload = Upload(folder / "received")
    writer = Writer(upload, limit)
    try:
        async for chunk in patiently(body):
            writer.add(chunk)
            await writer.flush()
        await writer.close()
    finally:
        writer.abandon()
    return upload


async def patiently(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks of a body, each within STALL_S. Raises Refusal 408."""
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Refusal(408, f"Nothing came for {STALL_S} s.") from None
        yield chunk


def too_large(limit: int) -> Refusal:
    """The answer to a file over the limit."""
    return Refusal(413, f"Files must be less than {limit // 1_000_000}MB in size")


def safe_name(name: str) -> str:
    """A client's name for a file as it may stand in a path and an address."""
    found = ODD.sub("_", name.replace("\\", "/").rsplit("/", 1)[-1]).strip("._-")[-NAME_CHARACTERS:]
    return found or "upload"
