"""The predictor as a process of its own, asked by the official client of OpenAI: python -m deployments.predictor."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import free_port
from tests.deployments.predictor.conftest import BASE_DIGEST, STORIES, Predictor, needs_stories, settings_of
from tests.deployments.predictor.test_openai import TALK, speaks

pytestmark = [needs_stories, pytest.mark.slow]


@pytest.fixture
def process(tmp_path: Path, versions: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its address; it serves acme/chat."""
    port, maker = free_port(), Predictor(settings_of(tmp_path), versions)
    version = maker.put("b", speaks)
    maker.listener.close()
    maker.http.close()
    variables = {"ANNEAL_HOME": str(tmp_path), "ANNEAL_PREDICTOR_PORT": str(port), "ANNEAL_REQUIRE_SECRET": "false",
                 "ANNEAL_BASE_FOLDERS": str(STORIES)}
    child = subprocess.Popen([sys.executable, "-m", "deployments.predictor"], env={**os.environ, **variables})
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200:
                    break
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        body = {"version": version, "folder": f"versions/{version}", "base_path": str(STORIES),
                "base_digest": BASE_DIGEST}
        assert httpx.put(f"{url}/deployments/acme/chat", json=body, timeout=60, trust_env=False).is_success
        yield child, url
    finally:
        child.kill()
        child.wait()


def test_a_conversation_under_way_ends_whole_when_the_process_is_told_to_stop(
    process: tuple[subprocess.Popen[bytes], str],
) -> None:
    child, url = process
    client = openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
    asked: dict[str, Any] = {"model": "acme/chat", "messages": TALK, "temperature": 0, "max_tokens": 60}
    whole = client.chat.completions.create(**asked).choices[0]
    stream = iter(client.chat.completions.create(**asked, stream=True))
    first = next(stream)
    child.terminate()
    pieces = [chunk.choices[0] for chunk in (first, *stream)]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].finish_reason == whole.finish_reason and child.wait(60) in (0, -15)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
