"""tasks/register.py, infra/models/registry.py: one training, one version, wherever the first try died."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from safetensors.numpy import save_file

from infra.errors import Transient
from infra.models.registry import Registry, mlflow_name
from infra.models.version_folder import version_id
from infra.records import Version
from infra.settings import Settings
from infra.storage.store import Store
from tasks.register import find_version, lineage_of, register, sums_of, write_version
from tests.support.past import Past

pytestmark = pytest.mark.usefixtures("database")
CALLS = (
    "create_model_version", "log_model_artifacts",
    *(pytest.param(name, marks=pytest.mark.chaos)
      for name in ("create_run", "create_logged_model", "log_outputs", "finalize_logged_model", "set_terminated")))


def do(settings: Settings, store: Store, past: Past) -> Version:
    return register(
        settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)


def versions(settings: Settings) -> list[int]:
    client = Registry(settings).client
    return [int(v.version) for v in client.search_model_versions("name='acme--summarizer'")]


def test_registering_twice_gives_one_version(settings: Settings, store: Store, past: Past) -> None:
    first, second = do(settings, store, past), do(settings, store, past)
    assert first == second == find_version(settings, store, past.spec, past.trained, past.evaluation)
    assert versions(settings) == [1]
    assert Registry(settings).number_at("challenger", "acme/summarizer") == 1


def test_a_destination_may_have_dots(settings: Settings, store: Store, past: Past) -> None:
    past.spec = dataclasses.replace(past.spec, destination="acme/llama-3.2.notes")
    assert do(settings, store, past).uri == "models:/acme--llama-3.2.notes/1"


def test_without_a_server_a_version_is_registered_beside_those_of_a_server(
    settings: Settings, store: Store, past: Past,
) -> None:
    """`anneal down`, and then a training: MLflow sends files of the server's experiment to a server only."""
    client = Registry(settings).client
    client.create_experiment("anneal", artifact_location="mlflow-artifacts:/1")
    assert do(settings, store, past).number == 1
    (version,) = client.search_model_versions("name='acme--summarizer'")
    run = client.get_run(version.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "anneal-without-server"
    other = dataclasses.replace(past.trained, training_id="b" * 26)
    again = register(settings, store, past.spec, other, past.evaluation, past.split, past.pack, past.base)
    assert again.number == 2, "the experiment is used again"


@pytest.mark.parametrize("call", CALLS)
def test_a_death_after_any_call_leaves_one_version_in_the_end(
    settings: Settings, store: Store, past: Past, monkeypatch: pytest.MonkeyPatch, call: str,
) -> None:
    real = getattr(mlflow.MlflowClient, call)

    def die_afterwards(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)
        raise KeyboardInterrupt(call)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=call):
        patch.setattr(mlflow.MlflowClient, call, die_afterwards)
        do(settings, store, past)
    version = do(settings, store, past)
    assert versions(settings) == [version.number]
    client = Registry(settings).client
    (experiment,) = [one.experiment_id for one in client.search_experiments() if one.name == "anneal"]
    assert [run.info.status for run in client.search_runs([experiment]) if run.info.status == "RUNNING"] == []
    assert [m for m in client.search_logged_models([experiment]) if str(m.status) == "PENDING"] == []


def test_a_death_before_the_alias_leaves_it_to_the_next_try(
    settings: Settings, store: Store, past: Past, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", die)
        do(settings, store, past)
    assert find_version(settings, store, past.spec, past.trained, past.evaluation) is not None
    assert Registry(settings).number_at("challenger", "acme/summarizer") == 1


def test_an_older_version_that_is_found_again_is_not_the_challenger(
    settings: Settings, store: Store, past: Past,
) -> None:
    trained = past.trained
    do(settings, store, past)
    past.trained = dataclasses.replace(trained, training_id="z" * 26)
    do(settings, store, past)
    assert find_version(settings, store, past.spec, trained, past.evaluation) is not None
    assert Registry(settings).number_at("challenger", "acme/summarizer") == 2


def test_the_version_holds_weights_lineage_and_checksums_only(settings: Settings, store: Store, past: Past) -> None:
    version = do(settings, store, past)
    names = {path.name for path in store.fetch(version.folder).iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "base.json", "serve.json",
                     "training.json", "MANIFEST.sha256", "manifest.json", "README.md", "generation_config.json"}
    place = str(Path(past.base.path).parent)
    for path in store.fetch(version.folder).iterdir():
        assert (place.encode() in path.read_bytes()) == (path.name == "adapter_config.json"), path.name


def test_the_id_does_not_depend_on_where_the_base_lies(settings: Settings, store: Store, past: Past) -> None:
    first = do(settings, store, past)
    moved = dataclasses.replace(past.base, path=shutil.copytree(past.base.path, f"{past.base.path}-moved"))
    with store.draft() as draft:
        lineage = lineage_of(past.spec, past.trained, past.evaluation, past.split, past.pack, moved)
        write_version(draft.path, store, past.trained, past.evaluation, past.split, moved, lineage)
        assert "-moved" in (draft.path / "adapter_config.json").read_text()
        assert version_id(draft.path, sums_of(draft.path)) == first.id


def test_a_base_of_the_hub_is_named_by_name_and_commit(settings: Settings, store: Store, past: Past) -> None:
    past.base = dataclasses.replace(past.base, name="org/tiny", revision="c0ffee")
    folder = store.fetch(do(settings, store, past).folder)
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/tiny", "c0ffee")
    assert not any(past.base.path.encode() in path.read_bytes() for path in folder.iterdir())
    assert json.loads((folder / "base.json").read_text())["revision"] == "c0ffee"


def test_the_lineage_says_what_was_dropped(settings: Settings, store: Store, past: Past) -> None:
    past.spec = dataclasses.replace(past.spec, drop="duplicates")
    past.split = dataclasses.replace(past.split, dropped=7)
    lineage = json.loads((store.fetch(do(settings, store, past).folder) / "training.json").read_text(encoding="utf-8"))
    assert lineage["spec"]["drop"] == "duplicates"
    assert lineage["rows"] == {"train": 20, "validation": 2, "dropped": 7}


def test_mlflow_hands_out_the_same_files(settings: Settings, store: Store, past: Past, tmp_path: Path) -> None:
    version = do(settings, store, past)
    folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "out")))
    for path in store.fetch(version.folder).iterdir():
        if path.name != "manifest.json":
            assert (folder / path.name).read_bytes() == path.read_bytes()


