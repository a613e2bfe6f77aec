"""The short form as Prefect's server reads it; in a browser: tests/e2e/test_form.py"""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid_schema, validate

from deployments.prefect_setup.apply import flow_of, wanted
from deployments.prefect_setup.declared import declared
from deployments.prefect_setup.form import FIRST, short_form
from deployments.prefect_setup.pools import Pool
from flows.finetune import finetune
from infra.spec import FIELDS

GOOD = {"train_data": "d.jsonl", "base_model": "b", "destination": "acme/notes"}
FULL = parameter_schema(finetune).model_dump_for_openapi()
SHORT = short_form(FULL)


def refused(schema: dict[str, Any], training: dict[str, Any], **more: Any) -> list[str]:
    """Field and message, as the page shows them."""
    errors = validate({"training": {**GOOD, **training}, **more}, schema)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def test_it_shows_eight_fields_in_their_order() -> None:
    is_valid_schema(SHORT)
    shown = SHORT["definitions"]["Parameters"]["properties"]
    assert tuple(sorted(shown, key=lambda name: shown[name]["position"])) == FIRST and len(FIRST) == 8
    assert list(SHORT["properties"]) == ["training"]


@pytest.mark.parametrize("given", [
    {}, {field.name: field.default for field in FIELDS if field.name not in GOOD}, {"lora_rank": 16, "seed": 1}])
def test_it_takes_every_other_parameter(given: dict[str, Any]) -> None:
    assert refused(SHORT, given) == [] == refused(FULL, given)
    assert refused(SHORT, given, hand_over_to="finetune/finetune") == []


@pytest.mark.parametrize(("wrong", "said"), [
    ({"lora_rank": 4096}, "training.lora_rank: 4096 is greater than the maximum of 1024"),
    ({"num_train_epochs": 0}, "training.num_train_epochs: 0 is less than the minimum of 1"),
    ({"peft_method": "prefix"}, "training.peft_method: 'prefix' is not one of ['lora', 'qlora', 'full']"),
    ({"destination": "notes"},
     "training.destination: 'owner/name in lower case, such as acme/summarizer' was expected"),
    ({"validation_data": "https://user:word@host/d.jsonl"},
     "training.validation_data: 'an address without a password or a signature in it' was expected"),
    ({"train_data": ""}, "training.train_data: '' should be non-empty")])
@pytest.mark.parametrize("schema", [SHORT, FULL], ids=["short", "all"])
def test_a_wrong_value_is_one_readable_message_at_its_field(
    schema: dict[str, Any], wrong: dict[str, Any], said: str,
) -> None:
    assert refused(schema, wrong) == [said]


def test_a_misspelt_parameter_is_named() -> None:
    (said,) = refused(SHORT, {"lerning_rate": 1})
    assert said.startswith("training: 'lerning_rate' is not one of ['train_data', 'base_model',")


FORMS = {one.full_name: wanted(one, Pool(one.work_pool.role, "process"))["parameter_openapi_schema"]
         for one in declared()}


@pytest.mark.parametrize("name", ["finetune/finetune", "retrain/retrain", "retrain/watch"])
def test_forms_that_people_open_first_have_eight_fields_and_the_advanced_one_all(name: str) -> None:
    shown, flow = FORMS[name], name.split("/")[0]
    assert list(shown["properties"]) == ["training"]
    assert set(shown["definitions"]["Parameters"]["properties"]) == set(FIRST)
    every = FORMS[f"{flow}/{flow}-advanced"]
    (entrypoint,) = {one.entrypoint for one in declared() if one.full_name == name}
    assert every == parameter_schema(flow_of(entrypoint)).model_dump_for_openapi()
    assert set(every["definitions"]["Parameters"]["properties"]) == {field.name for field in FIELDS}


def test_what_anneal_watch_schedules_is_taken_by_the_short_form() -> None:
    more = {"watch": True, "continue_from_champion": True, "hand_over_to": ""}
    assert refused(FORMS["retrain/watch"], {"lora_rank": 16, "gate": "off"}, **more) == []
    assert refused(FORMS["retrain/retrain"], {"seed": 1}, **more) == []
