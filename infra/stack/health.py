"""Ask a service of this machine whether it works, for a limited time.

In:   its address              Out: a `Reply`, or the `Condition` that it is in
A server may take a connection and say nothing, or send its answer byte by byte: what is not there in time counts as no
answer. Proxies are not asked. Leaves nothing on disk.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import h11

State = Literal["running", "not ready", "not answering", "stopped"]
ANSWER_TIMEOUT_S = 2
RECEIVED_BYTES = 1 << 16


class Condition(NamedTuple):
    """How a service fares, and what is wrong with it, if anything is."""

    state: State
    reason: str = ""


class Reply(NamedTuple):
    """What a server answered: 0 and nothing if it did not, or not to the end."""

    status: int = 0
    body: bytes = b""


def get_within(url: str, timeout_s: float) -> Reply:
    """The whole answer to a GET over http://, if it is there within that time."""
    parts, deadline = urlsplit(url), time.monotonic() + timeout_s
    client, status, body = h11.Connection(h11.CLIENT), 0, b""
    fields = [("Host", parts.netloc), ("Accept", "*/*"), ("Connection", "close")]
    request = client.send(h11.Request(method="GET", target=parts.path or "/", headers=fields)) or b""
    request += client.send(h11.EndOfMessage()) or b""
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout_s) as connection:
            connection.sendall(request)
            while not isinstance(event := client.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
                if event is h11.NEED_DATA:
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
                    client.receive_data(connection.recv(RECEIVED_BYTES))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
                if time.monotonic() > deadline:
                    return Reply()
    except (OSError, h11.ProtocolError):
        return Reply()
    return Reply(status, body)


def readiness(predictor: str) -> Condition:
    """Whether every version that the predictor at this address should serve is loaded."""
    status, body = get_within(f"{predictor}/health/ready", ANSWER_TIMEOUT_S)
    try:
        said = json.loads(body)
        failed = {str(model): " ".join(str(why).split()) for model, why in said.get("failed", {}).items()}
    except (ValueError, AttributeError):
        return Condition("not ready", "its /health/ready does not answer")
    if failed:
        return Condition("not ready", "; ".join(f"{model} did not load: {why}" for model, why in failed.items()))
    return Condition("running") if status == 200 else Condition("not ready", f"it says that it is {said.get('status')}")
