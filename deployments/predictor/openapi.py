"""The OpenAPI document, with the schemas that Cog's clients look for.

`Input` and `Output` stand under components, inputs with their order (`x-order`), as in
https://github.com/replicate/cog/blob/main/docs/http.md. Bodies are read by us and not by FastAPI, so that it does not
know them.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from deployments.predictor.openai_schemas import ChatRequest, CompletionRequest
from deployments.predictor.schemas import DeploymentRequest, PredictionRequest

REF = "#/components/schemas/{model}"
BODIES = (PredictionRequest, DeploymentRequest, ChatRequest, CompletionRequest)
OUTPUT = {"title": "Output", "type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator",
          "x-cog-array-display": "concatenate"}


def document(app: FastAPI) -> dict[str, Any]:
    """Made once for an app."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas: dict[str, Any] = found.setdefault("components", {}).setdefault("schemas", {})
        for body in BODIES:
            schema = body.model_json_schema(ref_template=REF)
            schemas |= schema.pop("$defs", {})
            schemas[body.__name__] = schema
        for order, of_input in enumerate(schemas["Input"]["properties"].values()):
            of_input["x-order"] = order
        schemas["Output"] = OUTPUT
        app.openapi_schema = found
    return app.openapi_schema
