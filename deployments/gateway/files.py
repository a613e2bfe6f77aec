"""Routes of uploaded files.

    POST, GET /files      GET, DELETE /files/{id}      GET /files/{id}/download
    POST /upload/{name}, PUT /upload/{id}/{token}      the guide's upload in two requests
Bytes go into the store, and rows that can be trained on become a data set there at once: what is wrong with a line is
known before any GPU is asked for. A file that is deleted leaves the data sets of trainings alone.
"""

from __future__ import annotations

import hashlib
import hmac
import mimetypes
import secrets
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from sqlalchemy import delete as delete_rows
from sqlalchemy import select

from deployments.gateway.context import Base, Gateway, Here
from deployments.gateway.data import keep
from deployments.gateway.errors import missing
from deployments.gateway.ids import moment, new_id, page_of
from deployments.gateway.keys import Caller, Reader, Trainer
from deployments.gateway.tables import File
from deployments.gateway.uploads import receive_bare, receive_form, safe_name, too_large
from infra.storage.http_client import number_in
from tasks.data.datasets import UPLOADS

router = APIRouter()
PAGE = 100


@router.post("/files")
async def create(request: Request, caller: Trainer, here: Here, base: Base) -> JSONResponse:
    """Upload a file, as the part `content` of a form."""
    row = await uploaded(request, caller, here, "content")
    return JSONResponse(view(row, base), 201)


@router.get("/files")
def files(caller: Reader, here: Here, base: Base, cursor: str | None = None) -> dict[str, Any]:
    """The caller's files, the newest first."""
    query = select(File).where(File.place != "")
    query = query if caller.is_admin else query.where(File.owner == caller.owner)
    with here.database.session() as session:
        return page_of(session, query, File, PAGE, cursor, f"{base}/v1/files", lambda row: view(row, base))


@router.get("/files/{identity}")
def get(identity: str, caller: Reader, here: Here, base: Base) -> dict[str, Any]:
    """What is known of a file."""
    return view(find_file(here, identity, caller), base)


@router.get("/files/{identity}/download")
def download(identity: str, caller: Reader, here: Here) -> FileResponse:
    """Its bytes."""
    return content(here, find_file(here, identity, caller))


@router.delete("/files/{identity}", status_code=204)
def delete(identity: str, caller: Trainer, here: Here) -> Response:
    """Forget a file."""
    remove(here, find_file(here, identity, caller))
    return Response(status_code=204)


@router.post("/upload/{name:path}")
def announce(name: str, caller: Trainer, here: Here, base: Base) -> dict[str, str]:
    """Two addresses: one to PUT a file to, without a key, and one to name it by."""
    token = secrets.token_urlsafe(32)
    row = File(id=new_id(), owner=caller.owner, name=safe_name(name), bytes=0, sha256="", md5="", about={},
               content_type=mimetypes.guess_type(name)[0] or "application/octet-stream", purpose="input", place="",
               dataset="", report={"token": _hash(token)}, created_at=time.time())
    with here.database.session() as session:
        session.add(row)
    return {"upload_url": f"{base}/v1/upload/{row.id}/{token}", "serving_url": f"{base}/v1/files/{row.id}/{row.name}"}


@router.put("/upload/{identity}/{token}")
async def put(identity: str, token: str, request: Request, here: Here) -> dict[str, str]:
    """The file that was announced; once."""

    def find() -> File:
        with here.database.session() as session:
            row = session.get(File, identity)
        if row is None or not hmac.compare_digest(str(row.report.get("token", "")), _hash(token)):
            raise missing()
        return row

    row = await run_in_threadpool(find)
    limit = here.settings.max_upload_bytes
    _refuse_announced(request, limit)
    with here.store.scratch() as folder:
        upload = await receive_bare(request.stream(), folder, limit)
        upload.name, upload.content_type = row.name, row.content_type
        await here.slowly(keep, here, upload, row)
    return {"status": "received"}


async def uploaded(request: Request, caller: Caller, here: Gateway, file_part: str) -> File:
    """The row of a file that comes in a form. Raises Refusal, Transient."""
    limit = here.settings.max_upload_bytes
    _refuse_announced(request, limit)
    with here.store.scratch() as folder:
        upload = await receive_form(request.stream(), request.headers.get("content-type", ""), folder,
                                    file_part=file_part, limit=limit)
        upload.name = upload.fields.get("filename", "") or upload.name
        upload.content_type = upload.fields.get("type", "") or upload.content_type
        row = File(id=new_id(), owner=caller.owner, name=safe_name(upload.name), about=upload.metadata,
                   purpose=upload.fields.get("purpose", "input")[:40], created_at=time.time())
        await here.slowly(keep, here, upload, row)
    return row


def find_file(here: Gateway, identity: str, caller: Caller) -> File:
    """The row of a file that has arrived and is the caller's. Raises Refusal 404."""
    with here.database.session() as session:
        row = session.get(File, identity)
    if row is None or not row.place or not caller.sees(row.owner):
        raise missing()
    return row


def content(here: Gateway, row: File) -> FileResponse:
    """The bytes of a file. Raises Transient."""
    folder, _, name = row.place.rpartition("/")
    return FileResponse(here.store.fetch(folder) / name, media_type=row.content_type, filename=row.name,
                        headers={"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"})


def remove(here: Gateway, row: File) -> None:
    """Forget a file. Its data set stays while another file has it, and later until `anneal gc` finds nobody uses it."""
    with here.database.session() as session:
        session.execute(delete_rows(File).where(File.id == row.id))
        other = session.scalar(select(File.id).where(File.dataset == row.dataset).limit(1)) if row.dataset else None
    if row.place.startswith("files/"):
        here.store.remove(row.place.rpartition("/")[0])
    if row.dataset and other is None:
        here.store.discard(f"{UPLOADS}/{row.dataset.split('/')[-2]}")


def view(row: File, base: str) -> dict[str, Any]:
    """A file as Replicate's clients see it, and what its rows are."""
    return {
        "id": row.id, "name": row.name, "content_type": row.content_type, "size": row.bytes, "etag": row.md5,
        "checksums": {"sha256": row.sha256, "md5": row.md5}, "metadata": row.about,
        "created_at": moment(row.created_at), "expires_at": None, "report": row.report,
        "urls": {"get": f"{base}/v1/files/{row.id}", "download": f"{base}/v1/files/{row.id}/download"}}


def _refuse_announced(request: Request, limit: int) -> None:
    """Before anything is read of it."""
    length = request.headers.get("content-length", "")
    if (number_in(length) or 0) > limit + (1 << 20):
        raise too_large(limit)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
