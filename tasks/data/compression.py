"""The content of a file that may be packed, and a look at what it is.

In:   raw bytes       Out: chunks of the content; gzip and zstandard are known by their first bytes
Memory stays flat also for a file that was packed to fill it. A file that is cut off is an error.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from infra.errors import DataError
from infra.files import READ_BYTES
from tasks.data.schema import KEYS
from tasks.data.values import WRAP_MESSAGES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP_MAGIC = b"\x1f\x8b"
ZSTANDARD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTANDARD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
"""A frame, or one to be skipped, with which pzstd begins (RFC 8878, section 3.1)."""
PLAIN_BYTES = 1 << 23
"""Asked for at a time of a file that is not packed: each wait for the interpreter's lock may take 5 ms."""
ZSTD_BYTES = 1024
"""Fed at a time. Four bytes can stand for a block of 128 KiB, so these for 32 MiB."""
GZIP_BYTES = 1 << 14
"""Likewise; one byte stands for 1032 at most, so these for 16 MiB."""
GZIP_FORMAT = 16 + zlib.MAX_WBITS
FREE_FRAMES, FRAME_BYTES = 1000, 8
"""A file of more members or frames than that has so many bytes in each, on average: the shortest row has 13. Each takes
some microseconds, an empty one 9 to 20 bytes."""
SNIFFED_BYTES = 512
MOST_UNFOLDED = 500
"""Bytes that a packed one may stand for, on average. JSONL has 3 to 20, one row over and over 257 with gzip;
of Parquet, which notes a value that comes again only once, the same is asked."""
UNFOLDED_BYTES = 1 << 28
"""So much may be unpacked before anybody asks."""

