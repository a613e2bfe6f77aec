"""How pages are made: templates that escape everything, headers that let a browser run our own script alone, forms.

In:   a template of templates/ and values      Out: HTML. A refusal is a page with the sentence, a missing sign-in leads
to the page that asks for the key. Nothing comes from another server, and no page needs its script.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from fastapi import Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

from deployments.gateway.errors import BODY_BYTES, Refusal, missing, read_body
from deployments.gateway.keys import Caller
from infra.errors import AnnealError, Transient, UserError
from infra.progress import price_in_words, seconds_in_words
from infra.spec import FIELDS

FOLDER = Path(__file__).parent
STATIC = {"pages.css": "text/css", "live.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store"}
MOST_FIELDS = 200
WORDS = {"starting": "waiting", "processing": "running"}


class SignIn(Exception):
    """Nobody is signed in."""


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _ago(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds_in_words(max(0.0, time.time() - seconds))} ago"


def _time_left(progress: dict[str, Any]) -> str:
    """Of the steps; what comes after them is not told by the trainer."""
    if progress["is_trained"]:
        return "trained; evaluating, registering, deploying"
    return "not known yet" if progress["eta_s"] is None else seconds_in_words(progress["eta_s"])


def _usd(value: float | None) -> str:
    return "" if value is None else price_in_words(value)


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


def _word(status: str) -> str:
    """As people call it."""
    return WORDS.get(status, status)


def _chosen(inputs: dict[str, Any]) -> list[tuple[str, Any]]:
    """Parameters of a training without those at their defaults: a run that others started has all of them."""
    defaults = {field.name: field.default for field in FIELDS}
    return [(name, value) for name, value in inputs.items() if value not in ("", defaults.get(name))]


templates = Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
templates.filters |= {"when": _when, "ago": _ago, "usd": _usd, "size": _size, "time_left": _time_left,
                      "chosen": _chosen, "duration": seconds_in_words, "word": _word}


def page(name: str, caller: Caller | None, status: int = 200, /, **values: Any) -> HTMLResponse:
    """A page of the template with that name."""
    return HTMLResponse(part(name, caller, **values), status, HEADERS)


def part(name: str, caller: Caller | None, /, **values: Any) -> str:
    """The HTML of a template."""
    return templates.get_template(f"{name}.html").render(caller=caller, **values)


def see_other(path: str) -> RedirectResponse:
    """Where a form leads to once it is done."""
    return RedirectResponse(path, 303, HEADERS)


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form that was sent. Raises Refusal."""
    body = await read_body(request, BODY_BYTES)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError:
        raise Refusal(400, "The form cannot be read.") from None


def static(name: str) -> FileResponse:
    """The style and the script."""
    if name not in STATIC:
        raise missing()
    return FileResponse(FOLDER / "static" / name, media_type=STATIC[name], headers={
        "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"})


class Page(APIRoute):
    """A route whose refusals are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's, with what it raises made into pages."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except SignIn:
                asked = request.url.path if request.method == "GET" else "/"
                return see_other(f"/sign-in?next={quote(asked)}")
            except Refusal as error:
                answer = page("error", None, error.status, status=error.status, sentence=error.detail)
                answer.headers.update(error.headers)
                return answer
            except HTTPException as error:
                return page("error", None, error.status_code, status=error.status_code, sentence=str(error.detail))
            except AnnealError as error:
                status = 422 if isinstance(error, UserError) else 503 if isinstance(error, Transient) else 500
                return page("error", None, status, status=status, sentence=str(error))

        return handled
