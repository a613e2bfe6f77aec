"""Predictions by their ids: those under way with whoever watches them, and the last that have ended.

In:   a Prediction     Out: its pieces from the first on, as often as they are asked for, and the object
A prediction is cancelled when nobody watches it any more, unless it was asked for with `Prefer: respond-async`. One
that has ended is kept as plain data, so that it holds no version in memory. For the event loop only; leaves nothing on
disk.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakValueDictionary

from deployments.predictor.predictions import Prediction

KEPT, KEPT_BYTES = 256, 16 << 20
"""Ended predictions, and how large they are together as JSON."""


class Live:
    """One prediction."""

    def __init__(self, prediction: Prediction, held: ExitStack, *, is_alone: bool) -> None:
        """`held` is given back when it has ended; `is_alone`: it goes on without anybody who watches."""
        self.id, self.output = prediction.id, prediction.output
        request = prediction.request
        self.asked = (request.model, request.version, prediction.view()["input"])
        """What the same id must ask for when it is sent again."""
        self.ended: dict[str, Any] | None = None
        self._prediction: Prediction | None = prediction
        self._held, self._is_alone, self._watchers = held, is_alone, 0
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def view(self) -> dict[str, Any]:
        """The object as far as it has got."""
        assert self._prediction is not None or self.ended is not None
        return self.ended or (self._prediction.view() if self._prediction else {})

    def cancel(self) -> None:
        """End it at the next step."""
        if self._prediction is not None:
            self._prediction.cancel()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Somebody waits for it; when the last one goes, it is cancelled."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers and not self._is_alone:
                self.cancel()

    async def pieces(self) -> AsyncIterator[str]:
        """Text from the first piece on; ends when the answer does."""
        at = 0
        while self.ended is None or at < len(self.output):
            for piece in self.output[at:]:
                at += 1
                yield piece
            async with self._changed:
                while self.ended is None and at == len(self.output):
                    await self._changed.wait()

    async def read(self) -> None:
        """Take what the engine says, to the end."""
        assert self._prediction is not None
        with self._held:
            async for _ in self._prediction.chunks():
                await self._tell()
        self.ended, self._prediction = self._prediction.view(), None
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class LivePredictions:
    """All of them."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}
        self._ended: dict[str, tuple[Live, int]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    def lock(self, identity: str) -> asyncio.Lock:
        """Held while a prediction of that id is looked for and made, so that two requests make one."""
        return self._locks.setdefault(identity, asyncio.Lock())

    def find(self, identity: str) -> Live | None:
        """That prediction, under way or ended lately."""
        return self._live.get(identity) or self._ended.get(identity, (None, 0))[0]

    def begin(self, prediction: Prediction, held: ExitStack, *, is_alone: bool, is_kept: bool) -> Live:
        """Read a prediction to its end. `is_kept`: it can be found after that too."""
        live = self._live[prediction.id] = Live(prediction, held, is_alone=is_alone)
        task = asyncio.create_task(self._run(live, is_kept))
        self._tasks.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._tasks.discard)
        return live

    async def _run(self, live: Live, is_kept: bool) -> None:
        try:
            await live.read()
        finally:
            del self._live[live.id]
        if is_kept:
            self._ended[live.id] = live, len(json.dumps(live.view()))
            while len(self._ended) > KEPT or sum(size for _, size in self._ended.values()) > KEPT_BYTES:
                del self._ended[next(iter(self._ended))]
