"""tasks/evaluate.py: the champion is compared with on the same rows, and nobody answers twice.

Tests tasks/launcher/answers.py, tasks/launcher/champion.py too. KeptAnswers are put into the store as a child leaves
them; tests/deployments/examples/test_training.py lets models answer.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.errors import GateError, UserError
from infra.files import digest_of
from infra.models.registry import Registry
from infra.records import Evaluation, Version
from infra.settings import Settings
from infra.storage.store import Store
from tasks.deploy import refuse_another_champion
from tasks.evaluate import answers_for, beside_champion, evaluate, find_evaluation, models_of
from tasks.launcher.answers import Asked, KeptAnswers
from tasks.launcher.champion import Champion, asked_of, find_champion, refuse_gate_without_champion
from tasks.launcher.placement import Placement, place
from tasks.register import register
from tests.support.past import Past

ROWS = 40
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def placement(settings: Settings, store: Store, past: Past, monkeypatch: pytest.MonkeyPatch) -> Placement:
    """Forty held-out rows; a child process that starts is a mistake."""
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("rows are answered that were answered before")

    monkeypatch.setattr("tasks.launcher.answers.run_child", refuse)
    with store.draft() as draft:
        for name in ("train", "validation"):
            (draft.path / f"{name}.jsonl").write_text("".join(
                json.dumps({"prompt": f"What is {n}?", "completion": f"It is word{n}."}) + "\n" for n in range(ROWS)))
        draft.commit(past.split.folder, past.split.to_json())
    with store.draft() as draft:  # as train leaves it
        shutil.copytree(store.fetch("trainings/t") / "model", draft.path / "model")
        past.trained = dataclasses.replace(past.trained, folder=f"trainings/{past.trained.training_id}")
        draft.commit(past.trained.folder, past.trained.to_json())
    past.split = dataclasses.replace(past.split, validation_rows=ROWS)
    past.spec = dataclasses.replace(past.spec, task_type="question", precision="fp32")
    return place(settings, past.spec, past.pack, past.base)


def right(share: int) -> list[str]:
    """KeptAnswers, of which so many are right."""
    return [f"It is word{n}." if n < share else "No idea." for n in range(ROWS)]


def keep(answers: KeptAnswers, asked: Asked, texts: Sequence[str], folder: Path) -> None:
    """Put answers into the store, as they come out of the child."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"row": row, "text": text}) + "\n" for row, text in enumerate(texts)]
    (folder / f"answers-{asked.name}-0.jsonl").write_text("".join(lines[::2]))
    (folder / f"answers-{asked.name}-1.jsonl").write_text("".join(lines[1::2]))
    answers.keep(asked, folder, {"loss": {asked.name: 1.5}, "stop_ids": [2]})


def evaluated(
    settings: Settings, store: Store, past: Past, placement: Placement, folder: Path, tuned: int, base: int = 0,
) -> Evaluation:
    """Of a version with so many right answers."""
    answers = answers_for(settings, store, placement, past.split, past.pack)
    for name, asked in models_of(store, past.trained, past.split, past.base).items():
        keep(answers, asked, right({"tuned": tuned, "base": base}[name]), folder / f"{name}{past.trained.digest[:3]}")
    return evaluate(settings, store, placement, past.trained, past.split, past.pack, past.base)


def crowned(settings: Settings, store: Store, past: Past, evaluation: Evaluation) -> Version:
    """The past training's version, as champion."""
    version = register(settings, store, past.spec, past.trained, evaluation, past.split, past.pack, past.base)
    Registry(settings).point("champion", version.destination, version.number)
    return version


