"""flows/finetune.py up to its first step, without Prefect; with Prefect: tests/e2e."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from flows import finetune as module
from flows.parameters import Parameters
from infra.errors import UserError
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.register import register
from tests.support.past import Past

Run = Callable[[dict[str, Any]], TrainingSpec]
pytestmark = pytest.mark.usefixtures("database")


class Stopped(Exception):
    """Before the first step."""


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The flow's body up to its first step; returns the spec that the step gets."""
    def first_step(spec: TrainingSpec) -> None:
        raise Stopped(spec)

    monkeypatch.setenv("ANNEAL_HOME", str(settings.home_path))
    monkeypatch.setattr(module, "data_of", first_step)

    def run(training: dict[str, Any]) -> TrainingSpec:
        with pytest.raises(Stopped) as stopped:
            inspect.unwrap(module.finetune.fn)(Parameters(**training))
        spec: TrainingSpec = stopped.value.args[0]
        return spec

    return run


@pytest.mark.parametrize("which", [":1", ":challenger", ""])
def test_a_base_version_of_the_parameters_is_exact_before_the_first_step(
    settings: Settings, store: Store, past: Past, run: Run, which: str,
) -> None:
    first = register(settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)
    asked = {**dataclasses.asdict(past.spec), "base_version": f"{first.destination}{which}"}
    assert run(asked) == dataclasses.replace(past.spec, base_version=f"{first.destination}:{first.id}")


def test_without_one_the_parameters_are_the_spec(past: Past, run: Run) -> None:
    assert run(dataclasses.asdict(past.spec)) == past.spec


def test_a_base_version_that_is_gone_is_refused_before_data_is_read(past: Past, run: Run) -> None:
    with pytest.raises(UserError, match="acme/none: no version of it is registered"):
        run({**dataclasses.asdict(past.spec), "base_version": "acme/none:3"})
