"""MLflow's registry, as much of it as Anneal uses: one version per training, three aliases.

Registering twice makes two versions in MLflow, so the training's tag is searched before and
after: the lowest number stays, a second one is removed. `mlflow.transformers.log_model` is not
used: it copies the whole base model. Raises Transient when MLflow does not answer.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.crashpoints import crashpoint
from infra.errors import Broken, Transient, UserError, from_os_error, shown
from infra.records import Version
from infra.settings import Settings
from infra.spec import check_destination
from infra.storage.store import scratch_folder

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

TRAINING_TAG, ID_TAG, DATA_TAG = "training_id", "version_id", "data_digest"
SMOKE_TAG, GATE_TAG = "smoke", "gate"
EXPERIMENT, ALONE = "anneal", "anneal-without-server"
THROUGH_SERVER = "mlflow-artifacts:"
TAG_CHARACTERS = 4000
PAGE = 1000
ALIASES = ("champion", "challenger")
"""What stands for a model without a version: what is served, else what was registered last."""
PASSING = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED",
           "DEADLINE_EXCEEDED")
REFUSING = {"UNAUTHENTICATED": "the user or the password", "CUSTOMER_UNAUTHORIZED": "the user or the password",
            "PERMISSION_DENIED": "this to the user: it may read, not write"}
AGAIN = ("Look at the MLflow server; when it answers again, start the same again (Retry in the UI): finished steps and "
         "trained weights are kept.")
FULL = re.compile(r"disk is full|No space left on device|Disk quota exceeded")
FREE = "Free some space there and run the same command again; finished steps and trained weights are kept."
RELEASE = ("Use the release of Anneal that made it, or bring the database up to date with `mlflow db upgrade` after a "
           "backup; then run the same command again.")
AUTHENTICATE = ("Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of a user who may write where this runs; "
                "then start the same again: finished steps and the weights are kept.")


@dataclass(frozen=True)
class Origin:
    """What a version came from and what became of it."""

    number: int
    data_digest: str
    """Of the rows it was trained on."""
    is_settled: bool
    """Whether it was deployed, or the gate kept it from that."""


class Registry:
    """A connection to the registry."""

    def __init__(self, settings: Settings) -> None:
        import mlflow
        from mlflow import MlflowClient

        # create_model_version looks models:/ sources up at the process's address, not the client's.
        mlflow.set_tracking_uri(settings.tracking_uri)
        self.uri = settings.tracking_uri
        self._work = settings.home_path / "work"
        self._artifacts = (settings.home_path / "mlflow-artifacts").as_uri()
        with translate_mlflow_errors(self.uri):  # without a server it opens the database here
            self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def find(self, destination: str, training_id: str) -> Version | None:
        """The version of a training, or None."""
        with translate_mlflow_errors(self.uri):
            found = self._search(destination, training_id)
        return _version(destination, found[0]) if found else None

    def newest(self, destination: str) -> Origin | None:
        """The version registered last, and the data it learned from; None without one."""
        with translate_mlflow_errors(self.uri):
            found = self.client.search_model_versions(f"name='{mlflow_name(destination)}'")
        last = max(found, key=lambda version: int(version.version), default=None)
        if last is None:
            return None
        settled = {SMOKE_TAG: "passed", GATE_TAG: "failed"}
        return Origin(int(last.version), last.tags.get(DATA_TAG, ""),
                      any(last.tags.get(tag) == value for tag, value in settled.items()))

    def identities(self) -> set[str]:
        """Ids of all versions of all models."""
        found: set[str] = set()
        token = None
        with translate_mlflow_errors(self.uri):
            while page := self.client.search_model_versions(max_results=PAGE, page_token=token):
                found |= {version.tags[ID_TAG] for version in page if ID_TAG in version.tags}
                if not (token := page.token):
                    break
        return found

    def named(self, target: str) -> Version:
        """The version that an owner/name[:version] names, as of `look_up`. Raises UserError."""
        destination, _, which = target.partition(":")
        check_destination(destination)
        return self.look_up(destination, which)

    def look_up(self, destination: str, which: str = "") -> Version:
        """A version by its number, alias or id; by default the champion, else the challenger. Raises UserError."""
        with translate_mlflow_errors(self.uri):
            found = self.client.search_model_versions(f"name='{mlflow_name(destination)}'")
            aliases = self.client.get_registered_model(mlflow_name(destination)).aliases if found else {}
        if not found:
            raise UserError("no version of it is registered", where=destination,
                            fix="Check the name, ANNEAL_HOME and ANNEAL_MLFLOW_URI.")
        number = aliases.get(which, which) or next((aliases[name] for name in ALIASES if name in aliases), "")
        for one in found:
            if str(one.version) == str(number) or one.tags.get(ID_TAG) == number:
                return _version(destination, one)
        known = [*sorted((str(one.version) for one in found), key=int), *sorted(aliases)]
        raise UserError(f"there is no version {shown(which)}", where=destination,
                        allowed=f"one of {', '.join(known)}, or the 64 hex digits of a version")

    def version_of(
        self, destination: str, training_id: str, identity: str, folder: Path, lineage: dict[str, Any], *,
        without: tuple[str, ...] = (),
    ) -> tuple[int, str]:
        """Register `folder` once; returns the version's number and uri."""
        with translate_mlflow_errors(self.uri):
            if not self._search(destination, training_id):
                self._create(destination, training_id, identity, folder, lineage, without)
            first, *others = self._search(destination, training_id)
            for extra in others:
                self.client.delete_model_version(mlflow_name(destination), extra.version)
        return int(first.version), uri_of(destination, int(first.version))

    def point(self, alias: str, destination: str, number: int) -> None:
        """Move an alias to a version."""
        with translate_mlflow_errors(self.uri):
            self.client.set_registered_model_alias(mlflow_name(destination), alias, str(number))

    def challenge(self, destination: str, number: int, verdict: str) -> None:
        """Let `challenger` stand for a version, unless it stands for a newer one. The version's description, which is
        ours alone, is the gate's newest verdict."""
        now = self.number_at("challenger", destination)
        if now is None or now < number:
            self.point("challenger", destination, number)
        with translate_mlflow_errors(self.uri):
            self.client.update_model_version(mlflow_name(destination), str(number), description=verdict)

    def number_at(self, alias: str, destination: str) -> int | None:
        """The version that an alias points to, or None."""
        with translate_mlflow_errors(self.uri):
            aliases = self.client.get_registered_model(mlflow_name(destination)).aliases
        return int(aliases[alias]) if alias in aliases else None

    def run_of(self, destination: str, number: int) -> tuple[str, str]:
        """Ids of the experiment and the run that a version belongs to."""
        with translate_mlflow_errors(self.uri):
            run = self.client.get_model_version(mlflow_name(destination), str(number)).run_id
            return str(self.client.get_run(run).info.experiment_id), str(run)

    def tag(self, destination: str, number: int, tags: dict[str, str]) -> None:
        """Set tags of a version."""
        with translate_mlflow_errors(self.uri):
            for key, value in tags.items():
                self.client.set_model_version_tag(mlflow_name(destination), str(number), key, value[:TAG_CHARACTERS])

    def _create(
        self, destination: str, training_id: str, identity: str, folder: Path, lineage: dict[str, Any],
        without: tuple[str, ...],
    ) -> None:
        name = mlflow_name(destination)
        self._ensure_model(name)
        experiment = self._experiment()
        tags = {TRAINING_TAG: training_id, ID_TAG: identity}
        self._fail_pending(experiment, training_id)
        run = self.client.create_run(experiment, run_name=training_id, tags=tags).info.run_id
        self._log_run(run, lineage)
        model = self.client.create_logged_model(
            experiment, name=training_id, source_run_id=run, tags=tags, model_type="causal-lm")
        with scratch_folder(self._work) as scratch:
            shutil.copytree(folder, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*without))
            self.client.log_model_artifacts(model.model_id, str(scratch))
        crashpoint("register.after_upload")
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.set_terminated(run, "FINISHED")  # with the version there is nothing that anyone would come back to
        origin = {
            DATA_TAG: lineage["data_digest"], "base_digest": lineage["base"]["digest"],
            "code_revision": lineage["code_revision"], "metrics": json.dumps(lineage["metrics"])[:TAG_CHARACTERS]}
        self.client.create_model_version(
            name, f"models:/{model.model_id}", run_id=run, model_id=model.model_id, tags={**tags, **origin})
        crashpoint("register.after_create_version")

    def _log_run(self, run: str, lineage: dict[str, Any]) -> None:
        """Parameters, metrics and the data's digest, on MLflow's own pages."""
        for key, value in lineage["spec"].items():
            self.client.log_param(run, key, str(value)[:TAG_CHARACTERS])
        metrics = lineage["metrics"]
        for name, value in metrics.get("training", {}).items():
            self.client.log_metric(run, name, value)
        for model, loss in metrics["loss"].items():
            self.client.log_metric(run, f"loss_{model}", loss)
        for model, scores in (metrics["rouge"] or metrics.get("scores", {})).items():
            for metric, (_, mean, _) in scores.items():
                self.client.log_metric(run, f"{metric}_{model}", mean)
        self.client.set_tag(run, DATA_TAG, lineage["data_digest"])
        self.client.set_tag(run, "code_revision", lineage["code_revision"])

    def _search(self, destination: str, training_id: str) -> list[ModelVersion]:
        """Versions of a training, the lowest number first."""
        query = f"name='{mlflow_name(destination)}' and tags.{TRAINING_TAG}='{training_id}'"
        return sorted(self.client.search_model_versions(query), key=lambda version: int(version.version))

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _experiment(self) -> str:
        """Files of an experiment that a server made go through a server: without one, another experiment is used."""
        from mlflow.exceptions import MlflowException

        local = self.uri.startswith("sqlite:")
        name, found = EXPERIMENT, self.client.get_experiment_by_name(EXPERIMENT)
        if local and found is not None and found.artifact_location.startswith(THROUGH_SERVER):
            name, found = ALONE, self.client.get_experiment_by_name(ALONE)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name, artifact_location=self._artifacts if local else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment()

    def _fail_pending(self, experiment: str, training_id: str) -> None:
        """Mark what an earlier try left unfinished."""
        query = f"tags.{TRAINING_TAG} = '{training_id}'"
        for model in self.client.search_logged_models([experiment], filter_string=query):
            if str(model.status) == "PENDING":
                self.client.finalize_logged_model(model.model_id, "FAILED")
        for run in self.client.search_runs([experiment], f"{query} and attributes.status = 'RUNNING'"):
            self.client.set_terminated(run.info.run_id, "KILLED")


