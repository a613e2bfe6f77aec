"""Versions of models: MLflow's, and those of the base models.

In:   owner/name, or a version id      Out: (id, model, when it was registered)
MLflow away: those that finished trainings noted. Replicate's clients need of a version above all its schema: of the
predictor's inputs, of an output that comes in pieces, and of what a training takes.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin

from sqlalchemy import ColumnElement, select

from deployments.gateway.catalogue import VERSION
from deployments.gateway.context import Gateway
from deployments.gateway.ids import moment
from deployments.gateway.intents import NOT_INPUTS
from deployments.gateway.tables import Training
from deployments.predictor.schemas import Input
from infra.errors import AnnealError
from infra.models.mlflow_errors import translate_mlflow_errors
from infra.models.registry import ID_TAG, mlflow_name
from infra.spec import FIELD_TYPES, FIELDS

log = logging.getLogger(__name__)
COG_VERSION = "0.22.0"
"""Whose conventions the schema follows; clients bend schemas of versions before 0.3.9."""
NAMES = {str: "string", int: "integer", float: "number", bool: "boolean"}


SEEDED = "seed"
"""The source of rows that stand for versions of a test's fixtures (seed.py); they are in no list of trainings."""


@dataclass(frozen=True)
class Known:
    """A version that exists."""

    id: str
    model: str
    created_at: float
    number: int = 0
    """MLflow's; 0 where only its id is known."""
    fixture: dict[str, Any] | None = None
    """What a seeded version answers with."""

    def view(self) -> dict[str, Any]:
        """As clients see it."""
        return {"id": self.id, "created_at": moment(self.created_at), "cog_version": COG_VERSION,
                "openapi_schema": (self.fixture or {}).get("openapi_schema") or schema()}


def versions_of(gateway: Gateway, model: str) -> list[Known]:
    """All versions of a model, the newest first."""
    if found := seeded(gateway, Training.destination == model):
        return found
    bases = gateway.catalogue.of(model)
    if bases:
        return [Known(base.version, model, 0.0) for base in bases]
    try:
        found = registered(gateway, f"name='{mlflow_name(model)}'")
        return sorted(found, key=lambda one: one.number, reverse=True)
    except AnnealError as error:
        log.warning("versions of %s are those of its trainings: %s", model, error)
        return noted(gateway, model)


def find_version(gateway: Gateway, identity: str, model: str = "") -> Known | None:
    """The version with that id, of a model if one is given."""
    if not VERSION.fullmatch(identity):
        return None
    if fixtures := seeded(gateway, Training.output_version == identity):
        return fixtures[0] if model in ("", fixtures[0].model) else None
    if base := gateway.catalogue.with_id(identity):
        return Known(identity, base.model, 0.0) if model in ("", base.model) else None
    if model:
        return next((one for one in versions_of(gateway, model) if one.id == identity), None)
    try:
        return next(iter(registered(gateway, f"tags.{ID_TAG}='{identity}'")), None)
    except AnnealError as error:
        log.warning("version %s is looked up among trainings: %s", identity[:12], error)
    with gateway.database.session() as session:
        row = session.scalar(select(Training).where(Training.output_version == identity).limit(1))
    return Known(identity, row.destination, row.completed_at or 0.0) if row else None


def seeded(gateway: Gateway, which: ColumnElement[bool]) -> list[Known]:
    """Versions of a test's fixtures, the newest first; none where the setting is off."""
    if not gateway.settings.gateway_fixtures:
        return []
    with gateway.database.session() as session:
        rows = session.scalars(select(Training).where(Training.source == SEEDED, which).order_by(
            Training.created_at.desc())).all()
    return [Known(row.output_version, row.destination, row.created_at, fixture=row.about["fixture"]) for row in rows]


def noted(gateway: Gateway, model: str) -> list[Known]:
    """The versions that finished trainings noted, the newest first."""
    with gateway.database.session() as session:
        rows = session.scalars(select(Training).where(
            Training.destination == model, Training.output_version != "").order_by(Training.completed_at.desc())).all()
    found: dict[str, Known] = {}
    for row in rows:
        found[row.output_version] = Known(row.output_version, model, row.completed_at or 0.0)
    return list(found.values())


def registered(gateway: Gateway, query: str) -> list[Known]:
    """The versions that MLflow finds with a query. Raises Transient."""
    with gateway.registry() as registry, translate_mlflow_errors(registry.uri):
        found = registry.client.search_model_versions(query)
    return [Known(one.tags[ID_TAG], one.name.replace("--", "/", 1), one.creation_timestamp / 1000, int(one.version))
            for one in found if ID_TAG in one.tags]


@cache
def schema() -> dict[str, Any]:
    """OpenAPI of a version: inputs with their order, an output that comes in pieces, what trainings take."""
    prediction = Input.model_json_schema()
    for order, about in enumerate(prediction["properties"].values()):
        about["x-order"] = order
    pieces = {"type": "array", "items": {"type": "string"}, "title": "Output", "x-cog-array-type": "iterator",
              "x-cog-array-display": "concatenate"}
    training = {"type": "object", "title": "TrainingInput", "required": ["train_data"], "properties": {
        field.name: {**_typed(field), "x-order": order}
        for order, field in enumerate(one for one in FIELDS if one.name not in NOT_INPUTS)}}
    output = {"type": "object", "title": "TrainingOutput", "required": ["version"], "properties": {
        "version": {"type": "string"}, "weights": {"type": "string", "format": "uri"}}}
    return {"openapi": "3.1.0", "info": {"title": "Anneal", "version": "1"}, "paths": {}, "components": {"schemas": {
        "Input": {**prediction, "title": "Input"}, "Output": pieces, "TrainingInput": training,
        "TrainingOutput": output}}}


def _typed(field: dataclasses.Field[Any]) -> dict[str, Any]:
    kind, limits = FIELD_TYPES[field.name], field.metadata
    found: dict[str, Any] = {"title": field.name, "description": limits["help"]}
    if get_origin(kind) is None:
        found["type"] = NAMES[kind]
    else:
        found |= {"type": "string", "enum": list(get_args(kind))}
    for name, limit in (("minimum", limits["ge"]), ("maximum", limits["le"])):
        if limit is not None:
            found[name] = limit
    return found if field.default is dataclasses.MISSING else {**found, "default": field.default}
