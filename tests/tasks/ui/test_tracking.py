"""A training in MLflow while it runs, and how its run ends; infra/models/system_metrics.py beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from infra.errors import DataError, Preempted, RanksLost
from infra.models.registry import Registry
from infra.models.tracking import Tracked
from infra.settings import Settings
from infra.storage.store import Store
from tasks.distributed.contract import EVENTS
from tasks.distributed.events import Event
from tasks.register import register
from tasks.ui.tracking import RunWriter, ending_of, ends_in_mlflow, points_of, tracked
from tests.conftest import ROOT
from tests.support.past import Past

KILLED = """
import json, os, signal, sys
from infra.models.tracking import Tracked
from infra.settings import Settings
from tasks.ui import tracking
tracking.WRITE_EVERY_S = 0.1
about, events = json.loads(sys.argv[1])
writer = tracking.RunWriter(Settings(), Tracked(**about)).__enter__()
for event in events:
    writer.see(event)
while writer._events or writer._log is None:
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
VALIDATION: Event = {"event": "validation", "step": 3, "time": 1004.0, "loss": 4.5, "perplexity": 90.0}


@pytest.fixture
def about(past: Past, store: Store) -> Tracked:
    return tracked(past.spec, past.trained.training_id, past.split, past.pack, past.base, store.root)


def steps(first: int, last: int, at: float = 1000.0) -> list[Event]:
    """Events of a launch."""
    return [{"event": "step", "step": step, "total": 8, "time": at + step, "loss": 5.0 - step / 10, "lr": 1e-4,
             "grad_norm": 1.0, "tokens": 9, "labels": 9, "fill": 1.0, "tokens_per_s": 900.0, "labels_per_s": 9.0,
             "tflops_per_s": 0.1, "memory_bytes": 1 << 30, "eta_s": 1.0} for step in range(first, last + 1)]


def write(settings: Settings, about: Tracked, events: list[Event]) -> None:
    with RunWriter(settings, about) as run:
        for event in events:
            run.see(event)


def the_run(settings: Settings) -> Any:
    client = Registry(settings).client
    experiment = client.get_experiment_by_name("anneal")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def history(settings: Settings, metric: str) -> list[int]:
    """The steps of a metric, as they stand in the run."""
    found = Registry(settings).client.get_metric_history(the_run(settings).info.run_id, metric)
    return sorted(value.step for value in found)


@pytest.mark.usefixtures("database")
def test_metrics_stand_in_the_run_while_it_trains(settings: Settings, about: Tracked) -> None:
    write(settings, about, [*steps(1, 3), VALIDATION])
    run = the_run(settings)
    assert (run.info.status, run.info.run_name) == ("RUNNING", "acme/summarizer")
    assert {name: value for name, value in run.data.metrics.items() if not name.startswith("system/")} == {
        "loss": 4.7, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_s": 900.0, "memory_bytes": 1 << 30,
        "validation_loss": 4.5, "validation_perplexity": 90.0}
    assert run.data.params["base_model"] == "base-model" and run.data.params["lora_rank"] == "8"
    assert history(settings, "loss") == [1, 2, 3]


@pytest.mark.usefixtures("database")
def test_how_busy_the_machine_is_stands_beside_the_metrics_unless_mlflow_is_told_not_to(
    settings: Settings, about: Tracked, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.ui.tracking.SAMPLE_EVERY_S", 0.0)
    write(settings, about, steps(1, 1))
    metrics = the_run(settings).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0 and "system/cpu_utilization_percentage" in metrics
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    before = len(history(settings, "system/cpu_utilization_percentage"))
    write(settings, about, steps(2, 2))
    assert len(history(settings, "system/cpu_utilization_percentage")) == before


@pytest.mark.slow  # a process of its own, which imports MLflow
@pytest.mark.usefixtures("database")
def test_after_a_kill_the_same_run_goes_on_and_no_step_is_there_twice(settings: Settings, about: Tracked) -> None:
    import dataclasses

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps([{**dataclasses.asdict(about), "data": []}, steps(1, 5)])], cwd=ROOT,
        env={**os.environ, "ANNEAL_HOME": str(settings.home_path)}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert the_run(settings).info.status == "RUNNING"
    write(settings, about, [*steps(1, 5), *steps(4, 8, at=2000.0)])  # as they stand in events.jsonl, then a resume
    assert history(settings, "loss") == history(settings, "tokens_per_s") == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.usefixtures("database")
def test_what_mlflow_missed_follows_when_the_version_is_registered(
    settings: Settings, store: Store, past: Past, about: Tracked, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write(settings.model_copy(update={"mlflow_uri": "http://127.0.0.1:9"}), about, steps(1, 3))
    assert "not in MLflow yet, training goes on" in caplog.text
    lines = "".join(json.dumps(event) + "\n" for event in steps(1, 3))
    (Path(store.root) / past.trained.folder / EVENTS).write_text(lines, encoding="utf-8")
    register(settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)
    run = the_run(settings)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "acme/summarizer v1")
    assert history(settings, "loss") == [1, 2, 3]
    assert [file.path for file in Registry(settings).client.list_artifacts(run.info.run_id)] == ["curves.png"]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(("error", "status"), [
    (DataError("bad"), "FAILED"), (RanksLost("gone"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_the_run_ends_as_the_training_did(
    settings: Settings, about: Tracked, error: BaseException, status: str,
) -> None:
    with pytest.raises(type(error)), ends_in_mlflow(settings, about.destination, about.training_id):
        write(settings, about, steps(1, 1))
        raise error
    assert the_run(settings).info.status == status
    write(settings, about, steps(2, 2))
    assert the_run(settings).info.status == "RUNNING", "it is tried again"


def test_a_preempted_training_that_nobody_starts_again_was_killed() -> None:
    assert ending_of(Preempted("told to stop")) == "KILLED"


def test_the_data_of_a_run_leads_to_the_rows(settings: Settings, about: Tracked, database: None) -> None:
    write(settings, about, [])
    inputs = the_run(settings).inputs.dataset_inputs
    assert {one.dataset.name: (one.dataset.digest, json.loads(one.dataset.profile)) for one in inputs} == {
        "acme/summarizer train": ("s" * 32, {"num_rows": 20}),
        "acme/summarizer validation": ("s" * 32, {"num_rows": 2})}
    (train,) = [one for one in inputs if one.tags[0].value == "training"]
    place = Path(about.data[0].uri)
    place.parent.mkdir(parents=True)
    place.write_text("{}\n", encoding="utf-8")
    assert Path(mlflow.data.get_source(train).load()).read_text(encoding="utf-8") == "{}\n"


def test_points_of_a_resumed_training_begin_after_those_that_are_there() -> None:
    written = {"step": 2}
    found = points_of([*steps(1, 3), *steps(3, 4)], written)
    assert [point.step for point in found if point.key == "loss"] == [3, 4]
    assert written == {"step": 4}
    assert points_of(steps(1, 4), written) == []
