"""Rows with given ids and states, for tests of clients against the gateway: anneal gateway seed FILE.json

In:   {"models": [...], "versions": [...], "trainings": [...], "predictions": [...]}      Out: rows of the database
Only where ANNEAL_GATEWAY_FIXTURES is on; the gateway then answers for a seeded version with the output that stands in
the file, without a predictor and whatever the inputs are. The same file may be seeded again. docs/api.md shows one.

    model       owner, name; visibility, description
    version     model (owner/name), id (64 hex digits), output (any JSON; a list is streamed piece by piece); error,
                logs, openapi_schema
    training    id, destination, status; model, version, input, output_version, error, owner, created_at
    prediction  id, model, version, status; input, output, error, logs, owner, created_at
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select

from deployments.gateway.catalogue import VERSION
from deployments.gateway.context import Gateway
from deployments.gateway.ids import new_id
from deployments.gateway.intents import begun
from deployments.gateway.tables import Model, Prediction, Table, Training
from deployments.gateway.trainings import OPEN
from deployments.gateway.versions import SEEDED
from infra.errors import UserError, shown
from infra.spec import check_destination

STATUSES = (*OPEN, "succeeded", "failed", "canceled")
NEEDED = {"models": ("owner", "name"), "versions": ("model", "id"), "trainings": ("id", "destination", "status"),
          "predictions": ("id", "model", "version", "status")}
NOTHING: dict[str, Any] = {"webhook": "", "webhook_completed": "", "webhook_events": [], "base_url": ""}


def seed(here: Gateway, file: Path) -> dict[str, int]:
    """Put a file's rows into the database; returns how many of each kind. Raises UserError; nothing is seeded then."""
    if not here.settings.gateway_fixtures:
        raise UserError("this gateway takes no seeded rows", where="ANNEAL_GATEWAY_FIXTURES",
                        fix="Set it to true where nothing but tests of clients runs.")
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"it cannot be read ({error})", where=str(file)) from error
    _check(given, str(file))
    with here.database.session() as session:
        for row in _rows(here, given):
            if isinstance(row, Model):
                there = session.scalar(select(Model.id).where(Model.owner == row.owner, Model.name == row.name))
                row.id = there or row.id
            session.merge(row)
    return {kind: len(given.get(kind, [])) for kind in NEEDED}


def _check(given: Any, where: str) -> None:
    if not isinstance(given, dict) or not set(given) <= set(NEEDED):
        raise UserError("the top is no object of lists", where=where, allowed=", ".join(NEEDED))
    for kind, names in NEEDED.items():
        for number, one in enumerate(given.get(kind, [])):
            place = f"{where} {kind}[{number}]"
            missing = [name for name in names if not isinstance(one, dict) or not isinstance(one.get(name), str)]
            if missing:
                raise UserError(f"{', '.join(missing)} is missing or no text", where=place)
            if one.get("status", "succeeded") not in STATUSES:
                raise UserError(f"the status is {shown(one['status'])}", where=place, allowed=", ".join(STATUSES))
            if kind == "versions" and not VERSION.fullmatch(one["id"]):
                raise UserError(f"the id is {shown(one['id'])}", where=place, allowed="64 hex digits")
            check_destination(one.get("destination") or one.get("model") or f"{one.get('owner')}/{one.get('name')}")


def _rows(here: Gateway, given: dict[str, Any]) -> Iterator[Table]:
    now = time.time()
    for one in given.get("models", []):
        yield Model(id=new_id(), owner=one["owner"], name=one["name"], visibility=one.get("visibility", "private"),
                    hardware="cpu", about={"description": one.get("description")}, created_at=now)
    for number, one in enumerate(given.get("versions", [])):
        fixture = {name: one.get(name) for name in ("output", "error", "logs", "openapi_schema")}
        yield _training(one["model"].partition("/")[0], {
            "id": base64.b32encode(bytes.fromhex(one["id"])[:16]).decode().lower().rstrip("="), "source": SEEDED,
            "destination": one["model"], "status": "succeeded", "output_version": one["id"],
            "about": {"fixture": fixture}, "created_at": one.get("created_at", now + number * 1e-3)})
    for one in given.get("trainings", []):
        owner = one["destination"].partition("/")[0]
        yield _training(owner, {name: value for name, value in one.items() if value is not None})
    for one in given.get("predictions", []):
        output = one.get("output") or []
        created = one.get("created_at", now)
        yield Prediction(**{
            **NOTHING, "id": one["id"], "owner": one.get("owner", here.settings.account), "model": one["model"],
            "version": one["version"], "about_version": True, "input": one.get("input", {}), "output": output,
            "status": one["status"], "error": one.get("error"), "logs": one.get("logs", ""), "metrics": {},
            "stream_token": secrets.token_urlsafe(32), "created_at": created, "seen_at": now + 1e9,
            "started_at": None if one["status"] == "starting" else created,
            "completed_at": None if one["status"] in OPEN else created})


def _training(owner: str, given: dict[str, Any]) -> Training:
    created = given.get("created_at", time.time())
    ended = given["status"] not in OPEN
    return Training(**{
        **begun(), **NOTHING, "owner": owner, "model": "anneal/demo-base", "version": "0" * 64, "input": {}, "spec": {},
        "about": {}, "request_hash": "", "idempotency_key": None, "source": "api",
        "hold": "" if ended else SEEDED, "created_at": created, "completed_at": created if ended else None,
        "started_at": created if given["status"] != "starting" else None, **given})
