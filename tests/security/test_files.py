"""Files of the home: who may read them, and where they lie when its name is odd.

Tests infra/private.py too.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from deployments.cli.console import settings_here
from infra.errors import UserError
from infra.private import umask_for
from infra.settings import Settings
from infra.stack import local as stack
from infra.stack import services
from tests.conftest import ROOT, free_port
from tests.security.second_user import as_nobody, common_folder

ODD = "a b#c%20d'e\"f\u00fc;&+@:$`[x]{y}~,*=\\-%"
UNITS = sorted((ROOT / "infra" / "systemd").glob("*.service"))


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_another_user_reads_nothing_in_the_home() -> None:
    with common_folder(0o755) as common:
        home = common / "home"
        (home / "logs").mkdir(parents=True)  # of an earlier release
        (home / "logs" / "worker.log").write_text("secret")
        assert as_nobody(lambda: (home / "logs" / "worker.log").read_text()) == "secret"
        assert Settings(home=home).home_path == home
        assert as_nobody(lambda: (home / "logs" / "worker.log").read_text()).startswith("PermissionError")


@pytest.mark.parametrize(("before", "after", "umask"), [
    (None, 0o700, 0o077), (0o755, 0o700, 0o077), (0o711, 0o700, 0o077), (0o775, 0o770, 0o007), (0o2775, 0o2770, 0o007),
    (0o777, 0o770, 0o007), (0o770, 0o770, 0o007), (0o750, 0o750, 0o027), (0o700, 0o700, 0o077)])
def test_a_home_is_its_users_and_its_groups_on_purpose(
    tmp_path: Path, before: int | None, after: int, umask: int,
) -> None:
    home = tmp_path / "home"
    if before is not None:
        home.mkdir()
        home.chmod(before)
    assert mode_of(Settings(home=home).home_path) == after
    assert (umask_for(home, 0o002), umask_for(home, 0o077)) == (umask | 0o002, 0o077)


def test_a_folder_of_all_is_not_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert mode_of(Settings(home=tmp_path).home_path) == 0o1777


def test_what_a_command_writes_into_the_home_is_for_its_user_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deployments.cli.main", "down"]
    for store, wanted in (("", 0o600), ("s3://bucket/a", 0o600), (str(tmp_path / "store"), 0o644)):
        (tmp_path / "home" / "stack.lock").unlink(missing_ok=True)
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True,
                       env={**os.environ, "ANNEAL_HOME": str(tmp_path / "home"), "ANNEAL_STORE": store})
        assert mode_of(tmp_path / "home" / "stack.lock") == wanted, store
    assert mode_of(tmp_path / "home") == 0o700


def test_a_command_gives_its_umask_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.cli import main as cli

    monkeypatch.setenv("ANNEAL_HOME", str(tmp_path / "home"))
    assert cli.main(["status"]) == 1  # nothing runs
    assert os.umask(0o022) == 0o022
    settings_here(private=False)
    assert os.umask(0o022) == 0o022
    settings_here()
    assert os.umask(0o022) == 0o077


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_keeps_its_files_to_its_user(unit: Path) -> None:
    text = unit.read_text()
    assert "\nUMask=0077\n" in text
    assert "StateDirectory=" not in text or "\nStateDirectoryMode=0700\n" in text


def test_roots_folder_of_gpu_locks_has_the_sticky_bit() -> None:
    lines = (ROOT / "infra" / "systemd" / "anneal.tmpfiles.conf").read_text()
    found = re.findall(r"(?m)^(?:# )?d /run/anneal/gpus (\d+) root (\w+) -$", lines)
    assert found == [("3770", "anneal"), ("1777", "root")]


# Names of the home.


@pytest.mark.parametrize("name", ["a?b", "a\nb", "a\tb", "a\x7fb", "a\udcffb"])
def test_a_home_that_a_databases_address_cannot_carry_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"ANNEAL_HOME is .* expected no question mark and no control character"):
        _ = Settings(home=tmp_path / name).home_path
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mlflow_keeps_its_tables_and_files_in_a_home_with_an_odd_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "place"
    settings = Settings(home=place / ODD, mlflow_port=free_port())
    alone = MlflowClient(settings.tracking_uri)
    alone.create_registered_model("alone")
    stack.up(settings, only={"mlflow"})
    try:
        assert settings.tracking_uri.startswith("http")
        for name, value in services.credentials(settings).items():
            monkeypatch.setenv(name, value)
        client = MlflowClient(settings.tracking_uri)
        assert [model.name for model in client.search_registered_models()] == ["alone"]
        client.log_text(client.create_run(client.create_experiment("e")).info.run_id, "words", "note.txt")
    finally:
        stack.down(settings)
    assert [path.name for path in place.iterdir()] == [ODD]
    (note,) = (place / ODD / "mlflow-artifacts").rglob("note.txt")
    assert note.read_text() == "words"
