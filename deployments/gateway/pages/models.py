"""The pages of models: all of them, and one with its versions.

    GET /models      GET /models/{owner}/{name}      POST /models/{owner}/{name}/delete with version=<id>
    POST /models/{owner}/{name}/promote with version=<id>      POST /models/{owner}/{name}/rollback
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import or_, select

from deployments.gateway.context import Base, Gateway, Here
from deployments.gateway.errors import missing
from deployments.gateway.keys import Caller
from deployments.gateway.models import find_model
from deployments.gateway.pages.overview import served
from deployments.gateway.pages.render import Page, form_of, page, see_other
from deployments.gateway.pages.session import Visitor, check_scope
from deployments.gateway.removal import remove_version
from deployments.gateway.tables import Model, Training
from deployments.gateway.versions import Known, versions_of
from infra.errors import AnnealError
from infra.models.mlflow_errors import translate_mlflow_errors
from infra.models.registry import ID_TAG, mlflow_name
from infra.models.version_names import VERSION_ID
from infra.spec import FIELDS

router = APIRouter(route_class=Page, include_in_schema=False)
Change = tuple[str, Any, Any]
DATA = ("train_data", "validation_data", "base_model", "destination")
"""No parameters of a training's way, but what it was made of."""


@router.get("/models")
def models(caller: Visitor, here: Here) -> HTMLResponse:
    """The caller's and public ones, and the base models."""
    query = select(Model).order_by(Model.created_at.desc())
    with here.database.session() as session:
        rows = session.scalars(query if caller.is_admin else query.where(
            or_(Model.owner == caller.owner, Model.visibility == "public"))).all()
    return page("models", caller, models=rows, bases=here.catalogue.bases, served=served(here) or {})


@router.get("/models/{owner}/{name}")
def model(owner: str, name: str, caller: Visitor, here: Here, base: Base) -> HTMLResponse:
    """One model and its versions; of a public one of another owner what its API tells everybody, and no more."""
    row = find_model(here, owner, name, caller)
    is_own = caller.sees(row.owner)
    destination = f"{owner}/{name}"
    versions = versions_of(here, destination)
    about, aliases, away = _registered(here, destination)
    with here.database.session() as session:
        trainings = {one.output_version: one for one in session.scalars(select(Training).where(
            Training.destination == destination, Training.output_version != "")).all() if caller.sees(one.owner)}
    return page("model", caller, row=row, destination=destination, versions=versions, is_own=is_own,
                about=about if is_own else {}, aliases=aliases, trainings=trainings,
                changed=_changed(versions, trainings), base=base, away=away,
                served=(served(here) or {}).get(destination), predictor=here.settings.predictor,
                mlflow=here.settings.tracking_uri)


@router.post("/models/{owner}/{name}/delete")
async def delete(owner: str, name: str, request: Request, caller: Visitor, here: Here) -> Response:
    """Remove one version."""
    check_scope(caller, "train")
    form = await form_of(request)
    await here.slowly(remove_version, here, caller, f"{owner}/{name}", form.get("version", ""))
    return see_other(f"/models/{owner}/{name}")


@router.post("/models/{owner}/{name}/promote")
async def promote(owner: str, name: str, request: Request, caller: Visitor, here: Here) -> Response:
    """Let the model answer with one version, as `anneal promote` does."""
    check_scope(caller, "train")
    form = await form_of(request)
    version = form.get("version", "")
    if not VERSION_ID.fullmatch(version):
        raise missing()
    await here.slowly(_answer_with, here, caller, owner, name, version)
    return see_other(f"/models/{owner}/{name}")


@router.post("/models/{owner}/{name}/rollback")
async def roll_back(owner: str, name: str, caller: Visitor, here: Here) -> Response:
    """Let the model answer with its version before, as `anneal rollback` does."""
    check_scope(caller, "train")
    await here.slowly(_answer_with, here, caller, owner, name, "")
    return see_other(f"/models/{owner}/{name}")


def _answer_with(here: Gateway, caller: Caller, owner: str, name: str, version: str) -> None:
    """One of the model's versions; empty: the one before. Raises Refusal 404, and as `anneal promote`."""
    from deployments.cli import rollout

    find_model(here, owner, name, caller, own=True)
    with here.registry():  # says at once that MLflow is away
        pass
    if version:
        rollout.promote(here.settings, f"{owner}/{name}:{version}")
    else:
        rollout.rollback(here.settings, f"{owner}/{name}")


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """(parameter, value then, value now) of two trainings that differ; what was not given is at its default."""
    defaults = {field.name: field.default for field in FIELDS}
    values = [(name, *(one.get(name, default) for one in (before, after))) for name, default in defaults.items()]
    return [(name, old, new) for name, old, new in values if old != new and name not in DATA]


def _changed(versions: list[Known], trainings: dict[str, Training]) -> dict[str, tuple[int, list[Change]]]:
    """By id: the number of the version before, and in which parameters they differ. `versions`: the newest first."""
    return {now.id: (before.number, changes(trainings[before.id].input, trainings[now.id].input))
            for now, before in pairwise(versions) if now.id in trainings and before.id in trainings}


def _registered(here: Gateway, destination: str) -> tuple[dict[str, Any], dict[int, list[str]], str]:
    """What MLflow says of each version: its verdict and tags by id, its aliases by number; or why it says nothing."""
    try:
        with here.registry() as registry, translate_mlflow_errors(registry.uri):
            found = registry.client.search_model_versions(f"name='{mlflow_name(destination)}'")
            names = registry.client.get_registered_model(mlflow_name(destination)).aliases if found else {}
    except AnnealError as error:
        return {}, {}, str(error)
    aliases: dict[int, list[str]] = {}
    for alias, number in names.items():
        aliases.setdefault(int(number), []).append(alias)
    about = {one.tags.get(ID_TAG, str(one.version)): {"verdict": one.description or "", "tags": one.tags}
             for one in found}
    return about, aliases, ""
