"""Mistakes in a command, and what does not run: pytest tests/deployments/cli/test_mistakes.py"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployments.cli import main as cli
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without a stack."""
    for name in ("PREFECT_API_URL", "ANNEAL_PREFECT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANNEAL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("infra.stack.services.for_runs", lambda _: {})


def test_status_tells_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 1
    told = capsys.readouterr().out
    assert "models: none" in told and "trainings: none" in told
    last = told.splitlines()[-1]
    assert last.startswith("Not running: ") and last.endswith(". `anneal up` starts what is missing.")
    assert {"keeper", "mlflow", "predictor", "prefect", "reconcile", "worker"} <= set(re.findall(r"\w+", last))


@pytest.mark.parametrize(("arguments", "words"), [
    (["trian"], "Did you mean train?"), (["train", "--lr", "3"], "unknown option --lr. Did you mean --learning-rate?"),
    (["export", "a/b", "out", "--dtype", "bf61"], "Did you mean bf16?")])
def test_a_misspelled_word_is_answered_with_the_right_one(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(arguments) == cli.EXIT_USER_ERROR
    assert words in capsys.readouterr().err


def test_a_mistake_in_a_path_is_told_before_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("deployments.cli.main._train_here", lambda *_, **__: pytest.fail("it starts"))
    (tmp_path / "dialogs.jsonl").write_text('{"text": "a"}\n')
    base = ["--base-model", str(ROOT / "deployments/examples/base"), "--destination", "a/b"]
    assert cli.main(["train", "--train-data", str(tmp_path / "dialog.jsonl"), *base]) == cli.EXIT_USER_ERROR
    assert "there is no such file" in (told := capsys.readouterr().err) and "Did you mean dialogs.jsonl?" in told
    wrong = ["--base-model", str(ROOT / "deployments/examples/bse"), "--destination", "a/b"]
    assert cli.main(["train", "--train-data", str(tmp_path / "dialogs.jsonl"), *wrong]) == cli.EXIT_USER_ERROR
    assert "there is no such folder" in (told := capsys.readouterr().err) and "Did you mean base?" in told
