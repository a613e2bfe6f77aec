"""The predictor's routes.

    GET    /                             a page to try prompts on; no key needed
    POST   /predictions                  answer a prompt: JSON, or SSE with Accept: text/event-stream
    GET    /models                       what is served
    PUT    /deployments/{owner}/{name}   load a version beside the current one, try it, switch
    DELETE /deployments/{owner}/{name}   stop serving a model
    GET    /health/live, /health/ready   no key needed

Every error is {"detail": sentence}; a refused deployment also has it under "error". The event loop only passes things
on: bodies are read, prompts tokenised and versions loaded by threads of their own (lanes.py), and health needs none.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from deployments.predictor.guard import OPEN_PATHS, Guard
from deployments.predictor.lanes import Intake, Lane
from deployments.predictor.playground import HEADERS, PAGE
from deployments.predictor.predictions import Prediction
from deployments.predictor.schemas import DeploymentRequest, PredictionRequest, described, read
from deployments.predictor.served import Conflict, NotServed, Order
from deployments.predictor.versions import ServedVersions
from infra.errors import AnnealError, Transient, UserError
from infra.security.door import Door, Names
from infra.settings import Settings

log = logging.getLogger(__name__)
router = APIRouter()
DRAIN_S = 25
"""Time that answers under way have when the process is told to stop."""
RETRY_AFTER_S = 5
PLACE = re.compile(r'''"/[^"]*"|(?<![\w/])/[^\s"';,:)]+''')
"""A folder or file of this machine in a sentence."""
SEND_S = 60
"""A client that does not take what is sent to it for so long has left."""
MOST_ORDERS = 16
"""Deployments and removals that wait; they are done one after the other."""


def create_app(settings: Settings) -> FastAPI:
    """The service. What was served before is loaded in the background once it has started."""
    shelf = ServedVersions(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=shelf.restore, name="restore", daemon=True).start()
        try:
            yield
        finally:
            await asyncio.to_thread(shelf.close)

    app = FastAPI(title="Anneal predictor", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.shelf, app.state.intake, app.state.orders = shelf, Intake(), Lane("orders", MOST_ORDERS)
    app.include_router(router)
    app.add_middleware(Guard)
    app.add_middleware(Door, names=Names.of(settings), secret=settings.predictor_key, open_paths=OPEN_PATHS)
    app.add_exception_handler(AnnealError, _refuse)
    app.add_exception_handler(Exception, _apologise)
    return app


async def _shelf(request: Request) -> ServedVersions:
    shelf: ServedVersions = request.app.state.shelf
    return shelf


Shelved = Annotated[ServedVersions, Depends(_shelf)]


@router.get("/", include_in_schema=False)
async def playground() -> HTMLResponse:
    """The page holds no data and no key; what it asks for goes through the guard."""
    return HTMLResponse(PAGE, headers=HEADERS)


@router.post("/predictions", openapi_extra=described(PredictionRequest))
async def predict(request: Request, shelf: Shelved) -> Response:
    """Answer a prompt."""
    body = await request.body()
    with ExitStack() as held:
        lane = held.enter_context(request.app.state.intake.hold(len(body)))
        given = await lane.run(partial(read, PredictionRequest, body, request.headers.get("content-type", "")))
        prediction = await Prediction.begin(shelf, given, lane)
        held.callback(prediction.cancel)
        if "text/event-stream" in request.headers.get("accept", ""):
            return _Stream(prediction, held.pop_all())
        watcher = asyncio.create_task(_watch(request, prediction))
        held.callback(watcher.cancel)
        async for _ in prediction.chunks():
            continue
        return JSONResponse(prediction.view())


@router.get("/models")
def models(shelf: Shelved) -> dict[str, Any]:
    """Every model's current and previous version, all versions in memory, and what failed to load."""
    served = {
        name: {"version": one.current.version, "previous": one.previous.version if one.previous else None,
               "deployed_at": one.deployed_at}
        for name, one in sorted(dict(shelf.served).items())}
    versions = [
        {"version": v.id, "method": v.card.method, "base": v.card.base_name, "base_digest": v.card.base_digest,
         "context_tokens": v.card.context_tokens, "in_flight": v.in_flight} for v in shelf.versions()]
    return {"models": served, "versions": versions, "failed": dict(shelf.failed)}


