"""Answers that are sent as they are written, and clients that leave before the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack

from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from deployments.predictor.answers import Answers
from infra.security.listen import client_left

DRAIN_S = 25
"""Time that answers under way have when the process is told to stop."""
SEND_S = 60
"""A client that does not take what is sent to it for so long has left."""


class HeldStream(EventSourceResponse):
    """Server-sent events; what is held for them is given back when the client has all of them or has left."""

    def __init__(self, events: AsyncIterator[ServerSentEvent], held: ExitStack) -> None:
        super().__init__(events, shutdown_grace_period=DRAIN_S, send_timeout=SEND_S)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


async def cancel_when_left(request: Request, answers: Answers) -> None:
    """Cancel the rows when the client goes away."""
    await client_left(request.receive)
    answers.cancel()
