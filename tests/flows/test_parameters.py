"""flows/parameters.py: every flow checks its parameters before it runs."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.hydration import HydrationContext, hydrate
from prefect.utilities.schema_tools.validation import validate

from flows.finetune import finetune
from flows.predict import predict
from flows.retrain import retrain
from infra.errors import UserError
from infra.spec import FIELDS, TrainingSpec

TRAINING = {"train_data": "d.jsonl", "base_model": "m", "destination": "a/b"}
KINDS: list[dict[str, Any]] = [
    {"__prefect_kind": "json", "value": "[1]"}, {"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"},
    {"__prefect_kind": "workspace_variable", "variable_name": "secret"}, {"__prefect_kind": "none", "value": 3}]
PREDICTION = {"model": "a/b", "prompts": "p.jsonl"}


@pytest.mark.parametrize(("flow", "good", "wrong"), [
    (finetune, {"training": TRAINING}, {"training": {**TRAINING, "lora_rank": 0}}),
    (retrain, {"training": TRAINING, "watch": True}, {"training": {**TRAINING, "lora_rnak": 8}}),
    (predict, PREDICTION, {**PREDICTION, "max_new_tokens": 0})])
def test_a_flow_checks_its_parameters(flow: Flow[..., Any], good: dict[str, Any], wrong: dict[str, Any]) -> None:
    assert set(good) <= set(flow.validate_parameters(good))
    with pytest.raises(ParameterTypeError):
        flow.validate_parameters(wrong)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["__prefect_kind"]))
def test_what_prefect_would_evaluate_is_no_value_of_any_parameter(kind: dict[str, Any]) -> None:
    """At the door of Python, and wherever else nobody has evaluated it."""
    for field in FIELDS:
        given = {**TRAINING, field.name: kind}
        with pytest.raises(UserError, match=field.name):
            TrainingSpec.of(given)
        with pytest.raises(ParameterTypeError):
            finetune.validate_parameters({"training": given})
        with pytest.raises(ParameterTypeError):
            retrain.validate_parameters({"training": given})
    with pytest.raises(ParameterTypeError):
        finetune.validate_parameters({"training": kind})


@pytest.mark.parametrize(("field", "kind"), [
    ("learning_rate", {"__prefect_kind": "jinja", "template": "{{ 'fa' ~ 'st' }}"}),
    ("train_data", {"__prefect_kind": "jinja", "template": "https://me:{{ 'wo' ~ 'rd' }}@data.example/rows"}),
    ("train_data", {"__prefect_kind": "json", "value": '["a", "b"]'}),
    ("destination", {"__prefect_kind": "json", "value": '"../etc"'}),
    ("lora_rank", {"__prefect_kind": "none", "value": -1})])
def test_what_prefects_form_and_run_deployment_make_of_it_is_judged_as_any_value(
    field: str, kind: dict[str, Any],
) -> None:
    """Prefect's server evaluates it, then checks the result against the deployment's schema."""
    schema = parameter_schema(finetune).model_dump(by_alias=True)
    hydrated = hydrate({"training": {**TRAINING, field: kind}}, HydrationContext(render_jinja=True))
    assert "__prefect_kind" not in str(hydrated)
    assert validate(hydrated, schema, raise_on_error=False)
    assert not validate({"training": TRAINING}, schema, raise_on_error=False)