def successor(store: Store, past: Past) -> None:
    """Another training's weights take the place of the past ones."""
    with store.draft() as draft:
        (draft.path / "model").mkdir()
        (draft.path / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
        draft.commit("trainings/next", {})
    past.trained = dataclasses.replace(past.trained, folder="trainings/next", training_id="n" * 26, digest="9" * 64)


def judged(settings: Settings, store: Store, past: Past, placement: Placement, evaluation: Evaluation) -> Evaluation:
    champion = find_champion(settings, past.spec.destination, past.trained.training_id)
    answers = answers_for(settings, store, placement, past.split, past.pack)
    return beside_champion(
        settings, store, past.spec, past.trained, past.split, past.base, answers, evaluation, champion)


@pytest.mark.parametrize(("tuned", "passes", "told"), [
    (38, True, "Better than the champion (version 1): F1"), (10, False, "Worse than the champion (version 1): F1"),
    (31, True, "No difference seen from the champion (version 1): F1")])
def test_a_champion_is_replaced_only_by_what_is_not_worse(
    settings: Settings, store: Store, past: Past, placement: Placement, tmp_path: Path, tuned: int, passes: bool,
    told: str,
) -> None:
    crowned(settings, store, past, evaluated(settings, store, past, placement, tmp_path, 30))
    successor(store, past)
    own = evaluated(settings, store, past, placement, tmp_path, tuned)
    assert own.passed and own.verdict.startswith("Better than the base: F1")
    found = judged(settings, store, past, placement, own)
    assert found.passed is passes and found.verdict.startswith(told) and found.champion == 1
    beside = found.compared["champion"]
    assert (beside.won, beside.lost, beside.tied) == (max(tuned - 30, 0), max(30 - tuned, 0), ROWS - abs(tuned - 30))


def test_without_a_champion_the_base_takes_its_place(
    settings: Settings, store: Store, past: Past, placement: Placement, tmp_path: Path,
) -> None:
    own = evaluated(settings, store, past, placement, tmp_path, tuned=0, base=30)
    found = judged(settings, store, past, placement, own)
    assert not found.passed and found.champion == 0
    assert found.verdict.endswith("The gate keeps the version from being deployed: it is worse than the base.")


def test_a_training_whose_version_is_the_champion_is_not_compared_with_itself(
    settings: Settings, store: Store, past: Past, placement: Placement, tmp_path: Path,
) -> None:
    own = evaluated(settings, store, past, placement, tmp_path, tuned=30)
    crowned(settings, store, past, own)
    found = judged(settings, store, past, placement, own)
    assert found.passed and found.verdict.endswith("It is the champion itself (version 1).")


def test_a_gate_that_names_the_champion_is_refused_where_there_is_none(settings: Settings, past: Past) -> None:
    spec = dataclasses.replace(past.spec, gate="not_worse_than_champion")
    with pytest.raises(UserError, match="gate is not_worse_than_champion, and acme/summarizer has no champion"):
        refuse_gate_without_champion(settings, spec)
    refuse_gate_without_champion(settings, past.spec)


def test_a_champion_of_a_base_that_is_not_here_is_not_replaced_unless_the_gate_says_so(
    settings: Settings, store: Store, past: Past, placement: Placement, tmp_path: Path,
) -> None:
    own = evaluated(settings, store, past, placement, tmp_path, 30)
    crowned(settings, store, past, own)
    successor(store, past)
    past.base = dataclasses.replace(past.base, digest="c" * 64)
    found = judged(settings, store, past, placement, own)
    assert not found.passed and "is not known on this machine" in found.verdict
    past.spec = dataclasses.replace(past.spec, gate="not_worse_than_base")
    assert judged(settings, store, past, placement, own).passed


def test_losses_of_another_bases_tokens_are_not_compared(
    settings: Settings, store: Store, past: Past, placement: Placement, tmp_path: Path,
) -> None:
    champion = crowned(settings, store, past, evaluated(settings, store, past, placement, tmp_path, 30))
    other = dataclasses.replace(past.base, digest="c" * 64)
    with pytest.raises(UserError, match="losses are of the tokens of another base"):
        asked_of(settings, store, champion, past.split, other, by_loss=True)


def test_what_a_version_answered_when_it_was_new_is_found_when_it_is_the_champion(
    settings: Settings, store: Store, past: Past, placement: Placement, tmp_path: Path,
) -> None:
    own = models_of(store, past.trained, past.split, past.base)["tuned"]
    champion = crowned(settings, store, past, evaluated(settings, store, past, placement, tmp_path, 30))
    asked = asked_of(settings, store, champion, past.split, past.base, by_loss=False)
    answers = answers_for(settings, store, placement, past.split, past.pack)
    assert (asked.separator, answers.name_of(asked)) == ("\n", answers.name_of(own))
    other = dataclasses.replace(past.split, digest="t" * 64)
    assert answers_for(settings, store, placement, other, past.pack).find(asked) is None


def test_a_champion_that_changed_after_the_evaluation_is_not_replaced(settings: Settings, past: Past) -> None:
    version = Version(destination="acme/summarizer", id="1" * 64, number=5, folder="v", uri="u", training_id="t")

    class Aliases:
        def number_at(self, alias: str, destination: str) -> int:
            return 4

    before = dataclasses.replace(past.evaluation, champion=3)
    with pytest.raises(GateError, match="version 4 has become the champion since it was evaluated"):
        refuse_another_champion(Aliases(), past.spec, version, before)  # type: ignore[arg-type]
    for one in (dataclasses.replace(before, champion=4), past.evaluation):
        refuse_another_champion(Aliases(), past.spec, version, one)  # type: ignore[arg-type]


def test_an_evaluation_of_an_earlier_release_is_judged_by_its_answers(
    settings: Settings, store: Store, past: Past, placement: Placement, tmp_path: Path,
) -> None:
    made = evaluated(settings, store, past, placement, tmp_path, tuned=30)
    new = {"compared", "champion", "tokenizer"}
    with store.draft() as draft:
        (draft.path / "answers.jsonl").write_bytes((store.fetch(made.folder) / "answers.jsonl").read_bytes())
        draft.commit(made.folder, {name: value for name, value in made.to_json().items() if name not in new})
    assert find_evaluation(store, past.spec, past.trained, past.split) == made


def test_an_evaluation_that_saw_no_arabic_is_scored_again(store: Store, past: Past) -> None:
    folder = digest_of([1, {"max_new_tokens": 128, "num_evaluation_samples": 50, "validation_prompt": ""},
                        past.trained.digest, past.split.digest])[:32]
    record = dataclasses.replace(past.evaluation, folder=f"evaluations/{folder}").to_json()
    row = {"prompt": "p", "reference": "جلست القطة", "tuned": "جلست القطة", "base": "x", "lead3": "القطة"}
    with store.draft() as draft:
        (draft.path / "answers.jsonl").write_text(json.dumps(row) + "\n")
        draft.commit(record["folder"], record)
    found = find_evaluation(store, past.spec, past.trained, past.split)
    assert found and found.tokenizer == "unicode"
    assert (found.rouge["tuned"]["rougeL"][1], found.rouge["base"]["rougeL"][1]) == (1, 0)
    assert found.compared["base"].won == 1


def test_a_champion_is_known_by_its_training(settings: Settings, store: Store, past: Past) -> None:
    assert find_champion(settings, "acme/summarizer") is None
    version = crowned(settings, store, past, past.evaluation)
    assert find_champion(settings, "acme/summarizer", past.trained.training_id) == Champion(
        version=version, is_itself=True)
