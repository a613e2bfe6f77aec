"""The predictor's routes.

    GET    /                             a page to try prompts on, for programs the addresses below; no key needed
    POST   /predictions, /health-check   Cog's dialect (cog_routes.py)
    GET    /v1/models, POST /v1/completions, /v1/chat/completions    OpenAI's dialect (openai_routes.py)
    GET    /models                       what is served
    PUT    /deployments/{owner}/{name}   load a version beside the current one, try it, switch
    DELETE /deployments/{owner}/{name}   stop serving a model
    GET    /health/live, /health/ready   no key needed
    GET    /metrics                      for Prometheus

Errors have the form of the dialect that was spoken (problems.py). The event loop only passes things on:
bodies are read, prompts tokenised and versions loaded by threads of their own (lanes.py), and health needs none.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from deployments.predictor.cog_routes import discovery
from deployments.predictor.cog_routes import router as cog_router
from deployments.predictor.guard import OPEN_PATHS, Guard
from deployments.predictor.lanes import Intake, Lane
from deployments.predictor.live import LivePredictions
from deployments.predictor.metrics import CONTENT_TYPE
from deployments.predictor.openai_routes import Shelved
from deployments.predictor.openai_routes import router as openai_router
from deployments.predictor.openapi import document
from deployments.predictor.playground import HEADERS, PAGE
from deployments.predictor.problems import apologise, body_of, refuse, refuse_route
from deployments.predictor.schemas import DeploymentRequest, described, read
from deployments.predictor.served import Conflict, Order
from deployments.predictor.versions import ServedVersions
from infra.errors import AnnealError, Transient, UserError
from infra.security.door import Door, Names
from infra.settings import Settings

log = logging.getLogger(__name__)
router = APIRouter()
PLACE = re.compile(r'''"/[^"]*"|(?<![\w/])/[^\s"';,:)]+''')
"""A folder or file of this machine in a sentence."""
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
    app.include_router(openai_router)
    app.include_router(cog_router)
    app.state.lives = LivePredictions()
    app.openapi = partial(document, app)  # type: ignore[method-assign]  # FastAPI's own way
    app.add_middleware(Guard)
    app.add_middleware(Door, names=Names.of(settings), secret=settings.predictor_key, open_paths=OPEN_PATHS,
                       body_of=body_of)
    app.add_exception_handler(AnnealError, refuse)
    app.add_exception_handler(HTTPException, refuse_route)
    app.add_exception_handler(Exception, apologise)
    return app


@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """For a browser the page, which holds no data and no key: what it asks for goes through the guard."""
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(PAGE, headers={**HEADERS, "Vary": "Accept"})
    return JSONResponse(discovery(), headers={"Vary": "Accept"})


@router.get("/metrics", include_in_schema=False)
def metrics(shelf: Shelved) -> Response:
    """Requests, tokens and times of each version."""
    return Response(shelf.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/models")
def models(shelf: Shelved) -> dict[str, Any]:
    """Every model's current and previous version, all versions in memory, and what failed to load."""
    served = {
        name: {"version": one.current.version, "number": one.current.number,
               "previous": one.previous.version if one.previous else None, "deployed_at": one.deployed_at}
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
async def remove(owner: str, name: str, request: Request, shelf: Shelved, version: str = "") -> dict[str, str]:
    """Stop serving a model, or one version of it; answers under way end first."""
    orders: Lane = request.app.state.orders
    await orders.run(partial(shelf.remove, f"{owner}/{name}", version))
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
