"""S3 by s3fs: one client a process, and objects whose next parts are on their way while one is worked on.

In:   an endpoint, the keys of the environment; an open object     Out: a filesystem; a stream in constant memory
A client takes a tenth of a second to make, which a folder of many files would pay for each. Every answer must have the
ETag that the object had when it was opened: bytes of two versions are never mixed. A part that breaks off, or comes too
slowly, goes on from there, as a download from the web does (infra/storage/https.py). On disk: nothing.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from threading import Event
from typing import Any

import fsspec
from fsspec.asyn import sync

from infra.errors import DataChanged, Interrupted, Transient, UserError
from infra.storage.store_errors import translate_storage_errors
from infra.storage.timeouts import MinimumRate, Patience, Tries

AHEAD_BYTES = 1 << 23
"""Of an object, asked for at once while it is read from its beginning to its end."""
REQUESTS = 3
"""On their way at a time: one connection to Amazon's S3 brings 50 to 100 MB/s."""
RECEIVED_BYTES = 1 << 18
PATIENCE = Patience(stall_s=60.0)
FIRST = re.compile(r"bytes (\d+)-")
"""Of a Content-Range."""
log = logging.getLogger(__name__)


def s3(endpoint: str) -> Any:
    """The filesystem of S3 with the keys that the environment has now."""
    keys = tuple((name, value) for name, value in sorted(os.environ.items()) if name.startswith("AWS_"))
    return _client(endpoint, keys, os.getpid())


@lru_cache(maxsize=2)
def _client(endpoint: str, _keys: tuple[tuple[str, str], ...], _process: int) -> Any:
    return fsspec.filesystem(
        "s3", endpoint_url=endpoint or None, use_listings_cache=False, skip_instance_cache=True,
        local_expiry_check=True,  # compares ETags here: rclone and others take no notice of If-Match
        config_kwargs={
            "connect_timeout": 10, "read_timeout": PATIENCE.stall_s, "retries": {"max_attempts": 3},
            # rclone sends the whole object's checksum with a part of it, and others none with parts
            "response_checksum_validation": "when_required"})


class Parts(io.RawIOBase):
    """An open object of s3fs as a stream; `read` hands out at most a part at a time.

    Raises, while it is read:
        DataChanged: it is another object than when it was opened.
        Transient: the server does not answer, or broke off too often.
        UserError: it is not ours to read any more, or the server sends no parts of objects.
    """

    def __init__(self, file: Any, address: str) -> None:
        self._file, self._where = file, address
        self._size, self._asked = int(file.size), 0
        self._threads = ThreadPoolExecutor(REQUESTS, thread_name_prefix="s3")
        self._coming: deque[Future[bytes]] = deque()
        self._part, self._taken = b"", 0
        self._is_over = Event()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._is_over.set()
        self._threads.shutdown(cancel_futures=True)
        self._file.close()
        super().close()

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, or what is left of a part; none at the end."""
        if self._taken == len(self._part):
            self._part, self._taken = self._next(), 0
        end = len(self._part) if size < 0 else self._taken + size
        chunk = self._part[self._taken:end]
        self._taken += len(chunk)
        return chunk

    def _next(self) -> bytes:
        while self._asked < self._size and len(self._coming) < REQUESTS:
            start, self._asked = self._asked, min(self._asked + AHEAD_BYTES, self._size)
            self._coming.append(self._threads.submit(self._fetch, start, self._asked))
        if not self._coming:
            return b""
        part = self._coming[0].result()  # one that failed stays the first: nothing behind it is handed out
        self._coming.popleft()
        return part

    def _fetch(self, start: int, end: int) -> bytes:
        """A part. What broke off is asked for again from there, after each of the delays."""
        pieces, tries, brought = list[bytes](), Tries(PATIENCE), 0
        while True:
            try:
                with translate_storage_errors(self._where):
                    self._wait_for(pieces, start, end)
                return b"".join(pieces)
            except Transient as error:
                had, brought = brought, sum(map(len, pieces))
                delay_s = tries.delay_s(brought - had)
                if delay_s is None or self._is_over.is_set():
                    raise
                log.warning("%s: %s, at byte %d; going on from there in %g s", self._where, error.found,
                            start + brought, delay_s)
                if self._is_over.wait(delay_s):
                    raise

    def _wait_for(self, pieces: list[bytes], start: int, end: int) -> None:
        """Let the missing pieces come."""
        try:
            sync(self._file.fs.loop, self._receive, pieces, start, end)
        except TimeoutError as error:
            raise Interrupted(f"the server sent nothing for {PATIENCE.stall_s:g} s", where=self._where) from error
        except FileNotFoundError as error:
            raise self._changed("it was taken away meanwhile") from error
        except OSError as error:
            if "InvalidRange" in str(getattr(error.__cause__, "response", "")):
                raise self._changed("it became shorter meanwhile") from error
            raise
        if sum(map(len, pieces)) != end - start:
            raise Interrupted("the server broke off", where=self._where)

    def _changed(self, found: str) -> DataChanged:
        return DataChanged(found, where=self._where, fix=DataChanged.FIX)

    async def _receive(self, pieces: list[bytes], start: int, end: int) -> None:
        """Add what is missing of a part, as it comes."""
        file, at = self._file, start + sum(map(len, pieces))
        version = {"VersionId": file.version_id} if file.version_id else {}
        asked = file.fs._call_s3(
            "get_object", Bucket=file.bucket, Key=file.key, Range=f"bytes={at}-{end - 1}", **version)
        answer = await asyncio.wait_for(asked, PATIENCE.stall_s)  # however often the libraries ask for it
        pace, clock = MinimumRate(PATIENCE, self._where), PATIENCE.clock
        async with answer["Body"] as body:
            if answer.get("ETag") != file.details.get("ETag"):
                raise self._changed("it changes while it is read")
            first = FIRST.match(answer.get("ContentRange", ""))
            if (int(first[1]) if first else 0) != at:
                raise UserError("the server does not send the part of it that it is asked for", where=self._where,
                                fix="Bring the object to a server that takes Range, as S3 does.")
            while at < end and not self._is_over.is_set():
                began = clock()
                piece = await body.read(min(RECEIVED_BYTES, end - at))
                if not piece:
                    break
                at += len(piece)
                pieces.append(piece)
                pace.count(clock() - began, len(piece))
