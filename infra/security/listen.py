"""Serve an ASGI app over HTTP/1.1, with time limits on what a client has begun to send.

In:   an app, a bound socket          Out: answers, until SIGTERM
Uvicorn waits for ever for the rest of a request's head. Here a head is complete within HEAD_S seconds, counted from
the connection or from the last answer's end, and a body goes on at least every BODY_S seconds. Answers and websockets
may take as long as they like.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Literal

import h11
import uvicorn
from starlette.types import ASGIApp, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from infra.errors import UserError

HEAD_S = 10.0
BODY_S = 60.0
Phase = Literal["head", "body", "rest"]
"""What a client is sending. The rest of a body is what still comes of it after the answer: nobody reads that."""
LIMITS_S: dict[Phase, Callable[[], float]] = {"head": lambda: HEAD_S, "body": lambda: BODY_S, "rest": lambda: HEAD_S}


class Patient(H11Protocol):
    """A connection that is closed when the client does not finish what it has begun."""

    _phase: Phase | None = "head"
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(HEAD_S)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        super().connection_lost(exc)

    def _look(self) -> None:
        """Start the clock of a phase when it begins; that of a body whenever something of it comes."""
        phase = self._phase_now()
        if phase == "body" or phase != self._phase:
            self._phase = phase
            self._wait(LIMITS_S[phase]() if phase else None)

    def _phase_now(self) -> Phase | None:
        if self.transport.get_protocol() is not self:  # a websocket has it now
            return None
        if self.conn.their_state is h11.IDLE:
            return "head"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.conn.our_state is h11.DONE else "body"
        return None

    def _wait(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # it is us who do not read
            self._wait(BODY_S)
        elif not self.transport.is_closing():
            self.transport.abort()


def bind(host: str, port: int, variable: str) -> socket.socket:
    """Take the port before anything is loaded. Raises UserError, naming the port's variable, when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(f"port {port} of {host} cannot be used ({error.strerror})",
                        fix=f"Stop what listens there, or set {variable}.") from error
    return listener


def serve(app: ASGIApp, listener: socket.socket, *, keep_alive_s: int = 5, drain_s: int | None = None) -> None:
    """Answer until told to stop; then answers under way have `drain_s` seconds, or all the time they need."""
    config = uvicorn.Config(
        app, http=Patient, log_config=None, access_log=False, proxy_headers=False, server_header=False,
        timeout_keep_alive=keep_alive_s, timeout_graceful_shutdown=drain_s)
    uvicorn.Server(config).run(sockets=[listener])


async def client_left(receive: Receive) -> None:
    """Return once the client has gone. Takes what it still sends."""
    while (await receive())["type"] != "http.disconnect":
        continue
