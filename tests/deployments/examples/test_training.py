"""A recipe through the pipeline's own steps: the tuned model does better than its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployments.examples.recipes import parameters, write
from infra.models.base_models import find_base
from infra.models.registry import Registry
from infra.records import Base, Evaluation, Pack, Split, Trained
from infra.settings import Settings
from infra.spec import TaskType, TrainingSpec
from infra.storage.store import Store
from tasks.distributed.contract import GenerateJob
from tasks.evaluate import answers_for, beside_champion, evaluate, find_evaluation
from tasks.ingest import ingest
from tasks.launcher.champion import asked_of, find_champion
from tasks.launcher.jobs import run_child
from tasks.launcher.placement import Placement, place
from tasks.pack import pack
from tasks.register import register
from tasks.train import train
from tasks.ui.reports import rouge_report
from tasks.validate import validate


def trained(settings: Settings, store: Store, folder: Path, task: TaskType, rows: int, **changed: Any) -> Evaluation:
    """Ingest, validate, pack, train, evaluate."""
    return whole(settings, store, folder, task, rows, **changed)[0]


def whole(
    settings: Settings, store: Store, folder: Path, task: TaskType, rows: int, **changed: Any,
) -> tuple[Evaluation, Placement, Trained, Split, Pack, Base]:
    """The evaluation, and what it was made of."""
    spec = TrainingSpec(**{**parameters(task, *write(task, folder / "data.jsonl", rows)), "num_ranks": 1, **changed})
    data, others = (ingest(settings, store, name) for name in (spec.train_data, spec.validation_data))
    split = validate(store, data, others, spec.num_validation_samples)
    base = find_base(settings, spec.base_model)
    packed = pack(settings, store, split, base, spec)
    placement = place(settings, spec, packed, base)
    weights = train(settings, store, placement, packed, base, lambda event: None)
    evaluation = evaluate(settings, store, placement, weights, split, packed, base)
    assert find_evaluation(store, spec, weights, split) == evaluation
    return evaluation, placement, weights, split, packed, base


@pytest.mark.slow
def test_a_classification_learns_its_labels(settings: Settings, store: Store, tmp_path: Path) -> None:
    found = trained(settings, store, tmp_path, "classification", 400)
    tuned, base, most = (found.scores[model] for model in ("tuned", "base", "most_frequent"))
    assert tuned["accuracy"][0] > max(base["accuracy"][2], most["accuracy"][2])
    assert tuned["no_label"][1] < base["no_label"][1] and most["no_label"][1] == 0
    assert found.passed and found.verdict.startswith("Better than the base: accuracy") and not found.rouge
    assert "Better than the most frequent label: accuracy" in found.verdict
    assert "| most_frequent |" in rouge_report(found)


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_a_champion_is_not_replaced_by_a_version_that_learned_nothing_and_nobody_answers_twice(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, ...]] = []

    def noted(settings: Settings, job: GenerateJob, *rest: Any, **options: Any) -> dict[str, Any]:
        asked.append(job.models)
        return run_child(settings, job, *rest, **options)

    monkeypatch.setattr("tasks.launcher.answers.run_child", noted)
    found, placement, weights, split, packed, base = whole(
        settings, store, tmp_path, "classification", 300, max_steps=25)
    version = register(settings, store, placement.spec, weights, found, split, packed, base)
    Registry(settings).point("champion", version.destination, version.number)
    found, placement, weights, split, packed, base = whole(
        settings, store, tmp_path, "classification", 300, learning_rate=0.0, max_steps=1)
    champion = find_champion(settings, version.destination, weights.training_id)
    answers = answers_for(settings, store, placement, split, packed)
    judged = beside_champion(settings, store, placement.spec, weights, split, base, answers, found, champion)
    print(judged.verdict)
    assert found.passed and found.verdict.startswith("No difference seen from the base: accuracy")
    assert not judged.passed and judged.verdict.startswith("Worse than the champion (version 1): accuracy")
    assert asked == [("tuned", "base"), ("tuned",)]
    store.remove(answers.name_of(asked_of(settings, store, version, split, base, by_loss=False)))  # never asked before
    again = beside_champion(settings, store, placement.spec, weights, split, base, answers, found, champion)
    assert again == judged and asked[2:] == [("tuned",)]


@pytest.mark.slow
@pytest.mark.chaos
def test_a_style_is_scored_by_the_losses_of_its_rows(settings: Settings, store: Store, tmp_path: Path) -> None:
    found = trained(settings, store, tmp_path, "style", 200, num_train_epochs=1)
    assert found.scores["tuned"]["loss"][2] < found.scores["base"]["loss"][0] and found.passed
    for model, loss in found.loss.items():
        assert found.scores[model]["loss"][1] == pytest.approx(loss, abs=2e-6)
        assert found.scores[model]["bits_per_byte"][1] < found.scores[model]["loss"][1]  # a token has bytes


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize(("task", "rows", "metric", "called"), [
    ("question", 800, "f1", "F1"), ("extraction", 800, "field_f1", "field F1"), ("chat", 400, "rougeL", "ROUGE-L"),
    ("summary", 400, "rougeL", "ROUGE-L")])
def test_what_a_recipe_teaches_is_seen_by_its_metric(
    settings: Settings, store: Store, tmp_path: Path, task: TaskType, rows: int, metric: str, called: str,
) -> None:
    found = trained(settings, store, tmp_path, task, rows)
    scores = found.scores or found.rouge
    tuned, base = scores["tuned"], scores["base"]
    assert tuned[metric][0] > base[metric][2], "its interval lies above the base's"
    assert found.loss["tuned"] < found.loss["base"]
    verdict = f"Better than the base: {called} {tuned[metric][1]:.3f} against {base[metric][1]:.3f} ("
    assert found.passed and found.verdict.startswith(verdict) and verdict in rouge_report(found)
