"""What every dialect asks for, and the rows that answer it.

In:   an Asked     Out: text of each row as it comes, then how each ended
Whatever takes time is done by other threads than the event loop's; see lanes.py. The version is chosen once, when the
request comes in, and kept to the end. A client that goes away cancels its rows. Leaves nothing on disk; prompts are not
logged.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from deployments.predictor.engine import Done, Row
from deployments.predictor.lanes import Lane
from deployments.predictor.loading import Loaded
from deployments.predictor.prompts import Encoding, Prompt, TooLong
from deployments.predictor.stream import TextStream
from deployments.predictor.versions import ServedVersions
from infra.errors import Transient
from tasks.distributed.decode import Sampling

SEED_BITS = 31
SEEDS = 1 << 63
MOST_TOP_K = 1 << 31
"""More than any vocabulary; a number with hundreds of digits would fail the whole batch."""
ENCODE_S = 60
"""How long a prompt may wait for the tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, whatever dialect it came in."""

    version: str | None = None
    model: str | None = None
    prompts: Callable[[Loaded], list[Encoding]]
    """What the chosen version's tokenizer makes of each prompt. Raises UserError for a prompt that is much too long."""
    choices: int = 1
    """Rows for each prompt; those after the first have the seeds that follow."""
    max_new_tokens: int | None = None
    """None: all that the context leaves."""
    is_cut: bool = True
    """Whether max_new_tokens is cut to what the context leaves; else such a request is refused."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1: off."""
    stops: tuple[str, ...] = ()
    seed: int | None = None


class Answers:
    """Rows in an engine and their reader on the event loop."""

    _loop: asyncio.AbstractEventLoop

    def __init__(self, shelf: ServedVersions, asked: Asked) -> None:
        """Choose the version and queue the prompts for its tokenizer; not for the event loop.

        Raises:
            UserError: unknown version or model, or a prompt much longer than the context.
            Transient: the predictor is starting.
        """
        if not shelf.restored:
            raise Transient("it is still loading its versions", where="predictor", fix="Try again in a few seconds.")
        self.asked, self._shelf = asked, shelf
        self.received = time.monotonic()
        self.seed = secrets.randbits(SEED_BITS) if asked.seed is None else asked.seed
        self.rows: list[Row] = []
        self.done: list[Done | None] = []
        self._events: asyncio.Queue[tuple[int, str | Done]] = asyncio.Queue()
        self.loaded = shelf.claim(asked.version, asked.model)
        try:
            self._encodings = asked.prompts(self.loaded)
        except BaseException:
            shelf.release(self.loaded)
            raise

    @classmethod
    async def begin(cls: type[Kind], lane: Lane, make: Callable[[], Kind]) -> Kind:
        """Answers whose rows are in their engine's queue; `make` is called on the lane.

        Raises:
            UserError: unknown version or model, or a prompt longer than the context.
            Transient: the predictor is starting, busy, or its queue is full.
        """
        answers = await lane.run(make)
        answers._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ENCODE_S):
                prompts = [await asyncio.wrap_future(encoding) for encoding in answers._encodings]
            await lane.run(partial(answers._queue, prompts))
        except BaseException as error:
            lane.submit(answers.cancel)  # after what is queued on this lane
            if isinstance(error, TimeoutError):
                raise Transient(f"the prompt waited more than {ENCODE_S} s for the tokenizer", where="predictor",
                                fix="Try again when it is less busy.") from None
            raise
        finally:
            lane.submit(answers._unclaim)
        return answers

    async def texts(self) -> AsyncIterator[tuple[int, str | Done]]:
        """(row, text) as it comes, and (row, Done) for each row; ends with the last row."""
        while not all(self.done):
            index, event = await self._events.get()
            if isinstance(event, Done):
                self.done[index] = event
            yield index, event

    def cancel(self) -> None:
        """Leave at the next step; nothing happens to rows that have ended."""
        for row in self.rows:
            row.cancelled = True

    def _queue(self, prompts: list[Prompt]) -> None:
        asked, loaded = self.asked, self.loaded
        for ids, room in prompts:
            if not asked.is_cut and (asked.max_new_tokens or 0) > room:
                raise TooLong(
                    f"the prompt has {len(ids)} tokens and the answer may have {asked.max_new_tokens}",
                    allowed=f"at most {len(ids) + room} tokens together", fix="Shorten the prompt or the answer.")
        every = [(ids, room) for ids, room in prompts for _ in range(asked.choices)]
        self.done = [None] * len(every)
        for index, (ids, room) in enumerate(every):
            sampling = Sampling(
                max_new_tokens=min(asked.max_new_tokens or room, room), temperature=asked.temperature,
                top_p=asked.top_p, top_k=min(max(asked.top_k, 0), MOST_TOP_K),
                seed=(self.seed + index % asked.choices) % SEEDS)
            row = Row(
                ids=ids, sampling=sampling, stop_ids=loaded.stop_ids, adapter=loaded.adapter,
                text=TextStream(loaded.decoder.decode, asked.stops), deliver=partial(self._deliver, index))
            self._shelf.hold(loaded)
            self.rows.append(row)
            try:
                loaded.engine.submit(row)
            except BaseException:
                self._shelf.release(loaded)
                raise

    def _deliver(self, index: int, event: str | Done) -> None:
        """On the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
        finally:
            if isinstance(event, Done):
                version = self.loaded.id
                self._shelf.metrics.count(self._shelf.model_of(version) or "", version, self.rows[index], event)
                self._shelf.release(self.loaded)

    def _unclaim(self) -> None:
        """Give back the claim with which the version was chosen: its rows hold it themselves by now."""
        self._shelf.release(self.loaded)


Kind = TypeVar("Kind", bound=Answers)
