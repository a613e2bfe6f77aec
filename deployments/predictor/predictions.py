"""One prediction: from a checked request to the object that Replicate's clients know.

In:   a PredictionRequest     Out: text chunks as they come, then the finished object
Whatever takes time is done by other threads than the event loop's; see lanes.py. The version is chosen
once, when the request comes in, and kept to the end. A client that goes away cancels its row. Leaves
nothing on disk; prompts are not logged.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from array import array
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from deployments.predictor.engine import Done, Row
from deployments.predictor.lanes import Lane
from deployments.predictor.prompts import encode
from deployments.predictor.schemas import PredictionRequest
from deployments.predictor.stream import TextStream
from deployments.predictor.versions import ServedVersions
from infra.errors import Transient
from tasks.distributed.decode import Sampling

STATUS = {"error": "failed", "cancelled": "canceled"}
"""Replicate's word for how an answer ended; everything else succeeded."""
SEED_BITS = 31
MOST_TOP_K = 1 << 31
"""More than any vocabulary; a number with hundreds of digits would fail the whole batch."""
ENCODE_S = 60
"""How long a prompt may wait for the tokenizer."""


class Prediction:
    """A row in an engine and its reader on the event loop."""

    row: Row
    _loop: asyncio.AbstractEventLoop

    def __init__(self, shelf: ServedVersions, request: PredictionRequest) -> None:
        """Choose the version and queue the prompt for its tokenizer; not for the event loop.

        Raises:
            UserError: unknown version or model, or a prompt much longer than the context.
            Transient: the predictor is starting.
        """
        if not shelf.restored:
            raise Transient("it is still loading its versions", where="predictor", fix="Try again in a few seconds.")
        self.id = base64.b32encode(secrets.token_bytes(16)).decode().lower().rstrip("=")
        self.request, self._shelf, self._queued = request, shelf, False
        self._received, self._created = time.monotonic(), datetime.now(UTC)
        self._events: asyncio.Queue[str | Done] = asyncio.Queue()
        self.output: list[str] = []
        self.done: Done | None = None
        self.loaded = shelf.claim(request.version, request.model)
        self.model = request.model or shelf.model_of(self.loaded.id)
        try:
            given = request.input
            self._template = given.prompt_template or self.loaded.card.prompt_template
            self._encoded = encode(self.loaded, given.prompt, given.system_prompt, given.prompt_template)
        except BaseException:
            shelf.release(self.loaded)
            raise

    @classmethod
    async def begin(cls, shelf: ServedVersions, request: PredictionRequest, lane: Lane) -> Prediction:
        """A prediction whose row is in its engine's queue.

        Raises:
            UserError: unknown version or model, or a prompt longer than the context.
            Transient: the predictor is starting, busy, or its queue is full.
        """
        prediction = await lane.run(partial(cls, shelf, request))
        prediction._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ENCODE_S):
                ids, room = await asyncio.wrap_future(prediction._encoded)
            await lane.run(partial(prediction._queue, ids, room))
        except BaseException as error:
            lane.submit(prediction._give_up)
            if isinstance(error, TimeoutError):
                raise Transient(f"the prompt waited more than {ENCODE_S} s for the tokenizer", where="predictor",
                                fix="Try again when it is less busy.") from None
            raise
        return prediction

    async def chunks(self) -> AsyncIterator[str]:
        """Text as it comes; ends when the answer does."""
        while isinstance(event := await self._events.get(), str):
            self.output.append(event)
            yield event
        self.done = event

    def cancel(self) -> None:
        """Leave at the next step; nothing happens when the answer has ended."""
        self.row.cancelled = True

    def view(self) -> dict[str, Any]:
        """The prediction object, as far as it has got."""
        row, done = self.row, self.done
        error = str(done.error) if done and done.error else None
        return {
            "id": self.id, "model": self.model, "version": self.loaded.id,
            "status": STATUS.get(done.reason, "succeeded") if done else "processing",
            "input": self.request.input.model_dump(exclude_unset=True),
            "output": list(self.output) if done and not error else None,
            "error": error, "logs": "".join(f"{line}\n" for line in self._logs()),
            "metrics": self._metrics() if done else {},
            "created_at": self._at(self._received), "started_at": self._at(row.started) if row.started else None,
            "completed_at": self._at(row.ended) if done else None,
        }

    def _queue(self, ids: array[int], room: int) -> None:
        given, loaded = self.request.input, self.loaded
        self._seed = secrets.randbits(SEED_BITS) if given.seed is None else given.seed
        sampling = Sampling(
            max_new_tokens=min(given.max_new_tokens, room), temperature=given.temperature, top_p=given.top_p,
            top_k=min(max(given.top_k, 0), MOST_TOP_K), seed=self._seed)
        self.row = Row(
            ids=ids, sampling=sampling, stop_ids=loaded.stop_ids, adapter=loaded.adapter,
            text=TextStream(loaded.decoder.decode, given.stops), deliver=self._deliver)
        loaded.engine.submit(self.row)
        self._queued = True

    def _give_up(self) -> None:
        """After what `begin` had queued on this lane: a row in the engine gives its version back itself."""
        if self._queued:
            self.cancel()
        else:
            self._shelf.release(self.loaded)

    def _deliver(self, event: str | Done) -> None:
        """On the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        finally:
            if isinstance(event, Done):
                self._shelf.release(self.loaded)

    def _logs(self) -> list[str]:
        given, got = self.request.input, self.row.sampling.max_new_tokens
        lines = [f"seed: {self._seed}"]
        if got < given.max_new_tokens:
            lines.append(f"max_new_tokens: {got} instead of {given.max_new_tokens}; the prompt has "
                         f"{len(self.row.ids)} tokens and the context {self.loaded.card.context_tokens}")
        if given.system_prompt and "{system_prompt}" not in self._template:
            lines.append("system_prompt: not used; the prompt template has no {system_prompt}")
        return [*lines, f"finished: {self.done.reason}"] if self.done else lines

    def _metrics(self) -> dict[str, float | int | None]:
        row = self.row
        seconds = row.ended - row.started if row.started else 0.0
        return {
            "input_token_count": len(row.ids), "output_token_count": row.tokens, "predict_time": round(seconds, 4),
            "time_to_first_token": round(row.first - self._received, 4) if row.first else None,
            "tokens_per_second": round(row.tokens / seconds, 2) if seconds else None}

    def _at(self, monotonic: float) -> str:
        moment = self._created + timedelta(seconds=monotonic - self._received)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
