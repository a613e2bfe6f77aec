"""MLflow's registry, as much of it as Anneal uses: one version per training, three aliases.

Registering twice makes two versions in MLflow, so the training's tag is searched before and after: the lowest number
stays, a second one is removed. `mlflow.transformers.log_model` would copy the whole base. Raises Transient.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.crashpoints import crashpoint
from infra.errors import UserError, shown
from infra.files import alone_with
from infra.models.mlflow_errors import translate_mlflow_errors
from infra.models.pyfunc_files import write_model
from infra.models.tracking import TRAINING_TAG, VALUE_CHARACTERS, Runs
from infra.models.version_names import VersionName, choose, read_name, which_exist
from infra.records import Version
from infra.settings import OF_TRAINING, Settings
from infra.storage.store import scratch_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities.model_registry import ModelVersion

ID_TAG, DATA_TAG = "version_id", "data_digest"
SMOKE_TAG, GATE_TAG, BASE_TAG = "smoke", "gate", "base_version"
PAGE = 1000
CHECK = "Check the name, ANNEAL_HOME and ANNEAL_MLFLOW_URI."
ALIASES = ("champion", "challenger")
"""What stands for a model without a version: what is served, else what was registered last."""


@dataclass(frozen=True)
class Origin:
    """What a version came from and what became of it."""

    number: int
    data_digest: str
    """Of the rows it was trained on."""
    is_settled: bool
    """Whether it was deployed, or the gate kept it from that."""
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """What is to be registered."""

    destination: str
    training_id: str
    identity: str
    folder: Path
    lineage: dict[str, Any]
    config: dict[str, str]
    """What a loader of MLflow needs to know: {"base", "revision"}, or {"weights"} of whole ones, which stay there."""
    run: str
    """The training's run."""
    at_ms: int
    """When the training ended, in milliseconds since 1970: the same at every try."""
    curves: Figure | None = None
    without: tuple[str, ...] = ()
    """Names of files that stay out."""


