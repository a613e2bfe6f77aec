"""No request to the predictor takes its memory, its time or its event loop: pytest tests/security/test_requests.py"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.errors import sentence_in
from tests.conftest import free_port, wait_for
from tests.deployments.predictor.conftest import (
    BASE_DIGEST,
    GREEDY,
    PROMPT,
    STORIES,
    Predictor,
    needs_stories,
    settings_of,
    versions,  # noqa: F401  (a fixture)
)
from tests.support.compose import without_settings

pytestmark = [needs_stories, pytest.mark.slow]
MIB = 1 << 20
KEY = "of the tests"
HEALTH_S = 1.0
"""What the issue allows a health check to take under any load."""
AT_ONCE = 5
GROWTH_BYTES = 700 * MIB
"""Five requests of 1 MiB, two tokenizers at work, and what the allocator keeps."""
POLL = """
import sys, threading, time, urllib.request
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
opener, worst, count = urllib.request.build_opener(urllib.request.ProxyHandler({})), 0.0, 0
while count <= 4 or not stop.is_set():
    for path in ("live", "ready"):
        began = time.monotonic()
        opener.open(f"{sys.argv[1]}/health/{path}", timeout=30).read()
        worst, count = max(worst, time.monotonic() - began), count + 1
        if count == 1:
            print("begun", flush=True)
    time.sleep(0.02)
print(worst)
"""


@dataclass
class Process:
    """A real predictor process that serves a short-sighted and a far-sighted version."""

    pid: int
    url: str

    @property
    def most_bytes(self) -> int:
        """The most memory it ever had."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

    def post(self, body: bytes, kind: str = "application/json", path: str = "/predictions") -> httpx.Response:
        method = "POST" if path == "/predictions" else "PUT"
        headers = {"Content-Type": kind, "Authorization": f"Bearer {KEY}"}
        return httpx.request(method, self.url + path, content=body, headers=headers, timeout=100, trust_env=False)

    def ask(self, model: str = "acme/near", **given: Any) -> httpx.Response:
        return self.post(json.dumps({"model": model, "input": {**GREEDY, **given}}).encode())

    @contextlib.contextmanager
    def healthy(self) -> Iterator[None]:
        """Meanwhile another process asks for its health and is answered in time, each time."""
        poller = subprocess.Popen([sys.executable, "-c", POLL, self.url], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        assert poller.stdout and poller.stdout.readline() == "begun\n"
        try:
            yield
        finally:
            worst = poller.communicate(timeout=60)[0]
        assert float(worst) < HEALTH_S


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, versions: Path) -> Iterator[Process]:  # noqa: F811
    home, port = tmp_path_factory.mktemp("home"), free_port()
    store = Predictor(settings_of(home), versions)

    def far(folder: Path) -> None:
        card = json.loads((folder / "serve.json").read_text())
        (folder / "serve.json").write_text(json.dumps({**card, "context_tokens": 100_000}))

    orders = {"acme/near": store.put("a"), "acme/far": store.put("a", far)}
    store.listener.close()
    settings = {"ANNEAL_HOME": str(home), "ANNEAL_PREDICTOR_PORT": str(port), "ANNEAL_THREADS": "1",
                "ANNEAL_API_KEY": KEY, "ANNEAL_BASE_FOLDERS": str(STORIES)}
    child = subprocess.Popen([sys.executable, "-m", "deployments.predictor"], env={**without_settings(), **settings})
    found = Process(child.pid, f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: answers(found), "the predictor did not start", 100)
        for model, version in orders.items():
            order = {"version": version, "folder": f"versions/{version}", "base_path": str(STORIES),
                     "base_digest": BASE_DIGEST}
            response = found.post(json.dumps(order).encode(), path=f"/deployments/{model}")
            assert response.status_code == 200, response.text
        yield found
    finally:
        child.terminate()
        child.wait(60)


def answers(process: Process) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(process.url + "/health/ready", trust_env=False).status_code == 200
    return False


