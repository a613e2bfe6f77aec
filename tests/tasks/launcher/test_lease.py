"""What a server that is busy costs whoever wants GPU slots: pytest tests/tasks/launcher/test_lease.py"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID, uuid4

import httpx
import pytest

from tasks.launcher import lease as leases
from tests.conftest import free_port

LEASE = uuid4()


class Server(ThreadingHTTPServer):
    """Answers requests for slots with these statuses, then with a lease."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.statuses: list[int] = []
        self.asked = 0


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        body = json.dumps({"lease_id": str(LEASE), "limits": []}).encode()
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    site = Server()
    threading.Thread(target=site.serve_forever, args=(0.05,), daemon=True).start()
    yield site
    site.shutdown()
    site.server_close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of this thread, which take no time here; others sleep as ever."""
    waits: list[float] = []
    here, sleep = threading.get_ident(), time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: waits.append(s) if threading.get_ident() == here else sleep(s))
    return waits


def take(server: Server, hasty_port: int | None = None) -> UUID | None:
    """As a run does; the hasty client may meet another server."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with ExitStack() as clients:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            client = clients.enter_context(get_client(sync_client=True))
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{hasty_port or server.server_port}/api"}):
            hasty = clients.enter_context(leases.hasty_client())
        return leases.take(client, hasty, "gpu-here", 1)


def test_a_server_whose_database_was_beaten_is_asked_again_at_once(server: Server, slept: list[float]) -> None:
    server.statuses = [503, 503]
    assert take(server) == LEASE
    assert server.asked == 3
    assert slept == [*leases.BUSY_DELAYS_S[:2]], "Prefect's own client would have waited for seconds"


def test_a_server_that_stays_busy_is_given_the_patience_of_prefects_client(server: Server, slept: list[float]) -> None:
    server.statuses = [503] * (len(leases.BUSY_DELAYS_S) + 1)
    assert take(server) == LEASE
    quick, patient = slept[:len(leases.BUSY_DELAYS_S)], slept[len(leases.BUSY_DELAYS_S):]
    assert quick == [*leases.BUSY_DELAYS_S]
    assert len(patient) == 1
    assert patient[0] > 1


def test_a_server_that_is_away_is_left_to_the_patient_client(server: Server, slept: list[float]) -> None:
    assert take(server, hasty_port=free_port()) == LEASE
    assert not set(leases.BUSY_DELAYS_S).intersection(slept)


def test_slots_that_are_taken_are_none(server: Server, slept: list[float]) -> None:
    server.statuses = [423]
    assert take(server) is None
    assert (server.asked, slept) == (1, [])


def test_what_is_wrong_with_the_request_is_raised(server: Server, slept: list[float]) -> None:
    server.statuses = [422]
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        take(server)
    assert (server.asked, slept) == (1, [])
