"""A training in the stack's MLflow: live, cut and gone on, and loaded by MLflow's own means."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import wait_for
from tests.e2e.conftest import COMMAND_TIMEOUT_S, LONG, Stack, Training, checkpointed, options

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.slow
CUT = "acme/cut"


@pytest.fixture
def mlflow_client(stack: Stack) -> MlflowClient:
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(stack.settings.tracking_uri)
    return MlflowClient(stack.settings.tracking_uri)


def runs_of(client: MlflowClient, destination: str) -> list[Any]:
    experiment = client.get_experiment_by_name("anneal")
    found = client.search_runs([experiment.experiment_id], f"tags.destination = '{destination}'") if experiment else []
    return list(found)


@pytest.mark.chaos
def test_a_training_that_is_interrupted_and_killed_is_one_run_with_each_step_once(
    stack: Stack, parameters: dict[str, Any], mlflow_client: MlflowClient,
) -> None:
    wanted = {**parameters, **LONG, "destination": CUT, "seed": 77}
    for told, status in ((signal.SIGINT, "KILLED"), (signal.SIGKILL, "RUNNING")):
        process = stack.start("train", *options(wanted))
        checkpointed(process, stack.settings.home_path)
        wait_for(lambda: any(run.info.status == "RUNNING" and "loss" in run.data.metrics
                             for run in runs_of(mlflow_client, CUT)), "no live loss", COMMAND_TIMEOUT_S)
        process.send_signal(told)
        process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert [run.info.status for run in runs_of(mlflow_client, CUT)] == [status]
    done = stack.anneal("train", *options(wanted))
    assert done.returncode == 0, done.stderr
    (run,) = runs_of(mlflow_client, CUT)
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"{CUT} v1")
    steps = sorted(value.step for value in mlflow_client.get_metric_history(run.info.run_id, "loss"))
    assert steps == list(range(1, steps[-1] + 1)) and len(steps) > 1


def test_a_version_answers_by_mlflows_own_means_as_by_the_predictor(
    stack: Stack, first: Training, stories: Path, mlflow_client: MlflowClient,
) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model("models:/acme--notes@champion", model_config={"base": str(stories)})
    answer = model.predict(["Once upon a time"], params={"max_new_tokens": 8})
    assert answer == ["".join(stack.ask("acme/notes")["output"])]
    version = mlflow_client.get_model_version_by_alias("acme--notes", "champion")
    logged = mlflow_client.get_logged_model(version.source.removeprefix("models:/"))
    assert logged.params["lora_rank"] == "8"
    assert {metric.key for metric in logged.metrics} >= {"loss_tuned", "train_loss_last", "rougeL_tuned"}
