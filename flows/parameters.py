"""The parameters of a training as a pydantic model: Prefect's form and the HTTP API's schema.

Built from the fields of `TrainingSpec`, so that a knob, its range and its description stand in
one place. Titles, descriptions, lengths and the pattern are the form's and the server's: there a run with
a wrong value is refused when it is submitted. Calls from Python meet the same rules in `spec()`, as a sentence.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from infra.spec import DESTINATION, DESTINATION_CHARACTERS, FIELD_TYPES, FIELDS, TrainingSpec, range_of


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
            hints |= {"pattern": f"^{DESTINATION.pattern}$", "maxLength": DESTINATION_CHARACTERS}
        fields[field.name] = (FIELD_TYPES[field.name], Field(
            ... if is_required else field.default, title=f"{limits['group']}: {field.name}", description=about,
            ge=limits["ge"], le=limits["le"], json_schema_extra=hints))
    return fields


Parameters: type[_Parameters] = create_model("Parameters", __base__=_Parameters, **_fields())
