"""The gateway's service: Replicate's API at /v1, and at /v1/v1 for clients whose address has /v1 already; OpenAI's
files, fine-tuning jobs, models and completions at /openai/v1; pages for people at /.

    GET /health/live, /health/ready   no key needed
Host and Origin are judged by the door in front of every service (infra/security/door.py), keys by keys.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.gateway import (
    completions,
    estimates,
    files,
    models,
    openai_files,
    openai_jobs,
    predictions,
    removal,
    trainings,
)
from deployments.gateway.answers import Answers
from deployments.gateway.context import Gateway, Here
from deployments.gateway.errors import Refusal, answer_of
from deployments.gateway.limits import Limits
from deployments.gateway.pages import lists, new, overview, session, training
from deployments.gateway.pages import models as model_pages
from deployments.gateway.progress import Logs
from deployments.gateway.projector import Projector
from infra.errors import AnnealError, UserError
from infra.security.door import Door, Names, is_loopback
from infra.settings import Settings

log = logging.getLogger(__name__)
ROUTERS = (estimates.router, trainings.router, predictions.router, models.router, removal.router, files.router)
PAGES = (overview.router, session.router, new.router, training.router, model_pages.router, lists.router)
PREFIXES = ("/v1", "/v1/v1")


def create_app(settings: Settings, *, projecting: bool = True) -> FastAPI:
    """The service. Raises UserError for a setting that is wrong, and Away.

    `projecting`: whether this process takes part in bringing trainings to Prefect.
    """
    here = Gateway(settings)
    here.database.migrate()
    logs = Logs(here)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.answers = Answers(here)
        projector = Projector(here, logs)
        if projecting:
            projector.start()
        try:
            yield
        finally:
            await app.state.answers.close()
            if projecting:
                await asyncio.to_thread(projector.close)
            here.database.close()

    app = FastAPI(title="Anneal gateway", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings, app.state.database, app.state.gateway, app.state.logs = settings, here.database, here, logs
    app.state.limits = Limits()
    for prefix in PREFIXES:
        for router in ROUTERS:
            app.include_router(router, prefix=prefix, include_in_schema=prefix == PREFIXES[0])
    app.include_router(openai_files.router, prefix="/openai/v1")
    app.include_router(completions.router, prefix="/openai/v1")
    app.include_router(openai_jobs.router, prefix="/openai/v1/fine_tuning")
    for router in PAGES:
        app.include_router(router)
    app.add_api_route("/health/live", live)
    app.add_api_route("/health/ready", ready)
    app.add_middleware(Door, names=Names.of(settings))
    for kind in (Refusal, AnnealError, HTTPException, Exception):
        app.add_exception_handler(kind, answer_of)
    return app


async def live() -> dict[str, str]:
    """It runs, whatever else is away."""
    return {"status": "live"}


def ready(here: Here) -> JSONResponse:
    """503: its database does not answer."""
    try:
        here.database.ping()
    except AnnealError as error:
        return JSONResponse({"status": "not ready", "reason": str(error)}, 503)
    return JSONResponse({"status": "ready"})


def check_exposure(settings: Settings) -> None:
    """Raise UserError for an address that others can reach where nothing is asked of them."""
    if not is_loopback(settings.host) and not settings.predictor_key:
        raise UserError(f"ANNEAL_HOST is {settings.host} and no key is asked for",
                        allowed="a loopback address, or a key",
                        fix="Unset ANNEAL_REQUIRE_SECRET, or set ANNEAL_API_KEY to a long random text.")
