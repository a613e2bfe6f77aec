"""The same content is downloaded once: pytest tests/tasks/data/test_source_cache.py"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from infra.errors import DataError
from infra.settings import Settings
from infra.storage.store import Store, filesystem
from tasks.data import source_cache
from tasks.data.datasets import FILE, address_of
from tasks.ingest import ingest
from tests.conftest import BUCKET
from tests.support.site import Site, private, site

__all__ = ["private", "site"]

ROW = b'{"text": "hello"}\n'


@pytest.fixture
def remote(tmp_path: Path, s3_endpoint: str) -> Settings:
    """Settings with an S3 server."""
    return Settings(home=tmp_path / "home", s3_endpoint_url=s3_endpoint)


def put(settings: Settings, address: str, content: bytes) -> None:
    filesystem(address, settings).pipe_file(address, content)


def test_objects_are_known_again_until_one_changes_or_comes(remote: Settings) -> None:
    store, folder = Store(remote), f"s3://{BUCKET}/{uuid.uuid4()}"
    put(remote, f"{folder}/a.jsonl", ROW)
    key = source_cache.key_of(remote, f"{folder}/")
    assert source_cache.known(store, key) is None
    source_cache.note(store, key, ingest(remote, store, f"{folder}/"))
    found = source_cache.known(store, source_cache.key_of(remote, f"{folder}/"))
    assert found is not None and (store.fetch(found.folder) / FILE).read_bytes() == ROW
    put(remote, f"{folder}/b.jsonl", ROW)
    assert source_cache.known(store, source_cache.key_of(remote, f"{folder}/")) is None
    put(remote, f"{folder}/a.jsonl", ROW * 2)
    assert source_cache.known(store, source_cache.key_of(remote, f"{folder}/")) is None


def test_what_is_damaged_in_the_store_is_not_known(remote: Settings) -> None:
    store, address = Store(remote), f"s3://{BUCKET}/{uuid.uuid4()}/a.jsonl"
    put(remote, address, ROW)
    dataset = ingest(remote, store, address)
    source_cache.note(store, source_cache.key_of(remote, address), dataset)
    (Path(store.root) / dataset.folder / FILE).write_bytes(b"x")
    assert source_cache.known(store, source_cache.key_of(remote, address)) is None


@pytest.mark.parametrize(("headers", "told"), [
    ({"ETag": '"v1"'}, True), ({"ETag": 'W/"v1"'}, False), ({"Last-Modified": "Mon, 23 Nov 2026 10:00:00 GMT"}, False)])
def test_a_file_on_the_web_is_known_by_a_strong_etag_only(
    site: Site, private: Settings, headers: dict[str, str], told: bool,
) -> None:
    site.version = headers
    assert bool(source_cache.key_of(private, site.address)) is told


@pytest.mark.parametrize("status", [403, 405, 501, 503])
def test_a_server_without_head_is_read_every_time(site: Site, private: Settings, status: int) -> None:
    site.statuses = [status]
    assert source_cache.key_of(private, site.address) == ""


def test_files_on_a_disk_are_read_every_time(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(ROW)
    assert source_cache.key_of(settings, str(tmp_path / "d.jsonl")) == ""


def test_an_address_in_the_store_is_taken_as_it_is(settings: Settings, store: Store, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_bytes(ROW)
    dataset = ingest(settings, store, str(tmp_path / "chats.jsonl"))
    address = address_of(dataset)
    assert address == f"store://{dataset.folder}/chats.jsonl"
    (tmp_path / "chats.jsonl").unlink()
    assert ingest(settings, store, address) == dataset


@pytest.mark.parametrize("address", ["store://", "store://../..", "store://splits/0123/chats.jsonl", "store://datasets/0123",
                                     "store://datasets/../splits/chats.jsonl"])
def test_an_address_of_anything_else_in_the_store_is_refused(settings: Settings, store: Store, address: str) -> None:
    with pytest.raises(DataError, match="it is no address of data in the store"):
        ingest(settings, store, address)
