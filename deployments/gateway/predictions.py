"""Routes of predictions, in Replicate's dialect.

    POST /predictions, /models/{owner}/{name}/predictions    GET /predictions[/{id}]    POST /predictions/{id}/cancel
    GET /stream/{token}, without a key: its address is the secret
`Prefer: wait` answers when the prediction has ended, or at the time limit as `starting` without output: 1.x takes
every other status for the end, and drop what output is there.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import select

from deployments.gateway.answers import Answers, Live, view
from deployments.gateway.context import Base, Gateway, Here
from deployments.gateway.errors import Refusal, missing, read_json, text_of
from deployments.gateway.ids import new_id, page_of
from deployments.gateway.keys import Asker, Caller, Reader
from deployments.gateway.models import find_model
from deployments.gateway.sse import COMMENT, Encoder
from deployments.gateway.tables import Prediction, Training
from deployments.gateway.trainings import INVALID, OPEN
from deployments.gateway.trainings import view as training_view
from deployments.gateway.versions import Known, find_version, versions_of
from deployments.gateway.webhooks import enqueue, read_targets
from deployments.predictor.schemas import PredictionRequest, read
from infra.errors import AnnealError

router = APIRouter()
PAGE = 100
LEAST_WAIT_S, WAIT_S = 1, 60
WAIT = re.compile(r"(?:^|[,;\s])wait(?:=(\d{1,6}))?(?:$|[,;\s])")
VERSION = re.compile(r"[0-9a-f]{64}")
QUIET_S = 10.0
"""A comment is sent after so long without an event: clients give up after 30 s."""
LOOK_EVERY_S = 0.3
"""At the row of a prediction that another gateway answers."""


@router.post("/predictions")
async def create(request: Request, caller: Asker, here: Here, base: Base) -> JSONResponse:
    """Ask a version, named by its id, as owner/name:id, or as owner/name."""
    body = await read_json(request)
    named = text_of(body, "version", most=300)
    model, _, version = named.rpartition(":") if ":" in named else (
        ("", "", named) if VERSION.fullmatch(named) else (named, "", ""))
    return await _begin(request, body, model, version, caller, here, base)


@router.post("/models/{owner}/{name}/predictions")
async def create_of_model(
    owner: str, name: str, request: Request, caller: Asker, here: Here, base: Base,
) -> JSONResponse:
    """Ask the version that a model answers with."""
    return await _begin(request, await read_json(request), f"{owner}/{name}", "", caller, here, base)


@router.get("/predictions")
def predictions(caller: Reader, here: Here, base: Base, cursor: str | None = None) -> dict[str, Any]:
    """The caller's predictions, the newest first."""
    query = select(Prediction)
    query = query if caller.is_admin else query.where(Prediction.owner == caller.owner)
    with here.database.session() as session:
        return page_of(session, query, Prediction, PAGE, cursor, f"{base}/v1/predictions", lambda row: view(row, base))


@router.get("/predictions/{identity}")
async def get(identity: str, request: Request, caller: Reader, here: Here, base: Base) -> dict[str, Any]:
    """One prediction; a training too, whose ids are of the same kind."""
    answers: Answers = request.app.state.answers
    if (live := answers.live(identity)) is not None and caller.sees(live.row.owner):
        return view(live.row, base)
    return await run_in_threadpool(_get, request, identity, caller, here, base)


@router.post("/predictions/{identity}/cancel")
async def cancel(identity: str, request: Request, caller: Asker, here: Here, base: Base) -> dict[str, Any]:
    """End a prediction."""
    answers: Answers = request.app.state.answers
    row = await run_in_threadpool(_cancel, identity, caller, here, answers.live(identity))
    await answers.cancel(identity)
    return view(row, base)


