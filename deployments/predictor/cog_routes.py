"""Cog's dialect of the predictor, with Replicate's inputs.

    POST /predictions               answer a prompt: JSON; SSE with Accept: text/event-stream; with
                                    Prefer: respond-async 202 at once, and the answer by GET
    PUT  /predictions/{id}          the same, once: asked again it is joined, or its end is told
    GET  /predictions/{id}          how far it is (Cog has none: its answers come by webhook)
    POST /predictions/{id}/cancel   end it: 200 {}, or 404 {} where it does not run
    GET  /health-check              always 200; no key needed

A stream is start, output..., completed with the whole object, whatever its status. A wrong input is 422 with
{"detail": [{"loc", "msg", "type"}]}; an id that is taken by another input is 409 with {"error", "status": "failed"}.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import ServerSentEvent

from deployments.predictor.live import Live, LivePredictions
from deployments.predictor.openai_routes import Shelved
from deployments.predictor.predictions import Prediction
from deployments.predictor.responses import HeldStream
from deployments.predictor.schemas import IDENTITY, BadField, PredictionRequest, described, read
from deployments.predictor.versions import ServedVersions
from infra.security.listen import client_left

router = APIRouter()
Identity = Annotated[str, Path(pattern=IDENTITY)]
ASYNC = "respond-async"


@router.post("/predictions", openapi_extra=described(PredictionRequest))
async def create(request: Request, shelf: Shelved) -> Response:
    """Answer a prompt."""
    return await _answer(request, shelf, None)


@router.put("/predictions/{identity}", openapi_extra=described(PredictionRequest))
async def create_once(identity: Identity, request: Request, shelf: Shelved) -> Response:
    """Answer a prompt, once for an id."""
    return await _answer(request, shelf, identity)


@router.get("/predictions/{identity}")
async def get(identity: Identity, request: Request) -> JSONResponse:
    """How far a prediction is."""
    live = _lives(request).find(identity)
    return JSONResponse(live.view()) if live else JSONResponse({"detail": "There is no such prediction."}, 404)


@router.post("/predictions/{identity}/cancel")
async def cancel(identity: Identity, request: Request) -> JSONResponse:
    """End a prediction."""
    live = _lives(request).find(identity)
    if live is None or live.ended is not None:
        return JSONResponse({}, 404)
    live.cancel()
    return JSONResponse({})


@router.get("/health-check")
async def health(shelf: Shelved) -> dict[str, Any]:
    """Cog's words for the state of the service."""
    served, failed = dict(shelf.served), dict(shelf.failed)
    status = ("DEFUNCT" if not shelf.alive else "STARTING" if not shelf.restored else
              "SETUP_FAILED" if failed and not served else "BUSY" if shelf.is_full else "READY")
    setup = {"STARTING": "starting", "SETUP_FAILED": "failed"}.get(status, "succeeded")
    return {"status": status, "setup": {"status": setup, "logs": ""}}


def discovery() -> dict[str, str]:
    """What `GET /` tells programs."""
    return {"openapi_url": "/openapi.json", "healthcheck_url": "/health-check", "predictions_url": "/predictions",
            "predictions_idempotent_url": "/predictions/{prediction_id}",
            "predictions_cancel_url": "/predictions/{prediction_id}/cancel", "models_url": "/models",
            "openai_url": "/v1"}


async def _answer(request: Request, shelf: ServedVersions, identity: str | None) -> Response:
    body = await request.body()
    lives, is_alone = _lives(request), ASYNC in request.headers.get("prefer", "").lower()
    with ExitStack() as held:
        lane = held.enter_context(request.app.state.intake.hold(len(body)))
        given = await lane.run(partial(read, PredictionRequest, body, request.headers.get("content-type", "")))
        if None not in (identity, given.id) and identity != given.id:
            raise BadField.of("id", f"id is {given.id}, and the address says {identity}", "Leave it out of the body.")
        wanted, asked = identity or given.id, (given.model, given.version, given.input.model_dump(exclude_unset=True))
        async with lives.lock(wanted) if wanted else nullcontext():
            there = lives.find(wanted) if wanted else None
            if there is not None and (identity is None or there.asked != asked):
                sentence = f"The prediction {wanted} is there already."
                return JSONResponse({"error": sentence, "detail": sentence, "status": "failed"}, 409)
            if there is None:
                prediction = await Prediction.of(shelf, given, lane, wanted)
                live = lives.begin(prediction, held.pop_all(), is_alone=is_alone, is_kept=bool(wanted) or is_alone)
            else:
                live = there
    if "text/event-stream" in request.headers.get("accept", ""):
        watch = ExitStack()
        watch.enter_context(live.watched())
        return HeldStream(_stream(live), watch)
    if is_alone or (there is not None and live.ended is None):
        return JSONResponse({**live.view(), "status": "starting" if there is None else live.view()["status"]}, 202)
    return await _whole(request, live)


async def _whole(request: Request, live: Live) -> JSONResponse:
    with live.watched():
        ended, left = asyncio.create_task(_ended(live)), asyncio.create_task(client_left(request.receive))
        try:
            await asyncio.wait({ended, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            left.cancel()
        return JSONResponse(live.view())


async def _ended(live: Live) -> None:
    async for _ in live.pieces():
        continue


async def _stream(live: Live) -> AsyncIterator[ServerSentEvent]:
    yield _event("start", {**live.view(), "status": "processing", "output": None})
    index = 0
    async for chunk in live.pieces():
        yield _event("output", {"chunk": chunk, "index": index})
        index += 1
    yield _event("completed", live.view())


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)


def _lives(request: Request) -> LivePredictions:
    lives: LivePredictions = request.app.state.lives
    return lives
