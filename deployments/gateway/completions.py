"""Completions in OpenAI's dialect, at /openai/v1: passed on to the predictor, which speaks it at /v1.

    POST /chat/completions, /completions
What the predictor answers is passed back as it comes: JSON, or events. Only the key, and whether the caller may see the
model, are judged here; errors have OpenAI's shape whoever made them. A client that leaves ends its request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from deployments.gateway.context import Gateway, Here
from deployments.gateway.errors import Refusal, parsed, read_body, text_of
from deployments.gateway.keys import Asker, Caller
from deployments.gateway.openai_files import known_model
from infra.security.listen import client_left

router = APIRouter()
TIMEOUT = httpx.Timeout(600, connect=5)
PASSED_ON = ("content-type", "retry-after", "x-request-id")
EVENTS = "text/event-stream"
CLIENT_LEFT = 499
"""As proxies note it; nobody reads it."""
NO_PREDICTOR = "No predictor answers. Start one with `anneal up`, or try again in a few seconds."


@router.post("/chat/completions")
async def chat_completions(request: Request, caller: Asker, here: Here) -> Response:
    """Answer a conversation."""
    return await _passed_on(request, caller, here, "/v1/chat/completions")


@router.post("/completions")
async def completions(request: Request, caller: Asker, here: Here) -> Response:
    """Go on with a text."""
    return await _passed_on(request, caller, here, "/v1/completions")


async def _passed_on(request: Request, caller: Caller, here: Gateway, path: str) -> Response:
    """The predictor's answer; asking ends when the client leaves, which ends its rows there."""
    asking = asyncio.create_task(_asked(request, caller, here, path, await read_body(request)))
    left = asyncio.create_task(client_left(request.receive))
    try:
        await asyncio.wait({asking, left}, return_when=asyncio.FIRST_COMPLETED)
        return await asking if asking.done() else Response(status_code=CLIENT_LEFT)
    finally:
        asking.cancel()
        left.cancel()


async def _asked(request: Request, caller: Caller, here: Gateway, path: str, body: bytes) -> Response:
    model = text_of(await run_in_threadpool(parsed, body), "model", most=300)
    await run_in_threadpool(_check_seen, here, caller, model)
    if not here.settings.predictor:
        raise Refusal(503, NO_PREDICTOR, headers={"Retry-After": "5"})
    headers = {**here.settings.predictor_headers, "Content-Type": "application/json",
               "Accept": request.headers.get("accept", "*/*")}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=TIMEOUT, trust_env=False))
        try:
            answer = await stack.enter_async_context(
                client.stream("POST", here.settings.predictor + path, content=body, headers=headers))
            if answer.is_success and answer.headers.get("content-type", "").startswith(EVENTS):
                return StreamingResponse(_pieces(answer, stack.pop_all()), answer.status_code, _kept(answer))
            said = await answer.aread()
        except httpx.HTTPError as error:
            raise Refusal(503, f"{NO_PREDICTOR} ({type(error).__name__})", headers={"Retry-After": "5"}) from error
    if answer.is_success:
        return Response(said, answer.status_code, _kept(answer))
    return _refused(answer, said)


async def _pieces(answer: httpx.Response, stack: AsyncExitStack) -> AsyncIterator[bytes]:
    """The events as they come; an answer that breaks off says so before it ends."""
    async with stack:
        try:
            async for piece in answer.aiter_raw():
                yield piece
        except httpx.HTTPError as error:
            said = {"error": {"message": f"The predictor's answer broke off ({type(error).__name__}).",
                              "type": "server_error", "param": None, "code": None}}
            yield f"\n\ndata: {json.dumps(said)}\n\n".encode()


def _refused(answer: httpx.Response, said: bytes) -> Response:
    """The predictor's refusal: as it is if it has OpenAI's shape, else brought into it."""
    if answer.status_code in (401, 403):  # its key is the gateway's matter, not the client's
        raise Refusal(503, "The predictor does not take the gateway's key. Look at ANNEAL_API_KEY of both.")
    try:
        found: Any = json.loads(said)
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("error"), dict):
        return Response(said, answer.status_code, _kept(answer))
    sentence = found.get("detail") if isinstance(found, dict) else None
    kept = {name: value for name, value in _kept(answer).items() if name == "retry-after"}
    raise Refusal(answer.status_code, str(sentence or f"The predictor answers {answer.status_code}."), headers=kept)


def _kept(answer: httpx.Response) -> dict[str, str]:
    kept = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
    return {**kept, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def _check_seen(here: Gateway, caller: Caller, model: str) -> None:
    """Raise Refusal 404 for a model that is not the caller's. Names that are no owner/name are the predictor's matter,
    where only whoever runs the stack may use them."""
    if caller.is_admin:
        return
    try:
        known_model(here, caller, model)
    except Refusal as error:
        raise Refusal(404, f"The model {model} does not exist or you do not have access to it.",
                      param="model") from error
