"""The first page: what runs, what waits and for what, what failed and why, what answers.

    GET /      people get the page, programs the addresses
"""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from sqlalchemy import select

from deployments.gateway.context import Gateway, Here
from deployments.gateway.keys import Caller
from deployments.gateway.pages.render import Page, page, static
from deployments.gateway.pages.session import visitor
from deployments.gateway.progress import Known, Logs
from deployments.gateway.tables import Training
from deployments.gateway.trainings import OPEN, queue_of
from deployments.gateway.versions import SEEDED
from infra.errors import AnnealError

router = APIRouter(route_class=Page, include_in_schema=False)
ENDED = 20
ABOUT = {"service": "Anneal gateway", "replicate": "/v1", "openai": "/openai/v1", "openapi": "/openapi.json"}
PREDICTOR_S = 2.0


@router.get("/")
def overview(request: Request, here: Here) -> Response:
    """All that goes on."""
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(ABOUT)
    return _overview(request, here, visitor(request))


@router.get("/static/{name}")
def file(name: str) -> Response:
    """The style and the script."""
    return static(name)


def _overview(request: Request, here: Gateway, caller: Caller) -> HTMLResponse:
    logs: Logs = request.app.state.logs
    query = select(Training).where(Training.source != SEEDED)
    query = query if caller.is_admin else query.where(Training.owner == caller.owner)
    with here.database.session() as session:
        under_way = session.scalars(query.where(Training.status.in_(OPEN)).order_by(Training.created_at)).all()
        ended = session.scalars(query.where(Training.status.not_in(OPEN)).order_by(
            Training.completed_at.desc()).limit(ENDED)).all()
    running = [(row, progress_of(known_of(logs, row))) for row in under_way
               if row.status == "processing" and not row.hold]
    waiting = [(row, queue_of(here, row)) for row in under_way if row.status == "starting" or row.hold]
    return page("overview", caller, running=running, waiting=waiting, ended=ended, served=_seen(caller, served(here)),
                prefect=here.settings.prefect_api.removesuffix("/api"))


def known_of(logs: Logs, row: Training) -> Known:
    """What its events say; nothing where the store does not answer."""
    try:
        return logs.known(row)
    except AnnealError:
        return Known()


def progress_of(known: Known) -> dict[str, Any]:
    """Step, steps in all, time left, cost so far and loss; zeros and None where nothing is known."""
    newest = known.newest
    return {"step": known.step, "total": known.total, "eta_s": newest.get("eta_s"), "usd": newest.get("usd"),
            "loss": newest.get("loss"), "is_trained": known.is_trained}


def _seen(caller: Caller, served: dict[str, Any] | None) -> dict[str, Any] | None:
    return served and {name: one for name, one in served.items() if caller.sees(name.partition("/")[0])}


def served(here: Gateway) -> dict[str, Any] | None:
    """What the predictor answers with, by model; None where it does not say."""
    if not here.settings.predictor:
        return None
    try:
        answer = httpx.get(f"{here.settings.predictor}/models", headers=here.settings.predictor_headers,
                           timeout=PREDICTOR_S, trust_env=False)
        return dict(answer.json()["models"]) if answer.is_success else None
    except (httpx.HTTPError, ValueError, KeyError):
        return None
