"""Trainings that were started elsewhere get rows: from Prefect's form, a schedule, `anneal train` or Python.

In:   Prefect's runs since some moment      Out: rows with the source web, and models for their destinations
A run's row has an id made from the run's, so that it is the same whoever imports it and however often.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from deployments.gateway.context import Gateway
from deployments.gateway.ids import id_of_run, new_id
from deployments.gateway.intents import begun
from deployments.gateway.orchestrator import Orchestrator, key_of
from deployments.gateway.tables import Model, Training
from infra.errors import UserError
from infra.files import digest_of
from infra.redaction import redacted
from infra.spec import TrainingSpec
from tasks.runs.queries import only_looked


def adopt(here: Gateway, prefect: Orchestrator, since: datetime) -> datetime:
    """Import what was started since; returns the moment up to which all is known. Raises Transient."""
    began = datetime.now(UTC)
    for run in prefect.trainings_since(since):
        if run.state is None or only_looked(run) or run.state.name == "HandedOver":
            continue
        with here.database.session() as session:
            if session.scalar(select(Training.id).where(Training.flow_run_id == str(run.id))) is not None:
                continue
            ours = run.idempotency_key and session.get(Training, run.idempotency_key.partition("-")[0])
            if ours:  # started by a gateway that died before it noted the run, or a run before a pause
                if run.idempotency_key == key_of(ours.id, ours.attempt):
                    session.execute(update(Training).where(
                        Training.id == ours.id, Training.flow_run_id.is_(None)).values(flow_run_id=str(run.id)))
                continue
        _import(here, run)
    return began


def _import(here: Gateway, run: FlowRun) -> None:
    given = run.parameters.get("training", run.parameters)
    try:
        spec = TrainingSpec.of(given if isinstance(given, dict) else {})
    except UserError:
        return  # refused, or not a training of this release
    owner, _, name = spec.destination.partition("/")
    base = next((one for one in here.catalogue.bases if one.place == spec.base_model), None)
    shown = {key: redacted(value) if isinstance(value, str) else value for key, value in given.items()
             if key not in ("base_model", "destination")}
    row: dict[str, Any] = {
        **begun(), "id": id_of_run(UUID(str(run.id))), "owner": owner, "flow_run_id": str(run.id),
        "model": base.model if base else spec.base_model.rstrip("/").rsplit("/", 1)[-1],
        "version": base.version if base else digest_of(spec.base_model), "destination": spec.destination,
        "input": shown, "spec": {}, "about": {}, "request_hash": "", "idempotency_key": None, "source": "web",
        "base_url": here.settings.public_url.rstrip("/"), "webhook": "", "webhook_completed": "",
        "webhook_events": [], "created_at": (run.created or datetime.now(UTC)).timestamp()}
    try:
        with here.database.session() as session:
            if session.scalar(select(Model.id).where(Model.owner == owner, Model.name == name)) is None:
                session.add(Model(id=new_id(), owner=owner, name=name, visibility="private", hardware="", about={},
                                  created_at=time.time()))
            session.add(Training(**row))
    except IntegrityError:  # another gateway was quicker
        return
