"""Versions in a repository of the hub: the real client, against a stand-in of the hub's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from deployments.cli import main as cli
from deployments.cli.push import push
from infra.errors import Transient, UserError
from infra.settings import Settings
from tests.deployments.cli.conftest import Make
from tests.support.hub import Hub, Repository, hub_server

pytestmark = pytest.mark.usefixtures("database")
NAME = "acme/summarizer"
TO = "me/summarizer"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and a token for it."""
    with hub_server(monkeypatch) as server:
        yield server


def test_a_new_repository_is_private_and_has_the_adapter(hub: Hub, settings: Settings, make: Make, base: Path) -> None:
    version = make()
    done = push(settings, f"{NAME}:1", TO)
    assert done.private and done.url.startswith(f"{hub.address}/{TO}/commit/")
    repository = hub.repositories[TO]
    assert repository.private and repository.commits == [f"{NAME} version 1 ({version.id[:12]})"]
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= set(repository.files)
    assert not {"base.json", "serve.json", "training.json", "manifest.json"} & set(repository.files)


def test_no_path_of_this_machine_is_pushed(hub: Hub, settings: Settings, make: Make, tmp_path: Path) -> None:
    make()
    done = push(settings, NAME, TO)
    files = hub.repositories[TO].files
    assert not any(b"secret-place" in data or str(tmp_path).encode() in data for data in files.values())
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tiny" and not done.base_is_known
    assert "--base-model" in done.lines()["note"]


@pytest.mark.slow
def test_a_whole_model_is_pushed_where_that_is_asked_for(hub: Hub, settings: Settings, make: Make) -> None:
    make()
    done = push(settings, NAME, TO, form="merged", public=True)
    assert (done.form, done.private, done.base) == ("merged", False, "")
    assert {"model.safetensors", "config.json", "generation_config.json"} <= set(hub.repositories[TO].files)


def test_a_public_repository_takes_a_version_only_if_that_is_said(hub: Hub, settings: Settings, make: Make) -> None:
    make()
    hub.repositories[TO] = Repository(private=False)
    with pytest.raises(UserError, match=r"it exists and is public.*--public"):
        push(settings, NAME, TO)
    assert not hub.repositories[TO].files
    assert not push(settings, NAME, TO, public=True).private


def test_without_a_token_there_is_one_sentence_and_no_request(
    hub: Hub, settings: Settings, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    make()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("ANNEAL_HOME", str(settings.home_path))
    monkeypatch.setattr("infra.stack.services.for_runs", lambda _: {})
    assert cli.main(["push", NAME, TO]) == 2
    assert "no token of the model hub" in capsys.readouterr().err
    assert hub.asked == [] and hub.repositories == {}


def test_a_refused_token_is_one_sentence(
    hub: Hub, settings: Settings, make: Make, monkeypatch: pytest.MonkeyPatch,
) -> None:
    make()
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match=r"the hub refuses the token \(401\)"):
        push(settings, NAME, TO)
    assert hub.repositories == {}


@pytest.mark.parametrize(("status", "kind", "words"), [
    (403, UserError, "refuses the token"), (400, UserError, "refuses it")])
def test_an_upload_that_is_refused_leaves_no_commit(
    hub: Hub, settings: Settings, make: Make, status: int, kind: type[Exception], words: str,
) -> None:
    make()
    hub.repositories[TO] = Repository(private=True)
    hub.fails = status
    with pytest.raises(kind, match=words):
        push(settings, NAME, TO)
    assert hub.repositories[TO].commits == [] and not list((settings.home_path / "work").iterdir())


def test_a_hub_that_does_not_answer_may_be_tried_again(
    hub: Hub, settings: Settings, make: Make, monkeypatch: pytest.MonkeyPatch,
) -> None:
    make()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Transient, match="does not answer"):
        push(settings, NAME, TO)


@pytest.mark.parametrize("name", ["summarizer", "me/../x", "me/a b"])
def test_a_name_that_is_no_repositorys_is_refused(settings: Settings, name: str) -> None:
    with pytest.raises(UserError, match="expected user/name"):
        push(settings, NAME, name)
