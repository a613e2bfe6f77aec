"""infra/models/tracking.py: one run for a training, whoever asks for it."""

from __future__ import annotations

import pytest

from infra.models.registry import Registry
from infra.models.tracking import BATCH_POINTS, KIND, KIND_TAG, Point, Runs, Tracked
from infra.settings import Settings

pytestmark = pytest.mark.usefixtures("database")
ABOUT = Tracked(destination="acme/notes", training_id="t" * 26, params={"lora_rank": "8"}, tags={}, data=[])


@pytest.fixture
def runs(settings: Settings) -> Runs:
    return Registry(settings).runs


def test_a_training_has_one_run_for_each_destination(runs: Runs) -> None:
    first = runs.start(ABOUT)
    assert runs.start(ABOUT) == first
    other = Tracked(destination="acme/other", training_id=ABOUT.training_id, params={}, tags={}, data=[])
    assert runs.start(other) != first


def test_of_two_runs_made_at_once_the_older_one_stays(runs: Runs, settings: Settings) -> None:
    first, second = runs._make(ABOUT), runs._make(ABOUT)
    assert runs.start(ABOUT) == first.info.run_id == second.info.run_id


def test_the_experiment_is_one_of_training_models(runs: Runs, settings: Settings) -> None:
    client = Registry(settings).client
    old = client.create_experiment("anneal")  # by an earlier release
    assert runs.experiment() == old
    assert client.get_experiment(old).tags[KIND_TAG] == KIND


def test_more_points_than_mlflow_takes_at_once_are_all_written(runs: Runs, settings: Settings) -> None:
    run = runs.start(ABOUT)
    points = [Point("loss", 1.0, 1000 + step, step) for step in range(1, BATCH_POINTS + 2)]
    runs.log(run, points, {"step": len(points)})
    runs.log(run, points[-3:], {"step": len(points)})  # as a process would that died before it knew
    assert len(Registry(settings).client.get_metric_history(run, "loss")) == len(points)
    assert runs.standing(run)[0] == {"step": len(points)}


def test_an_ended_run_does_not_end_otherwise(runs: Runs, settings: Settings) -> None:
    run = runs.start(ABOUT)
    runs.end(ABOUT.destination, ABOUT.training_id, "KILLED")
    runs.end(ABOUT.destination, ABOUT.training_id, "FAILED")
    assert Registry(settings).client.get_run(run).info.status == "KILLED"


def test_a_parameter_keeps_its_first_value(runs: Runs, settings: Settings) -> None:
    run = runs.start(ABOUT)
    runs.add_params(run, {"lora_rank": 9, "gate": "off"})
    assert Registry(settings).client.get_run(run).data.params == {"lora_rank": "8", "gate": "off"}
