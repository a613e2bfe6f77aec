"""The home's secret: made once, kept from others, and shown to the home's own services alone."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.process import environment_with
from infra.redaction import is_secret
from infra.secret import BYTES, secret_of
from infra.settings import Settings
from infra.stack import services
from tests.conftest import ROOT

PREFECT, PREDICTOR = "http://127.0.0.1:4200/api", "http://127.0.0.1:5001"


@pytest.fixture
def running(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As if a stack ran: its addresses stand in stack.json."""
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    urls = {"prefect": PREFECT, "mlflow": "http://127.0.0.1:5000", "predictor": PREDICTOR}
    (settings.home_path / "stack.json").write_text(json.dumps({"services": {n: {"url": u} for n, u in urls.items()}}))
    return settings


def test_it_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    first = secret_of(tmp_path)
    assert len(first) >= BYTES and secret_of(tmp_path) == first
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_many_processes_that_start_at_once_have_the_same_one(tmp_path: Path) -> None:
    code = ("import sys, pathlib; from infra.secret import secret_of; "
            "print(secret_of(pathlib.Path(sys.argv[1])))")

    def one(_: int) -> str:
        return subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, capture_output=True,
                              text=True).stdout

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(one, range(8)))) == 1


def test_one_that_others_may_read_or_that_is_short_is_refused(tmp_path: Path) -> None:
    secret_of(tmp_path)
    path = tmp_path / "secret"
    path.chmod(0o644)
    with pytest.raises(UserError, match=r"others may read it \(mode 0644"):
        secret_of(tmp_path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(UserError, match="it holds 5 characters"):
        secret_of(tmp_path)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("x" * 50)
    (tmp_path / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="symbolic links"):
        secret_of(tmp_path)


def test_only_the_homes_own_services_are_shown_it(running: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = running.secret
    assert services.credentials(running) == {
        "PREFECT_API_AUTH_STRING": f"anneal:{secret}", "MLFLOW_TRACKING_USERNAME": "anneal",
        "MLFLOW_TRACKING_PASSWORD": secret}
    assert running.predictor_headers == {"Authorization": f"Bearer {secret}"}
    others = Settings(home=running.home, prefect_url="https://prefect.example.com/api",
                      mlflow_uri="https://mlflow.example.com", predictor_url="https://predictor.example.com")
    assert (services.credentials(others), others.predictor_headers) == ({}, {})
    same = Settings(home=running.home, prefect_url=PREFECT + "/", predictor_url=PREDICTOR)
    assert secret in services.credentials(same)["PREFECT_API_AUTH_STRING"] and same.predictor_headers


def test_what_the_environment_says_wins(running: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "team:word")
    assert services.credentials(running)["PREFECT_API_AUTH_STRING"] == "team:word"
    key = Settings(home=running.home, api_key="a-key")
    assert (key.predictor_key, key.predictor_headers) == ("a-key", {"Authorization": "Bearer a-key"})


def test_who_does_not_want_it_has_none(running: Settings) -> None:
    open_house = Settings(home=running.home, require_secret=False)
    assert (services.credentials(open_house), open_house.predictor_headers, open_house.predictor_key) == ({}, {}, "")
    server = services.of_prefect_server(open_house)
    assert "PREFECT_SERVER_API_AUTH_STRING" not in server
    assert server["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert server["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"


def test_ranks_and_other_children_see_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "x", "AWS_ACCESS_KEY_ID": "x", "AWS_SESSION_TOKEN": "x", "HF_TOKEN": "x",
        "PREFECT_API_AUTH_STRING": "x", "MLFLOW_TRACKING_PASSWORD": "x", "ANNEAL_API_KEY": "x", "PGPASSWORD": "x",
        "ANNEAL_WEBHOOK_SECRET": "x", "AZURE_STORAGE_KEY": "x", "AZURE_STORAGE_CONNECTION_STRING": "x",
        "GOOGLE_APPLICATION_CREDENTIALS": "x", "HTTPS_PROXY": "http://user:word@proxy", "X": "postgresql://a:b@host/x"}
    needed = {"TOKENIZERS_PARALLELISM": "x", "LD_LIBRARY_PATH": "x", "CUDA_VISIBLE_DEVICES": "x", "ANNEAL_HOME": "/x",
              "http_proxy": "http://proxy:3128"}
    for name, value in {**secrets, **needed}.items():
        monkeypatch.setenv(name, value)
    assert not set(secrets) & set(environment_with({})) and set(needed) <= set(environment_with({}))
    assert set(secrets) <= set(environment_with({}, secrets=True))
    assert environment_with({"HF_TOKEN": "on purpose"})["HF_TOKEN"] == "on purpose"
    assert not is_secret("KEYBOARD", "x")
