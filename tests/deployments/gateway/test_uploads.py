"""deployments/gateway/uploads.py: forms as clients send them, however they are cut on their way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from deployments.gateway.uploads import Upload, receive_form
from tests.support.gateway import ROWS, Running, browser

KIND = "multipart/form-data; boundary=b"
NAMES = ("daten.jsonl", "\u30c7\u30fc\u30bf.jsonl", "caf\u00e9 \U0001f408.jsonl", 'quo"te.jsonl', "a;b.jsonl")


def form(name: str, value: str) -> bytes:
    quoted = name.replace('"', "%22")  # as the standard of forms has it
    return (f'--b\r\nContent-Disposition: form-data; name="purpose\u00fc"\r\n\r\n{value}\r\n'
            f'--b\r\nContent-Disposition: form-data; name="content"; filename="{quoted}"\r\n'
            f"Content-Type: text/plain\r\n\r\nrows\r\n--b--\r\n").encode()


def received(body: bytes, folder: Path, *cuts: int) -> Upload:
    async def pieces() -> AsyncIterator[bytes]:
        places = [0, *cuts, len(body)]
        for start, end in pairwise(places):
            yield body[start:end]

    return asyncio.run(receive_form(pieces(), KIND, folder, file_part="content", limit=100))


@pytest.mark.parametrize("name", NAMES)
def test_a_form_is_the_same_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    body = form(name, "ein \U0001f408 f\u00fcr \u30c7")
    for cut in range(1, len(body)):
        found = received(body, tmp_path, cut)
        assert (found.name, found.bytes, found.content_type) == (name.replace('"', "%22"), 4, "text/plain")
        assert found.fields == {"purpose\u00fc": "ein \U0001f408 f\u00fcr \u30c7"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["application/json", "text/\u30c7", "text/plain\u00e9"])
def test_a_file_of_any_name_and_kind_is_kept_and_comes_back(gateway: Running, name: str, kind: str) -> None:
    body = form(name, "x").replace(b"text/plain", kind.encode()).replace(b"rows", ROWS.encode())
    made = gateway.http.post("/v1/files", content=body, headers={"Content-Type": KIND})
    assert made.status_code == 201, made.text
    with browser(gateway, "the-key") as client:
        back = client.get(f"/files/{made.json()['id']}/content")
    assert back.status_code == 200 and back.text == ROWS
    assert back.headers["content-type"].startswith("application/")
