"""Routes of trainings, in Replicate's dialect.

    POST /models/{owner}/{name}/versions/{version}/trainings      GET /trainings      GET /trainings/{id}
    POST /trainings/{id}/cancel, /pause, /resume, /finish      GET /trainings/{id}/weights.zip
    GET /webhooks/default/secret
What was accepted is never 404 to its owner, whatever became of Prefect.
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import and_, func, or_, select, update

from deployments.gateway.catalogue import BaseVersion
from deployments.gateway.context import Base, Gateway, Here
from deployments.gateway.errors import DATA_BODY_BYTES, Refusal, missing, read_json, text_of
from deployments.gateway.ids import moment, page_of
from deployments.gateway.intents import Wanted, accept
from deployments.gateway.keys import Caller, Reader, Trainer
from deployments.gateway.models import find_model
from deployments.gateway.progress import Logs
from deployments.gateway.tables import Lease, Training
from deployments.gateway.versions import SEEDED
from deployments.gateway.webhooks import enqueue, read_targets, secrets_of
from infra.errors import shown
from infra.files import MANIFEST, READ_BYTES
from tasks.runs.finish import ask_to_finish

router = APIRouter()
PAGE = 100
OPEN = ("starting", "processing")
PAUSED = "Paused. What it has learned is kept; resume it to go on."
INVALID = "Invalid version or not permitted"
STALE_S = 15.0
"""Prefect, or whoever asks it, has been away for so long before clients are told."""


@router.post("/models/{owner}/{name}/versions/{version}/trainings")
async def create(
    owner: str, name: str, version: str, request: Request, caller: Trainer, here: Here, base: Base,
) -> JSONResponse:
    """Ask for a training."""
    body = await read_json(request, DATA_BODY_BYTES)

    def made() -> dict[str, Any]:
        row = accept(here, caller, wanted_of(f"{owner}/{name}", version, body, caller, here, base), request.headers)
        return {**view(row, base, ""), "queue": queue_of(here, row)}

    return JSONResponse(await run_in_threadpool(made), 201)


@router.get("/trainings")
def trainings(
    request: Request, caller: Reader, here: Here, base: Base, cursor: str | None = None,
) -> dict[str, Any]:
    """The caller's trainings, the newest first."""
    query = select(Training).where(Training.source != SEEDED)
    query = query if caller.is_admin else query.where(Training.owner == caller.owner)
    with here.database.session() as session:
        return page_of(session, query, Training, PAGE, cursor, f"{base}/v1/trainings",
                       lambda row: view(row, base, row.waits_for))


@router.get("/trainings/{identity}")
def get(identity: str, request: Request, caller: Reader, here: Here, base: Base) -> dict[str, Any]:
    """One training, with its log."""
    row = find_training(here, identity, caller)
    logs: Logs = request.app.state.logs
    queue = queue_of(here, row)
    head = f"Place {queue['position']} in the queue.\n" if queue else ""
    return {**view(row, base, head + logs.of(row)), "queue": queue, **_stale(here, row)}


@router.post("/trainings/{identity}/cancel")
def cancel(identity: str, request: Request, caller: Trainer, here: Here, base: Base) -> dict[str, Any]:
    """End a training. It counts as canceled at once; its processes are stopped soon after."""
    logs: Logs = request.app.state.logs
    row = find_training(here, identity, caller)
    text = logs.of(row)
    with here.database.session() as session:
        row = session.scalars(select(Training).where(Training.id == row.id).with_for_update()).one()
        if row.status in OPEN:
            row.status, row.completed_at, row.cancel_requested = "canceled", time.time(), True
            enqueue(session, row, "completed", view(row, row.base_url, text))
    return view(row, base, text)


@router.post("/trainings/{identity}/pause")
def pause(identity: str, request: Request, caller: Trainer, here: Here, base: Base) -> dict[str, Any]:
    """Give its GPUs to others; its last checkpoint is kept."""
    row = held(here, identity, caller, pausing=True)
    return view(row, base, request.app.state.logs.of(row))


