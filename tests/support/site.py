"""A web server for tests that cuts, lies, stalls and changes its file on demand."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import pytest

from infra.settings import Settings

Server = TypeVar("Server", bound=ThreadingHTTPServer)
BODY = random.Random(7).randbytes(300_000)
ETAG = {"ETag": '"one"'}


class Site(ThreadingHTTPServer):
    """Serves `body`. Each of `ends` is how the next answer ends too early: a number of bytes, then a cut or a stall."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.version, self.later = BODY, dict(ETAG), {}
        self.ends: list[int | tuple[int, str]] = []
        self.statuses: list[int] = []
        self.surplus, self.extra = b"", {}
        self.has_parts = self.minds_version = self.has_length = True
        self.is_chunked = False
        self.closing = threading.Event()
        self.asked: list[dict[str, str]] = []

    version: dict[str, str]
    later: dict[str, Any]
    """What is different from the second answer on."""
    extra: dict[str, str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.jsonl"

    @property
    def asked_from(self) -> list[str]:
        return [request.get("Range", "") for request in self.asked]

    def handle_error(self, *_: object) -> None:
        pass  # a client that hung up


class Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site, wanted = self.server, self.headers.get("Range", "")
        if site.asked:
            vars(site).update(site.later)
        site.asked.append(dict(self.headers))
        same = not site.minds_version or self.headers.get("If-Range") in site.version.values()
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.has_parts and same else 0
        status = site.statuses.pop(0) if site.statuses else 302 if self.path == "/moved" else 206 if first else 200
        self.send_response(416 if first >= len(site.body) else status)
        rest = memoryview(site.body)[first:]
        fields = {**site.version, "Content-Length": str(len(rest)), "Location": "/data.jsonl"}
        if status == 206:
            fields["Content-Range"] = f"bytes {first}-{len(site.body) - 1}/{len(site.body)}"
        if site.is_chunked:
            fields["Transfer-Encoding"] = "chunked"
        for name, value in (fields | site.extra).items():
            if name != "Content-Length" or (site.has_length and not site.is_chunked):
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(rest)

    do_HEAD = do_GET

    def _send(self, rest: memoryview) -> None:
        end = self.server.ends.pop(0) if self.server.ends else len(rest)
        size, how = end if isinstance(end, tuple) else (end, "cut")
        if self.server.is_chunked:
            self.wfile.write(b"%x\r\n" % len(rest))
        self.wfile.write(rest[:size])
        if self.server.is_chunked and size == len(rest):
            self.wfile.write(b"\r\n0\r\n\r\n")
        self.wfile.write(self.server.surplus)
        if how == "stall":
            self.server.closing.wait()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run it in a thread for as long as the block lasts."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as server:
        yield server
        server.closing.set()


@pytest.fixture
def private(settings: Settings) -> Settings:
    return settings.model_copy(update={"allow_private_hosts": True})
