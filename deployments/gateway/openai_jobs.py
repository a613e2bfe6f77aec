"""Fine-tuning jobs in OpenAI's dialect, at /openai/v1/fine_tuning.

    POST, GET /jobs      GET /jobs/{id}      POST /jobs/{id}/cancel, /pause, /resume
    GET /jobs/{id}/events, /jobs/{id}/checkpoints
A job is the same row as a training of the other dialect. Its model is made from the base's name and the suffix; the
hyperparameters that OpenAI names are mapped, ours are taken by their names, all others are refused.
"""

from __future__ import annotations

import re
import time
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from deployments.gateway.catalogue import BaseVersion
from deployments.gateway.context import Base, Gateway, Here
from deployments.gateway.errors import Refusal, read_json, text_of
from deployments.gateway.ids import new_id
from deployments.gateway.intents import INPUTS, Wanted, accept, unknown
from deployments.gateway.keys import Caller, Reader, Trainer
from deployments.gateway.openai_events import checkpoints_of, events_of
from deployments.gateway.openai_files import PREFIX as FILE_PREFIX
from deployments.gateway.openai_files import listed
from deployments.gateway.progress import Logs
from deployments.gateway.tables import Model, Training
from deployments.gateway.trainings import cancel as cancel_training
from deployments.gateway.trainings import find_training, held
from deployments.gateway.versions import SEEDED
from infra.errors import shown
from infra.spec import FIELDS

router = APIRouter()
PREFIX = "ftjob-"
KNOWN = ("model", "training_file", "validation_file", "suffix", "seed", "metadata", "method", "hyperparameters",
         "integrations")
NAMES = {"n_epochs": "num_train_epochs", "batch_size": "train_batch_size"}
MULTIPLIER = "learning_rate_multiplier"
STATUS = {"starting": "queued", "processing": "running", "canceled": "cancelled"}
"""Not validating_files at first: older scripts stop polling at that."""
HOLDS = ("pausing", "paused")
DEFAULTS = {one.name: one.default for one in FIELDS}
SUFFIX_CHARACTERS = 64
PAGE, CHECKPOINTS_PAGE, MOST = 20, 10, 1000


@router.post("/jobs")
async def create(request: Request, caller: Trainer, here: Here, base: Base) -> dict[str, Any]:
    """Ask for a training."""
    body = await read_json(request)
    return view(await run_in_threadpool(_create, body, caller, here, base, request))


@router.get("/jobs")
def jobs(
    request: Request, caller: Reader, here: Here, after: str = "", limit: int = PAGE,
) -> dict[str, Any]:
    """The caller's jobs, the newest first; metadata[key]=value chooses some."""
    query = select(Training).where(Training.source != SEEDED)
    query = query if caller.is_admin else query.where(Training.owner == caller.owner)
    wanted = {name[9:-1]: value for name, value in request.query_params.items()
              if re.fullmatch(r"metadata\[.+\]", name)}
    for name, value in wanted.items():
        query = query.where(Training.about["metadata"][name].as_string() == value)
    with here.database.session() as session:
        return listed(session, query, Training, after.removeprefix(PREFIX), limit, view)


@router.get("/jobs/{identity}")
def get(identity: str, caller: Reader, here: Here) -> dict[str, Any]:
    """One job."""
    return view(find_training(here, identity.removeprefix(PREFIX), caller))


@router.post("/jobs/{identity}/cancel")
def cancel(identity: str, request: Request, caller: Trainer, here: Here, base: Base) -> dict[str, Any]:
    """End a job. It counts as cancelled at once."""
    cancel_training(identity.removeprefix(PREFIX), request, caller, here, base)
    return get(identity, caller, here)


@router.post("/jobs/{identity}/pause")
def pause(identity: str, caller: Trainer, here: Here) -> dict[str, Any]:
    """Give the job's GPUs to others; its last checkpoint is kept."""
    return view(held(here, identity.removeprefix(PREFIX), caller, pausing=True))


@router.post("/jobs/{identity}/resume")
def resume(identity: str, caller: Trainer, here: Here) -> dict[str, Any]:
    """Let a paused job go on at its last checkpoint."""
    return view(held(here, identity.removeprefix(PREFIX), caller, pausing=False))


@router.get("/jobs/{identity}/events")
def events(
    identity: str, request: Request, caller: Reader, here: Here, after: str = "", limit: int = PAGE,
) -> dict[str, Any]:
    """What happened to the job, the newest first."""
    row = find_training(here, identity.removeprefix(PREFIX), caller)
    logs: Logs = request.app.state.logs
    return _page(events_of(row, logs.known(row)), after, limit)


