"""From what a client names as training data to an address that the pipeline reads.

In:   an Upload, or the value of train_data      Out: the row of the file, or an address
Uploaded rows become datasets/<hash>/ in the store at once, and every line is judged: a report stands beside the file.
Of the addresses that the pipeline knows, clients may name https:// ones; paths, s3:// and the like are read with the
rights of this service, so that only keys with the scope admin may name them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import shutil
import time
from urllib.parse import unquote_to_bytes, urlsplit

from sqlalchemy import select

from deployments.gateway.context import Gateway
from deployments.gateway.errors import Refusal, missing
from deployments.gateway.ids import new_id
from deployments.gateway.keys import Caller
from deployments.gateway.tables import File
from deployments.gateway.uploads import Upload, safe_name
from infra.errors import DataError
from infra.security.door import Names
from tasks.data.datasets import FILE, UPLOADS, address_of
from tasks.data.scan import survey
from tasks.data.sources import places_of
from tasks.ingest import ingest

OWN = re.compile(r"/v1(?:/v1)?/files/([a-z0-9-]{1,40})(?:/[^/]*)?")
"""The path of a file's own addresses."""
MEDIA_TYPE = re.compile(r"[\w.+-]{1,80}/[\w.+-]{1,80}(; ?[\x21-\x7e ]{0,80})?", re.ASCII)
"""What a download's header may say of a file."""
FORMS = {".csv": "csv:", ".parquet": "parquet:"}
PARQUET = b"PAR1"
OPEN = "https://"


def keep(here: Gateway, upload: Upload, row: File) -> None:
    """Put a file into the store and its row into the database. Raises Transient."""
    row.name = row.name or safe_name(upload.name)
    row.content_type = upload.content_type if MEDIA_TYPE.fullmatch(upload.content_type) else Upload.content_type
    row.bytes, row.sha256, row.md5 = upload.bytes, upload.sha256, upload.md5
    named = upload.path.with_name(safe_name(row.name))
    upload.path.rename(named)
    upload.path = named
    row.dataset, row.report, row.place = "", {}, ""
    try:
        dataset = ingest(here.settings, here.store, _form(upload) + str(named))
        folder = here.store.fetch(dataset.folder)
        scan = survey(folder / FILE, places_of(folder, dataset))
        row.report = {"rows": scan.count, "kind": scan.kind,
                      "findings": [str(finding) for finding in scan.notes.findings()]}
        row.dataset = address_of(dataset)
        here.store.write(f"{UPLOADS}/{dataset.folder.rsplit('/', 1)[-1]}", f"file {row.id}")
        if dataset.sha256 == upload.sha256:
            row.place = f"{dataset.folder}/{FILE}"
    except DataError as error:
        said = str(error).replace(f"{named.parent}/", "")
        row.report = {"error": said, "problems": [line.strip() for line in said.splitlines()]}
    if not row.place:
        with here.store.draft() as draft:
            shutil.copy(named, draft.path / "content")
            draft.commit(f"files/{row.id}", {"name": row.name}, {"content": upload.sha256})
        row.place = f"files/{row.id}/content"
    with here.database.session() as session:
        session.merge(row)


def resolve(here: Gateway, caller: Caller, name: str, value: object) -> object:
    """The address that the pipeline reads for what a client gave as train_data or validation_data.

    Raises:
        Refusal: 404 for a file that is not the caller's; 422 for rows that cannot be trained on, with the line.
        Transient: the store does not answer.
    """
    if not isinstance(value, str) or not value:
        return value  # the spec says what is wrong with it
    if value.startswith("data:"):
        return trainable(_kept_inline(here, caller, name, value), name)
    if identity := own_file(here, value):
        return trainable(_found(here, caller, identity), name)
    if not value.startswith(OPEN) and not caller.is_admin:
        raise Refusal(422, f"{name} is an address that your key may not read. Upload the file to /v1/files and give "
                           "its address, or give one that begins with https://.")
    return value


def own_file(here: Gateway, value: str) -> str:
    """The id in an address of this service's own files; empty for any other."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return ""
    found = OWN.fullmatch(parts.path)
    if found is None or parts.scheme not in ("http", "https"):
        return ""
    public = urlsplit(here.settings.public_url).netloc
    return found[1] if parts.netloc == public or Names.of(here.settings).include(parts.netloc) else ""


def trainable(row: File, name: str) -> str:
    """The address of a file's rows. Raises Refusal 422 with what is wrong with them."""
    if not row.dataset:
        raise Refusal(422, f"{name}: {row.report.get('error', 'the file cannot be trained on.')}")
    return row.dataset


def _found(here: Gateway, caller: Caller, identity: str) -> File:
    with here.database.session() as session:
        row = session.scalar(select(File).where(File.id == identity))
    if row is None or not row.place or not caller.sees(row.owner):
        raise missing()
    return row


def _kept_inline(here: Gateway, caller: Caller, name: str, value: str) -> File:
    """A file that came inside of a request."""
    head, comma, text = value.partition(",")
    try:
        content = base64.b64decode(text, validate=True) if head.endswith(";base64") else unquote_to_bytes(text)
    except (binascii.Error, ValueError):
        comma = ""
        content = b""
    if not comma:
        raise Refusal(422, f"{name} begins with data: and is not a data URI.")
    with here.store.scratch() as folder:
        upload = Upload(folder / "received", name=name, content_type=head[5:].partition(";")[0] or "text/plain",
                        bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
                        md5=hashlib.md5(content, usedforsecurity=False).hexdigest())
        upload.path.write_bytes(content)
        row = File(id=new_id(), owner=caller.owner, name=name, about={}, purpose="input", created_at=time.time())
        keep(here, upload, row)
    return row


def _form(upload: Upload) -> str:
    """The word for a table, by its name, or by its first bytes."""
    with upload.path.open("rb") as file:
        if file.read(4) == PARQUET:
            return FORMS[".parquet"]
    return FORMS.get(upload.path.suffix.lower(), "")


