"""Routes of account, hardware, models and their versions.

    GET /account, /hardware      GET, POST, QUERY /models      GET, PATCH, DELETE /models/{owner}/{name}
    GET /models/{owner}/{name}/versions[/{id}]
A model is there for its owner, and for everybody if it is public; to others it does not exist.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from deployments.gateway.catalogue import BaseVersion
from deployments.gateway.context import Base, Gateway, Here
from deployments.gateway.errors import Refusal, missing, read_body, read_json, text_of
from deployments.gateway.ids import new_id, page_of
from deployments.gateway.keys import Caller, Reader, Trainer
from deployments.gateway.tables import Model, Prediction
from deployments.gateway.versions import Known, find_version, noted, versions_of
from infra.errors import shown
from infra.spec import check_destination
from tasks.launcher.device_table import device_table

router = APIRouter()
PAGE = 25
ABOUT = ("description", "github_url", "paper_url", "license_url", "cover_image_url")
VISIBILITIES = ("private", "public")
SEARCH_BYTES = 1000


@router.get("/account")
def account(caller: Reader) -> dict[str, Any]:
    """Whose key it is."""
    return {"type": "user", "username": caller.owner, "name": caller.owner}


@router.get("/hardware")
def hardware(caller: Reader) -> list[dict[str, str]]:
    """The devices whose rates and prices are known. A training runs on what the worker's machine has."""
    return [{"sku": name.lower().replace(" ", "-"), "name": device.name} for name, device in device_table().items()]


@router.post("/models")
async def create(request: Request, caller: Trainer, here: Here, base: Base) -> JSONResponse:
    """Make an empty model, which trainings may name as their destination."""
    body = await read_json(request)
    return JSONResponse(await run_in_threadpool(_create, body, caller, here, base), 201)


@router.get("/models")
def models(caller: Reader, here: Here, base: Base, cursor: str | None = None) -> dict[str, Any]:
    """The caller's models and public ones, the newest first; the base models last."""
    with here.database.session() as session:
        page = page_of(session, _visible(caller), Model, PAGE, cursor, f"{base}/v1/models",
                       lambda row: _view(session, row, noted(here, _name(row)), base))
    if page["next"] is None:
        page["results"] += [_base_view(one, base) for one in _newest_bases(here)]
    return page


@router.api_route("/models", methods=["QUERY"], include_in_schema=False)
async def search(request: Request, caller: Reader, here: Here, base: Base) -> dict[str, Any]:
    """Models whose name or description has the text of the body."""
    wanted = (await read_body(request, SEARCH_BYTES)).decode("utf-8", "replace").strip().lower()
    return await here.slowly(_search, wanted, caller, here, base)


@router.get("/models/{owner}/{name}")
def get(owner: str, name: str, caller: Reader, here: Here, base: Base) -> dict[str, Any]:
    """One model."""
    if bases := here.catalogue.of(f"{owner}/{name}"):
        return _base_view(bases[0], base)
    row = find_model(here, owner, name, caller)
    versions = versions_of(here, f"{owner}/{name}")
    with here.database.session() as session:
        return _view(session, row, versions, base)


@router.patch("/models/{owner}/{name}")
async def change(
    owner: str, name: str, request: Request, caller: Trainer, here: Here, base: Base,
) -> dict[str, Any]:
    """Change what is said about a model."""
    body = await read_json(request)
    return await run_in_threadpool(_change, owner, name, body, caller, here, base)


@router.delete("/models/{owner}/{name}", status_code=204)
def delete(owner: str, name: str, caller: Trainer, here: Here) -> Response:
    """Remove a model that has no versions."""
    row = find_model(here, owner, name, caller, own=True)
    if found := versions_of(here, f"{owner}/{name}"):
        raise Refusal(422, f"{owner}/{name} has versions, which other programs may use. Delete them first, by their "
                           f"ids: {', '.join(one.id[:12] for one in found[:5])}.")
    with here.database.session() as session:
        session.delete(row)
    return Response(status_code=204)


@router.get("/models/{owner}/{name}/versions")
def versions(owner: str, name: str, caller: Reader, here: Here) -> dict[str, Any]:
    """All versions of a model, the newest first."""
    if not here.catalogue.of(f"{owner}/{name}"):
        find_model(here, owner, name, caller)
    found = [one.view() for one in versions_of(here, f"{owner}/{name}")]
    return {"next": None, "previous": None, "results": found}


