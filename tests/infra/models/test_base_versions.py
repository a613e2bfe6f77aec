"""Going on from a version: exact before anything starts, and refused in one sentence where it cannot be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import pytest

from infra.errors import UserError
from infra.models.base_versions import check_same_base, resolved
from infra.models.registry import Registry
from infra.records import Version
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.register import register
from tasks.train import training_id
from tests.support.past import Past

pytestmark = pytest.mark.usefixtures("database")
NAME = "acme/summarizer"


@pytest.fixture
def version(settings: Settings, store: Store, past: Past) -> Version:
    """Version 1, an adapter."""
    return register(settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)


def on(past: Past, base_version: str, **knobs: Any) -> TrainingSpec:
    return dataclasses.replace(past.spec, base_version=base_version, precision="fp32", **knobs)


@pytest.mark.parametrize("which", [":1", ":challenger", ""])
def test_every_name_is_made_exact(settings: Settings, store: Store, past: Past, version: Version, which: str) -> None:
    assert resolved(settings, store, on(past, NAME + which)).base_version == f"{NAME}:{version.id}"


def test_a_run_that_is_started_again_goes_on_from_the_same_version(
    settings: Settings, store: Store, past: Past, version: Version,
) -> None:
    spec = on(past, f"{NAME}:challenger")
    first = resolved(settings, store, spec, "runs/r.start")
    past.trained = dataclasses.replace(past.trained, training_id="z" * 26)
    register(settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)
    assert Registry(settings).number_at("challenger", NAME) == 2
    assert resolved(settings, store, spec, "runs/r.start") == first != resolved(settings, store, spec)


@pytest.mark.parametrize(("base_version", "sentence"), [
    (f"{NAME}:7", "there is no version \"7\"; expected one of 1, challenger"),
    ("acme/other:1", "acme/other: no version of it is registered"), ("f" * 64, "no version with this id"),
    ("acme", "expected owner/name")])
def test_a_version_that_is_not_there_is_one_sentence(
    settings: Settings, store: Store, past: Past, version: Version, base_version: str, sentence: str,
) -> None:
    with pytest.raises(UserError, match=sentence):
        resolved(settings, store, on(past, base_version))


def test_a_version_whose_files_are_gone_is_one_sentence(
    settings: Settings, store: Store, past: Past, version: Version,
) -> None:
    store.remove(version.folder)
    with pytest.raises(UserError, match=r"its files are not in the store any more.*leave base_version out"):
        resolved(settings, store, on(past, f"{NAME}:1"))


@pytest.mark.parametrize(("knobs", "sentence"), [
    ({"lora_rank": 16}, "lora_rank is 16; expected 8, as that version has it"),
    ({"lora_targets": "q_proj"}, 'lora_targets is "q_proj"; expected "all-linear"'),
    ({"use_rslora": True}, "use_rslora is true; expected false"),
    ({"peft_method": "full"}, "it has adapters, and peft_method is full")])
def test_other_adapters_are_refused(
    settings: Settings, store: Store, past: Past, version: Version, knobs: dict[str, object], sentence: str,
) -> None:
    with pytest.raises(UserError, match=f"(?i){sentence}"):
        resolved(settings, store, on(past, f"{NAME}:1", **knobs))


def test_a_version_on_another_base_is_refused(settings: Settings, store: Store, past: Past, version: Version) -> None:
    spec = resolved(settings, store, on(past, f"{NAME}:1"))
    check_same_base(store, spec, past.base)
    with pytest.raises(UserError, match="it was trained on base base-model"):
        check_same_base(store, spec, dataclasses.replace(past.base, digest="c" * 64))


def test_the_training_depends_on_the_version_and_not_on_its_name(past: Past) -> None:
    def identity(base_version: str) -> str:
        return training_id(on(past, base_version), past.pack, past.base)

    assert identity(f"acme/x:{'a' * 64}") == identity(f"acme/y:{'a' * 64}")
    assert len({identity(""), identity(f"acme/x:{'a' * 64}"), identity(f"acme/x:{'b' * 64}")}) == 3


def test_the_new_version_says_what_it_went_on_from(
    settings: Settings, store: Store, past: Past, version: Version,
) -> None:
    spec = resolved(settings, store, on(past, f"{NAME}:1"))
    trained = dataclasses.replace(past.trained, training_id="z" * 26)
    second = register(settings, store, spec, trained, past.evaluation, past.split, past.pack, past.base)
    parent = {"name": f"{NAME}:1", "id": version.id}
    folder = store.fetch(second.folder)
    assert json.loads((folder / "training.json").read_text())["base_version"] == parent
    assert f"continued from | {NAME}:1, id `{version.id}`" in (folder / "README.md").read_text()
    found = Registry(settings).client.get_model_version("acme--summarizer", "2")
    assert found.tags["base_version"] == f"{NAME}:1"
    run = Registry(settings).client.get_run(found.run_id)
    assert run.data.params["base_version"].endswith(version.id)


def test_a_version_of_an_earlier_release_can_be_gone_on_from(
    settings: Settings, store: Store, past: Past, version: Version,
) -> None:
    """Its lineage has none of the newer knobs."""
    folder = store.fetch(version.folder)
    lineage = json.loads((folder / "training.json").read_text())
    assert lineage["spec"].pop("use_rslora") is False
    (folder / "training.json").write_text(json.dumps(lineage))
    assert resolved(settings, store, on(past, f"{NAME}:1")).base_version
    shutil.rmtree(folder)
