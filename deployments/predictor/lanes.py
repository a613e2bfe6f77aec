"""Threads for what must not hold up the event loop, and how much of it may be there at once.

In:   work     Out: its future
Each lane has one thread and does its work in turn. Long requests have a lane and a room of their own, so that short
ones never wait for them. The threads are daemons: one that hangs does not keep the process. Leaves nothing on disk.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

from infra.errors import Transient

T = TypeVar("T")
SHORT_BYTES = 1 << 16
"""A request or a text that is longer is a long one. So much is parsed or tokenised in less than 0.1 s."""
ROOM_BYTES = {"short": 64 << 20, "long": 32 << 20}
"""Of requests whose body is there, from its parsing to the last of the answer. In memory they are up to five times as
large."""
OVERHEAD_BYTES = 1 << 14
"""What the smallest request takes."""

_Work = tuple["Future[Any]", Callable[[], Any]]


class Lane:
    """A thread that does work in turn; it ends when nobody holds the lane."""

    def __init__(self, name: str, most: int | None = None) -> None:
        """`most`: how much work may wait or run."""
        self.name, self.most = name, most
        self._lock = threading.Lock()
        self._waiting = 0
        self._started = False
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue work. Raises Transient when too much is waiting."""
        future: Future[T] = Future()
        with self._lock:
            if self.most is not None and self._waiting >= self.most:
                raise Transient(f"{self._waiting} orders are waiting", where="predictor",
                                allowed=f"at most {self.most}", fix="Try again in a few seconds.")
            self._waiting += 1
            if not self._started:
                threading.Thread(target=_work_off, args=(self._queue,), name=self.name, daemon=True).start()
                weakref.finalize(self, self._queue.put, None)
                self._started = True
        future.add_done_callback(self._one_less)
        self._queue.put((future, work))
        return future

    async def run(self, work: Callable[[], T]) -> T:
        """The same, for the event loop."""
        return await asyncio.wrap_future(self.submit(work))

    def _one_less(self, future: Future[Any]) -> None:
        with self._lock:
            self._waiting -= 1


class Intake:
    """The requests that are being read or answered. For the event loop only."""

    def __init__(self) -> None:
        self._lanes = {length: Lane(length) for length in ROOM_BYTES}
        self._held = dict.fromkeys(ROOM_BYTES, 0)

    @contextmanager
    def hold(self, size: int) -> Iterator[Lane]:
        """Room for a request whose body has `size` bytes, and the lane to read it in. Raises Transient when full."""
        length = "long" if size > SHORT_BYTES else "short"
        room = size + OVERHEAD_BYTES
        if self._held[length] + room > ROOM_BYTES[length]:
            raise Transient(f"it is busy with {self._held[length] >> 20} MiB of {length} requests", where="predictor",
                            allowed=f"at most {ROOM_BYTES[length] >> 20} MiB", fix="Try again in a few seconds.")
        self._held[length] += room
        try:
            yield self._lanes[length]
        finally:
            self._held[length] -= room


def _work_off(queue: SimpleQueue[_Work | None]) -> None:
    while (item := queue.get()) is not None:
        future, work = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  (handed to whoever waits for the result)
                future.set_exception(error)
        del item, future, work
