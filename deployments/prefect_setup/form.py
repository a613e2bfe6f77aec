"""The short form of a training: the eight fields that people change first.

In:   the JSON schema of a flow's parameters      Out: one whose form shows these fields, and that takes all the others
Prefect's pages draw what stands under `properties`; its server also checks what stands under `patternProperties`. So
the fields that are not shown may still be given, in the form's JSON or over HTTP, and meet the same rules.
"""

from __future__ import annotations

import copy
import re
from typing import Any

FIRST = ("train_data", "base_model", "destination", "task_type", "num_train_epochs", "learning_rate",
         "train_batch_size", "peft_method")
"""In the order of the form."""


def short_form(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with FIRST of the training, and nothing else, under `properties`."""
    shown = copy.deepcopy(schema)
    training = shown["definitions"]["Parameters"]
    fields = training["properties"]
    training.pop("additionalProperties", None)  # its message would name patterns
    training["propertyNames"] = {"enum": list(fields)}
    training["properties"] = {name: {**fields[name], "position": place} for place, name in enumerate(FIRST)}
    training["patternProperties"] = {_only(name): field for name, field in fields.items() if name not in FIRST}
    others = {name: field for name, field in shown["properties"].items() if name != "training"}
    shown["properties"] = {"training": shown["properties"]["training"]}
    shown["patternProperties"] = {_only(name): field for name, field in others.items()}
    return shown


def _only(name: str) -> str:
    return f"^{re.escape(name)}$"
