"""`anneal key`, and the variables with which clients find the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.cli import main as cli
from deployments.gateway.database import Database
from deployments.gateway.keys import caller_of
from infra.settings import Settings

URL = "http://127.0.0.1:5002"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANNEAL_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def test_a_key_is_made_for_an_owner_with_scopes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "create", "--owner", "acme", "--scopes", "read,predict", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    settings = Settings(home=home)
    caller = caller_of(settings, Database(settings), f"Bearer {made['key']}")
    assert (caller.owner, sorted(caller.scopes), caller.is_admin) == ("acme", ["predict", "read"], False)


def test_an_unknown_scope_or_owner_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "create", "--owner", "acme", "--scopes", "all"]) == 2
    assert "expected one of read, train, predict, admin" in capsys.readouterr().err
    assert cli.main(["key", "create", "--owner", "A/b"]) == 2


def test_env_prints_what_both_clients_need(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    services = {name: {"url": url, "pid": 1, "started": 1.0} for name, url in (
        ("prefect", "http://127.0.0.1:4200/api"), ("gateway", URL))}
    (home / "stack.json").write_text(json.dumps({"services": services}))
    assert cli.main(["env"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"export REPLICATE_BASE_URL={URL}" in said
    assert f"export REPLICATE_API_TOKEN={Settings(home=home).secret}" in said
    assert f"export OPENAI_BASE_URL={URL}/openai/v1" in said
    assert f"export OPENAI_API_KEY={Settings(home=home).secret}" in said
