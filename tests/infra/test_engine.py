"""infra/engine.py: what a worker starts for a run, and what that begins with: pytest tests/infra/test_engine.py"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from infra.engine import RUN, begins_with, note_of
from infra.settings import Settings
from infra.warm import Warm, _ahead, end_those_ahead, start_ahead
from tests.conftest import wait_for

WAITS = "import sys, time; sys.stdin.read(); time.sleep(60)"
NOWHERE = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> str:
    """This process is one that a worker started for a flow run."""
    monkeypatch.setenv(RUN, str(uuid4()))
    return os.environ[RUN]


@pytest.fixture(autouse=True)
def nothing_ahead() -> Iterator[None]:
    yield
    end_those_ahead()


def imports(folder: Path, code: str = WAITS) -> Warm:
    return Warm([sys.executable, "-c", code], log=folder / "warm.txt", env={"SEEN": "yes"})


def test_what_was_started_ahead_is_what_the_same_imports_get(tmp_path: Path) -> None:
    start_ahead(imports(tmp_path).recipe)
    (ahead,) = _ahead.values()
    with imports(tmp_path) as imported:
        assert imported._mother == ahead and not _ahead
        assert ahead.process.poll() is None
    assert ahead.process.poll() is not None
    with imports(tmp_path) as another:
        assert another._mother != ahead


def test_what_was_started_ahead_for_nothing_ends_when_other_imports_are_made(tmp_path: Path) -> None:
    start_ahead(imports(tmp_path, "import time; time.sleep(61)").recipe)
    (ahead,) = _ahead.values()
    with imports(tmp_path):
        assert ahead.process.poll() is not None and not _ahead


def test_the_next_attempt_begins_so_unless_this_one_ends_well(tmp_path: Path, run: str) -> None:
    settings = Settings(home=tmp_path)
    note = note_of(settings)
    assert note is not None and run in note.name
    with pytest.raises(KeyError), begins_with(settings, imports(tmp_path)):
        assert note.read_text() == imports(tmp_path).recipe
        raise KeyError
    assert note.exists()
    with begins_with(settings, imports(tmp_path)):
        pass
    assert not note.exists()


def test_without_a_worker_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN, raising=False)
    with begins_with(Settings(home=tmp_path), imports(tmp_path)):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("noted", ["imports", "damaged", "nothing", "wrong settings"])
def test_the_engine_has_a_session_of_its_own_and_begins_with_what_is_noted(
    tmp_path: Path, run: str, noted: str,
) -> None:
    settings, told = Settings(home=tmp_path / "home"), tmp_path / "told"
    says = ("import os, pathlib, time; engine = os.getppid(); "
            f"pathlib.Path({str(told)!r}).write_text(os.environ['SEEN'] + str(os.getsid(engine) == engine)); "
            "time.sleep(60)")
    note = note_of(settings)
    assert note is not None
    note.parent.mkdir(parents=True)
    wrong = {"ANNEAL_NODES": "two"} if noted == "wrong settings" else {}
    if noted in ("imports", "damaged"):
        note.write_text(imports(tmp_path, says).recipe if noted == "imports" else '{"command": ')
    engine = subprocess.run(
        [sys.executable, "-m", "infra.engine"], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, **NOWHERE, **wrong, "ANNEAL_HOME": str(settings.home)})
    assert engine.returncode != 0 and "prefect" in engine.stderr.lower(), "it was Prefect's engine, without a server"
    assert run in engine.stderr or "connect" in engine.stderr.lower()
    if noted == "imports":
        wait_for(told.exists, "it was not started")
        assert told.read_text() == "yesTrue"
