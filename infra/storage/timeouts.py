"""How long a server of data may take, and whether what it sends comes fast enough.

In:   seconds of waiting, bytes that came     Out: Interrupted where it is too little. On disk: nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from infra.errors import Interrupted

PROGRESS_BYTES = 1 << 20
"""What brought this much starts the count of failed tries anew."""


@dataclass(frozen=True)
class Patience:
    """How long a server may take."""

    stall_s: float = 30.0
    """Without a byte, and for each try to connect."""
    window_s: float = 60.0
    slowest_bytes_per_s: float = 1000.0
    """On average over each window of waiting for the server; the reader's own time does not count."""
    end_s: float = 1.0
    """Wait for the server to hang up after the last byte."""
    delays_s: tuple[float, ...] = (1.0, 4.0, 16.0, 60.0)
    """Before each try to go on with a download that broke off."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Tries:
    """Those that failed since the last one that brought something."""

    def __init__(self, patience: Patience) -> None:
        self._delays_s, self._failed = patience.delays_s, 0

    def delay_s(self, brought_bytes: int) -> float | None:
        """Count one that failed after so many bytes; how long to wait for the next, None if there is none."""
        if brought_bytes >= PROGRESS_BYTES:
            self._failed = 0
        if self._failed == len(self._delays_s):
            return None
        self._failed += 1
        return self._delays_s[self._failed - 1]


class MinimumRate:
    """Bytes over the time spent waiting for them, window by window."""

    def __init__(self, patience: Patience, where: str) -> None:
        self._patience, self._where, self._waited_s, self._bytes = patience, where, 0.0, 0

    def count(self, waited_s: float, received_bytes: int) -> None:
        """Count these. Raises Interrupted at the end of a window that brought too little."""
        self._waited_s, self._bytes = self._waited_s + waited_s, self._bytes + received_bytes
        if self._waited_s < self._patience.window_s:
            return
        least = self._patience.slowest_bytes_per_s
        if self._bytes < self._waited_s * least:
            raise Interrupted(f"the server sends less than {least:g} bytes a second", where=self._where)
        self._waited_s, self._bytes = 0.0, 0
