"""The parameters of a training as a pydantic model: Prefect's form and the HTTP API's schema.

Built from the fields of `TrainingSpec`, so that a knob, its range and its description stand in
one place. The server checks types, ranges and choices when a run is submitted; what it cannot
check (`destination`) fails at the start of the run with the same sentence.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from infra.spec import FIELD_TYPES, TrainingSpec


class _Parameters(BaseModel):
    """What to train, on what, and where it goes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def spec(self) -> TrainingSpec:
        """The frozen spec. Raises UserError, naming the field, for a value out of range."""
        return TrainingSpec(**self.model_dump())


def _fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for position, field in enumerate(dataclasses.fields(TrainingSpec)):
        limits = field.metadata
        default = ... if field.default is dataclasses.MISSING else field.default
        fields[field.name] = (FIELD_TYPES[field.name], Field(
            default, title=field.name, description=limits["help"], ge=limits["ge"], le=limits["le"],
            json_schema_extra={"position": position}))
    return fields


Parameters: type[_Parameters] = create_model("Parameters", __base__=_Parameters, **_fields())