@router.get("/jobs/{identity}/checkpoints")
def checkpoints(
    identity: str, request: Request, caller: Reader, here: Here, after: str = "", limit: int = CHECKPOINTS_PAGE,
) -> dict[str, Any]:
    """The job's checkpoints, the newest first. What can be asked has a name: the version that the job made."""
    row = find_training(here, identity.removeprefix(PREFIX), caller)
    logs: Logs = request.app.state.logs
    page = _page(checkpoints_of(row, logs.known(row)), after, limit)
    data = page["data"]
    return {**page, "first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}


def _page(found: list[dict[str, Any]], after: str, limit: int) -> dict[str, Any]:
    """So many after the one with that id. Raises Refusal 400 for an id that is not in the list."""
    if after:
        at = next((number for number, one in enumerate(found) if one["id"] == after), None)
        if at is None:
            raise Refusal(400, f"after is {shown(after)}, which is not in the list.", param="after")
        found = found[at + 1:]
    limit = min(max(limit, 1), MOST)
    return {"object": "list", "data": found[:limit], "has_more": len(found) > limit}


def view(row: Training) -> dict[str, Any]:
    """A training as OpenAI's clients see it."""
    about, given = row.about, row.input
    files = {name: about.get(name) for name in ("training_file", "validation_file")}
    hyper = {"n_epochs": given.get("num_train_epochs", "auto"), "batch_size": given.get("train_batch_size", "auto"),
             MULTIPLIER: about.get(MULTIPLIER, "auto")}
    error = {"code": "training_failed", "message": row.error, "param": None} if row.error else None
    return {
        "id": PREFIX + row.id, "object": "fine_tuning.job", "created_at": int(row.created_at), "model": row.model,
        "organization_id": row.owner, "status": _status(row), "result_files": [],
        "training_file": files["training_file"] or str(given.get("train_data", "")),
        "validation_file": files["validation_file"], "hyperparameters": hyper, "error": error,
        "seed": given.get("seed", DEFAULTS["seed"]),
        "fine_tuned_model": f"{row.destination}:{row.output_version}" if row.output_version else None,
        "finished_at": int(row.completed_at) if row.completed_at else None, "trained_tokens": None,
        "estimated_finish": None, "integrations": [], "metadata": about.get("metadata"),
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}}}


def _status(row: Training) -> str:
    return row.hold if row.hold in HOLDS and row.completed_at is None else STATUS.get(row.status, row.status)


def _create(body: dict[str, Any], caller: Caller, here: Gateway, base: str, request: Request) -> Training:
    for name in body:
        if name not in KNOWN:
            raise unknown(name, list(KNOWN))
    model, metadata = text_of(body, "model"), body.get("metadata")
    bases = here.catalogue.of(model.partition(":")[0])
    found: BaseVersion | None = next((one for one in bases if model.partition(":")[2] in ("", one.version)), None)
    if found is None:
        known = ", ".join(sorted({one.model for one in here.catalogue.bases}))
        raise Refusal(404, f"There is no base model {shown(model)}; expected one of {known}.", param="model")
    if metadata is not None and not isinstance(metadata, dict):
        raise Refusal(400, "metadata is not an object.", param="metadata")
    inputs, about = _hyperparameters(body)
    for ours, theirs in (("train_data", "training_file"), ("validation_data", "validation_file")):
        if body.get(theirs) is not None or theirs == "training_file":
            file = text_of(body, theirs)
            about[theirs], inputs[ours] = file, f"{base}/v1/files/{file.removeprefix(FILE_PREFIX)}"
    if body.get("seed") is not None:
        inputs["seed"] = body["seed"]
    about["metadata"] = metadata
    destination = _destination(here, caller, found.name, text_of(body, "suffix", default="", most=SUFFIX_CHARACTERS))
    wanted = Wanted(base=found, destination=destination, input=inputs, base_url=base, about=about)
    try:
        return accept(here, caller, wanted, request.headers)
    except Refusal as error:
        if error.status == 404:
            raise Refusal(404, f"There is no file {shown(about['training_file'])}, or no other one that is named.",
                          param="training_file") from None
        raise


def _hyperparameters(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs that a request's hyperparameters stand for, and what to show of them. Raises Refusal 400."""
    method = body.get("method") or {"type": "supervised"}
    if not isinstance(method, dict) or method.get("type") != "supervised":
        raise Refusal(400, f"method.type is {shown(method.get('type') if isinstance(method, dict) else method)}; "
                           "only supervised is there.", param="method.type")
    supervised = method.get("supervised") or {}
    given = (supervised.get("hyperparameters") if isinstance(supervised, dict) else None) or body.get(
        "hyperparameters") or {}
    if not isinstance(given, dict):
        raise Refusal(400, "hyperparameters is not an object.", param="hyperparameters")
    inputs: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for name, value in given.items():
        if value == "auto" or value is None:
            continue
        if name == MULTIPLIER:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise Refusal(400, f"{name} is {shown(value)}; expected a number.", param=name)
            inputs["learning_rate"], about[name] = cast(float, DEFAULTS["learning_rate"]) * value, value
        elif (ours := NAMES.get(str(name), str(name))) in INPUTS:
            inputs[ours] = value
        else:
            error = unknown(name, [*NAMES, MULTIPLIER, *INPUTS])
            raise Refusal(400, error.detail, param=f"hyperparameters.{name}")
    return inputs, about


def _destination(here: Gateway, caller: Caller, base: str, suffix: str) -> str:
    """The model that the job's version goes into, made if it is not there."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{base}-{suffix}".lower() if suffix else f"{base}-tuned").strip("-")
    try:
        with here.database.session() as session:
            there = select(Model.id).where(Model.owner == caller.owner, Model.name == name)
            if session.scalar(there) is None:
                session.add(Model(id=new_id(), owner=caller.owner, name=name, visibility="private", hardware="",
                                  about={}, created_at=time.time()))
    except IntegrityError:  # made at the same moment
        pass
    return f"{caller.owner}/{name}"


