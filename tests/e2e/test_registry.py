"""MLflow answers 5xx, for a while and for ever: pytest -m chaos tests/e2e/test_registry.py

A real HTTP server stands between the command and the stack's MLflow: it refuses, or hands on.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from infra.storage.store import Store
from tasks.runs.retries import DELAYS_S
from tests.conftest import ROOT
from tests.e2e.conftest import COMMAND_TIMEOUT_S, Stack, options
from tests.support.site import serving

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

DESTINATION = "acme/refused-by-registry"
NAME = f"finetune {DESTINATION}"
IMPATIENT = """
import sys
from tasks.runs import retries
retries.DELAYS_S[:] = [0.1] * len(retries.DELAYS_S)
from deployments.cli import main as cli
sys.exit(cli.main(sys.argv[1:]))
"""
FEW = 3
VERSIONS = "/model-versions/"


class Gate(ThreadingHTTPServer):
    """Answers with 503 until it has refused so many requests for versions, which are those of the step register; then
    it hands on."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.refused, self.refusals = upstream, math.inf, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Gate

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refused > 0:
            if VERSIONS in self.path:
                self.server.refused -= 1
                self.server.refusals += 1
            status, content, kind = 503, b"upstream is away", "text/plain"
        else:
            kept = {name: value for name, value in self.headers.items() if name.lower() in (
                "content-type", "accept", "authorization")}
            answer = httpx.request(self.command, f"{self.server.upstream}{self.path}", content=body, headers=kept,
                                   timeout=60)
            status, content, kind = answer.status_code, answer.content, answer.headers.get("Content-Type", "")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gate(stack: Stack) -> Iterator[Gate]:
    """In front of the stack's MLflow."""
    with serving(Gate(stack.settings.tracking_uri)) as server:
        yield server


def train(stack: Stack, parameters: dict[str, Any], gate: Gate) -> subprocess.CompletedProcess[str]:
    """The command, with a tenth of a second between a step's tries; MLflow's client has none of its own."""
    variables = {"ANNEAL_MLFLOW_URI": gate.url, "PREFECT_API_URL": stack.settings.prefect_api,
                 "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    wanted = {**parameters, "seed": 12, "destination": DESTINATION}
    return subprocess.run(
        [sys.executable, "-c", IMPATIENT, "train", "--json", *options(wanted)],
        cwd=ROOT, env={**os.environ, **stack.environment, **variables}, capture_output=True, text=True,
        timeout=COMMAND_TIMEOUT_S)


def test_a_registry_that_answers_5xx_is_waited_for_and_nothing_is_lost(
    stack: Stack, parameters: dict[str, Any], gate: Gate,
) -> None:
    done = train(stack, parameters, gate)
    assert done.returncode != 0
    assert "finished steps and trained weights are kept" in done.stderr, done.stderr
    run = stack.runs(NAME)[-1]
    assert (stack.steps(run)["train"], stack.steps(run)["register"]) == ("Completed", "Failed")
    assert "start the same again" in stack.prefect(f"/flow_runs/{run}")["state"]["message"]
    assert gate.refusals == len(DELAYS_S) + 1
    assert stack.versions(DESTINATION) == []

    gate.refused = FEW
    done = train(stack, parameters, gate)
    assert done.returncode == 0, done.stderr
    run = stack.runs(NAME)[-1]
    assert (stack.steps(run)["train"], stack.steps(run)["register"]) == ("Cached", "Completed")
    assert gate.refusals == len(DELAYS_S) + 1 + FEW
    (version,) = stack.versions(DESTINATION)
    assert Store(stack.settings).find(f"trainings/{version.tags['training_id']}") is not None
