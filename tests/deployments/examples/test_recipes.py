"""The recipes: rows that the pipeline takes, the same for a seed, the held-out ones apart."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deployments.cli import main as cli
from deployments.cli.options import spec_from
from deployments.examples.classification import MESSAGES
from deployments.examples.names import TEST, TRAIN
from deployments.examples.recipes import RECIPES, ROWS, SEED, command, made, parameters, write
from infra.settings import Settings
from infra.spec import FIELD_TYPES, TrainingSpec
from infra.storage.store import Store
from tasks.evaluate import prompt_and_reference, refuse_unscorable
from tasks.ingest import ingest
from tasks.scoring.metrics import MOST_FREQUENT, classification, extraction, question_scores, style
from tasks.validate import validate
from tests.conftest import ROOT

README = (ROOT / "deployments" / "examples" / "README.md").read_text(encoding="utf-8")
TASKS = list(RECIPES)


def words(rows: list[dict[str, object]]) -> set[str]:
    return set(re.findall(r"\w+", json.dumps(rows)))


def test_there_is_a_recipe_for_every_task_type() -> None:
    assert {"auto", *RECIPES} == set(FIELD_TYPES["task_type"].__args__)


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_rows_and_a_shorter_list_is_the_start_of_a_longer(task: str) -> None:
    assert made(task, 40, 7, held_out=False)[:20] == made(task, 20, 7, held_out=False)
    assert made(task, 20, 8, held_out=False) != made(task, 20, 7, held_out=False)


@pytest.mark.parametrize("task", TASKS)
def test_every_row_names_somebody_and_the_splits_share_nobody(task: str) -> None:
    train, held_out = (made(task, 500, 7, held_out=held) for held in (False, True))
    assert all(words([row]) & TRAIN.words() for row in train)
    assert all(words([row]) & TEST.words() for row in held_out)
    assert not words(train) & TEST.words() and not words(held_out) & TRAIN.words()
    assert not re.search(r"[{]\w+\d?'?[}]|~", "".join(map(str, train + held_out)))


@pytest.mark.parametrize("task", TASKS)
def test_the_pipeline_takes_the_rows(task: str, settings: Settings, store: Store, tmp_path: Path) -> None:
    train, held_out = write(task, tmp_path / "data.jsonl", 200)
    split = validate(store, ingest(settings, store, str(train)), ingest(settings, store, str(held_out)), 100)
    assert (split.train_rows, split.validation_rows, split.leaks) == (200, 100, 0)
    assert split.kind == {"style": "text", "chat": "messages"}.get(task, "prompt") and not split.separator.strip()
    spec = cli.parser().parse_args(shlex.split(command(parameters(task, train, held_out)))[1:])
    refuse_unscorable(store, spec_from(spec), split)


def test_held_out_messages_have_wordings_that_are_not_trained() -> None:
    last = MESSAGES["work"][-1].rsplit("} ", 1)[1]
    assert last in str(made("classification", 500, 7, held_out=True))
    assert last not in str(made("classification", 5000, 7, held_out=False))


def test_a_questions_answer_stands_in_the_facts() -> None:
    for row in made("question", 500, 7, held_out=False):
        assert row["completion"].strip() in row["prompt"].split("\n")[0]


def test_an_extractions_completion_holds_what_the_message_says() -> None:
    for row in made("extraction", 300, 7, held_out=False):
        record = json.loads(row["completion"])
        said = row["prompt"].casefold()
        assert all(value.casefold() in said for name, value in record.items() if name != "people")
        assert set(record.get("people", ())) <= set(re.findall(r"\w+", row["prompt"]))
        assert extraction([row["completion"]], [row["completion"]])["same"] == [1, 1, 1]


def test_a_chats_last_message_is_the_assistants() -> None:
    for row in made("chat", 100, 7, held_out=False):
        assert prompt_and_reference("messages", row)[1] == row["messages"][-1]["content"]


def test_the_command_line_writes_both_files_and_says_what_to_run(tmp_path: Path) -> None:
    words = ["question", str(tmp_path / "q.jsonl"), "--rows", "30", "--seed", "3"]
    told = subprocess.run([sys.executable, "-m", "deployments.examples.recipes", *words], cwd=ROOT, capture_output=True,
                          text=True, check=True).stdout
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert rows == made("question", 30, 3, held_out=False) and rows != made("question", 30, 7, held_out=False)
    assert len((tmp_path / "q.held-out.jsonl").read_text().splitlines()) == 100 and ROWS > 30
    assert "anneal train --train-data" in told and "--task-type question" in told


@pytest.mark.parametrize("task", TASKS)
def test_the_readme_shows_a_row_that_the_generator_makes(task: str) -> None:
    part = README.split(f": `{task}`\n")[1].split("\n## ")[0]
    shown = re.search(r"```json\n(.*)\n```", part)
    assert shown and json.loads(shown[1]) in made(task, 20, 7, held_out=False)


def test_the_readme_names_every_metric_and_only_real_parameters() -> None:
    tables = [classification(["a"], ["a"]), question_scores(["a"], ["a"]), extraction(["1"], ["1"]),
              style(np.ones((1, 3)))]
    metrics = {name for table in tables for name in table}
    quoted = set(re.findall(r"`([a-z0-9_]+)`", README))
    assert metrics | {"rougeL", MOST_FREQUENT} <= set(re.findall(r"`(\w+)`", README))
    names = {field.name for field in dataclasses.fields(TrainingSpec)}
    assert {name for name in quoted if "_" in name} <= names | metrics | {MOST_FREQUENT}
    assert f"--rows {ROWS} --seed {SEED}" in README
