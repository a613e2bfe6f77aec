"""A gateway on a real port, in a thread of the test's process, and a receiver of its webhooks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import uvicorn

from deployments.gateway.app import create_app
from infra.settings import Settings

ROWS = '{"prompt": "Why? ", "completion": "Because."}\n' * 20
LINEAGE: dict[str, Any] = {"metrics": {
    "rouge": {"tuned": {"rouge1": [0.5, 0.561, 0.62], "rougeL": [0.4, 0.512, 0.6]},
              "base": {"rouge1": [0.3, 0.352, 0.41], "rougeL": [0.2, 0.301, 0.4]}},
    "loss": {"tuned": 1.25, "base": 2.5},
    "compared": {"base": {"metric": "rougeL", "value": 0.512, "other": 0.301, "difference": [0.15, 0.211, 0.27],
                          "outcome": "better", "rows": 50, "won": 40, "lost": 6, "tied": 4}}}}
"""What a version's training.json says of its scores."""


class Running:
    """The service, and a client of it with the key of whoever runs it."""

    def __init__(self, settings: Settings, *, projecting: bool = True) -> None:
        self.settings = settings
        self.app = create_app(settings, projecting=projecting)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_config=None, timeout_graceful_shutdown=3))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.http = self.client(settings.predictor_key)

    def client(self, key: str) -> httpx.Client:
        """A client with another key."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, headers=headers)

    @property
    def here(self) -> Any:
        """What its routes work with."""
        return self.app.state.gateway

    def start(self) -> None:
        """Until it answers."""
        self.thread.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/health/live").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the gateway did not start")

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True
        self.thread.join(30)
        self.http.close()
        self.listener.close()
        assert not self.thread.is_alive()

    def model(self, owner: str = "acme", name: str = "notes") -> None:
        """A destination."""
        made = self.http.post("/v1/models", json={"owner": owner, "name": name, "visibility": "private",
                                                  "hardware": "cpu"})
        assert made.status_code == 201, made.text

    def upload(self, content: str | bytes = ROWS, name: str = "data.jsonl") -> dict[str, Any]:
        """A file, as the clients send it."""
        made = self.http.post("/v1/files", files={"content": (name, content, "application/octet-stream")})
        assert made.status_code == 201, made.text
        return dict(made.json())

    def base(self) -> str:
        """The path under which trainings of the demo's base are made."""
        found = self.http.get("/v1/models/anneal/demo-base/versions").json()["results"][0]["id"]
        return f"/v1/models/anneal/demo-base/versions/{found}/trainings"


@contextlib.contextmanager
def running(settings: Settings, **options: Any) -> Iterator[Running]:
    """A gateway, stopped afterwards."""
    found = Running(settings, **options)
    found.start()
    try:
        yield found
    finally:
        found.stop()


@contextlib.contextmanager
def browser(gateway: Running, key: str) -> Iterator[httpx.Client]:
    """Signed in by its form."""
    with httpx.Client(base_url=gateway.url, trust_env=False, headers={"Accept": "text/html"}, timeout=60) as found:
        answer = found.post("/sign-in", data={"key": key, "next": "/files"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/files")
        yield found


class Receiver:
    """Keeps what it is sent; answers with these statuses, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        answers = list(statuses) or [200]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        receiver = self
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where to send to."""
        return f"http://127.0.0.1:{self.server.server_port}/hook"

    def close(self) -> None:
        """Answer no more."""
        self.server.shutdown()
        self.server.server_close()
