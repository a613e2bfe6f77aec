"""tasks/predict.py against a small predictor: every row once, in order, whatever the rows hold."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DataError, Transient, UserError
from infra.settings import Settings
from infra.storage.store import Store
from tasks.ingest import ingest
from tasks.predict import answer, connected, find_answers, prediction_key, version_of
from tasks.runs.locks import exclusive_lock

VERSION = "ab" * 32


class Predictor:
    """Echoes prompts in upper case; after `fail_after` answers it says `status`."""

    def __init__(self, fail_after: int = 10**9, status: int = 503) -> None:
        self.asked: list[str] = []
        predictor = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.say(200, {"models": {"acme/notes": {"version": VERSION}}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                predictor.asked.append(body["input"]["prompt"])
                if len(predictor.asked) > fail_after:
                    return self.say(status, {"detail": "no"})
                assert body["version"] == VERSION
                return self.say(200, {"output": list(body["input"]["prompt"].upper()), "error": None})

            def say(self, status: int, body: dict[str, Any]) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64  # all rows under way at once

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"predictor_url": f"http://127.0.0.1:{self.server.server_port}"})


@pytest.fixture
def predictors() -> Iterator[list[Predictor]]:
    made: list[Predictor] = []
    yield made
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def rows_of(store: Store, folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.fetch(folder) / "answers.jsonl").read_text().splitlines()]


def test_every_row_is_answered_in_its_order_whatever_it_holds(
    settings: Settings, store: Store, tmp_path: Path, predictors: list[Predictor],
) -> None:
    rows = [{"prompt": f"row {n}", "line": 1, "row": "mine"} for n in range(70)]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    data = ingest(settings, store, str(tmp_path / "p.jsonl"))
    predictors.append(Predictor())
    found = answer(predictors[0].settings(settings), store, data, VERSION, {})
    assert found.rows == 70
    assert rows_of(store, found.folder) == [{**row, "output": str(row["prompt"]).upper()} for row in rows]
    assert find_answers(store, data, VERSION, {}) == found
    assert find_answers(store, data, VERSION, {"temperature": 1.0}) is None


@pytest.mark.parametrize(("status", "kind"), [(503, Transient), (500, Transient), (429, Transient), (422, UserError)])
def test_rows_that_were_answered_are_not_asked_again(
    settings: Settings, store: Store, tmp_path: Path, predictors: list[Predictor], status: int, kind: type[Exception],
) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"row {n}"}) + "\n" for n in range(70)))
    data = ingest(settings, store, str(tmp_path / "p.jsonl"))
    predictors += [Predictor(fail_after=40, status=status), Predictor()]
    with pytest.raises(kind):
        answer(predictors[0].settings(settings), store, data, VERSION, {})
    part = settings.home_path / "predictions" / f"{prediction_key(VERSION, data, {})}.jsonl"
    kept = part.read_bytes()
    part.write_bytes(kept + b'{"line": 99, "ro')  # it died in the middle of a line
    found = answer(predictors[1].settings(settings), store, data, VERSION, {})
    assert found.rows == 70
    assert len(predictors[1].asked) == 70 - kept.count(b"\n") < 70
    assert not part.exists()


def test_a_second_process_does_not_write_between_the_rows(
    settings: Settings, store: Store, tmp_path: Path, predictors: list[Predictor],
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    data = ingest(settings, store, str(tmp_path / "p.jsonl"))
    predictors.append(Predictor())
    lock = settings.home_path / "predictions" / f"{prediction_key(VERSION, data, {})}.lock"
    with exclusive_lock(lock, "x"), pytest.raises(UserError, match="another process"):
        answer(predictors[0].settings(settings), store, data, VERSION, {})


def test_a_row_without_a_prompt_is_named(
    settings: Settings, store: Store, tmp_path: Path, predictors: list[Predictor],
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n\n{"text": "b"}\n')
    data = ingest(settings, store, str(tmp_path / "p.jsonl"))
    predictors.append(Predictor())
    with pytest.raises(DataError, match="line 3"):
        answer(predictors[0].settings(settings), store, data, VERSION, {})


def test_a_model_that_nobody_serves_is_refused_with_those_that_are(
    settings: Settings, predictors: list[Predictor],
) -> None:
    predictors.append(Predictor())
    with connected(predictors[0].settings(settings)) as client:
        assert version_of(client, "acme/notes") == VERSION
        with pytest.raises(UserError, match="acme/notes"):
            version_of(client, "acme/other")
