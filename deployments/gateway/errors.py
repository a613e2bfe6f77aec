"""Errors as Replicate's clients read them, and bodies that are read within limits.

Each error is {"detail": one sentence, "status": number} as application/problem+json, some with a title. What is a
user's fault is 4xx, what may pass is 503 with Retry-After; a database that is away never looks like a wrong key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from infra.errors import AnnealError, Transient, UserError, shown

log = logging.getLogger(__name__)
PROBLEM = "application/problem+json"
MISSING = "The requested resource could not be found."
BODY_BYTES = 1 << 20
DATA_BODY_BYTES = 64 << 20
"""Of a body whose inputs may hold files as data: URIs."""
BODY_S = 30
RETRY_AFTER_S = 5
OPENAI = "/openai/"
OPENAI_TYPES = {429: "rate_limit_exceeded"}
OPENAI_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, detail: str, *, title: str = "", headers: dict[str, str] | None = None, param: str = "",
    ) -> None:
        """`param`: what of the request is wrong, for OpenAI's dialect."""
        super().__init__(detail)
        self.status, self.detail, self.title, self.headers, self.param = status, detail, title, headers or {}, param


def missing() -> Refusal:
    """The same for what does not exist and for what is somebody else's."""
    return Refusal(404, MISSING)


async def answer_of(request: Request, error: Exception) -> Response:
    """The exception handler of the whole service."""
    if isinstance(error, Refusal):
        return problem(request, error)
    if isinstance(error, Transient):
        return problem(request, Refusal(503, str(error), headers={"Retry-After": str(RETRY_AFTER_S)}))
    if isinstance(error, UserError):
        return problem(request, Refusal(422, str(error)))
    if isinstance(error, HTTPException):  # Starlette's own: no such route, no such method
        detail = MISSING if error.status_code == 404 else str(error.detail)
        return problem(request, Refusal(error.status_code, detail, headers=dict(error.headers or {})))
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)
    fault = secrets.token_hex(4)
    log.error("fault=%s path=%s", fault, request.url.path, exc_info=error)
    sentence = str(error) if isinstance(error, AnnealError) else "The gateway failed."
    return problem(request, Refusal(500, f"{sentence} Look for fault {fault} in its log."))


def problem(request: Request, error: Refusal) -> Response:
    """A refusal in the form of the dialect that was spoken."""
    if request.url.path.startswith(OPENAI):
        kind = OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
        status = 400 if error.status == 422 else error.status
        said = {"message": error.detail, "type": kind, "param": error.param or None, "code": OPENAI_CODES.get(status)}
        return JSONResponse({"error": said}, status, error.headers)
    body: dict[str, Any] = {"title": error.title} if error.title else {}
    body |= {"detail": error.detail, "status": error.status}
    return JSONResponse(body, error.status, error.headers, media_type=PROBLEM)


async def read_body(request: Request, limit: int = BODY_BYTES) -> bytes:
    """The whole body. Raises Refusal 413 or 408."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise Refusal(413, f"The body is larger than {limit} bytes. Shorten it, or upload files.")
    except TimeoutError:
        raise Refusal(408, f"The body took longer than {BODY_S} s.") from None
    return bytes(body)


async def read_json(request: Request, limit: int = BODY_BYTES) -> dict[str, Any]:
    """The object that a body holds. Raises Refusal."""
    return await asyncio.to_thread(parsed, await read_body(request, limit))


def parsed(body: bytes) -> dict[str, Any]:
    """The same of the bytes."""
    try:
        found = json.loads(body or b"{}", parse_constant=_no_number)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refusal(400, "The body holds half of a surrogate pair, which is no text.") from None
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not JSON, or is nested too deeply.") from None
    if not isinstance(found, dict):
        raise Refusal(400, "The body is not a JSON object.")
    return found


def text_of(body: dict[str, Any], name: str, *, default: str | None = None, most: int = 2000) -> str:
    """A text of a body. Raises Refusal 422, naming it."""
    value = body.get(name, default)
    if value is None:
        if default is not None:
            return default
        raise Refusal(422, f"{name} is missing. Add it.")
    if not isinstance(value, str) or len(value) > most or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", value):
        raise Refusal(422, f"{name} is {shown(value)}; expected a text of at most {most} characters.")
    return value


def _no_number(name: str) -> float:
    raise ValueError(name)
