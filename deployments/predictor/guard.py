"""What stands in front of every route: the key, and the size of the body.

Health and the playground answer without a key. The body is read here, up to a limit, and handed on whole, so that
no route ever sees a large or trickling one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 10
OPEN_PATHS = ("/", "/health/live", "/health/ready")


class Guard:
    """ASGI middleware. An empty `api_key` lets everyone in: then we listen on loopback only."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self._key = _hash(api_key) if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 401, 408 or 413, or hand on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN_PATHS and not self._admits(headers.get("authorization", "")):
            refusal = JSONResponse(
                {"detail": "The API key is missing or wrong. Send the header Authorization: Bearer <key>."}, 401,
                {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _read(receive)
        except TimeoutError:
            await JSONResponse({"detail": f"The body took longer than {BODY_TIMEOUT_S} s."}, 408)(scope, receive, send)
            return
        if body is None:
            return
        if len(body) > MAX_BODY_BYTES:
            refusal = JSONResponse({"detail": f"The body is larger than {MAX_BODY_BYTES} bytes. Shorten it."}, 413)
            await refusal(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    def _admits(self, authorization: str) -> bool:
        """Bearer is today's word, Token the older one of Replicate's clients."""
        if self._key is None:
            return True
        scheme, _, key = authorization.partition(" ")
        return scheme.lower() in ("bearer", "token") and hmac.compare_digest(_hash(key.strip()), self._key)


async def _read(receive: Receive) -> bytes | None:
    """The body, or a little more than the limit of it; None when the client has gone."""
    body = b""
    while len(body) <= MAX_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