JSONL = "JSONL, one object per line"
OTHERS = (
    (b"PK\x03\x04", "a zip archive", "Unpack it and give the file inside."),
    (b"PAR1", "a Parquet file", "Put parquet: in front of its address, if its columns are named like the keys "
     "of a row; or export it with pandas: to_json(..., orient='records', lines=True)."),
    (b"%PDF", "a PDF document", "Extract the text into {\"text\"} rows."),
    (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8."),
    (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8."),
)
DELIMITERS = ",;\t"
"""Of tables."""
TABLES = tuple(frozenset(KEYS[kind]) for kind in ("prompt", "text"))
NAMES = frozenset[str]().union(*TABLES)
CHAT_A_LINE = re.compile(rb'\[\s*\{\s*"(role|content)"')
ARRAY = (b"[", "one JSON array", "Write one object per line: jq -c '.[]' data.json > data.jsonl.")


class Frame(Protocol):
    """What unpacks one member or frame."""

    @property
    def eof(self) -> bool:
        """Whether it has ended."""

    @property
    def unused_data(self) -> bytes:
        """What was given behind its end."""

    def decompress(self, data: bytes, /) -> bytes:
        """What these bytes stand for."""
        ...


class Readable(Protocol):
    """Anything with a `read`."""

    def read(self, size: int = -1, /) -> bytes:
        """At most that many bytes; none at the end."""
        ...


def unpacked(raw: Readable, name: str, wanted: str = JSONL) -> Iterator[bytes]:
    """Chunks of the content. Raises DataError for a damaged file, and for one that is plainly not what is wanted."""
    chunks = _chunks(raw, name)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= SNIFFED_BYTES:
            break
    refuse_other_formats(head[:SNIFFED_BYTES], name, wanted)
    yield head
    yield from chunks


def refuse_other_formats(head: bytes, name: str, wanted: str = JSONL) -> None:
    """Raise DataError for content that is recognisably something else."""
    if head.startswith((GZIP_MAGIC, ZSTANDARD_MAGIC)):
        raise DataError("byte 2 is not UTF-8: the file is packed twice", where=f"{name} line 1", allowed=wanted,
                        fix="Unpack it once.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if wanted == JSONL and CHAT_A_LINE.match(text):
        raise DataError("its lines are lists of messages", where=name, allowed=wanted,
                        fix=f"{WRAP_MESSAGES} `jq -c '{{messages: .}}' data.jsonl > chats.jsonl` does it.")
    for magic, found, fix in (*OTHERS, ARRAY) if wanted == JSONL else OTHERS:
        if text.startswith(magic):
            raise DataError(f"the file is {found}", where=name, allowed=wanted, fix=fix)
    line, ended, _ = text.partition(b"\n")
    if wanted == JSONL and ended and line.strip() == b"{":
        raise DataError("the file is pretty-printed JSON", where=name, allowed=wanted,
                        fix="Write each object on a line of its own: jq -c . data.json > data.jsonl.")
    if wanted == JSONL and ended and any(_columns(line, sign) in TABLES for sign in DELIMITERS):
        raise DataError("the file is a table with a line of column names", where=name, allowed=wanted,
                        fix="Put csv: in front of its address.")
    if text[:1] == b"<":
        raise DataError("the file is a web page", where=name, allowed=wanted,
                        fix="Use the address of the file itself (the 'raw' or 'download' link).")


def _columns(line: bytes, sign: str) -> frozenset[str]:
    """The names in a line that are keys of rows; none in an object, whose strings may hold anything."""
    if line.startswith(b"{"):
        return frozenset()
    return frozenset(column.strip().strip('"') for column in line.decode("utf-8", "replace").split(sign)) & NAMES


def _chunks(raw: Readable, name: str) -> Iterator[bytes]:
    head = raw.read(READ_BYTES)
    packed = _Rejoined(head, raw)
    try:
        if head.startswith(GZIP_MAGIC):
            yield from bounded(_of_gzip(packed, name), lambda: packed.taken, name)
        elif ZSTANDARD.match(head):
            yield from bounded(_of_zstandard(packed, name), lambda: packed.taken, name)
        else:
            while head:
                yield head
                head = raw.read(PLAIN_BYTES)
    except (EOFError, zlib.error, zstd.ZstdError) as error:
        kind = "gzip" if head.startswith(GZIP_MAGIC) else "zstandard"
        raise DataError(f"the {kind} file is damaged ({error})", where=name,
                        fix="Pack it again, or give the plain file.") from error


def bounded(chunks: Iterator[bytes], taken: Callable[[], int], name: str) -> Iterator[bytes]:
    """The same chunks, of so many packed bytes. Raises DataError for a file that was packed to fill a disk."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max(UNFOLDED_BYTES, MOST_UNFOLDED * taken()):
            raise DataError(f"{taken()} packed bytes have become {size}", where=name,
                            allowed=f"at most {MOST_UNFOLDED} for each packed byte",
                            fix="If the file is meant to be so, give its rows as plain JSONL.")
        yield chunk


def _of_gzip(raw: Readable, name: str) -> Iterator[bytes]:
    """Member after member, by zlib itself: Python's own reader takes 70 us for each, and longer for a long name."""
    return _of_frames(raw, lambda: zlib.decompressobj(GZIP_FORMAT), GZIP_BYTES, name, padding=b"\0")


def _of_zstandard(raw: Readable, name: str) -> Iterator[bytes]:
    """Frame after frame. The library's ZstdFile goes through any number of empty frames within one read.

    A window of more than 128 MiB is refused by the library's default of window_log_max, 27.
    """
    return _of_frames(raw, zstd.ZstdDecompressor, ZSTD_BYTES, name)


def _of_frames(
    raw: Readable, begin: Callable[[], Frame], fed_bytes: int, name: str, padding: bytes = b"",
) -> Iterator[bytes]:
    """Frame after frame; `padding` may stand between them. Raises DataError where they hold next to nothing."""
    frame, gathered = begin(), bytearray()
    is_fresh, frames, size = True, 0, 0
    while packed := raw.read(READ_BYTES):
        for start in range(0, len(packed), fed_bytes):
            rest = packed[start:start + fed_bytes]
            while rest := rest.lstrip(padding) if is_fresh else rest:
                unfolded = frame.decompress(rest)
                gathered += unfolded
                size += len(unfolded)
                is_fresh, rest = frame.eof, frame.unused_data
                if frame.eof:
                    frame, frames = begin(), frames + 1
            if frames > FREE_FRAMES + size // FRAME_BYTES:
                raise DataError(f"{frames} packed pieces have become {size} bytes", where=name,
                                allowed=f"at least {FRAME_BYTES} in each", fix="Pack the file again, as one piece.")
            if len(gathered) >= READ_BYTES:
                yield bytes(gathered)
                gathered.clear()
    yield bytes(gathered)
    if not is_fresh:
        raise EOFError("it is cut off")


class _Rejoined:
    """A stream whose first bytes have been read already; `taken` counts those that were asked for."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head, self._rest = head, rest
        self.taken = 0

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            size = len(self._head) if size < 0 else size
            chunk, self._head = self._head[:size], self._head[size:]
        else:
            chunk = self._rest.read(size)
        self.taken += len(chunk)
        return chunk
