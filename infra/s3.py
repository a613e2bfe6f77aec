"""S3 by s3fs: one client a process, and objects whose next parts are on their way while one is worked on.

In:   an endpoint, the keys of the environment; an open object     Out: a filesystem; a stream in constant memory
A client takes a tenth of a second to make, which a folder of many files would pay for each. A part is asked for with
the ETag that the object had when it was opened: bytes of two versions are never mixed. On disk: nothing.
"""

from __future__ import annotations

import io
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import fsspec

AHEAD_BYTES = 1 << 23
"""Of an object, asked for at once while it is read from its beginning to its end."""
REQUESTS = 3
"""On their way at a time: one connection to Amazon's S3 brings 50 to 100 MB/s."""


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
            "connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3},
            # rclone sends the whole object's checksum with a part of it, and others none with parts
            "response_checksum_validation": "when_required"})


class Parts(io.RawIOBase):
    """An open object of s3fs as a stream; `read` hands out at most a part at a time."""

    def __init__(self, file: Any) -> None:
        self._file, self._size, self._asked = file, int(file.size), 0
        self._threads = ThreadPoolExecutor(REQUESTS, thread_name_prefix="s3")
        self._coming: deque[Future[bytes]] = deque()
        self._part, self._taken = b"", 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
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
        part = bytes(self._file.cache.fetcher(start, end))
        if len(part) != end - start:
            raise OSError(f"the server sent {len(part)} bytes for the range {start} to {end}")
        return part