@router.put("/deployments/{owner}/{name}", openapi_extra=described(DeploymentRequest))
async def deploy(owner: str, name: str, request: Request, shelf: Shelved) -> JSONResponse:
    """Load a version beside the current one, try it, switch. 409, 422, and 503 (may pass): the old one answers on."""
    body = await request.body()
    with request.app.state.intake.hold(len(body)) as lane:
        given = await lane.run(partial(read, DeploymentRequest, body, request.headers.get("content-type", "")))
    orders: Lane = request.app.state.orders
    return await orders.run(partial(_deploy, owner, name, given, shelf))


def _deploy(owner: str, name: str, body: DeploymentRequest, shelf: ServedVersions) -> JSONResponse:
    model = f"{owner}/{name}"
    try:
        served = shelf.deploy(model, Order(**body.model_dump()))
    except Exception as error:
        status = 422 if isinstance(error, UserError) and not isinstance(error, Conflict) else 409
        status = 503 if isinstance(error, Transient) else status
        sentence = str(error) if isinstance(error, AnnealError) else (
            f"The version could not be loaded ({type(error).__name__}); see the predictor's log.")
        log.warning("not deployed model=%s version=%s", model, body.version, exc_info=error)
        return JSONResponse({"error": sentence, "detail": sentence}, status)
    previous = served.previous.version if served.previous else None
    return JSONResponse({
        "model": model, "version": served.current.version, "status": "serving", "smoke": served.smoke,
        "previous": previous})


@router.delete("/deployments/{owner}/{name}")
async def remove(owner: str, name: str, request: Request, shelf: Shelved) -> dict[str, str]:
    """Stop serving a model; answers under way end first."""
    orders: Lane = request.app.state.orders
    await orders.run(partial(shelf.remove, f"{owner}/{name}"))
    return {"model": f"{owner}/{name}", "status": "removed"}


# The two below and what they depend on are coroutines: all threads for requests may wait for a deployment.


@router.get("/health/live")
async def live(shelf: Shelved) -> JSONResponse:
    """500: restart the process."""
    return JSONResponse({"status": "live"}) if shelf.alive else JSONResponse({"status": "dead"}, 500)


@router.get("/health/ready")
async def ready(shelf: Shelved) -> JSONResponse:
    """503: nothing answers here, because it starts, an engine died, or nothing of what was served could be loaded.

    Where some models answer and others failed to load, the status is "degraded" with 200: one of ten must not take
    the nine out of a load balancer's rotation, which would not bring it back either. Monitor the status.
    No key is asked for here, so that the reasons name no folders; GET /models does.
    """
    if not shelf.restored or not shelf.alive:
        return JSONResponse({"status": "starting" if shelf.alive else "dead"}, 503)
    served = dict(shelf.served)
    failed = {model: PLACE.sub('"..."', why) for model, why in sorted(dict(shelf.failed).items())}
    status = "ready" if not failed else "degraded" if served else "failed"
    body = {"status": status, "models": {name: one.current.version for name, one in sorted(served.items())}}
    return JSONResponse({**body, **({"failed": failed} if failed else {})}, 503 if status == "failed" else 200)


class _Stream(EventSourceResponse):
    """An answer as it comes; the prediction ends and its room is free when the client has it or has left."""

    def __init__(self, prediction: Prediction, held: ExitStack) -> None:
        super().__init__(_stream(prediction), shutdown_grace_period=DRAIN_S, send_timeout=SEND_S)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


async def _stream(prediction: Prediction) -> AsyncIterator[ServerSentEvent]:
    """start, output..., then completed or error; the last carries the whole object."""
    yield _event("start", prediction.view())
    index = 0
    async for chunk in prediction.chunks():
        yield _event("output", {"chunk": chunk, "index": index})
        index += 1
    view = prediction.view()
    yield _event("completed" if view["status"] == "succeeded" else "error", view)


def _event(name: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=name)


async def _watch(request: Request, prediction: Prediction) -> None:
    """Cancel the row when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
    prediction.cancel()


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    sentence = str(error)
    body = {"detail": sentence}
    if request.url.path.startswith("/deployments/"):
        body["error"] = sentence
    if isinstance(error, Transient):
        return JSONResponse(body, 503, {"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(error, NotServed):
        return JSONResponse(body, 404)
    return JSONResponse(body, 422 if isinstance(error, UserError) else 500)


async def _apologise(request: Request, error: Exception) -> JSONResponse:
    fault = secrets.token_hex(4)
    log.error("fault=%s path=%s", fault, request.url.path, exc_info=error)
    return JSONResponse({"detail": f"The predictor failed; look for fault {fault} in its log."}, 500)
