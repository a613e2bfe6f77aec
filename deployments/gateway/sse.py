"""Server-sent events: ours for Replicate's clients, and those of the predictor.

Replicate's clients drop events before an id, split lines at more signs than the standard names (U+2028, U+0085, ...),
and break on a piece that begins like an address of a file.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

FILE_LIKE = ("data:", "https:")


class Encoder:
    """Events of one stream."""

    def __init__(self) -> None:
        self._began, self._count = int(time.time()), 0

    def event(self, name: str, data: str) -> bytes:
        """One event, with an id of its own."""
        lines = data.splitlines() or [""]
        if data[-1:] in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029" and data:
            lines.append("")
        text = "".join(f"data: {line}\n" for line in lines)
        identity = f"{self._began}:{self._count}"
        self._count += 1
        return f"event: {name}\nid: {identity}\n{text}\n".encode()


COMMENT = b": still there\n\n"


def pieces(text: str) -> Iterator[str]:
    """A piece of an answer, cut where it would be taken for a file."""
    if text.lower().startswith(FILE_LIKE):
        yield text[:1]
        text = text[1:]
    if text:
        yield text


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The predictor's events: their names and JSON objects.

    Lines end at line feeds alone here: the JSON may hold other signs at which httpx would end one.
    """
    name, data = "", []
    async for line in _lines(chunks):
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield name, json.loads("\n".join(data))
            name, data = "", []


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode()