class Registry:
    """A connection to the registry."""

    def __init__(self, settings: Settings) -> None:
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is the command's answer
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        import mlflow
        from mlflow import MlflowClient

        # create_model_version looks models:/ sources up at the process's address, not the client's.
        mlflow.set_tracking_uri(settings.tracking_uri)
        # It logs a traceback of what its database answers, and raises it too: the error is said once, as a sentence.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self.uri = settings.tracking_uri
        self._work = settings.home_path / "work"
        alone = alone_with(settings.mlflow_lock) if self.uri == settings.mlflow_database else nullcontext()
        with alone, translate_mlflow_errors(self.uri):  # without a server it opens the database here
            self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.runs = Runs(self.client, settings)

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
                      any(last.tags.get(tag) == value for tag, value in settled.items()), last.tags.get(ID_TAG, ""))

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

    def named(self, text: str) -> Version:
        """The version that a name stands for (infra/models/version_names.py). Raises UserError."""
        if (name := read_name(text)).destination:
            return self.look_up(name.destination, name.which)
        with translate_mlflow_errors(self.uri):
            for found in self.client.search_model_versions(f"tags.{ID_TAG}='{name.which}'"):
                return _version(found.name.replace("--", "/"), found)
        raise UserError("no version with this id is registered", where=name.which[:12], fix=CHECK)

    def look_up(self, destination: str, which: str = "") -> Version:
        """A version by its number, alias or id; by default the champion, else the challenger. Raises UserError."""
        with translate_mlflow_errors(self.uri):
            found = self.client.search_model_versions(f"name='{(name := mlflow_name(destination))}'")
            aliases = self.client.get_registered_model(name).aliases if found else {}
        known = {int(one.version): one.tags.get(ID_TAG, "") for one in found}
        if not known:
            raise UserError("no version of it is registered", where=destination, fix=CHECK)
        by_alias = {alias: known[int(number)] for alias, number in aliases.items() if int(number) in known}
        wanted = VersionName(destination, which or next((name for name in ALIASES if name in by_alias), ""))
        if identity := choose(wanted, known.items(), by_alias):
            return _version(destination, next(one for one in found if one.tags.get(ID_TAG) == identity))
        allowed = which_exist(known.items(), by_alias)
        raise UserError(f"there is no version {shown(which)}", where=destination, allowed=allowed)

    def version_of(self, new: NewVersion) -> tuple[int, str]:
        """Register a version once; returns its number and uri."""
        with translate_mlflow_errors(self.uri):
            if not self._search(new.destination, new.training_id):
                self._create(new)
            first, *others = self._search(new.destination, new.training_id)
            for extra in others:
                self.client.delete_model_version(mlflow_name(new.destination), extra.version)
        return int(first.version), uri_of(new.destination, int(first.version))

    def point(self, alias: str, destination: str, number: int) -> None:
        """Move an alias to a version."""
        with translate_mlflow_errors(self.uri):
            self.client.set_registered_model_alias(mlflow_name(destination), alias, str(number))

    def challenge(self, destination: str, number: int, verdict: str) -> None:
        """Let `challenger` stand for a version, unless it stands for a newer one, and let its run end well. The
        version's description, which is ours alone, is the gate's newest verdict."""
        now = self.number_at("challenger", destination)
        if now is None or now < number:
            self.point("challenger", destination, number)
        with translate_mlflow_errors(self.uri):
            version = self.client.update_model_version(mlflow_name(destination), str(number), description=verdict)
        self.runs.finish(version, f"{destination} v{number}")

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

    def tags(self, destination: str, number: int) -> dict[str, str]:
        """Tags of a version."""
        with translate_mlflow_errors(self.uri):
            return dict(self.client.get_model_version(mlflow_name(destination), str(number)).tags)

    def tag(self, destination: str, number: int, tags: dict[str, str]) -> None:
        """Set tags of a version."""
        with translate_mlflow_errors(self.uri):
            for key, value in tags.items():
                self.client.set_model_version_tag(mlflow_name(destination), str(number), key, value[:VALUE_CHARACTERS])

    def _create(self, new: NewVersion) -> None:
        from mlflow.entities import LoggedModelOutput

        name, lineage = mlflow_name(new.destination), new.lineage
        self._ensure_model(name)
        experiment = self.runs.experiment()
        tags = {TRAINING_TAG: new.training_id, ID_TAG: new.identity}
        self._fail_pending(experiment, new.training_id)
        params = {key: str(value)[:VALUE_CHARACTERS] for key, value in lineage["spec"].items()}
        self.runs.add_params(new.run, params)
        if new.curves is not None:
            self.runs.add_picture(new.run, new.curves)
        model = self.client.create_logged_model(  # whose name, unlike a registered model's, may have no dot
            experiment, name=name.replace(".", "-"), source_run_id=new.run, tags=tags, params=params,
            model_type="causal-lm")
        self._log_results(new, model.model_id)
        with scratch_folder(self._work) as scratch:
            write_model(scratch, new.folder, new.config, model_id=model.model_id, run=new.run, without=new.without)
            self.client.log_model_artifacts(model.model_id, str(scratch))
        crashpoint("register.after_upload")
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(new.run, [LoggedModelOutput(model.model_id, step=lineage["steps"])])
        origin = {
            **({BASE_TAG: lineage[BASE_TAG]["name"]} if BASE_TAG in lineage else {}),
            DATA_TAG: lineage["data_digest"], "base_digest": lineage["base"]["digest"],
            "code_revision": lineage["code_revision"], "metrics": json.dumps(lineage["metrics"])[:VALUE_CHARACTERS]}
        self.client.create_model_version(
            name, f"models:/{model.model_id}", run_id=new.run, model_id=model.model_id, tags={**tags, **origin})
        crashpoint("register.after_create_version")

    def _log_results(self, new: NewVersion, model: str) -> None:
        """What came out, on the pages of the run and of the model."""
        from mlflow.entities import Metric

        metrics, step = new.lineage["metrics"], new.lineage["steps"]
        found = {**metrics.get("training", {}), **{f"loss_{name}": loss for name, loss in metrics["loss"].items()}}
        for name, scores in (metrics["rouge"] or metrics.get("scores", {})).items():
            found |= {f"{metric}_{name}": mean for metric, (_, mean, _) in scores.items()}
        found |= {f"{one['metric']}_less_{name}": one["difference"][1]
                  for name, one in metrics.get("compared", {}).items()}
        self.client.log_batch(
            new.run, [Metric(key, value, new.at_ms, step, model_id=model) for key, value in found.items()])
        self.client.set_tag(new.run, "code_revision", new.lineage["code_revision"])

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

    def _fail_pending(self, experiment: str, training_id: str) -> None:
        """Mark what an earlier try left unfinished."""
        query = f"tags.{TRAINING_TAG} = '{training_id}'"
        for model in self.client.search_logged_models([experiment], filter_string=query):
            if str(model.status) == "PENDING":
                self.client.finalize_logged_model(model.model_id, "FAILED")


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


def version_page(mlflow: str, version: Version) -> str:
    """A version's page below MLflow's address, in the half of MLflow that is about training models."""
    return f"{mlflow}/#/models/{mlflow_name(version.destination)}/versions/{version.number}?{OF_TRAINING}"


def run_page_of(mlflow: str, experiment: str, run: str) -> str:
    """The page of a version's run, likewise."""
    return f"{mlflow}/#/experiments/{experiment}/runs/{run}?{OF_TRAINING}"
