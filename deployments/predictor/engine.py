"""One model in memory and the thread that owns it.

In:   rows (a prompt, how to sample, which adapter)     Out: text pieces and one `Done` for every row
Rows that wait are answered together, up to MAX_ROWS of them; later ones wait for the next batch.
Everything that changes the model (another adapter) runs on the same thread between two steps,
so that it can never disturb a generation under way. Leaves nothing on disk.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from peft import PeftModel
from transformers import PreTrainedModel

from deployments.predictor.stream import TextStream
from infra.errors import AnnealError, Broken, Transient
from tasks.distributed.decode import BARE_BASE, Sampling, decode

log = logging.getLogger(__name__)
T = TypeVar("T")
Reason = Literal["end", "stop", "length", "cancelled", "error"]
MAX_ROWS = 16
"""Rows answered together; bounds the key/value cache."""
MAX_WAITING = 256
JOIN_S = 10


@dataclass(frozen=True, slots=True)
class Done:
    """How an answer ended: end token, stop sequence, max_new_tokens, the client left, a fault."""

    reason: Reason
    error: AnnealError | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One prompt on its way through an engine. `deliver` is called on the engine's thread."""

    ids: array[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    adapter: str | None
    text: TextStream
    deliver: Callable[[str | Done], None]
    cancelled: bool = False
    """Set by whoever asked; the row leaves at the next step."""
    done: Done | None = None
    tokens: int = 0
    queued: float = 0.0
    """time.monotonic() when an engine took it."""
    started: float = 0.0
    """time.monotonic() when its batch began; 0: not yet."""
    first: float = 0.0
    """time.monotonic() of the first token."""
    ended: float = 0.0

    def advance(self, token: int | None) -> None:
        """Take what one decoding step gave this row."""
        if self.done:
            return
        if token is None:
            self.finish("cancelled" if self.cancelled else "end")
            return
        self.tokens += 1
        self.first = self.first or time.monotonic()
        self._send(self.text.push(token))
        if self.text.stopped:
            self.finish("stop")
        elif self.tokens == self.sampling.max_new_tokens:
            self.finish("length")

    def finish(self, reason: Reason, error: AnnealError | None = None) -> None:
        """Deliver what was held back, then `Done`, once."""
        if self.done:
            return
        rest = "" if error else self.text.finish()
        self.done, self.ended = Done(reason, error), time.monotonic()
        self._send(rest)
        self._send(self.done)

    def _send(self, event: str | Done) -> None:
        """A reader that fails costs its own row, never the engine's thread."""
        if event == "":
            return
        try:
            self.deliver(event)
        except Exception:
            log.exception("a reader failed; its row is cancelled")
            self.cancelled = True


@dataclass(slots=True)
class _Call:
    """Work on the model, to be done between two steps."""

    work: Callable[[], None]
    abandon: Callable[[AnnealError], None] = field(default=lambda error: None)


class Engine:
    """A model and its thread. Only that thread touches the model."""

    def __init__(self, model: PreTrainedModel | PeftModel, name: str) -> None:
        self.model, self.name = model, name
        self._rows: deque[Row] = deque()
        self._calls: deque[_Call] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._batch: list[Row] = []
        self._thread = threading.Thread(target=self._run, name=f"engine-{name[:8]}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._rows)

    @property
    def running(self) -> int:
        """Rows that are being answered."""
        return sum(row.done is None for row in self._batch)

    def submit(self, row: Row) -> None:
        """Queue a row. Raises Transient when the queue is full or the engine is closing."""
        self._sweep()
        with self._wake:
            if self._closing or len(self._rows) >= MAX_WAITING:
                raise Transient(f"{len(self._rows)} requests are waiting", where="predictor",
                                allowed=f"at most {MAX_WAITING}", fix="Try again in a few seconds.")
            row.queued = time.monotonic()
            self._rows.append(row)
            self._wake.notify()

    def _sweep(self) -> None:
        """Let rows go that wait although their clients have left: they make room for others."""
        with self._wake:
            gone = [row for row in self._rows if row.cancelled]
            for row in gone:
                self._rows.remove(row)
        for row in gone:
            row.finish("cancelled")

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` on the engine's thread between two steps."""
        future: Future[T] = Future()

        def settle() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001  (handed to whoever waits for the result)
                future.set_exception(error)

        with self._wake:
            if self._closing:
                raise Transient("the engine is closing", where="predictor", fix="Try again.")
            self._calls.append(_Call(settle, future.set_exception))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Cancel what is left and let the thread end; the model is freed with it."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def join(self) -> None:
        """Wait for the thread of a closed engine."""
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        while not self._closing:
            batch = self._batch = self._next()
            try:
                self._answer(batch)
            except Exception as error:
                fault = secrets.token_hex(4)
                log.exception("batch failed fault=%s engine=%s rows=%d", fault, self.name, len(batch))
                self._fail(batch, error, fault)
            del batch
            self._batch = []
        for row in self._rows:
            row.finish("cancelled")
        for call in self._calls:
            call.abandon(Transient("the engine was closed", where="predictor", fix="Try again."))
        del self.model

    def _next(self) -> list[Row]:
        """Wait for rows that can share a batch, or an empty list when only calls came."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._rows or self._calls)
        self._do_calls()
        batch: list[Row] = []
        with self._wake:
            while self._rows and len(batch) < MAX_ROWS and self._rows[0].stop_ids == (
                    batch or self._rows)[0].stop_ids:
                batch.append(self._rows.popleft())
        for row in batch:
            if row.cancelled:
                row.finish("cancelled")
        return [row for row in batch if not row.done]

    def _answer(self, batch: list[Row]) -> None:
        if not batch:
            return
        for row in batch:
            row.started = time.monotonic()
        pinned = any(row.adapter for row in batch)
        steps = decode(
            self.model, [row.ids for row in batch], [row.sampling for row in batch], stop_ids=batch[0].stop_ids,
            adapters=[row.adapter or BARE_BASE for row in batch] if pinned else None,
            cancelled=lambda i: self._closing or batch[i].cancelled or batch[i].done is not None,
            failed=lambda i, error: batch[i].finish("error", error))
        for step in steps:
            for row, token in zip(batch, step, strict=True):
                row.advance(token)
            self._do_calls()
        for row in batch:
            row.finish("cancelled")

    def _do_calls(self) -> None:
        while self._calls:
            self._calls.popleft().work()

    def _fail(self, batch: list[Row], error: Exception, fault: str) -> None:
        """A batch that could not be computed: every row hears of it, the engine goes on."""
        shown = error if isinstance(error, AnnealError) else Broken(
            f"the answer could not be computed ({type(error).__name__}, fault {fault})", where="predictor",
            fix="Look for the fault in the predictor's log.")
        for row in batch:
            row.finish("error", shown)
