"""infra/storage/store.py: the same behaviour on a folder and on a real S3 server.

Tests infra/settings.py too.
"""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import pytest

from infra.errors import Transient, UserError
from infra.files import MANIFEST
from infra.settings import Settings
from infra.storage.store import Store, open_remote
from tests.conftest import BUCKET


@pytest.fixture(params=["folder", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(Settings(home=tmp_path / "home"))
    endpoint = request.getfixturevalue("s3_endpoint")
    return Store(Settings(home=tmp_path / "home", store=f"s3://{BUCKET}/{uuid.uuid4()}", s3_endpoint_url=endpoint))


def put(store: Store, name: str, text: str = "hello") -> None:
    with store.draft() as draft:
        (draft.path / "deep").mkdir()
        (draft.path / "a.txt").write_text(text)
        (draft.path / "deep" / "b.bin").write_bytes(b"\0" * 3_000_000)
        draft.commit(name, {"text": text})


def test_what_is_committed_can_be_found_and_fetched(any_store: Store) -> None:
    put(any_store, "things/one")
    manifest = any_store.find("things/one")
    assert manifest is not None and manifest.record["text"] == "hello"
    folder = any_store.fetch("things/one")
    assert (folder / "a.txt").read_text() == "hello"
    assert (folder / "deep" / "b.bin").stat().st_size == 3_000_000


def test_a_draft_that_is_not_committed_leaves_nothing(any_store: Store) -> None:
    with pytest.raises(RuntimeError), any_store.draft() as draft:
        (draft.path / "a.txt").write_text("x")
        raise RuntimeError
    assert any_store.names("things") == []
    assert not draft.path.exists()


def test_a_name_without_manifest_is_absent(any_store: Store) -> None:
    put(any_store, "things/one")
    any_store._fs.rm_file(f"{any_store.root}/things/one/{MANIFEST}")
    assert any_store.find("things/one") is None
    with pytest.raises(Transient, match="missing or damaged"):
        any_store.fetch("things/one")


def test_a_truncated_file_makes_the_folder_absent(any_store: Store) -> None:
    put(any_store, "things/one")
    with any_store._fs.open(f"{any_store.root}/things/one/a.txt", "wb") as file:
        file.write(b"hell")
    assert any_store.find("things/one") is None


def test_a_damaged_file_is_never_handed_out(any_store: Store) -> None:
    put(any_store, "things/one")
    with any_store._fs.open(f"{any_store.root}/things/one/a.txt", "wb") as file:
        file.write(b"hellO")
    any_store._cache /= "another machine's"
    with pytest.raises(Transient):
        any_store.fetch("things/one")


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_made_here_is_not_read_back(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool,
) -> None:
    store = Store(Settings(home=tmp_path, store=f"s3://{BUCKET}/{uuid.uuid4()}", s3_endpoint_url=s3_endpoint))
    read, download = list[str](), store._download

    def counted(key: str, path: Path, sha256: str) -> None:
        read.append(key)
        download(key, path, sha256)

    monkeypatch.setattr(store, "_download", counted)
    with store.draft() as draft:
        (draft.path / "a.txt").write_text("hello")
        manifest = draft.commit("things/one", {}, kept=kept)
    assert [path.name for path in (tmp_path / "cache").glob("*")] == ([manifest.digest] if kept else [])
    assert (store.fetch("things/one") / "a.txt").read_text() == "hello"
    assert bool(read) is not kept


def test_committing_again_replaces_a_damaged_folder(any_store: Store) -> None:
    put(any_store, "things/one")
    any_store._fs.rm_file(f"{any_store.root}/things/one/a.txt")
    put(any_store, "things/one", "again")
    assert (any_store.fetch("things/one") / "a.txt").read_text() == "again"


def test_names_lists_and_remove_takes_away(any_store: Store) -> None:
    put(any_store, "things/one")
    put(any_store, "things/two")
    any_store.remove("things/one")
    assert any_store.names("things") == ["things/two"]


def test_drafts_of_dead_processes_are_swept(store: Store) -> None:
    drafts = Path(store.root) / ".drafts"
    dead, elsewhere = drafts / f"draft-{socket.gethostname()}-999999999-abc", drafts / "draft-node1-999999999-abc"
    dead.mkdir(parents=True)
    elsewhere.mkdir()
    put(store, "things/one")
    assert not dead.exists() and elsewhere.exists(), "what lives on another machine cannot be seen from here"


def test_wrong_keys_are_the_users_to_mend(s3_endpoint: str, settings: Settings,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    wrong = settings.model_copy(update={"s3_endpoint_url": s3_endpoint})
    with pytest.raises(UserError, match="access denied"):
        open_remote(f"s3://{BUCKET}/x.jsonl", wrong)


def test_a_missing_object_is_the_users_to_mend(s3_endpoint: str, settings: Settings) -> None:
    here = settings.model_copy(update={"s3_endpoint_url": s3_endpoint})
    with pytest.raises(UserError, match="no such object"):
        open_remote(f"s3://{BUCKET}/none.jsonl", here)