def padded(start: str, unit: str, end: str = "") -> bytes:
    """A body of just less than 1 MiB."""
    return (start + unit * ((MIB - len(start) - len(end)) // len(unit)) + end).encode()


FACE = "\U0001f642"
KEYS = ", ".join(f'"k{number}": 0' for number in range(80_000))
BODIES = {
    "unknown fields": f'{{"input": {{"prompt": "x"}}, {KEYS}}}'.encode(),
    "unknown fields of the input": f'{{"input": {{"prompt": "x", {KEYS}}}}}'.encode(),
    "one field many times": padded('{"input": {', '"prompt": "x", ', '"prompt": 1}}'),
    "a long name": padded('{"', "n", '": 1, "input": {"prompt": "x"}}'),
    "half a surrogate pair as a name": b'{"input": {"prompt": "x"}, "\\ud800": 1}',
    "deep lists": padded("", "["),
    "deep lists as the prompt": b'{"input": {"prompt": ' + b"[" * 900 + b"]" * 900 + b"}}",
    "deep objects": padded("", '{"a": '),
    "a number of a million digits": padded('{"input": {"prompt": "x", "max_new_tokens": ', "9", "}}"),
    "numbers of thousands of digits": padded('{"input": {"prompt": [', "9" * 4000 + ", ", "1]}}"),
    "a float of a million digits": padded('{"input": {"prompt": "x", "temperature": 0.', "9", "e999999}}"),
    "a million escapes": padded('{"input": {"prompt": "', "\\u0041", '"}}'),
    "a long version": padded('{"input": {"prompt": "x"}, "version": "', "a", '"}'),
    "a long model": padded('{"input": {"prompt": "x"}, "model": "', "a", '"}'),
    "half a million stop sequences": padded('{"input": {"prompt": "x", "stop_sequences": [', "1, ", "1]}}"),
    "a million commas": padded('{"input": {"prompt": "x", "stop_sequences": "', ",", '"}}'),
    "a list": padded("[", "0, ", "0]"),
    "no JSON": padded("", "\x00"),
    "spaces": padded("", " "),
    "no UTF-8": b"\xff" * (MIB - 1),
    "a large template": padded('{"input": {"prompt": "x", "prompt_template": "', "{prompt} ", '"}}'),
    "one letter": padded('{"model": "acme/near", "input": {"prompt": "', "a", '"}}'),
    "one letter for a long context": padded('{"model": "acme/far", "input": {"prompt": "', "a", '"}}'),
    "spaces for a long context": padded('{"model": "acme/far", "input": {"prompt": "', " ", '"}}'),
    "accents for a long context": padded('{"model": "acme/far", "input": {"prompt": "e', "\\u0301", '"}}'),
    "faces for a long context": f'{{"model": "acme/far", "input": {{"prompt": "{FACE * 262_000}"}}}}'.encode(),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_body_that_is_made_to_hurt_is_refused_and_nobody_waits(process: Process, what: str) -> None:
    before = process.most_bytes
    with process.healthy(), ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(process.post, [BODIES[what]] * AT_ONCE))
        assert process.ask().status_code == 200
    assert {response.status_code for response in found} <= {422, 404}
    assert all(0 < len(sentence_in(response.content, "")) < 800 for response in found)
    assert process.most_bytes < before + GROWTH_BYTES


@pytest.mark.parametrize("kind", [
    "text/plain", "", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/jsonp",
    "a" * 5000])
def test_another_content_type_is_refused_unread(process: Process, kind: str) -> None:
    with process.healthy():
        response = process.post(BODIES["unknown fields"], kind)
    assert response.status_code == 422 and "application/json" in sentence_in(response.content, "")
    assert len(sentence_in(response.content, "")) < 300


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_json_in_another_encoding_is_read_as_before(process: Process, encoding: str) -> None:
    body = json.dumps({"model": "acme/near", "input": GREEDY}).encode(encoding)
    assert process.post(body, "application/json; charset=utf-8").status_code == 200


@pytest.mark.parametrize(("place", "times"), [
    ("prompt", 10_000), ("prompt", 100_000), ("system_prompt", 10_000), ("system_prompt", 60_000)])
def test_a_template_that_repeats_the_prompt_is_measured_before_it_is_filled(
    process: Process, place: str, times: int,
) -> None:
    before, began = process.most_bytes, time.monotonic()
    given = {"prompt": "p" * 1000, "system_prompt": "s" * 1000,
             "prompt_template": "{prompt}" + f"{{{place}}}" * times}
    with process.healthy(), ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda _: process.ask(**given), range(AT_ONCE)))
        assert process.ask().status_code == 200
    assert all(response.status_code == 422 for response in found)
    assert "its template included; expected at most 2097152 bytes" in sentence_in(found[0].content, "")
    assert process.most_bytes < before + GROWTH_BYTES and time.monotonic() < began + 30


def test_a_repeated_prompt_that_fits_is_answered(process: Process) -> None:
    template = "{prompt}" + " {system_prompt}" * 5000
    assert process.ask(prompt=PROMPT, prompt_template=template, system_prompt="", model="acme/far").status_code == 200


def test_a_long_prompt_holds_up_no_short_one(process: Process) -> None:
    body = BODIES["one letter for a long context"]
    with process.healthy(), ThreadPoolExecutor(8) as pool:
        long = [pool.submit(process.post, body) for _ in range(8)]
        meanwhile = 0
        while not all(future.done() for future in long):
            assert process.ask("acme/far").status_code == 200
            meanwhile += 1
    assert meanwhile > 3, "short ones wait until the long ones are done"
    assert {future.result().status_code for future in long} == {422}


def test_a_number_without_end_costs_only_the_request_that_holds_it(process: Process) -> None:
    huge = 10 ** 4000
    with ThreadPoolExecutor(4) as pool:
        asked = [{"temperature": 1.0, "top_k": huge}, {}, {"max_new_tokens": huge}, {}]
        found = list(pool.map(lambda given: process.ask(**{"max_new_tokens": 16, **given}), asked))
    assert [response.json()["status"] for response in found] == ["succeeded"] * 4
    for field in ("temperature", "top_p", "seed"):
        given: dict[str, Any] = {field: huge}
        assert process.ask("acme/near", **given).status_code == 422


@pytest.mark.parametrize("what", ["unknown fields", "deep lists", "a number of a million digits", "a million escapes"])
def test_an_order_that_is_made_to_hurt_is_refused_and_nobody_waits(process: Process, what: str) -> None:
    with process.healthy(), ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda _: process.post(BODIES[what], path="/deployments/acme/new"), range(AT_ONCE)))
    assert {response.status_code for response in found} == {422}
    assert all(response.json()["error"] == sentence_in(response.content, "") for response in found)
    assert all(len(sentence_in(response.content, "")) < 800 for response in found)