def _version(destination: str, found: ModelVersion) -> Version:
    tags, number = found.tags, int(found.version)
    return Version(
        destination=destination, id=tags[ID_TAG], number=number, folder=f"versions/{tags[ID_TAG]}",
        uri=uri_of(destination, number), training_id=tags[TRAINING_TAG])


def mlflow_name(destination: str) -> str:
    """MLflow's model name: it allows no slash, and a destination no double dash."""
    return destination.replace("/", "--")


def uri_of(destination: str, number: int) -> str:
    """MLflow's address of a version."""
    return f"models:/{mlflow_name(destination)}/{number}"


@contextmanager
def translate_mlflow_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's failures into Transient where they may pass, and into UserError where it refuses who asks."""
    from mlflow.exceptions import MlflowException

    where = uri.split("@")[-1]
    try:
        yield
    except MlflowException as error:
        if error.error_code in REFUSING:
            raise UserError(f"MLflow refuses {REFUSING[error.error_code]}", where=where, fix=AUTHENTICATE) from error
        if FULL.search(str(error.message)):
            raise UserError("the disk of MLflow's database or files is full", where=where, fix=FREE) from error
        if "database schema" in str(error.message) or "locate revision" in str(error.message):
            raise UserError("the database is one of another release of MLflow", where=where, fix=RELEASE) from error
        if error.error_code in PASSING:
            raise Transient(f"MLflow does not do it ({error.message})", where=where, fix=AGAIN) from error
        raise Broken(f"MLflow does not do it ({error.message})", where=where) from error
    except OSError as error:
        found = from_os_error(error, where)  # without a server it is this machine's disk that is full or read-only
        if isinstance(found, UserError):
            raise found from error
        raise Transient(f"MLflow does not answer ({error})", where=where, fix=AGAIN) from error
