"""tasks/data/streams.py: a thread that reads ahead of who hashes."""

from __future__ import annotations

import io
import threading
import time
from itertools import cycle
from pathlib import Path

import pytest

from tasks.data.streams import BLOCK_BYTES, ReadAhead

FULL = Path("/dev/full")


@pytest.mark.parametrize("sizes", [[1], [BLOCK_BYTES], [BLOCK_BYTES - 1, 7], [-1], [BLOCK_BYTES * 3]])
def test_what_is_read_ahead_is_what_is_there(sizes: list[int]) -> None:
    content = bytes(range(256)) * 40_000 if max(sizes) != 1 else b"short"
    with ReadAhead(io.BytesIO(content)) as stream:
        read = []
        for size in cycle(sizes):
            chunk = stream.read(size)
            assert size < 0 or len(chunk) <= size
            if not chunk:
                break
            read.append(chunk)
        assert b"".join(read) == content and stream.read(1) == b""


def test_on_a_slow_line_a_block_is_what_came_within_a_second() -> None:
    class Slow(io.RawIOBase):
        """A kilobyte every 50 ms."""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            time.sleep(0.05)
            buffer[:1000] = bytes(1000)
            return 1000

    with io.BufferedReader(Slow()) as raw, ReadAhead(raw) as stream:  # type: ignore[type-var]
        first = stream.read()
        assert 1000 < len(first) <= 100_000
        began = time.monotonic()
    assert time.monotonic() - began < 5, "it does not wait for a whole block, which takes seven minutes"


def test_what_breaks_ahead_is_raised_where_it_is_needed() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError("gone")
            return super().read(5)

    with ReadAhead(Broken(b"0123456789")) as stream:
        assert stream.read(3) + stream.read(3) == b"01234"
        with pytest.raises(OSError, match="gone"):
            stream.read(1)


def test_nothing_is_read_after_the_end_of_the_context() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            time.sleep(0.2)
            assert not self.closed
            return super().read(5)

    with Slow(b"0123456789" * 100) as raw, ReadAhead(raw) as stream:
        assert stream.read(5) == b"01234"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
