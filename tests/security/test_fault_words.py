"""What faults of disks and of other releases mean, without commands; with them: tests/security/test_faults.py.

For MLflow: infra/models/mlflow_errors.py.
"""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from mlflow.exceptions import MlflowException

from infra.errors import Missing, Transient, UserError
from infra.models.mlflow_errors import translate_mlflow_errors
from infra.records import Answers, Dataset, Evaluation, Pack, Record, Split, Trained
from tasks.runs.locks import exclusive_lock
from tasks.runs.retries import MISSING_TRIES, may_pass


@pytest.mark.parametrize("kind", [Answers, Dataset, Evaluation, Pack, Split, Trained])
def test_a_record_that_lacks_what_is_needed_is_none(kind: type[Record]) -> None:
    assert kind.kept(None) is None
    assert kind.kept({"folder": "things/one", "of_a_newer_release": 1}) is None


def test_a_record_with_keys_of_a_newer_release_is_read() -> None:
    values = {"folder": "datasets/one", "sha256": "0", "bytes": 1, "source": "data.jsonl"}
    assert Dataset.kept({**values, "of_a_newer_release": 1}) == Dataset.of(values)


def test_a_folder_that_went_from_the_store_is_looked_for_a_few_times_only() -> None:
    run: Any = SimpleNamespace(id=uuid4())
    state: Any = SimpleNamespace(data=Missing("packs/one is missing or damaged"))
    task: Any = None
    tries = [may_pass(task, run, state) for _ in range(MISSING_TRIES + 1)]
    assert tries == [True] * MISSING_TRIES + [False]


@pytest.mark.parametrize("error", [
    MlflowException("(sqlite3.OperationalError) database or disk is full"),
    MlflowException("[Errno 28] No space left on device: 'mlflow-artifacts'"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system", "/home/work"),
    MlflowException("Detected out-of-date database schema (found version ff, but expected dc)"),
])
def test_what_waiting_does_not_mend_in_mlflow_is_the_users(error: Exception) -> None:
    with pytest.raises(UserError, match=r"mlflow\.db: .*(full|Read-only|another release)"), translate_mlflow_errors("sqlite:///mlflow.db"):
        raise error


def test_what_may_pass_in_mlflow_is_waited_for() -> None:
    with pytest.raises(Transient), translate_mlflow_errors("http://mlflow.example"):
        raise ConnectionResetError("reset")


def test_a_lock_that_cannot_be_written_is_said(full_disk: Path) -> None:
    with (full_disk / "filler").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(UserError, match="the disk is full"), exclusive_lock(full_disk / "one.lock", "this"):
        raise AssertionError("it is not held")