@router.get("/models/{owner}/{name}/versions/{version}")
def version(owner: str, name: str, version: str, caller: Reader, here: Here) -> dict[str, Any]:
    """One version."""
    if not here.catalogue.of(f"{owner}/{name}"):
        find_model(here, owner, name, caller)
    found = find_version(here, version, f"{owner}/{name}")
    if found is None:
        raise missing()
    return found.view()


def find_model(here: Gateway, owner: str, name: str, caller: Caller, *, own: bool = False) -> Model:
    """The row of a model that is there for the caller; `own`: that he may change. Raises Refusal 404."""
    with here.database.session() as session:
        row = session.scalar(select(Model).where(Model.owner == owner, Model.name == name))
    if row is None or not (caller.sees(owner) or (row.visibility == "public" and not own)):
        raise missing()
    return row


def _create(body: dict[str, Any], caller: Caller, here: Gateway, base: str) -> dict[str, Any]:
    owner, name = text_of(body, "owner"), text_of(body, "name")
    check_destination(f"{owner}/{name}")
    if not caller.sees(owner):
        raise Refusal(422, f"Your key may make models of {caller.owner}, not of {shown(owner)}.")
    row = Model(id=new_id(), owner=owner, name=name, visibility=_visibility(body, "private"),
                hardware=text_of(body, "hardware", default="", most=120), about=_about(body), created_at=time.time())
    try:
        with here.database.session() as session:
            if here.catalogue.of(f"{owner}/{name}"):
                raise Refusal(422, f"{owner}/{name} is a base model. Choose another name.")
            session.add(row)
    except IntegrityError:
        raise Refusal(422, f"A model named {owner}/{name} exists. Train it, or choose another name.") from None
    with here.database.session() as session:
        return _view(session, row, [], base)


def _change(owner: str, name: str, body: dict[str, Any], caller: Caller, here: Gateway, base: str) -> dict[str, Any]:
    row = find_model(here, owner, name, caller, own=True)
    unknown = next((key for key in body if key not in (*ABOUT, "visibility", "readme")), None)
    if unknown is not None:
        raise Refusal(422, f"{shown(unknown)} cannot be changed; {', '.join((*ABOUT, 'visibility'))} can.")
    with here.database.session() as session:
        session.add(row)
        row.visibility, row.about = _visibility(body, row.visibility), {**row.about, **_about(body)}
    return get(owner, name, caller, here, base)


def _search(wanted: str, caller: Caller, here: Gateway, base: str) -> dict[str, Any]:
    pattern = wanted.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    full = func.lower(Model.owner + "/" + Model.name)
    with here.database.session() as session:
        rows = session.scalars(_visible(caller).where(full.like(f"%{pattern}%", escape="\\")).limit(PAGE)).all()
        found = [_view(session, row, noted(here, _name(row)), base) for row in rows]
    found += [_base_view(one, base) for one in _newest_bases(here) if wanted in one.model]
    return {"next": None, "previous": None, "results": found}


def _visible(caller: Caller) -> Any:
    query = select(Model)
    return query if caller.is_admin else query.where(or_(Model.owner == caller.owner, Model.visibility == "public"))


def _newest_bases(here: Gateway) -> list[BaseVersion]:
    return list({one.model: one for one in reversed(here.catalogue.bases)}.values())


def _name(row: Model) -> str:
    return f"{row.owner}/{row.name}"


def _view(session: Session, row: Model, versions: list[Known], base: str) -> dict[str, Any]:
    runs = session.scalar(select(func.count()).select_from(Prediction).where(Prediction.model == _name(row)))
    return {
        "url": f"{base}/{_name(row)}", "owner": row.owner, "name": row.name, "visibility": row.visibility,
        **{key: row.about.get(key) for key in ABOUT}, "run_count": runs or 0, "default_example": None,
        "latest_version": versions[0].view() if versions else None}


def _base_view(one: BaseVersion, base: str) -> dict[str, Any]:
    return {
        "url": f"{base}/{one.model}", "owner": one.owner, "name": one.name, "visibility": "public",
        **dict.fromkeys(ABOUT), "description": "A base model that can be trained.", "run_count": 0,
        "default_example": None, "latest_version": Known(one.version, one.model, 0.0).view()}


def _visibility(body: dict[str, Any], default: str) -> str:
    found = text_of(body, "visibility", default=default)
    if found not in VISIBILITIES:
        raise Refusal(422, f"visibility is {shown(found)}; expected private or public.")
    return found


def _about(body: dict[str, Any]) -> dict[str, Any]:
    return {key: text_of(body, key) for key in ABOUT if body.get(key) is not None}