def test_whole_weights_are_stored_once(settings: Settings, store: Store, past: Past, tmp_path: Path) -> None:
    with store.draft() as draft:
        (draft.path / "model").mkdir()
        (draft.path / "model" / "config.json").write_text("{}")
        save_file({"a": np.ones(3, np.float32)}, draft.path / "model" / "model.safetensors")
        draft.commit("trainings/whole", {})
    past.trained = dataclasses.replace(past.trained, folder="trainings/whole", method="full")
    version = do(settings, store, past)
    trained, registered = (store.fetch(name) for name in ("trainings/whole", version.folder))
    assert (trained / "model" / "model.safetensors").samefile(registered / "model.safetensors")
    folder = Path(mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "out")))
    assert not list(folder.rglob("*.safetensors")) and (folder / "config.json").exists()
    assert mlflow.models.Model.load(str(folder)).flavors["python_function"]["config"] == {"weights": str(registered)}


def test_two_destinations_get_a_version_each(settings: Settings, store: Store, past: Past) -> None:
    first = do(settings, store, past)
    past.spec = dataclasses.replace(past.spec, destination="acme/other")
    second = do(settings, store, past)
    assert (first.number, second.number) == (1, 1) and second.uri == "models:/acme--other/1"


def test_a_registry_that_does_not_answer_may_be_retried(settings: Settings, store: Store, past: Past,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = settings.model_copy(update={"mlflow_uri": "http://127.0.0.1:9"})
    with pytest.raises(Transient, match="MLflow does not"):
        do(away, store, past)


def test_destinations_map_to_mlflow_names_and_back() -> None:
    assert mlflow_name("acme/summarizer").split("--") == ["acme", "summarizer"]


def test_the_scores_of_a_task_type_stand_on_mlflows_pages(settings: Settings, store: Store, past: Past) -> None:
    scores = {"tuned": {"accuracy": [0.7, 0.8, 0.9]}, "base": {"accuracy": [0.0, 0.1, 0.2]}}
    past.evaluation = dataclasses.replace(past.evaluation, rouge={}, scores=scores)
    past.trained = dataclasses.replace(past.trained, loss_validation=3.5, loss_best=3.25, best_step=4)
    version = do(settings, store, past)
    client = Registry(settings).client
    run = client.get_model_version(mlflow_name(version.destination), str(version.number)).run_id
    logged = client.get_run(run).data.metrics
    assert (logged["accuracy_tuned"], logged["accuracy_base"], logged["loss_tuned"]) == (0.8, 0.1, 3.0)
    assert {name: logged[name] for name in past.trained.curve} == {
        "train_loss_first": 4.0, "train_loss_last": 3.0, "validation_loss_last": 3.5, "validation_loss_best": 3.25,
        "best_step": 4}
    assert json.loads((store.fetch(version.folder) / "training.json").read_text())["metrics"]["scores"] == scores


def test_the_gates_newest_verdict_stands_on_the_page_of_the_version(
    settings: Settings, store: Store, past: Past,
) -> None:
    version = do(settings, store, past)
    client, name = Registry(settings).client, mlflow_name(version.destination)
    assert client.get_model_version(name, str(version.number)).description == past.evaluation.verdict
    again = dataclasses.replace(past.evaluation, passed=False, verdict="Significantly worse than the base.")
    assert find_version(settings, store, past.spec, past.trained, again) == version
    assert client.get_model_version(name, str(version.number)).description == again.verdict
