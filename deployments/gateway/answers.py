"""Answer a prediction: ask the predictor, keep its pieces for whoever streams or polls, write down the end.

In:   the row of a prediction      Out: pieces as they come; the row, brought up to date twice a second
Each is a task of the gateway that accepted it. Another gateway shows what the row says. Dies half-way: the projector
fails a prediction that has had no sign of life for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from sqlalchemy import select

from deployments.gateway.context import Gateway
from deployments.gateway.ids import moment
from deployments.gateway.sse import events, pieces
from deployments.gateway.tables import Prediction, Training
from deployments.gateway.trainings import OPEN, metrics
from deployments.gateway.versions import seeded
from deployments.gateway.webhooks import enqueue
from infra.errors import AnnealError, sentence_in

WRITE_EVERY_S = 0.5
LOADING_S = 120.0
"""The predictor may be starting for so long."""
ASK_AGAIN_S = 1.0
TIMEOUT = httpx.Timeout(600, connect=5)
BUSY = 503
FIXTURE_PIECE_S = 0.02
log = logging.getLogger(__name__)


@dataclass
class Live:
    """A prediction that this process answers."""

    row: Prediction
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing more comes of the predictor."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """And the row says so."""
    task: asyncio.Task[None] | None = None


class Answers:
    """All predictions that this process answers. For the event loop only."""

    def __init__(self, here: Gateway) -> None:
        self._here = here
        self._http = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, limits=httpx.Limits(max_connections=None))
        self._live: dict[str, Live] = {}

    def live(self, identity: str) -> Live | None:
        """The prediction, if it is answered here now."""
        return self._live.get(identity)

    def begin(self, row: Prediction) -> Live:
        """Let the predictor answer a row that is committed."""
        live = Live(row)
        self._live[row.id] = live
        live.task = asyncio.create_task(self._answer(live))
        return live

    async def cancel(self, identity: str) -> None:
        """Stop answering; the row says so already."""
        if (live := self._live.get(identity)) is not None and live.task is not None:
            live.row.status, live.row.completed_at = "canceled", time.time()
            live.task.cancel()
            await asyncio.wait([live.task])
            self._live.pop(identity, None)  # a task that had not begun does not do it itself
            live.ended.set()

    async def close(self) -> None:
        """The process ends: so do its predictions."""
        for live in list(self._live.values()):
            if live.task is not None:
                live.task.cancel()
                await asyncio.wait([live.task])
        await self._http.aclose()

    async def _answer(self, live: Live) -> None:
        row = live.row
        saver = asyncio.create_task(self._save(live))
        try:
            await self._ask(live)
        except asyncio.CancelledError:
            if row.status in OPEN:
                row.status, row.error = "failed", "The gateway was stopped."
        except (httpx.HTTPError, ValueError, KeyError) as error:
            row.status, row.error = "failed", f"The predictor does not answer ({type(error).__name__})."
        finally:
            if row.status in OPEN:
                row.status, row.error = "failed", "The predictor's answer broke off."
            live.answered.set()
            await saver  # what it writes must not come after the end
            row.completed_at = row.completed_at or time.time()
            try:
                await asyncio.to_thread(self._write, live, True)
            except AnnealError as error:
                log.warning("prediction %s is not written down: %s", row.id, error)
            self._live.pop(row.id, None)
            live.ended.set()
            async with live.changed:
                live.changed.notify_all()

    async def _ask(self, live: Live) -> None:
        """Send it to the predictor, again while that is starting, and take the pieces."""
        settings, row = self._here.settings, live.row
        if fixtures := await asyncio.to_thread(seeded, self._here, Training.output_version == row.version):
            await self._take_fixture(live, fixtures[0].fixture or {})
            return
        body: dict[str, Any] = {"input": row.input, "model": row.model}
        if row.about_version:
            body["version"] = row.version
        deadline = time.monotonic() + LOADING_S
        while True:
            if not settings.predictor:
                row.status, row.error = "failed", "No predictor is running. Start one with `anneal up`."
                return
            headers = {**settings.predictor_headers, "Accept": "text/event-stream"}
            url = f"{settings.predictor}/predictions"
            async with self._http.stream("POST", url, json=body, headers=headers) as answer:
                if answer.is_success:
                    await self._take(live, answer)
                    return
                said = await answer.aread()
            if answer.status_code != BUSY or time.monotonic() > deadline:
                row.status, row.error = "failed", sentence_in(said, f"The predictor answers {answer.status_code}.")
                return
            await asyncio.sleep(ASK_AGAIN_S)

    async def _take_fixture(self, live: Live, fixture: dict[str, Any]) -> None:
        """What a test's fixture answers with: a list piece by piece, all else at once."""
        row, output = live.row, fixture.get("output")
        row.status, row.started_at = "processing", time.time()
        for piece in output if isinstance(output, list) else []:
            row.output = [*row.output, piece]
            async with live.changed:
                live.changed.notify_all()
            await asyncio.sleep(FIXTURE_PIECE_S)
        if output is not None and not isinstance(output, list):
            row.output = output
        row.error, row.logs = fixture.get("error"), fixture.get("logs") or ""
        row.status = "failed" if row.error else "succeeded"

    async def _take(self, live: Live, answer: httpx.Response) -> None:
        row = live.row
        async for name, data in events(answer.aiter_bytes()):
            if name == "start":
                row.status, row.started_at, row.version = "processing", time.time(), data["version"]
            elif name == "output":
                row.output = [*row.output, *pieces(data["chunk"])]
            else:
                row.status = data["status"] if data["status"] in ("failed", "canceled") else "succeeded"
                row.error, row.logs, row.metrics = data["error"], data["logs"], data["metrics"]
            async with live.changed:
                live.changed.notify_all()

    async def _save(self, live: Live) -> None:
        """Bring the row up to date while it is answered."""
        while not live.answered.is_set():
            try:
                async with asyncio.timeout(WRITE_EVERY_S):
                    await live.answered.wait()
            except TimeoutError:
                pass
            else:
                return
            try:
                if not await asyncio.to_thread(self._write, live, False) and live.task is not None:
                    live.task.cancel()  # canceled through another gateway
                    return
            except AnnealError as error:
                log.warning("prediction %s: %s", live.row.id, error)

    def _write(self, live: Live, is_end: bool) -> bool:
        """Whether the row is still open, or was until now."""
        row = live.row
        with self._here.database.session() as session:
            now = session.scalars(select(Prediction).where(Prediction.id == row.id).with_for_update()).one()
            if now.status not in OPEN:
                row.status, row.completed_at = now.status, now.completed_at
                return False
            before, news = now.status, len(row.output or "") > len(now.output or "")
            for name in ("output", "error", "logs", "metrics", "version", "started_at"):
                setattr(now, name, getattr(row, name))
            now.status = row.status if is_end else "starting" if row.started_at is None else "processing"
            now.seen_at, now.completed_at = time.time(), row.completed_at if is_end else None
            said = view(now, now.base_url)
            if before == "starting" and now.started_at is not None:
                enqueue(session, now, "start", {**said, "status": "processing", "output": None, "completed_at": None})
            if news:
                enqueue(session, now, "output", {**said, "status": "processing"}, f"_{len(now.output)}")
            if is_end:
                enqueue(session, now, "completed", said)
        return True


def view(row: Prediction, base: str) -> dict[str, Any]:
    """A prediction as Replicate's clients see it."""
    address = f"{base}/v1/predictions/{row.id}"
    output = row.output if row.output or row.status == "succeeded" else None
    return {
        "id": row.id, "model": row.model, "version": row.version, "input": row.input,
        "output": output if row.status != "starting" else None, "logs": row.logs, "error": row.error,
        "status": row.status, "data_removed": False, "metrics": {**row.metrics, **metrics(row)}, "source": "api",
        "created_at": moment(row.created_at), "started_at": moment(row.started_at),
        "completed_at": moment(row.completed_at),
        "urls": {"get": address, "cancel": f"{address}/cancel", "stream": f"{base}/v1/stream/{row.stream_token}"}}
