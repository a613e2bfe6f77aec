"""deployments/gateway/webhooks.py against a real receiver."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from deployments.gateway import webhooks as module
from deployments.gateway.context import Gateway
from deployments.gateway.intents import begun
from deployments.gateway.tables import Delivery, Training
from deployments.gateway.webhooks import Sender, enqueue, secrets_of
from infra.settings import Settings
from tests.conftest import wait_for
from tests.support.gateway import Receiver

BODY = {"id": "a", "logs": "caf\u00e9", "status": "succeeded"}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway's database, without a service."""
    found = Gateway(Settings(home=tmp_path, allowed_hosts="127.0.0.1"))
    found.database.migrate()
    yield found
    found.database.close()


def row_for(receiver: Receiver, **more: Any) -> Training:
    values = {
        **begun(), "id": "a" * 26, "owner": "acme", "model": "m/n", "version": "0" * 64, "destination": "acme/notes",
        "input": {}, "spec": {}, "about": {}, "request_hash": "", "idempotency_key": None, "source": "api",
        "base_url": "", "webhook": receiver.url, "webhook_completed": "", "webhook_events": list(module.EVENTS), **more}
    return Training(**values)


def send(here: Gateway, row: Training, *events: str) -> None:
    """Write the events, then look until all are done."""
    with here.database.session() as session:
        for event in events:
            enqueue(session, row, event, BODY)
    sender = Sender(here)

    def done() -> bool:
        sender.look()
        with here.database.session() as session:
            return all(one.done_at for one in session.query(Delivery).all())

    wait_for(done, timeout_s=20)
    sender.close()


def test_a_message_is_signed_compact_and_validated_by_the_standard(here: Gateway) -> None:
    receiver = Receiver()
    send(here, row_for(receiver), "completed")
    ((headers, body),) = receiver.got
    with here.database.session() as session:
        (key,) = secrets_of(session, "acme")
    assert Webhook(key).verify(body, headers) == BODY
    assert body == json.dumps(BODY, ensure_ascii=False, separators=(",", ":")).encode()
    receiver.close()


def test_completed_is_repeated_with_one_id_and_body_until_it_is_taken(
    here: Gateway, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FIRST_DELAYS_S", (0.1, 0.1))
    receiver = Receiver(500, 503, 200)
    send(here, row_for(receiver), "completed")
    assert len(receiver.got) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == len({body for _, body in receiver.got}) == 1
    receiver.close()


def test_other_events_are_sent_once_and_only_those_that_are_wanted(here: Gateway) -> None:
    receiver = Receiver(500)
    send(here, row_for(receiver, webhook_events=["start"]), "start", "logs", "output")
    assert [headers["webhook-id"].split("_")[2] for headers, _ in receiver.got] == ["start"]
    receiver.close()


def test_there_is_one_completed_however_often_it_is_written(here: Gateway) -> None:
    receiver = Receiver()
    send(here, row_for(receiver, webhook_completed=receiver.url), "completed", "completed")
    send(here, row_for(receiver), "completed")
    assert len(receiver.got) == 1
    receiver.close()


def test_both_secrets_sign_for_a_while_after_a_change(here: Gateway) -> None:
    from deployments.gateway.tables import Secret

    receiver = Receiver()
    with here.database.session() as session:
        (old,) = secrets_of(session, "acme")
    with here.database.session() as session:
        session.query(Secret).update({"retired_at": time.time() + 60, "created_at": time.time() - 60})
        session.add(Secret(id="b" * 26, owner="acme", key="whsec_" + "A" * 32, created_at=time.time()))
    send(here, row_for(receiver), "completed")
    ((headers, body),) = receiver.got
    assert headers["webhook-signature"].count("v1,") == 2
    for key in (old, "whsec_" + "A" * 32):
        Webhook(key).verify(body, headers)
    receiver.close()


def test_an_address_that_has_become_private_is_not_connected_to(here: Gateway) -> None:
    receiver = Receiver()
    here.settings = here.settings.model_copy(update={"allowed_hosts": ""})
    send(here, row_for(receiver), "start")
    assert receiver.got == []
    with here.database.session() as session:
        assert "not delivered" in session.query(Delivery).one().answer
    receiver.close()
