"""Remove a version: DELETE /models/{owner}/{name}/versions/{id}, and OpenAI's DELETE /models/{model}.

In:   owner/name:id      Out: nothing answers with it, MLflow and the store have it no more
The order makes it safe to call again: the predictor first, which must not answer with what is gone, then MLflow, the
store, the database. The same training brings the version back, and asks for what is gone of it alone.
"""

from __future__ import annotations

import httpx
from fastapi import APIRouter, Response
from sqlalchemy import update

from deployments.gateway.context import Gateway, Here
from deployments.gateway.errors import Refusal, missing
from deployments.gateway.keys import Caller, Trainer
from deployments.gateway.models import find_model
from deployments.gateway.tables import Training
from deployments.gateway.versions import registered
from infra.errors import Transient
from infra.models.mlflow_errors import translate_mlflow_errors
from infra.models.registry import ID_TAG, mlflow_name

router = APIRouter()
TIMEOUT_S = 60


@router.delete("/models/{owner}/{name}/versions/{version}", status_code=202)
def delete(owner: str, name: str, version: str, caller: Trainer, here: Here) -> Response:
    """Remove one version of a model."""
    remove_version(here, caller, f"{owner}/{name}", version)
    return Response(status_code=202)


def remove_version(here: Gateway, caller: Caller, model: str, version: str) -> None:
    """Remove one version of a model of the caller's.

    Raises:
        Refusal: 404 for one that is not there or not the caller's; 403 for a base model.
        Transient: MLflow, the store or the predictor do not answer.
    """
    owner, _, name = model.partition("/")
    if here.catalogue.of(model):
        raise Refusal(403, f"{model} is a base model, which ANNEAL_BASES names. It was not deleted.")
    find_model(here, owner, name, caller, own=True)
    with here.registry() as registry, translate_mlflow_errors(registry.uri):
        found = registered(here, f"name='{mlflow_name(model)}'")
        chosen = [one for one in found if one.id == version]
        if not chosen:
            raise missing()
        _end_serving(here, model, version)
        for one in chosen:
            registry.client.delete_model_version(mlflow_name(model), str(one.number))
        is_used = bool(registered(here, f"tags.{ID_TAG}='{version}'"))
    if not is_used:
        here.store.remove(f"versions/{version}")
    with here.database.session() as session:
        session.execute(update(Training).where(
            Training.destination == model, Training.output_version == version).values(output_version=""))


def _end_serving(here: Gateway, model: str, version: str) -> None:
    """Let the predictor forget it, be it what the model answers with or what it answered with before."""
    if not here.settings.predictor:
        return
    try:
        answer = httpx.delete(f"{here.settings.predictor}/deployments/{model}", params={"version": version},
                              timeout=TIMEOUT_S, trust_env=False, headers=here.settings.predictor_headers)
    except httpx.HTTPError as error:
        sentence = f"the predictor does not answer ({type(error).__name__})"
        raise Transient(sentence, fix="Nothing was deleted.") from error
    if not answer.is_success and answer.status_code != 404:
        raise Transient(f"the predictor answers {answer.status_code}", fix="Nothing was deleted.")
