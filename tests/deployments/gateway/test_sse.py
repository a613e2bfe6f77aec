"""deployments/gateway/sse.py by the client's own decoder, and the predictor's events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from replicate.client import Client
from replicate.stream import EventSource

from deployments.gateway.sse import Encoder, events, pieces


def decoded(stream: bytes) -> list[str]:
    """What the client 1.0.7 makes of it."""
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    return [str(event) for event in EventSource(Client(api_token="x"), answer)]


@pytest.mark.parametrize("text", ["a", " b", "a\n", "\n", "a\n\nb", "", "caf\u00e9 \U0001f600", "data", "x data: y"])
def test_a_piece_arrives_as_it_was(text: str) -> None:
    encoder = Encoder()
    assert decoded(encoder.event("output", text) + encoder.event("done", "{}")) == [text, ""]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\r"])
def test_other_line_ends_become_line_breaks_and_lose_no_text(sign: str) -> None:
    encoder = Encoder()
    assert decoded(encoder.event("output", f"a{sign}b") + encoder.event("done", "{}"))[0] == "a\nb"


@pytest.mark.parametrize("text", ["https://a/b", "data:x", "HTTPS:", "DATA:"])
def test_a_piece_that_looks_like_a_file_is_cut(text: str) -> None:
    """R13: the client takes it for a file, and fails."""
    encoder = Encoder()
    stream = b"".join(encoder.event("output", piece) for piece in pieces(text)) + encoder.event("done", "{}")
    assert "".join(decoded(stream)) == text


def test_the_predictors_events_may_come_in_any_pieces_and_hold_any_sign() -> None:
    data = json.dumps({"chunk": "a\u2028"}, ensure_ascii=False)
    stream = f"event: output\r\ndata: {data}\r\n\r\n: ping\r\n\r\n"

    async def found(size: int) -> list[object]:
        async def chunks() -> AsyncIterator[bytes]:
            whole = stream.encode()
            for start in range(0, len(whole), size):
                yield whole[start:start + size]

        return [one async for one in events(chunks())]

    for size in (1, 7, 1000):
        assert asyncio.run(found(size)) == [("output", {"chunk": "a\u2028"})]