@router.post("/trainings/{identity}/resume")
def resume(identity: str, request: Request, caller: Trainer, here: Here, base: Base) -> dict[str, Any]:
    """Let a paused training go on at its last checkpoint."""
    row = held(here, identity, caller, pausing=False)
    return view(row, base, request.app.state.logs.of(row))


@router.post("/trainings/{identity}/finish")
def finish(identity: str, request: Request, caller: Trainer, here: Here, base: Base) -> dict[str, Any]:
    """End its steps within seconds; the weights so far become a version, evaluated as any other."""
    logs: Logs = request.app.state.logs
    row = finish_now(here, logs, identity, caller)
    return view(row, base, logs.of(row))


@router.get("/trainings/{identity}/weights.zip")
def weights(identity: str, caller: Reader, here: Here) -> StreamingResponse:
    """The files of the version that a training made: a PEFT adapter, or the whole model, with checksums."""
    row = find_training(here, identity, caller)
    if not row.output_version:
        raise missing()
    folder = here.store.fetch(f"versions/{row.output_version}")
    return StreamingResponse(_zipped(folder), media_type="application/zip", headers={
        "Content-Disposition": f'attachment; filename="{row.output_version[:12]}.zip"'})


@router.get("/webhooks/default/secret")
def secret(caller: Reader, here: Here) -> dict[str, str]:
    """What signs the caller's webhooks."""
    with here.database.session() as session:
        return {"key": secrets_of(session, caller.owner)[0]}


def held(here: Gateway, identity: str, caller: Caller, *, pausing: bool) -> Training:
    """Pause a training, or let it go on; one that is so already stays as it is. Raises Refusal 404 and 422."""
    row = find_training(here, identity, caller)
    with here.database.session() as session:
        row = session.scalars(select(Training).where(Training.id == row.id).with_for_update()).one()
        if row.status not in OPEN:
            raise Refusal(422, f"The training is {row.status}; only one under way can be paused or resumed.")
        if pausing and not row.hold:
            row.hold = "pausing" if row.flow_run_id else "paused"
            row.attempt += 0 if row.flow_run_id else 1
            row.waits_for, row.finish_requested = PAUSED, False
        elif not pausing and row.hold == "pausing":
            raise Refusal(422, "The training is being paused. Resume it once it is paused.")
        elif not pausing and row.hold:
            row.hold, row.waits_for, row.status = "", "Waiting for a worker.", "starting"
    return row


def finish_now(here: Gateway, logs: Logs, identity: str, caller: Caller) -> Training:
    """Ask a training to finish; one that was asked before stays so. Raises Refusal 404 and 422, and Transient."""
    row = find_training(here, identity, caller)
    known = logs.known(row)
    if row.status != "processing" or row.hold or not row.flow_run_id:
        state = row.hold or row.status
        raise Refusal(422, f"The training is {state}; only one that is at its steps can be finished.")
    if row.finish_requested:
        return row
    if not row.content_id or (known.total and known.step == 0):  # workers elsewhere tell their steps at the end
        raise Refusal(422, "The training has not done its first step; nothing is to be kept yet. Cancel it, or wait.")
    if known.is_trained:
        raise Refusal(422, "The training has done its last step already; it is being evaluated.")
    ask_to_finish(here.store, row.flow_run_id)
    with here.database.session() as session:
        session.execute(update(Training).where(
            Training.id == row.id, Training.flow_run_id == row.flow_run_id, Training.hold == "").values(
                finish_requested=True))
    return find_training(here, identity, caller)


def find_training(here: Gateway, identity: str, caller: Caller) -> Training:
    """The row of a training of the caller's. Raises Refusal 404."""
    with here.database.session() as session:
        row = session.get(Training, identity)
    if row is None or not caller.sees(row.owner):
        raise missing()
    return row


