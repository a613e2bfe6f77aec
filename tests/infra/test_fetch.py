"""infra/fetch.py: data from the web, and not from our own network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from infra.errors import DataError, Transient
from infra.fetch import check_address, headers_of, open_https, without_secrets
from infra.settings import Settings

BODY = b'{"text": "hello"}\n' * 1000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        code = {"/missing": 404, "/busy": 503, "/moved": 302}.get(self.path, 200)
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/data.jsonl")
        self.send_header("Content-Length", str(len(BODY) * (2 if self.path == "/cut" else 1)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_HEAD(self) -> None:
        self.send_response({"/missing": 404, "/moved": 302}.get(self.path, 200))
        self.send_header("Location" if self.path == "/moved" else "ETag", "/data.jsonl")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def private(settings: Settings) -> Settings:
    return settings.model_copy(update={"allow_private_hosts": True})


@pytest.mark.parametrize("path", ["/data.jsonl", "/moved"])
def test_the_body_streams(site: str, private: Settings, path: str) -> None:
    with open_https(site + path, private) as body:
        assert body.read() == BODY


@pytest.mark.parametrize(("path", "kind"), [("/missing", DataError), ("/busy", Transient), ("/cut", Transient)])
def test_failures_are_told_apart(site: str, private: Settings, path: str, kind: type[Exception]) -> None:
    with pytest.raises(kind), open_https(site + path, private) as body:
        body.read()


@pytest.mark.parametrize("address", [
    "http://example.com/x", "https://127.0.0.1/x", "https://localhost/x", "https://169.254.169.254/latest",
    "https://10.0.0.1/x", "https://[::1]/x", "https://100.64.0.1/x", "https://[::ffff:127.0.0.1]/x"])
def test_private_addresses_and_plain_http_are_refused(settings: Settings, address: str) -> None:
    with pytest.raises(DataError):
        check_address(address, settings)


def test_a_shown_address_has_no_secrets() -> None:
    assert without_secrets("https://me:pw@host:8443/a/b.jsonl?sig=abc#x") == "https://host:8443/a/b.jsonl"
    assert without_secrets("s3://me:pw@bucket/a@b/day=?/#1.jsonl") == "s3://bucket/a@b/day=?/#1.jsonl"


def test_headers_come_without_the_file_and_by_the_same_guard(site: str, private: Settings, settings: Settings) -> None:
    assert headers_of(f"{site}/moved", private)["ETag"] == "/data.jsonl"
    with pytest.raises(DataError, match="404"):
        headers_of(f"{site}/missing", private)
    with pytest.raises(DataError, match="https"):
        headers_of(f"{site}/data.jsonl", settings)
