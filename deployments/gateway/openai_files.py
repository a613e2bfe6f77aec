"""Files and models in OpenAI's dialect, at /openai/v1.

    POST, GET /files      GET, DELETE /files/{id}      GET /files/{id}/content      GET /models
    GET, DELETE /models/{model}
A file for fine-tuning whose rows cannot be trained on is refused at once, with the line.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from sqlalchemy import Select, and_, or_, select
from sqlalchemy.orm import Session

from deployments.gateway.context import Gateway, Here
from deployments.gateway.errors import Refusal, missing
from deployments.gateway.files import content, find_file, remove, uploaded
from deployments.gateway.keys import Caller, Reader, Trainer
from deployments.gateway.models import delete as delete_empty
from deployments.gateway.models import find_model
from deployments.gateway.removal import remove_version
from deployments.gateway.tables import File, Model
from deployments.gateway.versions import Known, find_version, noted, versions_of
from infra.errors import shown

router = APIRouter()
PREFIX = "file-"
PURPOSES = ("fine-tune", "batch", "assistants", "user_data", "vision", "evals")
MOST = 10_000
T = TypeVar("T", bound=Any)


@router.post("/files")
async def create(request: Request, caller: Trainer, here: Here) -> dict[str, Any]:
    """Upload a file, as the part `file` of a form."""
    row = await uploaded(request, caller, here, "file")
    if row.purpose not in PURPOSES or (row.purpose == "fine-tune" and not row.dataset):
        await run_in_threadpool(remove, here, row)
        if row.purpose not in PURPOSES:
            raise Refusal(400, f"purpose is {shown(row.purpose)}; expected one of {', '.join(PURPOSES)}.",
                          param="purpose")
        raise Refusal(400, str(row.report.get("error", "The file cannot be trained on.")), param="file")
    return view(row)


@router.get("/files")
def files(
    caller: Reader, here: Here, after: str = "", limit: int = MOST, purpose: str = "", order: str = "desc",
) -> dict[str, Any]:
    """The caller's files."""
    query = select(File).where(File.place != "")
    query = query if caller.is_admin else query.where(File.owner == caller.owner)
    query = query.where(File.purpose == purpose) if purpose else query
    with here.database.session() as session:
        return listed(session, query, File, after.removeprefix(PREFIX), limit, view, ascending=order == "asc")


@router.get("/files/{identity}")
def get(identity: str, caller: Reader, here: Here) -> dict[str, Any]:
    """One file."""
    return view(find_file(here, identity.removeprefix(PREFIX), caller))


@router.get("/files/{identity}/content")
def download(identity: str, caller: Reader, here: Here) -> FileResponse:
    """Its bytes."""
    return content(here, find_file(here, identity.removeprefix(PREFIX), caller))


@router.delete("/files/{identity}")
def delete(identity: str, caller: Trainer, here: Here) -> dict[str, Any]:
    """Forget a file."""
    remove(here, find_file(here, identity.removeprefix(PREFIX), caller))
    return {"id": identity, "object": "file", "deleted": True}


@router.get("/models")
def models(caller: Reader, here: Here) -> dict[str, Any]:
    """The base models, and every version of the caller's models as owner/name:id."""
    found = [_model(base.model, 0.0, base.owner) for base in here.catalogue.bases]
    with here.database.session() as session:
        query = select(Model)
        rows = session.scalars(query if caller.is_admin else query.where(
            or_(Model.owner == caller.owner, Model.visibility == "public"))).all()
    for row in rows:
        found += [_model(full_name(one), one.created_at, row.owner) for one in noted(here, f"{row.owner}/{row.name}")]
    return {"object": "list", "data": found}


@router.get("/models/{model:path}")
def model(model: str, caller: Reader, here: Here) -> dict[str, Any]:
    """One model."""
    one = known_model(here, caller, model)
    return _model(model, one.created_at, one.model.partition("/")[0])


@router.delete("/models/{model:path}")
def delete_model(model: str, caller: Trainer, here: Here) -> dict[str, Any]:
    """Remove a fine-tuned model: a version, or a model that has none."""
    name, _, version = model.partition(":")
    if version:
        remove_version(here, caller, name, version)
    else:
        owner, _, rest = name.partition("/")
        delete_empty(owner, rest, caller, here)
    return {"id": model, "object": "model", "deleted": True}


def known_model(here: Gateway, caller: Caller, model: str) -> Known:
    """The version that a model's name stands for. Raises Refusal 404."""
    name, _, version = model.partition(":")
    owner, _, rest = name.partition("/")
    if not here.catalogue.of(name):
        find_model(here, owner, rest, caller)
    found = find_version(here, version, name) if version else next(iter(versions_of(here, name)), None)
    if found is None:
        raise missing()
    return found


def full_name(one: Known) -> str:
    """owner/name:id."""
    return f"{one.model}:{one.id}"


def listed(
    session: Session, query: Select[tuple[T]], table: Any, after: str, limit: int, shown_as: Any, *,
    ascending: bool = False,
) -> dict[str, Any]:
    """A list in OpenAI's shape; `after`: the id of the last row that the client has."""
    limit = min(max(limit, 1), MOST)
    if after:
        last = session.get(table, after)
        if last is None:
            raise Refusal(400, f"after is {shown(after)}, which is not in the list.", param="after")
        older = or_(table.created_at < last.created_at, and_(table.created_at == last.created_at, table.id < last.id))
        newer = or_(table.created_at > last.created_at, and_(table.created_at == last.created_at, table.id > last.id))
        query = query.where(newer if ascending else older)
    order = (table.created_at.asc(), table.id.asc()) if ascending else (table.created_at.desc(), table.id.desc())
    rows = session.scalars(query.order_by(*order).limit(limit + 1)).all()
    data = [shown_as(row) for row in rows[:limit]]
    return {"object": "list", "data": data, "has_more": len(rows) > limit,
            "first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}


def view(row: File) -> dict[str, Any]:
    """A file as OpenAI's clients see it."""
    return {"id": PREFIX + row.id, "object": "file", "bytes": row.bytes, "created_at": int(row.created_at),
            "filename": row.name, "purpose": row.purpose, "status": "processed", "status_details": None}


def _model(name: str, created_at: float, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created_at), "owned_by": owner}
