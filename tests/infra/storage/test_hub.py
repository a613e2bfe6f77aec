"""Data and bases from the model hub: the real client, against a stand-in of the hub's API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import BaseModelError, DataError, UserError
from infra.models.base_models import find_base, look_for_base
from infra.settings import Settings
from infra.storage.store import Store
from tasks.data.datasets import FILE
from tasks.data.source_cache import source_key
from tasks.data.sources import find_shards
from tasks.ingest import ingest
from tests.conftest import ROOT
from tests.support.hub import COMMIT, Hub, Repository, hub_server

ROWS = {"train/a.jsonl": b'{"text": "a"}\n', "train/b.jsonl": b'{"text": "b"}\n', "README.md": b"# rows\n"}
DEMO_BASE = ROOT / "deployments/examples/base"
DATA = "hf://datasets/me/rows"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with rows and a base model."""
    with hub_server(monkeypatch) as server:
        server.repositories["datasets/me/rows"] = Repository(private=True, files=dict(ROWS))
        yield server


@pytest.mark.parametrize(("source", "content"), [
    (f"{DATA}/train/a.jsonl", b'{"text": "a"}\n'), (f"{DATA}@main/train/b.jsonl", b'{"text": "b"}\n'),
    (f"{DATA}/train", b'{"text": "a"}\n{"text": "b"}\n'), (DATA, b'{"text": "a"}\n{"text": "b"}\n'),
    (f"{DATA}/*/b*.jsonl", b'{"text": "b"}\n')])
def test_files_folders_and_patterns_of_a_data_set_are_brought_in(
    hub: Hub, settings: Settings, store: Store, source: str, content: bytes,
) -> None:
    dataset = ingest(settings, store, source)
    assert (store.fetch(dataset.folder) / FILE).read_bytes() == content
    assert all(one.address.startswith("hf://datasets/me/rows") for one in find_shards(settings, source))


@pytest.mark.parametrize("source", [f"{DATA}/train/a.jsonl", f"{DATA}/train", f"{DATA}/*/a.jsonl"])
def test_the_hubs_marks_tell_data_that_has_changed_without_reading_it(
    hub: Hub, settings: Settings, source: str,
) -> None:
    before = source_key(settings, source)
    assert before and source_key(settings, source) == before
    hub.repositories["datasets/me/rows"].files["train/a.jsonl"] = b'{"text": "c"}\n'
    assert source_key(settings, source) != before
    assert not [request for request in hub.asked if "/resolve/" in request]


@pytest.mark.parametrize(("source", "said"), [
    (f"{DATA}/train/none.jsonl", "no such object"), ("hf://datasets/me/none/a.jsonl", "no such object"),
    (f"{DATA}@gone/a.jsonl", "no such object"), (f"{DATA}/none*.jsonl", "no file fits the pattern")])
def test_what_the_hub_does_not_have_is_one_sentence(
    hub: Hub, settings: Settings, store: Store, source: str, said: str,
) -> None:
    with pytest.raises((UserError, DataError), match=said):
        ingest(settings, store, source)


@pytest.mark.parametrize("source", [f"{DATA}/train/a.jsonl", DATA, f"{DATA}/*.jsonl"])
def test_a_token_that_may_not_read_is_refused_at_once(
    hub: Hub, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, source: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match=r"(?s)401.*a private or gated data set needs HF_TOKEN"):
        ingest(settings, store, source)


def test_a_base_comes_from_the_hub_at_an_exact_commit(hub: Hub, settings: Settings) -> None:
    files = {path.name: path.read_bytes() for path in DEMO_BASE.iterdir() if path.is_file()}
    hub.repositories["me/tiny"] = Repository(private=False, files={**files, "training.log": b"x"})
    look_for_base(settings, "me/tiny")
    found = find_base(settings, "me/tiny")
    assert found.digest == find_base(settings, str(DEMO_BASE)).digest and found.name == "me/tiny"
    assert Path(found.path).name == COMMIT and not (Path(found.path) / "training.log").exists()
    with pytest.raises(BaseModelError, match="the model hub answers 404"):
        find_base(settings, "me/none")
