"""The parameters of a training as a pydantic model: Prefect's form and the HTTP API's schema.

Built from the fields of `TrainingSpec`, so that a knob, its range and its description stand in
one place. Titles, descriptions, lengths and the patterns are the form's and the server's: there a run with
a wrong value is refused when it is submitted. Calls from Python meet the same rules in `spec()`, as a sentence; those
about secrets in addresses before Prefect stores the parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from pydantic import BaseModel, ConfigDict, Field, create_model

from infra.errors import Transient
from infra.models.base_models import look_for_base
from infra.redaction import NO_SECRETS
from infra.settings import Settings
from infra.spec import (
    ADDRESSES,
    DESTINATION,
    DESTINATION_CHARACTERS,
    FIELD_TYPES,
    FIELDS,
    TrainingSpec,
    range_of,
    refuse_secrets,
)
from infra.storage.store import Store
from tasks.data.datasets import IN_STORE, stored
from tasks.data.source_cache import sources_of
from tasks.data.sources import find_shards
from tasks.launcher.jobs import ranks_of

P = ParamSpec("P")
R = TypeVar("R")
PROSE = ("validation_prompt",)
"""May speak of any address."""


def matches(pattern: str, expected: str) -> dict[str, Any]:
    """JSON schema of a text: Prefect then says "'<expected>' was expected" beside the field, and shows no pattern."""
    return {"if": {"pattern": pattern}, "else": {"const": expected}}


WITHOUT_SECRETS = matches(NO_SECRETS, "an address without a password or a signature in it")


class _Parameters(BaseModel):
    """What to train, on what, and where it goes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def spec(self) -> TrainingSpec:
        """The frozen spec. Raises UserError, naming the field, for a value out of range."""
        return TrainingSpec(**self.model_dump())


def _fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for position, field in enumerate(FIELDS):
        limits, is_required = field.metadata, field.default is dataclasses.MISSING
        about = " ".join([limits["help"], *([f"Range: {range_of(field)}."] if range_of(field) else [])])
        hints: dict[str, Any] = {"position": position}
        if is_required:
            hints["minLength"] = 1
        if field.name == "destination":
            hints |= {**matches(f"^{DESTINATION.pattern}$", "owner/name in lower case, such as acme/summarizer"),
                      "maxLength": DESTINATION_CHARACTERS}
        if field.name in ADDRESSES:
            hints |= WITHOUT_SECRETS
        fields[field.name] = (FIELD_TYPES[field.name], Field(
            ... if is_required else field.default, title=f"{limits['group']}: {field.name}", description=about,
            ge=limits["ge"], le=limits["le"], json_schema_extra=hints))
    return fields


Parameters: type[_Parameters] = create_model("Parameters", __base__=_Parameters, **_fields())


def refuse_mistakes(settings: Settings, spec: TrainingSpec) -> None:
    """Raise UserError for a path, address or number that leads nowhere here, before there is a run that could fail.

    Nothing is read but names and sizes. What does not answer now is left to the run.
    """
    ranks_of(spec.num_ranks)
    with suppress(Transient):
        look_for_base(settings, spec.base_model)
    for source in sources_of(spec):
        with suppress(Transient):
            if source.startswith(IN_STORE):
                stored(Store(settings), source)
            else:
                find_shards(settings, source)


def guarded(flow: Flow[P, R]) -> Flow[P, R]:
    """The flow, which refuses a call with secrets in an address before Prefect stores its parameters, and one with
    other mistakes before it makes a run."""
    serialized, varied = flow.serialize_parameters, flow.with_options

    def refusing(parameters: dict[str, Any]) -> dict[str, Any]:
        for name, text in _texts(parameters):
            refuse_secrets(name, text)
        if isinstance(training := parameters.get("training"), _Parameters):
            refuse_mistakes(Settings(), training.spec())
        return serialized(parameters)

    def guarded_too(**options: Any) -> Flow[P, R]:
        return guarded(varied(**options))

    flow.serialize_parameters = refusing  # type: ignore[method-assign]
    flow.with_options = guarded_too  # type: ignore[method-assign]
    return flow


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every parameter that is a text, also those of models and those that are spelled wrong."""
    for name, value in values.items():
        if isinstance(value, BaseModel):
            yield from _texts(value.model_dump())
        elif isinstance(value, Mapping):
            yield from _texts(value)
        elif isinstance(value, str) and name not in PROSE:
            yield name, value
