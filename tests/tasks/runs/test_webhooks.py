"""tasks/runs/webhooks.py against a real receiver: signed, repeated until taken, told once."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from standardwebhooks import Webhook

from infra.errors import UserError
from infra.settings import Settings
from infra.storage.store import Store
from tasks.runs import webhooks as module
from tasks.runs.webhooks import _after_s, notify, webhook_of

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
RUN = UUID("11111111-2222-4333-8444-555555555555")


class Receiver:
    """Answers with the given statuses, the last one for ever, and keeps what it got."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[tuple[dict[str, str], str]] = []
        answers = list(statuses)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(answers.pop(0) if len(answers) > 1 else answers[0])
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        receiver = self
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receivers() -> Iterator[list[Receiver]]:
    made: list[Receiver] = []
    yield made
    for receiver in made:
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.fixture
def rounds(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, receivers: list[Receiver],
) -> Any:
    """Run that many rounds against a receiver, with every wait over at once; returns it and what was said."""

    def go(count: int, *statuses: int, ended: timedelta = timedelta(minutes=1), wait_s: float = 0.0) -> Any:
        receivers.append(Receiver(*statuses))
        state = State(type=StateType.COMPLETED, name="Completed", timestamp=datetime.now(UTC) - ended)
        run = FlowRun(id=RUN, name="finetune acme/notes", flow_id=uuid4(), state=state, run_count=2,
                      parameters={"training": {"destination": "acme/notes"}})
        monkeypatch.setattr(module, "runs_in", lambda *_, **__: [run])
        monkeypatch.setattr(module, "DELAYS_S", tuple(wait_s for _ in module.DELAYS_S))
        there = settings.model_copy(update={"webhook_url": receivers[-1].url, "webhook_secret": SECRET})
        client: Any = None
        return receivers[-1], [said for _ in range(count) for said in notify(there, client, store)]

    return go


def test_the_signature_is_the_published_one() -> None:
    sent = datetime.fromtimestamp(1614265330, UTC)
    signed = webhook_of(SECRET).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", sent, '{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_signatures_agree_with_the_shared_vectors(shared: Path) -> None:
    vectors = json.loads((shared / "data" / "webhook_vectors" / "vectors.json").read_text())
    signed = [v for v in vectors if v["valid"] and " " not in v["headers"].get("webhook-signature", " ")]
    assert signed
    for vector in signed:
        headers = vector["headers"]
        sent = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        assert webhook_of(vector["secret"]).sign(
            headers["webhook-id"], sent, vector["body"]) == headers["webhook-signature"], vector["id"]


@pytest.mark.parametrize("kind", [StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED])
def test_the_message_says_how_the_run_ended(kind: StateType) -> None:
    state = State(type=kind, name=kind.value.title(), message="why", timestamp=datetime.now(UTC))
    run = FlowRun(id=RUN, name="finetune acme/notes", flow_id=uuid4(), state=state, run_count=2,
                  parameters={"training": {"destination": "acme/notes"}})
    told = json.loads(module.message_of(run).body)
    assert told["type"] == f"run.{kind.value.lower()}"
    assert (told["data"]["state"], told["data"]["message"]) == (kind.value.title(), "why")


def test_a_look_at_data_is_not_told(rounds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "only_looked", lambda run: True)
    receiver, said = rounds(1, 200)
    assert receiver.got == said == []


@pytest.mark.parametrize("drips", ["head", "body"])
def test_a_receiver_that_drips_keeps_nobody_waiting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, drips: str,
) -> None:
    """A minute for its answer, or for what nobody reads of it."""
    monkeypatch.setattr(module, "DEADLINE_S", 1.0)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n"
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                if drips == "body":
                    connection.sendall(head)
                for byte in head * 12:
                    connection.sendall(bytes([byte]))
                    if over.wait(0.1):
                        return

        answering = threading.Thread(target=answer)
        answering.start()
        began = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        found = module.deliver(settings, url, module.Message("m", "{}"), webhook_of(SECRET), is_own=True)
        took = time.monotonic() - began
        over.set()
        answering.join()
    assert (found.said, found.is_over) == (
        ("delivered (HTTP 200)", True) if drips == "body" else ("not delivered (no answer within 1 s)", False))
    assert took < 5


def test_an_ended_run_is_told_once(rounds: Any) -> None:
    receiver, said = rounds(3, 200)
    assert said == ["finetune acme/notes: delivered (HTTP 200)"]
    ((headers, body),) = receiver.got
    told = Webhook(SECRET).verify(body, headers)
    assert (told["type"], told["data"]["model"], told["data"]["attempts"]) == ("run.completed", "acme/notes", 2)


def test_a_refused_message_is_sent_again_under_the_same_id(rounds: Any) -> None:
    receiver, said = rounds(5, 500, 302, 200)
    assert [line.split(": ")[1] for line in said] == [
        "not delivered (HTTP 500), again in 0 s", "not delivered (HTTP 302), again in 0 s", "delivered (HTTP 200)"]
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({body for _, body in receiver.got}) == 1


def test_it_waits_before_it_tries_again(rounds: Any) -> None:
    receiver, _ = rounds(3, 500, wait_s=60.0)
    assert len(receiver.got) == 1


@pytest.mark.parametrize(("value", "least_s", "most_s"), [
    ("120", 120, 120), ("99999999999", 86_400, 86_400), (str(10**400), 86_400, 86_400), ("soon", 0, 0), ("", 0, 0),
    ("\u00b2", 0, 0), ("-5", 0, 0), ("1e3", 0, 0), ("in 600 s", 590, 600), ("600 s ago", 0, 0)])
def test_retry_after_is_a_number_or_a_date(value: str, least_s: float, most_s: float) -> None:
    at = time.time() + (600 if value == "in 600 s" else -600)
    given = formatdate(at, usegmt=True) if value.endswith(("600 s", "ago")) else value
    assert least_s <= _after_s(given) <= most_s


def test_a_receiver_that_is_gone_is_left_alone(rounds: Any) -> None:
    receiver, said = rounds(3, 410)
    assert len(receiver.got) == 1
    assert said == ["finetune acme/notes: not delivered (HTTP 410)"]


def test_it_gives_up_after_the_last_delay(rounds: Any) -> None:
    receiver, _ = rounds(20, 500)
    assert len(receiver.got) == len(module.DELAYS_S) + 1


def test_runs_that_ended_before_there_was_a_webhook_are_not_told(rounds: Any) -> None:
    receiver, _ = rounds(1, 200, ended=timedelta(days=2))
    assert receiver.got == []


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "not base64!" * 5])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(UserError, match="ANNEAL_WEBHOOK_SECRET"):
        webhook_of(secret)


def test_without_an_address_nothing_is_asked(settings: Settings, store: Store) -> None:
    client: Any = None
    assert list(notify(settings, client, store)) == []
