"""Errors in the form of the dialect that was spoken.

    /v1/...            {"error": {"message", "type", "param", "code"}}   as OpenAI's clients read them
    /predictions       {"detail": [{"loc", "msg", "type"}]} for a wrong input, as Cog has it
    everything else    {"detail": sentence}; a refused deployment also has it under "error"
https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import logging
import re
import secrets
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployments.predictor.prompts import TooLong
from deployments.predictor.schemas import BadField
from deployments.predictor.served import NotServed
from infra.errors import Transient, UserError

log = logging.getLogger(__name__)
RETRY_AFTER_S = 5
OPENAI = "/v1/"
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
CODES = {401: "invalid_api_key"}
FIELD = re.compile(r"[a-z_]+(\.[a-z_]+)*")


def body_of(path: str, status: int, sentence: str, *, param: str | None = None, code: str | None = None) -> Any:
    """The body of an error."""
    if path.startswith(OPENAI):
        return {"error": openai_error(status, sentence, param=param, code=code)}
    return {"detail": sentence, **({"error": sentence} if path.startswith("/deployments/") else {})}


def openai_error(status: int, sentence: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """What stands under "error", in an answer and in a stream."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": sentence, "type": kind, "param": param, "code": code or CODES.get(status)}


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """The handler of our own errors."""
    path, sentence = request.url.path, str(error)
    if isinstance(error, Transient):
        return JSONResponse(body_of(path, 503, sentence), 503, {"Retry-After": str(RETRY_AFTER_S)})
    if isinstance(error, NotServed):
        return JSONResponse(body_of(path, 404, sentence, param="model", code="model_not_found"), 404)
    if not isinstance(error, UserError):
        return JSONResponse(body_of(path, 500, sentence), 500)
    status = 400 if path.startswith(OPENAI) else 422
    param = error.param if isinstance(error, BadField) else error.where if FIELD.fullmatch(error.where) else ""
    if path.startswith("/predictions"):
        wrong = {"loc": ["body", *(param or "").split(".")] if param else ["body"], "msg": sentence,
                 "type": "value_error"}
        return JSONResponse({"detail": [wrong]}, status)
    code = "context_length_exceeded" if isinstance(error, TooLong) else None
    return JSONResponse(body_of(path, status, sentence, param=param or None, code=code), status)


async def refuse_route(request: Request, error: Exception) -> JSONResponse:
    """The handler of Starlette's errors: no such route, no such method."""
    assert isinstance(error, HTTPException)
    return JSONResponse(body_of(request.url.path, error.status_code, str(error.detail)), error.status_code,
                        dict(error.headers or {}))


async def apologise(request: Request, error: Exception) -> JSONResponse:
    """The handler of everything else."""
    fault = secrets.token_hex(4)
    log.error("fault=%s path=%s", fault, request.url.path, exc_info=error)
    return JSONResponse(
        body_of(request.url.path, 500, f"The predictor failed; look for fault {fault} in its log."), 500)
