"""The pages of files, keys and webhooks.

    GET, POST /files      GET /files/{id}      POST /files/{id}/delete
    GET, POST /keys      POST /keys/{id}/revoke      GET /webhooks      POST /webhooks/{id}/redeliver, /webhooks/rotate
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, Response
from sqlalchemy import Select, select

from deployments.gateway.context import Gateway, Here
from deployments.gateway.errors import missing
from deployments.gateway.files import content, find_file, remove, uploaded
from deployments.gateway.keys import SCOPES, Caller, create_key
from deployments.gateway.pages.render import Page, form_of, page, see_other
from deployments.gateway.pages.session import Visitor, check_scope
from deployments.gateway.tables import ApiKey, Delivery, File
from deployments.gateway.webhooks import rotate, secrets_of

router = APIRouter(route_class=Page, include_in_schema=False)
SHOWN = 200


@router.get("/files")
def files(caller: Visitor, here: Here) -> HTMLResponse:
    """The caller's files."""
    with here.database.session() as session:
        rows = session.scalars(_own(caller, select(File), File).where(File.place != "").order_by(
            File.created_at.desc()).limit(SHOWN)).all()
    return page("files", caller, files=rows)


@router.post("/files")
async def upload(request: Request, caller: Visitor, here: Here) -> Response:
    """A file of a form; leads to its report."""
    check_scope(caller, "train")
    row = await uploaded(request, caller, here, "content")
    return see_other(f"/new?file={row.id}" if row.dataset else f"/files/{row.id}")


@router.get("/files/{identity}")
def file(identity: str, caller: Visitor, here: Here) -> HTMLResponse:
    """What is in a file, or what is wrong with it."""
    return page("file", caller, file=find_file(here, identity, caller))


@router.get("/files/{identity}/content")
def download(identity: str, caller: Visitor, here: Here) -> FileResponse:
    """Its bytes."""
    return content(here, find_file(here, identity, caller))


@router.post("/files/{identity}/delete")
def delete(identity: str, caller: Visitor, here: Here) -> Response:
    """Forget a file."""
    check_scope(caller, "train")
    remove(here, find_file(here, identity, caller))
    return see_other("/files")


@router.get("/keys")
def keys(caller: Visitor, here: Here) -> HTMLResponse:
    """All keys, for whoever runs the stack."""
    check_scope(caller, "admin")
    return _keys(here, caller)


@router.post("/keys")
async def make_key(request: Request, caller: Visitor, here: Here) -> HTMLResponse:
    """A new key, which is shown this once."""
    check_scope(caller, "admin")
    form = await form_of(request)
    scopes: list[str] = [scope for scope in SCOPES if form.get(scope)]

    def made() -> HTMLResponse:
        key = create_key(here.database, form.get("owner", "").strip(), scopes, form.get("name", "")[:120])
        return _keys(here, caller, key)

    return await run_in_threadpool(made)


@router.post("/keys/{identity}/revoke")
def revoke(identity: str, caller: Visitor, here: Here) -> Response:
    """End a key; its sessions too."""
    check_scope(caller, "admin")
    with here.database.session() as session:
        row = session.get(ApiKey, identity)
        if row is None:
            raise missing()
        row.revoked_at = row.revoked_at or time.time()
    return see_other("/keys")


@router.get("/webhooks")
def webhooks(caller: Visitor, here: Here) -> HTMLResponse:
    """The caller's deliveries, the newest first, and the secret that signs them."""
    with here.database.session() as session:
        rows = session.scalars(_own(caller, select(Delivery), Delivery).order_by(
            Delivery.created_at.desc()).limit(SHOWN)).all()
        signing = secrets_of(session, caller.owner)
    return page("webhooks", caller, deliveries=rows, secrets=signing)


@router.post("/webhooks/rotate")
def rotate_secret(caller: Visitor, here: Here) -> Response:
    """A new secret; the old one signs beside it for a day."""
    check_scope(caller, "train")
    with here.database.session() as session:
        rotate(session, caller.owner)
    return see_other("/webhooks")


@router.post("/webhooks/{identity}/redeliver")
def redeliver(identity: str, caller: Visitor, here: Here) -> Response:
    """Send a message again: the same body with the same id."""
    check_scope(caller, "train")
    with here.database.session() as session:
        row = session.get(Delivery, identity)
        if row is None or not caller.sees(row.owner):
            raise missing()
        row.done_at, row.due, row.tries = None, 0.0, 0
    return see_other("/webhooks")


def _own(caller: Caller, query: Select[Any], table: Any) -> Select[Any]:
    return query if caller.is_admin else query.where(table.owner == caller.owner)


def _keys(here: Gateway, caller: Caller, made: str = "") -> HTMLResponse:
    with here.database.session() as session:
        rows = session.scalars(select(ApiKey).order_by(ApiKey.created_at.desc()).limit(SHOWN)).all()
    return page("keys", caller, keys=rows, made=made, scopes=SCOPES)
