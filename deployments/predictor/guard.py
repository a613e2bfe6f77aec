"""The size of a request's body, in front of every route.

The body is read here, up to a limit, and handed on whole, so that no route ever sees a large or trickling one. Who may
ask at all is judged before: infra/security/door.py.
"""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.predictor.problems import body_of

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 10
OPEN_PATHS = ("/", "/health-check", "/health/live", "/health/ready")
"""Answer without a key: the page holds no data and no key."""


class Guard:
    """ASGI middleware. Refuses with 408 or 413."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _read(receive)
        except TimeoutError:
            late = body_of(scope["path"], 408, f"The body took longer than {BODY_TIMEOUT_S} s.")
            await JSONResponse(late, 408)(scope, receive, send)
            return
        if body is None:
            return
        if len(body) > MAX_BODY_BYTES:
            large = body_of(scope["path"], 413, f"The body is larger than {MAX_BODY_BYTES} bytes. Shorten it.")
            await JSONResponse(large, 413)(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)


async def _read(receive: Receive) -> bytes | None:
    """The body, or a little more than the limit of it; None when the client has gone."""
    body = bytearray()  # a body of single bytes must not be copied a million times
    while len(body) <= MAX_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
