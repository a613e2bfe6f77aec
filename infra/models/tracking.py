"""MLflow's runs, as much of them as Anneal uses: one run for a training and its destination.

A run is found by its tags, so that a training that goes on, in whatever process, goes on in the same run. Metrics are
written in batches; how far they are stands in a tag of the run, written with them. A point that is written twice,
because a process died between the two, has the same time and is stored once by MLflow.
Raises Transient when MLflow does not answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from infra.models.mlflow_errors import translate_mlflow_errors
from infra.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run
    from mlflow.entities.model_registry import ModelVersion

TRAINING_TAG, DESTINATION_TAG, WRITTEN_TAG = "training_id", "destination", "anneal.written"
EXPERIMENT, ALONE = "anneal", "anneal-without-server"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Without it MLflow's pages guess, from a new experiment, that it is one of agents and prompts (ExperimentKind in the
source of its pages)."""
THROUGH_SERVER = "mlflow-artifacts:"
VALUE_CHARACTERS = 4000
PICTURE = "curves.png"
BATCH_POINTS = 999
"""MLflow takes 1000 in one request, the tag beside them included."""
DIGEST_CHARACTERS = 32
"""MLflow takes 36."""
Ending = Literal["FAILED", "KILLED"]
Context = Literal["training", "validation"]


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """Rows that a training reads."""

    name: str
    uri: str
    digest: str
    rows: int
    context: Context


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What a run says about its training from the start."""

    destination: str
    training_id: str
    params: dict[str, str]
    """Those that cannot differ when the training goes on: MLflow keeps the first value of a parameter."""
    tags: dict[str, str]
    data: list[DataFile]


class Runs:
    """The runs behind a connection to MLflow."""

    def __init__(self, client: MlflowClient, settings: Settings) -> None:
        self._client, self._uri = client, settings.tracking_uri
        self._artifacts = (settings.home_path / "mlflow-artifacts").as_uri()
        self.is_local = self._uri.startswith("sqlite:")

    def start(self, tracked: Tracked) -> str:
        """The id of a training's run, which is RUNNING from now on; it is made where there is none."""
        with translate_mlflow_errors(self._uri):
            run = self._find(tracked.destination, tracked.training_id) or self._make(tracked)
            identity = str(run.info.run_id)
            if run.info.status != "RUNNING":
                self._client.update_run(identity, status="RUNNING")
            self.add_params(identity, tracked.params)
            self._client.log_inputs(identity, [_input(data) for data in tracked.data])
            return identity

    def end(self, destination: str, training_id: str, ending: Ending) -> None:
        """Say how a run ended that does not say so yet."""
        with translate_mlflow_errors(self._uri):
            run = self._find(destination, training_id)
            if run is not None and run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, ending)

    def rename(self, destination: str, training_id: str, becomes: str) -> None:
        """Let a training's run be that of another id: it was finished before its end, and has other weights."""
        with translate_mlflow_errors(self._uri):
            if (run := self._find(destination, training_id)) is not None:
                self._client.set_tag(run.info.run_id, TRAINING_TAG, becomes)

    def finish(self, version: ModelVersion, name: str) -> None:
        """Let the run of a version end well, under the name that the version gives it."""
        with translate_mlflow_errors(self._uri):
            run = self._client.get_run(version.run_id)
            if run.info.run_name != name:
                self._client.update_run(version.run_id, name=name)
            if run.info.status != "FINISHED":
                self._client.set_terminated(version.run_id, "FINISHED")

    def standing(self, run: str) -> tuple[dict[str, int], int]:
        """The last step of each kind of event whose metrics are in the run; when it began, in ms since 1970."""
        with translate_mlflow_errors(self._uri):
            found = self._client.get_run(run)
        return dict(json.loads(found.data.tags.get(WRITTEN_TAG, "{}"))), int(found.info.start_time)

    def log(self, run: str, points: Sequence[Point], written: Mapping[str, int]) -> None:
        """Write metrics, and how far they are now."""
        from mlflow.entities import Metric, RunTag

        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        with translate_mlflow_errors(self._uri):
            for start in range(0, len(metrics), BATCH_POINTS):
                batch = metrics[start:start + BATCH_POINTS]
                last = start + BATCH_POINTS >= len(metrics)
                self._client.log_batch(run, batch, tags=[RunTag(WRITTEN_TAG, json.dumps(written))] if last else [])

    def add_params(self, run: str, params: Mapping[str, object]) -> None:
        """Add parameters that the run does not have yet."""
        from mlflow.entities import Param

        with translate_mlflow_errors(self._uri):
            known = self._client.get_run(run).data.params
            new = [Param(name, str(value)[:VALUE_CHARACTERS]) for name, value in params.items() if name not in known]
            if new:
                self._client.log_batch(run, params=new)

    def add_picture(self, run: str, figure: Figure) -> None:
        """Put the curves on the run's Artifacts page. Files of a run that a server made go through a server: where it
        goes on without one, it has none."""
        with translate_mlflow_errors(self._uri):
            uri = str(self._client.get_run(run).info.artifact_uri)
            if not (self.is_local and uri.startswith(THROUGH_SERVER)):
                self._client.log_figure(run, figure, PICTURE)

    def experiment(self) -> str:
        """The experiment for new runs. Files of an experiment that a server made go through a server: without one,
        another experiment is used."""
        from mlflow.exceptions import MlflowException

        name, found = EXPERIMENT, self._client.get_experiment_by_name(EXPERIMENT)
        if self.is_local and found is not None and found.artifact_location.startswith(THROUGH_SERVER):
            name, found = ALONE, self._client.get_experiment_by_name(ALONE)
        if found is not None:
            if KIND_TAG not in found.tags:  # one of an earlier release
                self._client.set_experiment_tag(found.experiment_id, KIND_TAG, KIND)
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(
                name, artifact_location=self._artifacts if self.is_local else None, tags={KIND_TAG: KIND}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self.experiment()

    def _find(self, destination: str, training_id: str) -> Run | None:
        """The oldest run of a training, wherever it was started."""
        experiments = [found.experiment_id for found in map(self._client.get_experiment_by_name, (EXPERIMENT, ALONE))
                       if found is not None]
        runs = self._client.search_runs(
            experiments, f"tags.{TRAINING_TAG} = '{training_id}' and tags.{DESTINATION_TAG} = '{destination}'",
            order_by=["attributes.start_time ASC"]) if experiments else []
        first: Run | None = runs[0] if runs else None
        for extra in runs[1:]:  # of a process whose request was answered after it had been given up
            self._client.delete_run(extra.info.run_id)
        return first

    def _make(self, tracked: Tracked) -> Run:
        tags = {**tracked.tags, TRAINING_TAG: tracked.training_id, DESTINATION_TAG: tracked.destination}
        made = self._client.create_run(self.experiment(), run_name=tracked.destination, tags=tags)
        return self._find(tracked.destination, tracked.training_id) or made


def _input(data: DataFile) -> DatasetInput:
    """The data as MLflow knows it: its place and digest, no rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind = "s3" if data.uri.startswith("s3://") else "local"
    uri = data.uri if kind == "s3" else Path(data.uri).as_uri()
    dataset = Dataset(data.name, data.digest[:DIGEST_CHARACTERS], kind, json.dumps({"uri": uri}),
                      profile=json.dumps({"num_rows": data.rows}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])
