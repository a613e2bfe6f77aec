"""How far the reading of a data source has come: counted while it is read, told every few seconds.

In:   the raw bytes of its files, the lines that were found in them      Out: a `ReadProgress` for a `ProgressListener`
A thread reads ahead of who hashes: `read_ahead`.
Nothing is told of what takes a moment. Bytes are counted as they lie there, packed, because only their sum is known.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from infra.errors import DataChanged
from infra.progress import MEGABYTE, TELL_EVERY_S, Throttle
from infra.run_listener import listener
from infra.storage.s3 import Parts
from infra.storage.store_errors import translate_storage_errors
from tasks.data.compression import Readable
from tasks.data.sources import SourceFile

BLOCK_BYTES, BLOCK_S = 1 << 23, 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadProgress:
    """How far it is."""

    lines: int
    bytes: int
    total_bytes: int
    """0: not known."""
    seconds: float
    file: int
    files: int

    @property
    def share(self) -> float | None:
        """0..1, where the size is known."""
        return min(self.bytes / self.total_bytes, 1.0) if self.total_bytes else None

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes at the same speed, where the size is known."""
        return self.seconds * (1 / self.share - 1) if self.share else None

    def __str__(self) -> str:
        share = "" if self.share is None else f" ({self.share:.0%})"
        files = f", file {self.file} of {self.files}" if self.files > 1 else ""
        speed = self.bytes / MEGABYTE / max(self.seconds, 1e-9)
        left = "" if self.left_s is None else f", {self.left_s:.0f} s left"
        return f"{self.lines} lines, {self.bytes / MEGABYTE:.0f} MB read{share}, {speed:.1f} MB/s{left}{files}"


class ProgressListener:
    """Tells of a reading what is worth a line; this one in the log of the process."""

    def say(self, line: str) -> None:
        """Tell it."""
        log.info("%s", line)

    def see(self, standing: ReadProgress) -> None:
        """Tell how far it is."""
        self.say(str(standing))
        listener().gets_on(standing.share or 0.0, 1.0, str(standing))


class Meter:
    """Counts what is read of the files of a source."""

    def __init__(self, found: Sequence[SourceFile], teller: ProgressListener) -> None:
        self._teller, self._files = teller, len(found)
        sizes = [one.bytes for one in found]
        self._total = 0 if None in sizes else sum(size or 0 for size in sizes)
        self._started, self._every = time.monotonic(), Throttle(TELL_EVERY_S)
        self._lines = self._bytes = self._file = 0

    def counted(self, raw: Readable, name: str, announced: int | None = None) -> Counted:
        """A file that is read from here on; `announced`: its bytes, if only its opening told."""
        self._file += 1
        if announced is not None and self._files == 1:
            self._total = announced
        return Counted(self, raw, name)

    def lines_of(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The same chunks; their lines are counted."""
        for chunk in chunks:
            self._lines += chunk.count(b"\n")
            yield chunk

    def add(self, size: int) -> None:
        """Count bytes; tell now and then."""
        self._bytes += size
        if self._every.is_due():
            self._teller.see(ReadProgress(self._lines, self._bytes, self._total, time.monotonic() - self._started,
                                      self._file, self._files))


class Counted:
    """A stream that a meter counts. Raises DataChanged when another version took the place of what is read."""

    def __init__(self, meter: Meter, raw: Readable, name: str) -> None:
        self._meter, self._raw, self._name = meter, raw, name

    def read(self, size: int = -1, /) -> bytes:
        """As of the stream itself. Raises what `translate_storage_errors` makes of an error, with the file's name."""
        with translate_storage_errors(self._name):
            try:
                chunk = self._raw.read(size)
            except FileNotFoundError as error:
                raise DataChanged("it was taken away meanwhile", where=self._name, fix=DataChanged.FIX) from error
        self._meter.add(len(chunk))
        return chunk


def read_ahead(raw: Readable) -> AbstractContextManager[Readable]:
    """The stream, read ahead by a thread unless it does that itself."""
    return nullcontext(raw) if isinstance(raw, Parts) else ReadAhead(raw)


class ReadAhead:
    """A stream that a thread reads a block ahead, so that waiting and working overlap. Used as a context.

    A block is what came within a second, if that is less: on a slow line progress is shown all the same, and whoever
    breaks off does not wait for eight megabytes.
    """

    def __init__(self, raw: Readable) -> None:
        self._raw, self._block, self._taken = raw, b"", 0
        self._is_over = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._coming = self._ask()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.shutdown(cancel_futures=True)

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, or what is left of a block; none at the end."""
        if self._taken == len(self._block):
            self._block, self._taken = self._coming.result(), 0
            if self._block:
                self._coming = self._ask()
        end = len(self._block) if size < 0 else self._taken + size
        chunk = self._block[self._taken:end]
        self._taken += len(chunk)
        return chunk

    def _ask(self) -> Future[bytes]:
        return self._thread.submit(self._next)

    def _next(self) -> bytes:
        if not isinstance(self._raw, io.BufferedReader):  # whose `read` waits until all is there
            return self._raw.read(BLOCK_BYTES)
        pieces, size, began = [self._raw.read1(BLOCK_BYTES)], 0, time.monotonic()
        while pieces[-1] and not self._is_over and time.monotonic() - began < BLOCK_S:
            size += len(pieces[-1])
            if size == BLOCK_BYTES:
                break
            pieces.append(self._raw.read1(BLOCK_BYTES - size))
        return b"".join(pieces) if len(pieces) > 1 else pieces[0]
