"""tasks/deploy.py: the aliases move last, and nothing moves when the predictor refuses."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from infra.errors import BaseModelError, Broken, GateError, Transient, UserError
from infra.records import Version
from infra.settings import Settings
from tasks import deploy as module
from tasks.deploy import deploy
from tests.support.past import Past

VERSION = Version(destination="acme/summarizer", id="1" * 64, number=2, folder="versions/v", uri="models:/x/2",
                  training_id="t")


class Aliases:
    """Stands in for MLflow: remembers the order in which aliases move."""

    moves: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, settings: Settings) -> None:
        pass

    def number_at(self, alias: str, destination: str) -> int | None:
        return 1

    def point(self, alias: str, destination: str, number: int) -> None:
        self.moves.append((alias, number))

    def tag(self, destination: str, number: int, tags: dict[str, str]) -> None:
        pass


@pytest.fixture(autouse=True)
def aliases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    Aliases.moves = []
    monkeypatch.setattr(module, "Registry", Aliases)
    return Aliases.moves


@pytest.fixture
def predictor() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            status, body = server.answer  # type: ignore[attr-defined]
            server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def with_url(settings: Settings, server: HTTPServer) -> Settings:
    return settings.model_copy(update={"predictor_url": f"http://127.0.0.1:{server.server_port}"})


def test_champion_moves_last(settings: Settings, past: Past, predictor: HTTPServer,
                             aliases: list[tuple[str, int]]) -> None:
    predictor.answer = (200, {"smoke": "hello"})  # type: ignore[attr-defined]
    done = deploy(with_url(settings, predictor), past.spec, VERSION, past.evaluation, past.base)
    assert (done.status, done.smoke) == ("serving", "hello")
    assert aliases == [("previous", 1), ("champion", 2)]
    assert predictor.asked["base_digest"] == past.base.digest  # type: ignore[attr-defined]


@pytest.mark.parametrize(("status", "kind"), [
    (409, Broken), (422, BaseModelError), (503, Transient), (401, UserError)])
def test_a_refusal_moves_nothing_and_is_told(
    settings: Settings, past: Past, predictor: HTTPServer, aliases: list[tuple[str, int]], status: int,
    kind: type[Exception],
) -> None:
    predictor.answer = (status, {"error": "the logits are not finite"})  # type: ignore[attr-defined]
    with pytest.raises(kind, match="the logits are not finite"):
        deploy(with_url(settings, predictor), past.spec, VERSION, past.evaluation, past.base)
    assert aliases == []


def test_a_version_that_fails_the_gate_is_not_deployed(settings: Settings, past: Past) -> None:
    failed = dataclasses.replace(past.evaluation, passed=False, verdict="Significantly worse than the base.")
    with pytest.raises(GateError, match="registered as challenger and was not deployed"):
        deploy(settings, past.spec, VERSION, failed, past.base)


def test_without_a_predictor_the_step_is_skipped_with_a_reason(settings: Settings, past: Past) -> None:
    done = deploy(settings, past.spec, VERSION, past.evaluation, past.base)
    assert done.status == "skipped" and "anneal up" in done.reason


def test_a_predictor_that_does_not_answer_may_be_retried(settings: Settings, past: Past) -> None:
    away = settings.model_copy(update={"predictor_url": "http://127.0.0.1:9"})
    with pytest.raises(Transient, match="does not answer"):
        deploy(away, past.spec, VERSION, past.evaluation, past.base)
