"""How many requests a minute one owner may send to one process: a bucket of tokens that fills evenly.

In:   an owner and a kind of request      Out: Refusal 429 with Retry-After in whole seconds when the bucket is empty
Replicate's own limits. They keep a client's endless loop from the others' way; they are no quota.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deployments.gateway.errors import Refusal

A_MINUTE = {"predict": 600, "other": 3000}
WATCHES = 20
"""Pages of one owner that follow a training at a time; each looks once a second."""


class Limits:
    """The buckets of all owners."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}
        self._watched: Counter[str] = Counter()

    @contextmanager
    def watch(self, owner: str) -> Iterator[None]:
        """Count a page that stays open for as long as it does. Raises Refusal 429."""
        with self._lock:
            if self._watched[owner] >= WATCHES:
                raise Refusal(429, f"{WATCHES} pages of {owner} follow their trainings already. Close one of them.",
                              headers={"Retry-After": "10"})
            self._watched[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._watched[owner] -= 1

    def take(self, owner: str, kind: str) -> None:
        """Count a request. Raises Refusal 429."""
        most = A_MINUTE[kind]
        with self._lock:
            now = self._clock()
            tokens, at = self._buckets.get((owner, kind), (float(most), now))
            tokens = min(most, tokens + (now - at) * most / 60)
            allowed = tokens >= 1
            self._buckets[owner, kind] = (tokens - 1 if allowed else tokens, now)
        if not allowed:
            wait_s = max(1, math.ceil((1 - tokens) * 60 / most))
            raise Refusal(429, f"Request was throttled. Expected available in {wait_s} second{'s' * (wait_s > 1)}.",
                          headers={"Retry-After": str(wait_s)})
