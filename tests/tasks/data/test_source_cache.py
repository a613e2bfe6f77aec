"""Content is downloaded once, and a change is seen from outside: pytest tests/tasks/data/test_source_cache.py"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DataError, UserError
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store, filesystem
from tasks.data import source_cache
from tasks.data.datasets import FILE, address_of
from tasks.data.source_cache import Look, last_look, look, look_until_settled, note_look
from tasks.ingest import ingest
from tests.conftest import BUCKET
from tests.support.site import Handler, Site, private, site

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
    key = source_cache.source_key(remote, f"{folder}/")
    assert source_cache.known(store, key) is None
    source_cache.note_source(store, key, ingest(remote, store, f"{folder}/"))
    found = source_cache.known(store, source_cache.source_key(remote, f"{folder}/"))
    assert found is not None and (store.fetch(found.folder) / FILE).read_bytes() == ROW
    put(remote, f"{folder}/b.jsonl", ROW)
    assert source_cache.known(store, source_cache.source_key(remote, f"{folder}/")) is None
    put(remote, f"{folder}/a.jsonl", ROW * 2)
    assert source_cache.known(store, source_cache.source_key(remote, f"{folder}/")) is None


def test_what_is_damaged_in_the_store_is_not_known(remote: Settings) -> None:
    store, address = Store(remote), f"s3://{BUCKET}/{uuid.uuid4()}/a.jsonl"
    put(remote, address, ROW)
    dataset = ingest(remote, store, address)
    source_cache.note_source(store, source_cache.source_key(remote, address), dataset)
    (Path(store.root) / dataset.folder / FILE).write_bytes(b"x")
    assert source_cache.known(store, source_cache.source_key(remote, address)) is None


@pytest.mark.parametrize(("headers", "told"), [
    ({"ETag": '"v1"'}, True), ({"ETag": 'W/"v1"'}, False), ({"Last-Modified": "Mon, 23 Nov 2026 10:00:00 GMT"}, False)])
def test_a_file_on_the_web_is_known_by_a_strong_etag_only(
    site: Site, private: Settings, headers: dict[str, str], told: bool,
) -> None:
    site.version = headers
    assert bool(source_cache.source_key(private, site.address)) is told


@pytest.mark.parametrize("status", [403, 405, 501, 503])
def test_a_server_without_head_is_read_every_time(site: Site, private: Settings, status: int) -> None:
    site.statuses = [status]
    assert source_cache.source_key(private, site.address) == ""


def test_files_on_a_disk_are_read_every_time(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(ROW)
    assert source_cache.source_key(settings, str(tmp_path / "d.jsonl")) == ""


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


def write(path: Path, content: bytes, time_ns: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(time_ns, time_ns))


def test_every_change_of_a_folder_is_seen_and_nothing_else(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write(folder / "a.jsonl", b"1", 1)
    first = look(settings, [str(folder)])
    assert look(settings, [str(folder)]) == first and (first.files, first.bytes) == (1, 1)
    (folder / "notes.txt").write_text("unrelated")
    assert look(settings, [str(folder)]) == first
    seen = {first.fingerprint}
    for name, content, time_ns in (("a.jsonl", b"2", 2), ("a.jsonl", b"22", 2), ("b.jsonl", b"", 1)):
        write(folder / name, content, time_ns)
        seen.add(look(settings, [str(folder)]).fingerprint)
    (folder / "b.jsonl").rename(folder / "c.jsonl")
    seen.add(look(settings, [str(folder)]).fingerprint)
    assert len(seen) == 5


def test_rows_that_move_from_training_to_held_out_data_are_a_change(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b"1", 1)
    write(tmp_path / "b.jsonl", b"1", 1)
    one, other = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    assert look(settings, [one, other]) != look(settings, [one])


@pytest.mark.parametrize("address", [
    f"s3://{BUCKET}/watched/*.jsonl", f"s3://{BUCKET}/watched/", f"s3://{BUCKET}/watched/a.jsonl"])
def test_objects_of_s3_are_looked_at_without_being_read(
    remote: Settings, monkeypatch: pytest.MonkeyPatch, address: str,
) -> None:
    files = filesystem("s3://", remote)
    files.pipe_file(f"s3://{BUCKET}/watched/a.jsonl", b"1")
    for reads in ("open", "cat_file", "_cat_file", "get_file", "_get_file"):
        monkeypatch.setattr(type(files), reads, None)
    first = look(remote, [address])
    files.pipe_file(f"s3://{BUCKET}/watched/a.jsonl", b"2")
    assert look(remote, [address]) != first


@pytest.mark.parametrize(("before", "after"), [
    ({"ETag": '"1"'}, {"ETag": '"2"'}), ({"Last-Modified": "Mon"}, {"Last-Modified": "Tue"}),
    ({"ETag": "1", "Content-Length": "1"}, {"ETag": "1", "Content-Length": "2"})])
def test_a_web_address_is_asked_for_its_headers(
    private: Settings, site: Site, monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: dict[str, str],
) -> None:
    monkeypatch.delattr(Handler, "do_GET")  # so it knows HEAD and nothing else
    site.version, site.extra = {}, before
    first = look(private, [site.address])
    assert look(private, [site.address]) == first
    site.extra = after
    assert look(private, [site.address]) != first


def test_a_server_that_tells_nothing_and_one_that_is_private_are_refused(
    settings: Settings, private: Settings, site: Site,
) -> None:
    site.version = {}
    with pytest.raises(DataError, match=r"neither ETag nor Last-Modified.*cannot be watched"):
        look(private, [site.address])
    with pytest.raises(DataError, match=r"expected https"):
        look(settings, [site.address])


def test_files_that_are_still_being_written_are_waited_for(settings: Settings, tmp_path: Path) -> None:
    contents = iter([b"12", b"123"])
    write(tmp_path / "d.jsonl", b"1", 1)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        write(tmp_path / "d.jsonl", next(contents, b"123"), 2)

    settled = look_until_settled(settings, [str(tmp_path / "d.jsonl")], sleep)
    assert settled is not None and settled.bytes == 3
    assert waits == [source_cache.SETTLE_S] * 3


def test_files_that_never_stop_changing_are_left_for_the_next_time(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", b"", 1)

    def sleep(_: float) -> None:
        with (tmp_path / "d.jsonl").open("ab") as file:
            file.write(b"x")

    assert look_until_settled(settings, [str(tmp_path / "d.jsonl")], sleep) is None


def test_the_last_look_is_noted_for_each_destination_and_its_data(store: Store) -> None:
    given: dict[str, Any] = {"train_data": "s3://a/*.jsonl", "base_model": "m", "destination": "acme/notes"}
    spec = TrainingSpec(**given)
    seen = Look(fingerprint="f", files=2, bytes=3, run="1", version=4)
    assert last_look(store, spec) is None
    note_look(store, spec, seen)
    found = last_look(store, spec)
    assert found == seen and (found.run, found.version) == ("1", 4)
    for other in ({"destination": "acme/other"}, {"train_data": "s3://b/*.jsonl"}, {"validation_data": "v.jsonl"}):
        assert last_look(store, TrainingSpec(**{**given, **other})) is None
    (_,) = store.names("watched")
    with pytest.raises(UserError, match="a password"):  # so none can be noted
        TrainingSpec(**{**given, "train_data": "s3://me:pw@b/*.jsonl"})
