"""Brings what clients asked for to Prefect, and what became of it into the database.

    rows without a run      ->  started, with the row's id as idempotency key
    rows under way          ->  status, error, version; the webhook about a change in the same transaction
    runs started elsewhere  ->  rows of their own (a form, a schedule, Python)
    rows to be cancelled    ->  cancelled

Of any number of gateways one does this, by a lease. Dies half-way: another one, or the next start, does the rest; what
was started and not noted is found by its key. A row that has ended is frozen: Prefect is not asked about it again.
Prefect away: rows wait, and say for what.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime, timedelta

from prefect.client.schemas.objects import FlowRun, StateType
from sqlalchemy import or_, select, update
from sqlalchemy.exc import IntegrityError

from deployments.gateway.adoption import adopt
from deployments.gateway.context import Gateway
from deployments.gateway.orchestrator import Orchestrator, is_over, key_of, value_of
from deployments.gateway.progress import Logs
from deployments.gateway.tables import Lease, Prediction, Training
from deployments.gateway.trainings import OPEN, PAUSED, view
from deployments.gateway.webhooks import Sender, enqueue
from infra import errors
from infra.errors import AnnealError, Transient, UserError

EVERY_S, LEASE_S = 1.0, 15.0
ADOPT_EVERY_S = 5.0
LOOK_BACK = timedelta(days=7)
"""Of the first look for runs that were started elsewhere."""
OVERLAP = timedelta(hours=1)
VANISHED_S = 120.0
"""A run that Prefect does not know any more has ended, after this time."""
LOST_S = 90.0
"""A prediction without a sign of life for so long has lost its process."""
SUBMITTED_AT_ONCE = 50
SAY_AGAIN_S = 300.0
LEASE = "projector"
PREFIX = "Flow run encountered an exception: "
"""What Prefect writes before the error of a flow."""
log = logging.getLogger(__name__)


class Projector(threading.Thread):
    """Looks every second while it has the lease."""

    def __init__(self, here: Gateway, logs: Logs) -> None:
        super().__init__(name="projector", daemon=True)
        self._here, self._logs, self._sender = here, logs, Sender(here)
        self._prefect = Orchestrator(here.settings)
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._closed = threading.Event()
        self._said = ("", 0.0)
        self._adopted_at, self._since = 0.0, datetime.now(UTC) - LOOK_BACK

    def run(self) -> None:
        """Until `close`."""
        while not self._closed.wait(EVERY_S):
            try:
                if self._here.database.lease(LEASE, self._holder, LEASE_S):
                    self.look()
            except AnnealError as error:
                self._say(str(error))
            except Exception:  # one bad row must not end the thread
                log.exception("the projector failed; it goes on")

    def _say(self, sentence: str) -> None:
        """Log what is wrong when it begins, and now and then while it lasts."""
        said, at = self._said
        if sentence != said or time.monotonic() - at > SAY_AGAIN_S:
            log.warning("%s", sentence)
            self._said = (sentence, time.monotonic())

    def close(self) -> None:
        """Stop, and let another one have the lease at once."""
        self._closed.set()
        self._sender.close()
        self.join(10)
        try:
            with self._here.database.session() as session:
                mine = update(Lease).where(Lease.name == LEASE, Lease.holder == self._holder)
                session.execute(mine.values(until=0.0))
        except AnnealError:
            log.warning("the lease ends by itself")

    def look(self) -> None:
        """Once. Raises Away; what Prefect does not answer is left for the next time."""
        self._sender.look()
        self._end_lost_predictions()
        try:
            self._submit()
            self._follow()
            self._cancel()
            if time.monotonic() - self._adopted_at > ADOPT_EVERY_S:
                self._since = adopt(self._here, self._prefect, self._since) - OVERLAP
                self._adopted_at = time.monotonic()
        except Transient as error:
            self._wait_for(str(error))
            raise
        with self._here.database.session() as session:
            session.execute(update(Lease).where(Lease.name == LEASE).values(seen_at=time.time()))

    def _submit(self) -> None:
        with self._here.database.session() as session:
            rows = session.scalars(select(Training).where(
                Training.status.in_(OPEN), Training.flow_run_id.is_(None), Training.hold == "").order_by(
                    Training.created_at).limit(SUBMITTED_AT_ONCE)).all()
        for row in rows:
            try:
                run = self._prefect.submit(key_of(row.id, row.attempt), row.spec)
            except UserError as error:  # another release wrote the row, or Prefect refuses the parameters
                self._fail(row.id, str(error))
                continue
            try:
                with self._here.database.session() as session:
                    noted = session.execute(update(Training).where(
                        Training.id == row.id, Training.attempt == row.attempt).values(
                            flow_run_id=run, waits_for="Waiting for a worker."))
                if not noted.rowcount:  # type: ignore[attr-defined]  # paused meanwhile
                    self._prefect.cancel(run)
            except IntegrityError:  # adopted meanwhile, under an id of its own: that cannot be with one lease
                log.exception("the run %s of training %s has a row", run, row.id)

    def _follow(self) -> None:
        with self._here.database.session() as session:
            rows = session.scalars(select(Training).where(
                Training.status.in_(OPEN), Training.flow_run_id.is_not(None))).all()
        known = self._prefect.runs([str(row.flow_run_id) for row in rows])
        for row in rows:
            run = known.get(str(row.flow_run_id))
            try:
                if run is None:
                    self._missing(row)
                elif row.hold and is_over(run) and status_of(run) == "canceled":
                    self._paused(row)
                elif not row.hold or is_over(run):
                    self._take_over(row, run)
            except AnnealError as error:  # MLflow or the store is away: it is not finished before its version is known
                log.warning("training %s: %s", row.id, error)

    def _cancel(self) -> None:
        with self._here.database.session() as session:
            rows = session.scalars(select(Training).where(
                or_(Training.cancel_requested, Training.hold == "pausing"), ~Training.cancel_delivered,
                Training.flow_run_id.is_not(None))).all()
        for row in rows:
            self._prefect.cancel(str(row.flow_run_id))
            with self._here.database.session() as session:
                session.execute(update(Training).where(Training.id == row.id).values(cancel_delivered=True))

    def _take_over(self, row: Training, run: FlowRun) -> None:
        """Bring a row to what its run is. Raises Transient where its version cannot be looked up."""
        status, content = status_of(run), value_of(run, "training") or row.content_id
        version = value_of(run, "version")
        if status == "succeeded" and not version:
            with self._here.registry() as registry:
                found = registry.find(row.destination, content) if content else None
            version = found.id if found else ""
            if not version:
                status = "failed"
        row.content_id = content
        text, step = self._logs.with_step(row)
        with self._here.database.session() as session:
            now = session.scalars(select(Training).where(Training.id == row.id).with_for_update()).one()
            if now.status not in OPEN:  # canceled meanwhile
                return
            before = now.status
            now.status, now.content_id, now.output_version = status, content, version
            now.missing_since, now.waits_for = None, waits_for(run)
            if run.start_time is not None and now.started_at is None:
                now.started_at = run.start_time.timestamp()
            if status not in OPEN:
                now.completed_at = (run.end_time or datetime.now(UTC)).timestamp()
                now.started_at = now.started_at if status == "succeeded" or run.start_time else None
                now.error = error_of(run) if status == "failed" else None
            said = view(now, now.base_url, text)
            if before == "starting" and status != "starting":
                enqueue(session, now, "start", {**said, "status": "processing", "output": None, "completed_at": None})
            if status == "processing" and step > now.told_step:
                enqueue(session, now, "logs", said, f"_{step}")
                now.told_step = step
            if status not in OPEN:
                if now.output_version:
                    enqueue(session, now, "output", said)
                enqueue(session, now, "completed", said)

    def _paused(self, row: Training) -> None:
        """Its run has ended, and its checkpoints stay."""
        with self._here.database.session() as session:
            session.execute(update(Training).where(Training.id == row.id, Training.hold == "pausing").values(
                hold="paused", flow_run_id=None, attempt=row.attempt + 1, cancel_delivered=False, waits_for=PAUSED))

    def _missing(self, row: Training) -> None:
        """Prefect does not know the run: its database was reset, or somebody deleted it."""
        with self._here.database.session() as session:
            now = session.get_one(Training, row.id)
            if now.missing_since is None:
                now.missing_since = time.time()
                return
            since = now.missing_since
        if time.time() - since > VANISHED_S:
            self._fail(row.id, "The run vanished from Prefect. Ask for the same training again: what was finished of "
                               "it is kept.")

    def _fail(self, identity: str, error: str) -> None:
        with self._here.database.session() as session:
            now = session.scalars(select(Training).where(Training.id == identity).with_for_update()).one()
            if now.status in OPEN:
                now.status, now.completed_at, now.error = "failed", time.time(), error
                enqueue(session, now, "completed", view(now, now.base_url, self._logs.of(now)))

    def _wait_for(self, why: str) -> None:
        """Say why the rows that have no run yet wait."""
        with self._here.database.session() as session:
            session.execute(update(Training).where(
                Training.status == "starting", Training.flow_run_id.is_(None), Training.hold == "").values(
                    waits_for=f"Waiting: {why}"))

    def _end_lost_predictions(self) -> None:
        with self._here.database.session() as session:
            session.execute(update(Prediction).where(
                Prediction.status.in_(OPEN), Prediction.seen_at < time.time() - LOST_S).values(
                    status="failed", completed_at=time.time(), error="The gateway that waited for it was stopped."))


def status_of(run: FlowRun) -> str:
    """Replicate's word for a run's state. A crash is no end: reconcile starts the run again, or fails it."""
    state = run.state
    if state is None or (state.type in (StateType.SCHEDULED, StateType.PENDING) and not run.start_time):
        return "starting"
    if not is_over(run) and state.type != StateType.CANCELLING:
        return "processing"
    if state.type in (StateType.CANCELLED, StateType.CANCELLING):
        return "canceled"
    return "succeeded" if state.is_completed() else "failed"


def error_of(run: FlowRun) -> str:
    """Why a run failed, in a sentence."""
    said = (run.state.message if run.state else "") or "The run failed without a reason; its page in Prefect may tell."
    said = said.removeprefix(PREFIX)
    kind, _, sentence = said.partition(": ")
    found = getattr(errors, kind, None)
    said = sentence if isinstance(found, type) and issubclass(found, AnnealError) else said  # a user knows no classes
    return said if run.state and run.state.is_failed() else f"The run made no version: {said}"


def waits_for(run: FlowRun) -> str:
    """Why a run has not begun."""
    if run.state is None or run.start_time is not None or is_over(run):
        return ""
    if run.state.type == StateType.PENDING:
        return "A worker has taken it and starts."
    if run.state.name == "AwaitingConcurrencySlot":
        return "Waiting for another training to end."
    return f"Waiting for a worker of {run.work_pool_name or 'the work pool'}."
