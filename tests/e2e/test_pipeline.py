"""One training end to end, over a real Prefect server, MLflow, predictor and S3: pytest tests/e2e/test_pipeline.py

Tests tasks/runs/run_log.py too.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deployments.cli.main import EXIT_USER_ERROR
from infra.settings import Settings
from infra.storage.store import Store
from tasks.ui.artifacts import rank_of_key
from tests.conftest import BUCKET, ROOT
from tests.e2e.conftest import COMMAND_TIMEOUT_S, Stack, Training, options

pytestmark = pytest.mark.slow

SVG = "{http://www.w3.org/2000/svg}"
KEPT = ("validate", "pack", "train", "evaluate", "register")
"""Steps that are not done again. The data and the base are looked at again, the predictor is asked again."""
CALL = """
import json, sys
from flows.finetune import finetune
print("version", finetune(json.loads(sys.argv[1])).id)
"""
CONNECTED = "[c10d] The client socket has connected"


def test_one_version_is_registered_with_its_origin_and_aliases(stack: Stack, first: Training) -> None:
    from mlflow import MlflowClient

    (version,) = stack.versions("acme/notes")
    assert version.tags["training_id"] == first.version["training_id"]
    assert version.tags["version_id"] == first.version["id"]
    assert len(version.tags["data_digest"]) == len(version.tags["base_digest"]) == 64
    aliases = MlflowClient(stack.settings.tracking_uri).get_registered_model("acme--notes").aliases
    assert {name: int(number) for name, number in aliases.items()} == {"challenger": 1, "champion": 1}


def test_version_in_mlflow_is_an_adapter_that_names_its_base_without_pickle_or_other_path(
    stack: Stack, first: Training, stories: Path, tmp_path: Path,
) -> None:
    import mlflow

    mlflow.set_tracking_uri(stack.settings.tracking_uri)
    folder = Path(mlflow.artifacts.download_artifacts(first.version["uri"], dst_path=str(tmp_path)))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.suffix == ".safetensors"] == ["adapter_model.safetensors"]
    assert not [path.name for path in files if path.suffix in (".bin", ".pkl", ".pt", ".pth")]
    here = [str(place).encode() for place in (
        stories, ROOT, stack.settings.home_path, Path(first.parameters["train_data"]).parent, tmp_path.parent)]
    adapter = next(path for path in files if path.name == "adapter_config.json")
    config = json.loads(adapter.read_text())
    assert config.pop("base_model_name_or_path") == str(stories.resolve()), "peft finds a local base by its folder"
    adapter.write_text(json.dumps(config))
    assert not [path.name for path in files for place in here if place in path.read_bytes()]


def test_predictor_answers_with_the_registered_version(stack: Stack, first: Training) -> None:
    answer = stack.ask("acme/notes")
    assert answer["status"] == "succeeded"
    assert answer["version"] == first.version["id"]
    assert "".join(answer["output"])


def test_a_version_is_asked_by_its_number(stack: Stack, first: Training) -> None:
    done = stack.anneal("predict", "acme/notes:1", "Once upon a time", "--temperature", "0", "--max-new-tokens", "8",
                        "--json")
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["version"]) == ("succeeded", first.version["id"])
    done = stack.anneal("predict", "acme/notes:7", "Once")
    assert done.returncode == EXIT_USER_ERROR and "one of 1, challenger, champion" in done.stderr


def test_same_training_again_trains_nothing(stack: Stack, first: Training) -> None:
    store, name = Store(Settings()), f"trainings/{first.version['training_id']}"
    before = store.find(name)
    done = stack.anneal("train", *options(first.parameters))
    assert done.returncode == 0, done.stderr
    assert f"acme/notes version 1\n{first.version['id']}" in done.stdout
    assert "blank lines, left out: 1 (train.jsonl line 61)" in done.stderr
    for model in ("tuned", "base", "lead3"):
        assert re.search(rf"{model}: rouge1 \d\.\d{{3}} \(.* to .*\), rouge2 .*, rougeL ", done.stderr), "its scores"
    states = stack.steps(stack.runs("finetune acme/notes")[-1])
    assert {step: states[step] for step in KEPT} == dict.fromkeys(KEPT, "Cached")
    assert before == store.find(name)
    assert len(stack.versions("acme/notes")) == 1


def test_a_plain_call_in_a_program_of_the_user_is_seen_on_the_server(stack: Stack, first: Training) -> None:
    before = set(stack.runs("finetune acme/notes"))
    command = [sys.executable, "-c", CALL, json.dumps(first.parameters)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S,
                          env={**os.environ, **stack.environment})
    assert f"version {first.version['id']}" in done.stdout.splitlines(), done.stderr
    (new,) = set(stack.runs("finetune acme/notes")) - before
    run = stack.prefect(f"/flow_runs/{new}")
    assert (run["state"]["type"], run["deployment_id"]) == ("COMPLETED", None)
    states = stack.steps(run["id"])
    assert {step: states[step] for step in KEPT} == dict.fromkeys(KEPT, "Cached")


def test_what_the_ranks_say_stands_in_the_runs_log_without_flooding_it(stack: Stack, first: Training) -> None:
    of_run = {"flow_run_id": {"any_": [first.run]}}
    lines = [log["message"] for order in ("ASC", "DESC")  # the server answers with the first 200
             for log in stack.prefect("/logs/filter", logs=of_run, sort=f"TIMESTAMP_{order}")]
    shown = {line for line in lines if CONNECTED in line}
    assert 1 <= len(shown) <= 2, "once by the training and once by the evaluation, however many ranks say it"
    assert any("more lines, most of them alike, are in" in line for line in lines)
    assert any("start step=0 total=4 ranks=2" in line for line in lines)
    assert "done step=4" in lines


def test_run_shows_data_forecast_progress_loss_rouge_and_links(stack: Stack, first: Training) -> None:
    run = first.run
    shown = stack.prefect("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}}, sort="ID_DESC")
    assert [one["key"] for one in shown if not one["description"]] == []
    places = [rank_of_key(one["key"]) for one in shown]
    assert places == sorted(places, key=str) and len(places) == 9, "the page's order, each key once"
    found = stack.artifacts(run)
    assert set(found) == {
        "verdict", "evaluation", "training-curves", "training-progress", "samples", "data", "data-lengths", "forecast",
        "links"}
    assert "60 training and 4 held-out rows" in found["data"]
    assert "| blank lines, left out | 1 | train.jsonl line 61 |" in found["data"]
    assert found["data-lengths"].startswith("data:image/svg+xml;base64,")
    assert "| steps | 4" in found["forecast"] and "what it was" in found["forecast"], "the actual figures beside it"
    assert found["training-progress"] == 100
    kind, _, picture = found["training-curves"].partition(",")
    titles = [text.text for text in ElementTree.fromstring(base64.b64decode(picture)).iter(f"{SVG}text")]
    assert kind == "data:image/svg+xml;base64"
    assert [title.split()[0] for title in titles if title and title[0].isupper()] == ["Loss", "Learning", "Tokens"]
    assert "| lead3 |" in found["verdict"]
    assert {row["model"] for row in json.loads(found["evaluation"])} == {"tuned", "base", "lead3"}
    assert "| tuned | reference | base | prompt |" in found["samples"]
    assert "/#/models/acme--notes/versions/1?workflowType=machine_learning)" in found["links"]
    (version,) = stack.versions("acme/notes")
    assert f"/runs/{version.run_id}?workflowType=machine_learning)" in found["links"]
    assert "/#/experiments/" in found["links"]
    assert f"`s3://{BUCKET}/e2e/trainings/{first.version['training_id']}`" in found["links"]


def test_no_step_waits_for_limits_of_tags(stack: Stack, first: Training) -> None:
    """Which would cost each a request to the server, and 2 s whenever that is busy."""
    steps = stack.prefect("/task_runs/filter", flow_runs={"id": {"any_": [first.run]}})
    assert len(steps) >= 7
    assert {step["name"]: step["tags"] for step in steps if step["tags"]} == {}


def test_run_is_found_by_its_model_destination_and_data(stack: Stack, first: Training) -> None:
    tags = stack.prefect(f"/flow_runs/{first.run}")["tags"]
    assert {"destination:acme/notes", "model:hf"} <= set(tags)
    (data,) = [tag.removeprefix("data:") for tag in tags if tag.startswith("data:")]
    training = first.version["training_id"]
    (version,) = [one for one in stack.versions("acme/notes") if one.tags["training_id"] == training]
    assert len(data) >= 8 and version.tags["data_digest"].startswith(data)


@pytest.mark.chaos
def test_run_of_the_deployment_by_the_worker_gives_the_same_version(stack: Stack, first: Training) -> None:
    run = stack.start_run(first.parameters)
    assert stack.wait_until_over(run)["type"] == "COMPLETED"
    assert first.version["id"][:12] in stack.artifacts(run)["links"]
    assert len(stack.versions("acme/notes")) == 1


def test_full_fine_tuning_answers_beside_the_adapter(stack: Stack, first: Training, second: Training) -> None:
    assert second.version["number"] == 1
    answers = {name: stack.ask(name)["version"] for name in ("acme/notes", "acme/whole")}
    assert answers == {"acme/notes": first.version["id"], "acme/whole": second.version["id"]}