@router.get("/stream/{token}")
async def stream(token: str, request: Request, here: Here) -> StreamingResponse:
    """The pieces of an answer from the first on, as they come. Whatever is wrong is an event, with 200."""
    answers: Answers = request.app.state.answers
    found = await run_in_threadpool(_by_token, token, here)
    return StreamingResponse(_events(found, here, answers), media_type="text/event-stream",
                             headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _begin(
    request: Request, body: dict[str, Any], model: str, version: str, caller: Caller, here: Gateway, base: str,
) -> JSONResponse:
    answers: Answers = request.app.state.answers
    row = await run_in_threadpool(_accept, body, model, version, caller, here, base)
    live = answers.begin(row)
    wait = WAIT.search(request.headers.get("prefer", ""))
    if wait is None:
        return JSONResponse(_as_starting(row, base), 201)
    seconds = min(max(int(wait[1] or WAIT_S), LEAST_WAIT_S), WAIT_S)
    try:
        async with asyncio.timeout(seconds):
            await live.ended.wait()
        said = view(row, base)
    except TimeoutError:
        said = _as_starting(row, base)
    return JSONResponse(said, 201, {"Preference-Applied": f"wait={seconds}"})


def _as_starting(row: Prediction, base: str) -> dict[str, Any]:
    return {**view(row, base), "status": "starting", "output": None, "started_at": None}


def _accept(
    body: dict[str, Any], model: str, version: str, caller: Caller, here: Gateway, base: str,
) -> Prediction:
    """The row, committed. Raises Refusal, and UserError for a wrong input."""
    known = _known(here, caller, model, version)
    if known.fixture is None:
        given = json.dumps({"input": body.get("input", {})}).encode()
        read(PredictionRequest, given, "application/json")
    webhook, completed, events = read_targets(here.settings, body)
    row = Prediction(
        id=new_id(), owner=caller.owner, model=known.model, version=known.id, about_version=bool(version),
        input=body.get("input") or {}, output=[], status="starting", error=None, logs="", metrics={},
        stream_token=secrets.token_urlsafe(32), base_url=base, webhook=webhook, webhook_completed=completed,
        webhook_events=events, created_at=time.time(), started_at=None, completed_at=None, seen_at=time.time())
    with here.database.session() as session:
        session.add(row)
    return row


def _known(here: Gateway, caller: Caller, model: str, version: str) -> Known:
    """The version that a request names. Raises Refusal 404 for a model, 422 for a version that is not there."""
    if model:
        owner, _, name = model.partition("/")
        if not here.catalogue.of(model):
            find_model(here, owner, name, caller)
    if version:
        found = find_version(here, version, model)
        if found is None or not _sees(here, caller, found.model):
            raise Refusal(422, "The specified version does not exist, or your key may not use it.", title=INVALID)
        return found
    found = next(iter(versions_of(here, model)), None)
    if found is None:
        raise Refusal(422, f"{model} has no version yet. Train it first.", title=INVALID)
    return found


def _sees(here: Gateway, caller: Caller, model: str) -> bool:
    if here.catalogue.of(model):
        return True
    try:
        owner, _, name = model.partition("/")
        find_model(here, owner, name, caller)
    except Refusal:
        return caller.is_admin
    return True


def _get(request: Request, identity: str, caller: Caller, here: Gateway, base: str) -> dict[str, Any]:
    with here.database.session() as session:
        row = session.get(Prediction, identity)
        training = session.get(Training, identity) if row is None else None
    if training is not None and caller.sees(training.owner):
        return training_view(training, base, request.app.state.logs.of(training))
    if row is None or not caller.sees(row.owner):
        raise missing()
    return view(row, base)


def _cancel(identity: str, caller: Caller, here: Gateway, live: Live | None) -> Prediction:
    with here.database.session() as session:
        row = session.scalars(select(Prediction).where(Prediction.id == identity).with_for_update()).one_or_none()
        if row is None or not caller.sees(row.owner):
            raise missing()
        if row.status in OPEN:
            if live is not None:
                row.output = list(live.row.output)
            row.status, row.completed_at = "canceled", time.time()
            enqueue(session, row, "completed", view(row, row.base_url))
    return row


def _by_token(token: str, here: Gateway) -> Prediction | str:
    """The prediction whose stream it is, or why there is none."""
    try:
        with here.database.session() as session:
            row = session.scalar(select(Prediction).where(Prediction.stream_token == token))
    except AnnealError as error:
        return str(error)
    return row or "There is no such stream."


async def _events(found: Prediction | str, here: Gateway, answers: Answers) -> AsyncIterator[bytes]:
    """Output from the first piece on, an error if there is one, and done."""
    encoder, sent = Encoder(), 0
    if isinstance(found, str):
        yield encoder.event("error", json.dumps({"detail": found})) + encoder.event("done", "{}")
        return
    yield COMMENT
    told = time.monotonic()
    while True:
        live = answers.live(found.id)
        row = live.row if live is not None else await run_in_threadpool(_fresh, here, found)
        pieces = row.output if isinstance(row.output, list) else [str(row.output)]  # of a test's fixture
        for piece in pieces[sent:]:
            yield encoder.event("output", piece)
            told = time.monotonic()
        sent = len(pieces)
        if row.status not in OPEN:
            break
        if time.monotonic() - told > QUIET_S:
            yield COMMENT
            told = time.monotonic()
        if live is None:
            await asyncio.sleep(LOOK_EVERY_S)
        else:
            await _wait(live, sent)
    if row.status == "failed":
        yield encoder.event("error", json.dumps({"detail": row.error or "It failed."}))
    yield encoder.event("done", json.dumps({"reason": row.status} if row.status != "succeeded" else {}))


async def _wait(live: Live, sent: int) -> None:
    """Until there are more pieces than were sent, or it has ended, or QUIET_S are over."""
    try:
        async with asyncio.timeout(QUIET_S), live.changed:
            if live.row.status in OPEN and len(live.row.output) == sent:
                await live.changed.wait()
    except TimeoutError:
        return


def _fresh(here: Gateway, row: Prediction) -> Prediction:
    with here.database.session() as session:
        return session.get(Prediction, row.id) or row
