"""Webhooks: written with what they tell of, sent until they are taken.

In:   a row that changed, in the transaction that changes it     Out: signed POSTs (Standard Webhooks 1.0)
A message has one id and one body for ever, so that a receiver that gets it twice can tell. Of a training or prediction
there is one `completed`; the others are sent once each and not repeated. The target is judged when it is named and
again when it is connected to; redirects are not followed. Whoever holds the projector's lease sends.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from deployments.gateway.context import Gateway
from deployments.gateway.database import Database
from deployments.gateway.errors import Refusal
from deployments.gateway.ids import new_id
from deployments.gateway.tables import Delivery, Prediction, Secret, Training
from infra.errors import AnnealError, Interrupted, shown
from infra.settings import Settings
from infra.storage.host_guard import parsed, reachable
from tasks.runs.webhooks import DELAYS_S, SECRET_PREFIX, Message, deliver, webhook_of

EVENTS = ("start", "output", "logs", "completed")
FIRST_DELAYS_S = (2, 10)
"""Before those that Standard Webhooks recommends: most receivers are back within seconds."""
TAKEN_S = 120
"""So long others keep off a message that is being sent."""
AT_ONCE, ROUND = 8, 50
BODY_CHARACTERS = 100_000
"""Of a log within a message: receivers refuse large bodies."""
SECRET_BYTES = 32
OVERLAP_S = 24 * 3600.0
"""So long an old secret signs beside the new one."""
log = logging.getLogger(__name__)


def read_targets(settings: Settings, body: dict[str, Any]) -> tuple[str, str, list[str]]:
    """webhook, webhook_completed and the events of a request. Raises Refusal 422 for an address that is not allowed."""
    targets = []
    for name in ("webhook", "webhook_completed"):
        url = body.get(name) or ""
        if not isinstance(url, str):
            raise Refusal(422, f"{name} is {shown(url)}; expected an address.")
        if url:
            check_target(settings, name, url)
        targets.append(url)
    events = body.get("webhook_events_filter")
    events = list(EVENTS) if events is None else events
    if not isinstance(events, list) or any(event not in EVENTS for event in events):
        raise Refusal(422, f"webhook_events_filter is {shown(events)}; expected some of {', '.join(EVENTS)}.")
    return targets[0], targets[1], events


def check_target(settings: Settings, name: str, url: str) -> None:
    """Raise Refusal 422 unless messages may be sent there."""
    try:
        reachable(parsed(url, name), settings, name)
    except Interrupted:
        return  # it cannot be looked up now; it is judged again before anything is sent
    except AnnealError as error:
        raise Refusal(422, str(error)) from None


def enqueue(session: Session, row: Training | Prediction, event: str, body: dict[str, Any], mark: str = "") -> None:
    """Write the messages of an event, if somebody wants them. `mark`: which of several of its kind."""
    targets = [row.webhook] if row.webhook and event in row.webhook_events else []
    if event == "completed" and row.webhook_completed and row.webhook_completed not in targets:
        targets.append(row.webhook_completed)
    if len(body.get("logs") or "") > BODY_CHARACTERS:
        body = {**body, "logs": body["logs"][-BODY_CHARACTERS:]}
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    for number, url in enumerate(targets):
        identity = f"msg_{row.id}_{event}{mark}{f'_{number}' if number else ''}"
        if session.get(Delivery, identity) is None:
            session.add(Delivery(
                id=identity, owner=row.owner, subject=row.id, event=event, url=url, body=text, due=0.0, tries=0,
                answer="", created_at=time.time(), done_at=None))


def secrets_of(session: Session, owner: str) -> list[str]:
    """The secrets that sign an owner's messages, the newest first; the first is made when it is asked for."""
    now = time.time()
    rows = session.scalars(select(Secret).where(Secret.owner == owner).order_by(Secret.created_at.desc())).all()
    valid = [row.key for row in rows if row.retired_at is None or row.retired_at > now]
    if not valid:
        valid = [SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()]
        session.add(Secret(id=new_id(), owner=owner, key=valid[0], created_at=now, retired_at=None))
    return valid


def rotate(session: Session, owner: str) -> str:
    """A new secret, which is returned; those before it sign beside it for a day."""
    secrets_of(session, owner)
    session.execute(update(Secret).where(Secret.owner == owner, Secret.retired_at.is_(None)).values(
        retired_at=time.time() + OVERLAP_S))
    key = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    session.add(Secret(id=new_id(), owner=owner, key=key, created_at=time.time(), retired_at=None))
    return key


class Sender:
    """Sends what is due, several at once, those of one training or prediction one after the other."""

    def __init__(self, here: Gateway) -> None:
        self._here = here
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook")
        self._busy: set[str] = set()

    def look(self) -> None:
        """Take what is due and send it on other threads. Raises Away."""
        now = time.time()
        with self._here.database.session() as session:
            rows = session.scalars(select(Delivery).where(Delivery.done_at.is_(None), Delivery.due <= now).order_by(
                Delivery.created_at).limit(ROUND).with_for_update(skip_locked=True)).all()
            due = []
            for row in rows:
                if row.subject not in self._busy:
                    self._busy.add(row.subject)
                    row.due = now + TAKEN_S
                    due.append((row.id, row.subject))
        for identity, subject in due:
            self._pool.submit(self._send, identity, subject)

    def close(self) -> None:
        """Start nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _send(self, identity: str, subject: str) -> None:
        try:
            send(self._here.settings, self._here.database, identity)
        except Exception:
            log.exception("webhook %s", identity)
        finally:
            self._busy.discard(subject)


def send(settings: Settings, database: Database, identity: str) -> None:
    """Try one message, and note what came of it. Raises Away."""
    with database.session() as session:
        row = session.get(Delivery, identity)
        keys = secrets_of(session, row.owner) if row else []
    if row is None or row.done_at is not None:
        return
    outcome = deliver(settings, row.url, Message(row.id, row.body.decode()), *map(webhook_of, keys))
    delays = (*FIRST_DELAYS_S, *DELAYS_S)
    is_over = outcome.is_over or row.event != "completed" or row.tries >= len(delays)
    with database.session() as session:
        session.add(row)
        row.answer, row.tries = outcome.said, row.tries + 1
        if is_over:
            row.done_at = time.time()
        else:
            row.due = time.time() + max(outcome.after_s, delays[row.tries - 1])
    log.info("webhook %s: %s", identity, outcome.said)
