"""tasks/runs/finish.py: a training that a person finishes is a version of its own, and of one run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.errors import Transient
from infra.records import Trained
from infra.settings import Settings
from infra.storage.store import Draft, Store
from tasks.distributed.contract import FINISH
from tasks.launcher.placement import place
from tasks.runs.finish import ask_to_finish, finished_before
from tasks.train import train, training_id
from tests.conftest import wait_for
from tests.support.past import Past

FIRST, SECOND = "11111111-2222-4333-8444-555555555555", "66666666-7777-4888-9999-000000000000"
"""Flow runs."""
Train = Callable[..., Trained]


class Ranks:
    """In their place: where their training is asked to finish they have done three steps, else all."""

    def __init__(self, past: Past, run: Path) -> None:
        self._past, self._run = past, run
        self.launches, self.asked = 0, False

    def __call__(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.launches += 1
        if self.asked:
            wait_for((self._run / FINISH).exists, timeout_s=60)
        assert (self._run / FINISH).exists() == self.asked
        all_steps = self._past.trained.steps
        steps, asked = (3, all_steps) if self.asked else (all_steps, 0)
        (self._run / "model").mkdir(exist_ok=True)
        (self._run / "model" / "weights").write_text(f"after {steps}")
        (self._run / "events.jsonl").write_text("")
        known = {name: value for name, value in self._past.trained.to_json().items()
                 if name not in ("folder", "training_id", "method", "digest")}
        return {**known, "steps": steps, "planned_steps": asked}


@pytest.fixture
def ranks(past: Past, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """Ranks of the past's training, whose rows are packed."""
    with store.draft() as draft:
        (draft.path / "x").touch()
        draft.commit(past.pack.folder, {})
    found = Ranks(past, settings.home_path / "trainings" / training_id(past.spec, past.pack, past.base))
    monkeypatch.setattr("tasks.launcher.relaunch.run_child", found)
    return found


@pytest.fixture
def once(past: Past, settings: Settings, store: Store, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train in a process of that flow run, which is asked to finish, or not."""

    def trained(run: str, *, asked: bool) -> Trained:
        monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", run)
        ranks.asked = asked
        placement = place(settings, past.spec, past.pack, past.base)
        return train(settings, store, placement, past.pack, past.base, lambda event: None)

    return trained


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[Transient]:
    """Errors that the store answers the next commits with."""
    found, commit = list[Transient](), Draft.commit

    def commits(draft: Draft, *arguments: Any) -> Any:
        if found:
            raise found.pop()
        return commit(draft, *arguments)

    monkeypatch.setattr(Draft, "commit", commits)
    return found


@pytest.mark.parametrize("dies", [False, True])
def test_it_has_an_id_of_its_own_and_its_run_finds_it_again(
    past: Past, store: Store, ranks: Ranks, once: Train, away: list[Transient], dies: bool,
) -> None:
    ask_to_finish(store, FIRST)
    if dies:  # between the end of its ranks and the store
        away.append(Transient("away"))
        with pytest.raises(Transient, match="away"):
            once(FIRST, asked=True)
    finished = once(FIRST, asked=True)
    assert (finished.steps, finished.planned_steps, ranks.launches) == (3, past.trained.steps, 1)
    assert finished_before(store) == finished.training_id
    ask_to_finish(store, FIRST)
    assert once(FIRST, asked=True) == finished and ranks.launches == 1
    whole = once(SECOND, asked=False)
    assert whole.training_id == training_id(past.spec, past.pack, past.base) != finished.training_id
    assert (whole.steps, whole.planned_steps, ranks.launches) == (past.trained.steps, 0, 2)
    weights = [(store.fetch(one.folder) / "model" / "weights").read_text() for one in (finished, whole)]
    assert weights == ["after 3", f"after {past.trained.steps}"]


def test_another_run_does_not_take_what_was_finished_early_for_its_own(
    past: Past, store: Store, ranks: Ranks, once: Train, away: list[Transient],
) -> None:
    ask_to_finish(store, FIRST)
    away.append(Transient("away"))
    with pytest.raises(Transient, match="away"):
        once(FIRST, asked=True)
    whole = once(SECOND, asked=False)
    assert (whole.steps, whole.planned_steps, ranks.launches) == (past.trained.steps, 0, 2)
