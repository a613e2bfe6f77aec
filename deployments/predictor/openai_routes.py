"""OpenAI's dialect of the predictor.

    GET  /v1/models[/{model}]      what is served, by every name that a request may use
    POST /v1/completions           goes on from prompts: texts by the version's prompt template, token ids as they are
    POST /v1/chat/completions      answers a conversation, shown by the template that the version was trained with

Errors have OpenAI's shape (problems.py). A stream that fails ends with an error and without [DONE].
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import ServerSentEvent

from deployments.predictor.answers import Answers, Asked
from deployments.predictor.engine import Done
from deployments.predictor.loading import Loaded
from deployments.predictor.openai_schemas import ChatRequest, CompletionRequest
from deployments.predictor.openai_views import View
from deployments.predictor.problems import RETRY_AFTER_S, openai_error
from deployments.predictor.prompts import Encoding, encode_chat, encode_text, given_ids, render
from deployments.predictor.responses import HeldStream, cancel_when_left
from deployments.predictor.schemas import described, read
from deployments.predictor.served import NotServed, Served
from deployments.predictor.versions import ServedVersions
from infra.errors import shown
from infra.models.version_names import VERSION_ID

router = APIRouter(prefix="/v1")
DEFAULT_TOKENS = 16
"""Of a completion; OpenAI's."""


async def _shelf(request: Request) -> ServedVersions:
    shelf: ServedVersions = request.app.state.shelf
    return shelf


Shelved = Annotated[ServedVersions, Depends(_shelf)]


@router.get("/models")
def models(shelf: Shelved) -> dict[str, Any]:
    """Every name that a request may use."""
    return {"object": "list", "data": [one for served in _all(shelf) for one in _names_of(served)]}


@router.get("/models/{name:path}")
def model(name: str, shelf: Shelved) -> dict[str, Any]:
    """One of them."""
    for one in models(shelf)["data"]:
        if one["id"] == name:
            return dict(one)
    raise NotServed(f"model {shown(name)} is not served here", fix="GET /v1/models lists what is.")


@router.post("/chat/completions", openapi_extra=described(ChatRequest))
async def chat(request: Request, shelf: Shelved) -> Response:
    """Answer a conversation."""
    return await _answer(request, shelf, ChatRequest)


@router.post("/completions", openapi_extra=described(CompletionRequest))
async def completions(request: Request, shelf: Shelved) -> Response:
    """Go on from a prompt, or from each of several."""
    return await _answer(request, shelf, CompletionRequest)


async def _answer(
    request: Request, shelf: ServedVersions, kind: type[ChatRequest] | type[CompletionRequest],
) -> Response:
    body = await request.body()
    with ExitStack() as held:
        lane = held.enter_context(request.app.state.intake.hold(len(body)))
        given: ChatRequest | CompletionRequest = await lane.run(
            partial(read, kind, body, request.headers.get("content-type", "")))
        answers = await Answers.begin(lane, partial(Answers, shelf, _asked(given)))
        held.callback(answers.cancel)
        is_chat = isinstance(given, ChatRequest)
        view = View(answers, is_chat, given.model, ("chatcmpl-" if is_chat else "cmpl-") + secrets.token_hex(12),
                    int(time.time()))
        if given.stream:
            return HeldStream(_stream(view, given.counts_usage), held.pop_all())
        watcher = asyncio.create_task(cancel_when_left(request, answers))
        held.callback(watcher.cancel)
        async for index, event in answers.texts():
            if isinstance(event, Done):
                if failure := _failure(event):
                    return failure
            else:
                view.texts[index].append(event)
        return JSONResponse(view.whole())


async def _stream(view: View, counts_usage: bool) -> AsyncIterator[ServerSentEvent]:
    for index in range(len(view.texts)) if view.is_chat else ():
        yield _event(view.chunk(index, "", begins=True, counts=counts_usage))
    async for index, event in view.answers.texts():
        if isinstance(event, Done) and (failure := _failure(event)):
            yield ServerSentEvent(bytes(failure.body).decode())
            return
        text = event if isinstance(event, str) else ""
        yield _event(view.chunk(index, text, done=None if text else view.answers.done[index], counts=counts_usage))
    if counts_usage:
        yield _event(view.usage_chunk())
    yield ServerSentEvent("[DONE]")


def _event(chunk: str) -> ServerSentEvent:
    return ServerSentEvent(chunk)


def _failure(done: Done) -> JSONResponse | None:
    """The answer to a request of which a row has failed."""
    if done.reason == "cancelled":  # the client is gone, or the predictor is told to stop
        return JSONResponse({"error": openai_error(503, "The predictor stops. Try again in a few seconds.")}, 503,
                            {"Retry-After": str(RETRY_AFTER_S)})
    if done.error is not None:
        return JSONResponse({"error": openai_error(500, str(done.error))}, 500)
    return None


def _asked(given: ChatRequest | CompletionRequest) -> Asked:
    by_id = VERSION_ID.fullmatch(given.model) is not None
    prompts: Callable[[Loaded], list[Encoding]]
    if isinstance(given, ChatRequest):
        prompts, limit, is_cut = partial(_conversation, given), given.limit, given.limit is None
    else:
        prompts, limit = partial(_texts, given), given.max_tokens or DEFAULT_TOKENS
        is_cut = given.max_tokens is None
    return Asked(
        version=given.model if by_id else None, model=None if by_id else given.model, prompts=prompts,
        choices=given.n or 1, max_new_tokens=limit, is_cut=is_cut,
        temperature=1.0 if given.temperature is None else given.temperature,
        top_p=1.0 if given.top_p is None else given.top_p, top_k=given.top_k or 0, stops=given.stops, seed=given.seed)


def _conversation(given: ChatRequest, loaded: Loaded) -> list[Encoding]:
    return [encode_chat(loaded, given.messages, field="messages")]


def _texts(given: CompletionRequest, loaded: Loaded) -> list[Encoding]:
    return [encode_text(loaded, render(loaded.card.prompt_template, prompt, ""), field="prompt")
            if isinstance(prompt, str) else given_ids(loaded, prompt, field="prompt") for prompt in given.every]


def _all(shelf: ServedVersions) -> list[Served]:
    return [served for _, served in sorted(dict(shelf.served).items())]


def _names_of(served: Served) -> list[dict[str, Any]]:
    created = int(datetime.fromisoformat(served.deployed_at).timestamp()) if served.deployed_at else 0
    names = [served.model, *(f"{served.model}:{alias}" for alias in served.aliases),
             *(f"{served.model}:{order.number or order.version}" for order in served.orders)]
    return [{"id": name, "object": "model", "created": created, "owned_by": served.model.partition("/")[0]}
            for name in names]