def view(row: Training, base: str, logs: str) -> dict[str, Any]:
    """A training as Replicate's clients see it."""
    address = f"{base}/v1/trainings/{row.id}"
    output = None
    if row.output_version and row.completed_at is not None:
        output = {"version": f"{row.destination}:{row.output_version}", "weights": f"{address}/weights.zip"}
    return {
        "id": row.id, "model": row.model, "version": row.version, "destination": row.destination,
        "input": row.input, "output": output, "status": row.status, "error": row.error, "logs": logs,
        "metrics": metrics(row), "source": row.source, "data_removed": False, "created_at": moment(row.created_at),
        "started_at": moment(row.started_at), "completed_at": moment(row.completed_at),
        "urls": {"get": address, "cancel": f"{address}/cancel"}}


def metrics(row: Any) -> dict[str, float]:
    """Seconds of work, and of all, of what has ended."""
    found = {}
    if row.completed_at is not None:
        found["total_time"] = round(row.completed_at - row.created_at, 3)
        if row.started_at is not None:
            found["predict_time"] = round(row.completed_at - row.started_at, 3)
    return found


def base_of(here: Gateway, caller: Caller, model: str, version: str) -> BaseVersion:
    """The base model that a request names. Raises Refusal, saying which versions there are."""
    if version in ("None", "null", "undefined"):
        raise Refusal(422, f"The version is missing. Write {model}:<version>; GET /v1/models/{model}/versions lists "
                           "them.")
    known = here.catalogue.of(model)
    if found := here.catalogue.find(model, version):
        return found
    if not known:
        owner, _, name = model.partition("/")
        find_model(here, owner, name, caller)
        bases = sorted({base.model for base in here.catalogue.bases})
        raise Refusal(422, f"{model} is no base model, and only those can be trained: {', '.join(bases)}.")
    raise Refusal(
        422, f"{model} has no version {shown(version)}; it has {', '.join(base.version for base in known)}. To take "
             f"yours for the same base model, add {model}:{version}=<its folder> to ANNEAL_BASES.", title=INVALID)


def wanted_of(model: str, version: str, body: dict[str, Any], caller: Caller, here: Gateway, base: str) -> Wanted:
    """The training that a request asks for. Raises Refusal."""
    found = base_of(here, caller, model, version)
    destination, given = text_of(body, "destination"), body.get("input") or {}
    if not isinstance(given, dict):
        raise Refusal(422, f"input is {shown(given)}; expected an object.")
    webhook, completed, events = read_targets(here.settings, body)
    return Wanted(base=found, destination=destination, input=given, base_url=base, webhook=webhook,
                  webhook_completed=completed, webhook_events=events)


def queue_of(here: Gateway, row: Training) -> dict[str, Any] | None:
    """Its place among all trainings that have not begun, from 1 on, and what it waits for; None once it has begun."""
    if row.status != "starting" or row.hold:
        return None
    before = or_(Training.created_at < row.created_at, and_(Training.created_at == row.created_at,
                                                            Training.id < row.id))
    with here.database.session() as session:
        ahead = session.scalar(select(func.count()).select_from(Training).where(
            Training.status == "starting", Training.hold == "", before)) or 0
    return {"position": ahead + 1, "waits_for": row.waits_for or "Waiting to be given to Prefect."}


def _stale(here: Gateway, row: Training) -> dict[str, str | None]:
    """Since when nothing new is known of a training under way, if that is long."""
    if row.status not in OPEN:
        return {}
    with here.database.session() as session:
        lease = session.get(Lease, "projector")
    seen = max(lease.seen_at if lease else 0.0, row.created_at)
    return {"stale_since": moment(seen)} if time.time() - seen > STALE_S else {}


def _zipped(folder: Path) -> Iterator[bytes]:
    """A zip of a folder while it is made: weights do not become smaller by packing."""
    target = _Chunks()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path.name == MANIFEST:
                continue
            about = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            with path.open("rb") as source, archive.open(about, "w", force_zip64=True) as entry:
                while chunk := source.read(READ_BYTES):
                    entry.write(chunk)
                    yield target.taken()
    yield target.taken()


class _Chunks(io.RawIOBase):
    """What a zip is written to: it cannot be sought in, and gives away what it has."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def taken(self) -> bytes:
        """All that was written since."""
        found, self._data = bytes(self._data), bytearray()
        return found
