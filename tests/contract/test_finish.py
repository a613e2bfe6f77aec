"""A training of thousands of steps that a person finishes: its weights so far are a version that answers."""

from __future__ import annotations

import io
import json
import zipfile

import pytest

from infra.models.registry import Registry
from tests.conftest import wait_for
from tests.contract.test_guide import ROWS
from tests.e2e.conftest import KNOBS
from tests.support.gateway import Running

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("environment")]
EPOCHS = 2000


def test_a_finished_training_is_a_version_with_the_steps_that_it_did(gateway: Running) -> None:
    gateway.model(name="finished")
    knobs = {**KNOBS, "max_steps": 0, "num_train_epochs": EPOCHS, "deploy": True}
    made = gateway.http.post(gateway.base(), json={
        "destination": "acme/finished", "input": {"train_data": gateway.upload(ROWS)["urls"]["get"], **knobs}})
    assert made.status_code == 201, made.text
    address = f"/v1/trainings/{made.json()['id']}"
    wait_for(lambda: "tokens/s" in gateway.http.get(address).json()["logs"], timeout_s=240)
    asked = gateway.http.post(f"{address}/finish")
    assert asked.status_code == 200 and asked.json()["status"] == "processing", asked.text
    wait_for(lambda: gateway.http.get(address).json()["status"] not in ("starting", "processing"), timeout_s=240)
    found = gateway.http.get(address).json()
    assert found["status"] == "succeeded" and "finished_early" in found["logs"], found
    with zipfile.ZipFile(io.BytesIO(gateway.http.get(f"{address}/weights.zip").content)) as weights:
        lineage, card = json.loads(weights.read("training.json")), weights.read("README.md").decode()
    assert 0 < lineage["steps"] < lineage["planned_steps"] and lineage["planned_steps"] >= EPOCHS
    assert f"{lineage['steps']} of {lineage['planned_steps']} steps" in card
    version = Registry(gateway.settings).named(f"acme/finished:{found['output']['version'].rpartition(':')[2]}")
    assert version.training_id == lineage["training_id"] and version.number == 1
    runs = Registry(gateway.settings).client.search_runs(
        [Registry(gateway.settings).runs.experiment()], "tags.destination = 'acme/finished'")
    assert [(run.info.status, run.data.tags["training_id"]) for run in runs] == [("FINISHED", version.training_id)]
    said = gateway.http.post("/v1/predictions", headers={"Prefer": "wait=60"}, json={
        "version": found["output"]["version"], "input": {"prompt": "What is 2 and 2?\n", "max_new_tokens": 4}})
    assert said.json()["status"] == "succeeded", said.text
