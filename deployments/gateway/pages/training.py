"""The page of one training: where it is, what it costs, its curves, what happened, and what can be done with it.

    GET /trainings/{id}      GET /trainings/{id}/live, the part that changes, as events
    POST /trainings/{id}/cancel, /pause, /resume, /finish      GET /trainings/{id}/weights
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.gateway.context import Base, Gateway, Here
from deployments.gateway.errors import Refusal, missing
from deployments.gateway.openai_events import checkpoints_of
from deployments.gateway.pages.outcome import outcome_of
from deployments.gateway.pages.overview import progress_of
from deployments.gateway.pages.render import HEADERS, Page, SignIn, page, part, see_other
from deployments.gateway.pages.session import Visitor, check_scope, signed_in
from deployments.gateway.progress import Known, Logs
from deployments.gateway.tables import Training
from deployments.gateway.trainings import (
    OPEN,
    cancel,
    find_training,
    finish_now,
    held,
    queue_of,
    weights,
)
from infra.errors import AnnealError

router = APIRouter(route_class=Page, include_in_schema=False)
LINES = 30
LOOK_EVERY_S, COMMENT_S = 1.0, 10.0
WIDTH, HEIGHT, MARGIN = 440, 170, 34
ACTIONS = ("cancel", "finish", "pause", "resume")


@router.get("/trainings/{identity}")
def training(identity: str, request: Request, caller: Visitor, here: Here, base: Base) -> HTMLResponse:
    """All that is known of it."""
    row = find_training(here, identity, caller)
    return page("training", caller, base=base, prefect=here.settings.prefect_api.removesuffix("/api"),
                body=shlex.quote(json.dumps({"destination": row.destination, "input": row.input}, indent=2)),
                **_live(here, request.app.state.logs, row))


@router.get("/trainings/{identity}/live")
async def live(identity: str, request: Request, caller: Visitor, here: Here) -> StreamingResponse:
    """The part that changes, each time that it has changed, until the training has ended."""
    await run_in_threadpool(find_training, here, identity, caller)
    held = ExitStack()
    held.enter_context(request.app.state.limits.watch(caller.owner))
    return Followed(_changes(here, request, identity), held)


class Followed(StreamingResponse):
    """Events of a page that stays open; what is held for it is given back when it is closed."""

    def __init__(self, events: AsyncIterator[bytes], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


@router.get("/trainings/{identity}/weights")
def download(identity: str, caller: Visitor, here: Here) -> Response:
    """The files of the version that it made."""
    return weights(identity, caller, here)


@router.post("/trainings/{identity}/{action}")
def act(identity: str, action: str, request: Request, caller: Visitor, here: Here, base: Base) -> Response:
    """Cancel, finish, pause or resume it."""
    check_scope(caller, "train")
    if action not in ACTIONS:
        raise missing()
    if action == "cancel":
        cancel(identity, request, caller, here, base)
    elif action == "finish":
        finish_now(here, request.app.state.logs, identity, caller)
    else:
        held(here, identity, caller, pausing=action == "pause")
    return see_other(f"/trainings/{identity}")


def _live(here: Gateway, logs: Logs, row: Training) -> dict[str, Any]:
    """What the changing part shows."""
    away, known = "", Known()
    try:
        known = logs.known(row)
    except AnnealError as error:
        away = str(error)
    lines = [one.line for one in list(known.told)[-LINES:]]
    return {"row": row, "is_open": row.status in OPEN, "queue": queue_of(here, row), "progress": progress_of(known),
            "chart": chart(known), "lines": lines, "checkpoints": checkpoints_of(row, known), "away": away,
            "outcome": outcome_of(here, row.output_version) if row.output_version and row.status not in OPEN else None}


async def _changes(here: Gateway, request: Request, identity: str) -> AsyncIterator[bytes]:
    logs: Logs = request.app.state.logs

    def look() -> tuple[str, bool]:
        caller = signed_in(request)  # the key may have been revoked since
        row = find_training(here, identity, caller)
        return part("live", caller, **_live(here, logs, row)), row.status in OPEN

    before, quiet = "", 0.0
    while True:
        try:
            html, is_open = await run_in_threadpool(look)
        except (SignIn, Refusal):
            return
        except AnnealError:
            html, is_open = before, True  # the database is away; the page keeps what it shows
        if html != before:
            yield f"data: {json.dumps(html)}\n\n".encode()
            before, quiet = html, 0.0
        if not is_open:
            yield b"event: done\ndata: {}\n\n"
            return
        await asyncio.sleep(LOOK_EVERY_S)
        quiet += LOOK_EVERY_S
        if quiet >= COMMENT_S:
            yield b": still there\n\n"
            quiet = 0.0


def chart(known: Known) -> dict[str, Any] | None:
    """Loss curves as points of an SVG of WIDTH x HEIGHT; None before the first step."""
    if not known.losses:
        return None
    held_out = sorted(known.validations.items())
    values = [loss for _, loss in (*known.losses, *held_out)]
    low, high = min(values), max(values)
    span, last = (high - low) or 1.0, max(known.total, known.step, 1)

    def place(step: int, loss: float) -> tuple[float, float]:
        return (round(MARGIN + step / last * (WIDTH - MARGIN - 8), 1),
                round(8 + (high - loss) / span * (HEIGHT - MARGIN), 1))

    points = [place(*one) for one in known.losses]
    dots = [place(*one) for one in held_out]
    return {"line": " ".join(f"{x},{y}" for x, y in points), "dotted": " ".join(f"{x},{y}" for x, y in dots),
            "dots": dots, "low": f"{low:.2f}", "high": f"{high:.2f}", "last": last, "width": WIDTH, "height": HEIGHT,
            "margin": MARGIN, "bottom": HEIGHT - MARGIN + 8, "loss": f"{known.losses[-1][1]:.4f}",
            "held_out": f"{held_out[-1][1]:.4f}" if held_out else ""}
