"""Tell a webhook how runs ended: signed, repeated until it is taken, told once.

In:   runs that ended within the last day    Out: POST to ANNEAL_WEBHOOK_URL, signed as by Standard Webhooks 1.0
On disk: <store>/notifications/<run>-<attempt>.json, how far it is; <run>-<attempt>.done once it needs no more tries
deployments/reconcile.py calls it when runs end and every minute, so a receiver that is away costs no training a second.
Dies half-way: the same message is sent again, with the same id, by which receivers know it.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from standardwebhooks import Webhook

from infra.crashpoints import crashpoint
from infra.errors import AnnealError, UserError
from infra.settings import Settings
from infra.storage.host_guard import parsed, reachable
from infra.storage.http_client import request
from infra.storage.store import Store
from infra.storage.timeouts import Patience
from tasks.runs.queries import RECOVERED, age_s, only_looked, runs_in

TOLD = (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED)
BUDGET_S = 20.0
"""Time for one round: a receiver that hangs must not keep dead runs waiting."""
NEW = timedelta(days=1)
"""Runs that ended earlier are not told of when a webhook is set for the first time."""
DELAYS_S = (60, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After each failed try, as Standard Webhooks recommends; then it is given up."""
KEPT = timedelta(seconds=sum(DELAYS_S)) + 2 * NEW
PATIENCE, DEADLINE_S = Patience(stall_s=15), 20.0
GONE = 410
SECRET_PREFIX = "whsec_"
NOTIFICATIONS = "notifications"


@dataclass(frozen=True)
class Message:
    """What is to be delivered, and how far that is."""

    id: str
    body: str
    tries: int = 0
    due: float = 0.0
    """Seconds since 1970."""


@dataclass(frozen=True)
class Outcome:
    """What came of one try."""

    said: str
    is_over: bool
    """No more tries are wanted."""
    after_s: float = 0.0
    """How long the receiver wants to be left alone."""


def notify(settings: Settings, client: SyncPrefectClient, store: Store) -> Iterator[str]:
    """Deliver what is due; yields a sentence for each try. Raises UserError for a secret that is none."""
    if not settings.webhook_url:
        return
    webhook, began = webhook_of(settings.webhook_secret), time.monotonic()
    known = set(store.names(NOTIFICATIONS))
    for run in runs_in(client, RECOVERED, *TOLD, ended_after=datetime.now(UTC) - KEPT):
        if time.monotonic() - began > BUDGET_S:
            return
        if run.state and run.state.is_crashed() and run.deployment_id:
            continue  # it is started again, or fails
        if only_looked(run):
            continue
        name = f"{NOTIFICATIONS}/{run.id}-{run.run_count}"
        if f"{name}.done" in known or (f"{name}.json" not in known and age_s(run) > NEW.total_seconds()):
            continue
        text = store.read(f"{name}.json")
        message = Message(**json.loads(text)) if text else message_of(run)
        if message.due > datetime.now(UTC).timestamp():
            continue
        outcome = deliver(settings, settings.webhook_url, message, webhook, is_own=True)
        status, over = outcome.said, outcome.is_over or message.tries == len(DELAYS_S)
        crashpoint("notify.after_send")
        # Noted after the try: a crash in between sends it twice, with one id, rather than never.
        if over:
            store.write(f"{name}.done", status)
        else:
            after_s = max(DELAYS_S[message.tries], outcome.after_s)
            later = Message(message.id, message.body, message.tries + 1, datetime.now(UTC).timestamp() + after_s)
            store.write(f"{name}.json", json.dumps(asdict(later)))
        crashpoint("notify.after_note")
        yield f"{run.name}: {status}{'' if over else f', again in {after_s:.0f} s'}"


def deliver(settings: Settings, url: str, message: Message, *webhooks: Webhook, is_own: bool = False) -> Outcome:
    """Send it once; the only sender of webhooks, the gateway's too.

    The target's addresses are judged before it is connected to, and redirects are not followed. `is_own`: whoever runs
    the service named it, so that it may be private. 410 is a receiver's wish for no more.
    """
    headers = signed_headers(message, *webhooks)
    found: list[Outcome] = []
    sending = threading.Thread(target=_send, args=(settings, url, message.body, headers, is_own, found),
                               name="webhook", daemon=True)
    sending.start()
    sending.join(DEADLINE_S)  # a time limit of the client counts from byte to byte
    return found[0] if found else Outcome(f"not delivered (no answer within {DEADLINE_S:g} s)", is_over=False)


def signed_headers(message: Message, *webhooks: Webhook) -> dict[str, str]:
    """What a message is sent with: its id, the time, and a signature by each secret."""
    now = datetime.now(UTC)
    return {
        "content-type": "application/json", "webhook-id": message.id, "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(webhook.sign(message.id, now, message.body) for webhook in webhooks)}


def _send(
    settings: Settings, url: str, body: str, headers: dict[str, str], is_own: bool, found: list[Outcome],
) -> None:
    """The answer's head; nobody wants what follows."""
    try:
        address = parsed(url, "webhook")
        trusting = settings.model_copy(update={"allow_private_hosts": True}) if is_own else settings
        answer = request("POST", address, reachable(address, trusting, "webhook"), headers, "webhook", PATIENCE,
                         body.encode())
    except AnnealError as error:
        found.append(Outcome(f"not delivered ({error})", is_over=False))
        return
    answer.close()
    taken = 200 <= answer.status < 300
    found.append(Outcome(
        f"{'delivered' if taken else 'not delivered'} (HTTP {answer.status})", taken or answer.status == GONE,
        _after_s(answer.headers.get("retry-after", ""))))


def _after_s(value: str) -> float:
    """Retry-After in seconds, at most the longest of our own delays: a number, or an HTTP date; 0 for anything else."""
    try:
        found = float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, min(found, DELAYS_S[-1]))


def webhook_of(secret: str) -> Webhook:
    """What signs with that secret, with or without its whsec_. Raises UserError.

    Checked here, because the library takes any text for base64 and a key of any length.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not 24 <= len(key) <= 64:
        raise UserError("it is not the base64 of 24 to 64 bytes", where="ANNEAL_WEBHOOK_SECRET",
                        fix='Make one: echo "whsec_$(openssl rand -base64 32)".')
    return Webhook(key)


def message_of(run: FlowRun) -> Message:
    """The message about an ended run."""
    state = run.state
    assert state is not None
    training = run.parameters.get("training", run.parameters)
    data: dict[str, Any] = {
        "run": str(run.id), "name": run.name, "attempts": run.run_count, "state": state.name,
        "message": state.message or "", "model": training.get("destination") or training.get("model") or ""}
    body = {"type": f"run.{state.type.value.lower()}", "timestamp": state.timestamp.isoformat(), "data": data}
    return Message(id=f"msg_{run.id}_{run.run_count}", body=json.dumps(body, separators=(",", ":")))
