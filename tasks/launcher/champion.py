"""The version that a new one would replace, and where its weights and its base are.

In:   a destination, MLflow's registry     Out: a Champion, and what has to be asked to know its answers
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError
from infra.files import MANIFEST, Manifest
from infra.models.base_models import find_same
from infra.models.mlflow_errors import translate_mlflow_errors
from infra.models.registry import Registry, mlflow_name
from infra.models.version_folder import BASE_FILE, SERVE_FILE
from infra.records import Base, Split, Trained, Version
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.launcher.answers import Asked

NO_CHAMPION = "Leave gate on auto: it takes the base where there is no champion."


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The version that the alias `champion` points to."""

    version: Version
    is_itself: bool
    """It was made by the training in question."""


def find_champion(settings: Settings, destination: str, training_id: str = "") -> Champion | None:
    """The destination's champion, or None. Raises Transient where MLflow does not answer."""
    registry = Registry(settings)
    with translate_mlflow_errors(registry.uri):
        models = registry.client.search_registered_models(filter_string=f"name = '{mlflow_name(destination)}'")
    number = models[0].aliases.get("champion") if models else None
    if number is None:
        return None
    version = registry.look_up(destination, str(number))
    return Champion(version=version, is_itself=version.training_id == training_id)


def refuse_gate_without_champion(settings: Settings, spec: TrainingSpec) -> None:
    """Raise UserError for a gate that compares with a champion that is not there, before anything is trained."""
    if spec.gate == "not_worse_than_champion" and find_champion(settings, spec.destination) is None:
        raise UserError(f"gate is {spec.gate}, and {spec.destination} has no champion",
                        allowed="auto, not_worse_than_base or off for a first version", fix=NO_CHAMPION)


def asked_of(
    settings: Settings, store: Store, champion: Version, split: Split, base: Base, *, by_loss: bool,
) -> Asked:
    """What to ask the champion with. Raises UserError where it cannot answer here, or not comparably."""
    folder = store.fetch(champion.folder)
    origin = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
    serve = json.loads((folder / SERVE_FILE).read_text(encoding="utf-8"))
    if by_loss and origin["digest"] != base.digest:
        raise UserError("its losses are of the tokens of another base")
    own = base if origin["digest"] == base.digest else find_same(
        settings, origin["name"], origin["digest"], f"version {champion.number}")
    manifest = store.read(f"trainings/{champion.training_id}/{MANIFEST}")
    trained = Trained.kept(Manifest.from_json(manifest).record if manifest else None)
    is_prompt = serve["kind"] == split.kind == "prompt"
    return Asked(
        name="tuned", digest=trained.digest if trained else champion.id, base=own,
        tuned=Path(store.fetch(trained.folder) / "model") if trained else folder,
        prompt_format=serve.get("prompt_format", "plain"),
        separator=serve["prompt_template"].removeprefix("{prompt}") if is_prompt else split.separator)
