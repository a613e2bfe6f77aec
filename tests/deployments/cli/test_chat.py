"""deployments/cli/chat.py against a server that answers as the predictor does."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deployments.cli import main as cli


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Requests to a predictor that counts the messages; it fails at the word "fail" and breaks off at "break"."""
    found: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.append((self.path, body))
            last = body["messages"][-1]["content"]
            self.send_response(404 if body["model"] == "no/such" else 200)
            self.end_headers()
            if body["model"] == "no/such":
                self.wfile.write(b'{"error": {"message": "not served here"}}')
                return
            texts = [{"delta": {"role": "assistant", "content": ""}},
                     {"delta": {"content": f"{len(body['messages'])}"}}, {"delta": {"content": " said"}},
                     {"delta": {}, "finish_reason": "stop"}]
            events: list[Any] = [{"choices": [one]} for one in texts]
            events += [{"error": {"message": "no memory"}}] if last == "fail" else []
            lines = [json.dumps(one) for one in events] + (["[DONE]"] if last not in ("fail", "break") else [])
            self.wfile.write("".join(f": ping\r\n\r\ndata: {line}\r\n\r\n" for line in lines).encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ANNEAL_PREDICTOR_URL", f"http://127.0.0.1:{server.server_port}")
    yield found
    server.shutdown()
    server.server_close()


def says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_each_message_is_sent_with_all_that_was_said(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    says(monkeypatch, "And then?\n\n")
    assert cli.main(["predict", "a/b", "Hi", "--chat", "--system-prompt", "Be kind", "--temperature", "0",
                     "--max-new-tokens", "9", "--stop-sequences", "x,y"]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == ["2 said", "4 said"]
    path, body = asked[-1]
    assert path == "/v1/chat/completions" and body.items() >= {
        "model": "a/b", "temperature": 0.0, "max_tokens": 9, "stop": ["x", "y"]}.items()
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        ("system", "Be kind"), ("user", "Hi"), ("assistant", "2 said"), ("user", "And then?")]


def test_json_is_the_whole_conversation(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    says(monkeypatch, "one\ntwo\n")
    assert cli.main(["predict", "a/b", "--chat", "--json"]) == 0
    messages = json.loads(capsys.readouterr().out)["messages"]
    assert [m["content"] for m in messages] == ["one", "1 said", "two", "3 said"]


@pytest.mark.parametrize(("arguments", "text", "code", "sentence"), [
    (["no/such", "Hi"], "", 2, "not served here"), (["a/b", "fail"], "", 1, "no memory"),
    (["a/b", "break"], "", 1, "broke off"), (["a/b", "Hi", "--tools", "[]"], "", 2, "--tools and --chat"),
    (["a/b", "Hi", "--prompt-template", "{prompt}"], "", 2, "--prompt-template and --chat")])
def test_what_goes_wrong_is_one_sentence(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    text: str, code: int, sentence: str,
) -> None:
    says(monkeypatch, text)
    assert cli.main(["predict", "--chat", *arguments]) == code
    assert sentence in capsys.readouterr().err
