"""Mistakes that are found before Prefect makes a run (flows/parameters.py): pytest tests/flows/test_mistakes.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect import Flow

from flows.finetune import finetune
from flows.join import join
from flows.parameters import Parameters, refuse_mistakes
from flows.predict import predict
from flows.retrain import retrain
from infra.errors import UserError
from infra.settings import Settings
from infra.spec import TrainingSpec
from tests.conftest import ROOT

BASE = str(ROOT / "deployments" / "examples" / "base")


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters that lead somewhere."""
    monkeypatch.setenv("ANNEAL_HOME", str(tmp_path / "home"))
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    return {"train_data": str(tmp_path / "d.jsonl"), "base_model": BASE, "destination": "a/b"}


@pytest.mark.parametrize(("wrong", "words"), [
    ({"train_data": "nowhere/d.jsonl"}, "there is no such file"), ({"validation_data": "no.jsonl"}, "no such file"),
    ({"train_data": "store://datasets/0123456789abcdef0123456789abcdef/d.jsonl"}, "not in the store"),
    ({"base_model": f"{BASE}s"}, "Did you mean base?")])
def test_a_path_that_leads_nowhere_makes_no_run(good: dict[str, Any], wrong: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        finetune.serialize_parameters({"training": Parameters(**{**good, **wrong})})


def test_what_is_right_passes_and_what_does_not_answer_is_left_to_the_run(good: dict[str, Any]) -> None:
    assert finetune.serialize_parameters({"training": Parameters(**good)})["training"]
    away = {**good, "train_data": "https://nobody.invalid/d.jsonl"}
    refuse_mistakes(Settings(), TrainingSpec(**away))


@pytest.mark.parametrize("flow", [finetune, retrain, predict, join])
def test_prefect_finds_the_types_of_a_flows_parameters(flow: Flow[..., Any], good: dict[str, Any]) -> None:
    given: dict[str, Any] = {"training": good} if "training" in flow.parameters.properties else {
        "model": "a/b", "prompts": "p.jsonl", "launch": "x", "node": 1}
    wanted = {name: value for name, value in given.items() if name in flow.parameters.properties}
    found = flow.validate_parameters(wanted)
    assert isinstance(found.get("training", Parameters(**good)), Parameters)
