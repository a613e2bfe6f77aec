"""tasks/watch.py: data that changed is seen from outside; with Prefect: tests/e2e/test_watch.py."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DataError, UserError
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store, filesystem
from tasks import watch
from tasks.watch import Look, look, look_until_settled, note, noted
from tests.conftest import BUCKET


class Answers(BaseHTTPRequestHandler):
    headers_now: dict[str, str]

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in self.headers_now.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """A web server that knows HEAD and nothing else."""
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/d.jsonl"
    server.shutdown()
    server.server_close()


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
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str,
) -> None:
    settings = Settings(home=tmp_path, s3_endpoint_url=s3_endpoint)
    files = filesystem("s3://", settings)
    files.pipe_file(f"s3://{BUCKET}/watched/a.jsonl", b"1")
    for reads in ("open", "cat_file", "_cat_file", "get_file", "_get_file"):
        monkeypatch.setattr(type(files), reads, None)
    first = look(settings, [address])
    files.pipe_file(f"s3://{BUCKET}/watched/a.jsonl", b"2")
    assert look(settings, [address]) != first


@pytest.mark.parametrize(("before", "after"), [
    ({"ETag": '"1"'}, {"ETag": '"2"'}), ({"Last-Modified": "Mon"}, {"Last-Modified": "Tue"}),
    ({"ETag": "1", "Content-Length": "1"}, {"ETag": "1", "Content-Length": "2"})])
def test_a_web_address_is_asked_for_its_headers(
    settings: Settings, site: str, before: dict[str, str], after: dict[str, str],
) -> None:
    ours = settings.model_copy(update={"allow_private_hosts": True})
    Answers.headers_now = before
    first = look(ours, [site])
    assert look(ours, [site]) == first
    Answers.headers_now = after
    assert look(ours, [site]) != first


def test_a_server_that_tells_nothing_and_one_that_is_private_are_refused(settings: Settings, site: str) -> None:
    Answers.headers_now = {"Content-Length": "5"}
    with pytest.raises(DataError, match=r"neither ETag nor Last-Modified.*cannot be watched"):
        look(settings.model_copy(update={"allow_private_hosts": True}), [site])
    with pytest.raises(DataError, match=r"expected https"):
        look(settings, [site])


def test_files_that_are_still_being_written_are_waited_for(settings: Settings, tmp_path: Path) -> None:
    contents = iter([b"12", b"123"])
    write(tmp_path / "d.jsonl", b"1", 1)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        write(tmp_path / "d.jsonl", next(contents, b"123"), 2)

    settled = look_until_settled(settings, [str(tmp_path / "d.jsonl")], sleep)
    assert settled is not None and settled.bytes == 3
    assert waits == [watch.SETTLE_S] * 3


def test_files_that_never_stop_changing_are_left_for_the_next_time(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", b"", 1)

    def sleep(_: float) -> None:
        with (tmp_path / "d.jsonl").open("ab") as file:
            file.write(b"x")

    assert look_until_settled(settings, [str(tmp_path / "d.jsonl")], sleep) is None


def test_what_was_told_is_noted_for_each_destination_and_its_data(store: Store) -> None:
    given: dict[str, Any] = {"train_data": "s3://a/*.jsonl", "base_model": "m", "destination": "acme/notes"}
    spec = TrainingSpec(**given)
    seen, told = Look(fingerprint="f", files=2, bytes=3), datetime.now(UTC)
    assert noted(store, spec) is None
    note(store, spec, seen, told)
    assert noted(store, spec) == (seen, told)
    for other in ({"destination": "acme/other"}, {"train_data": "s3://b/*.jsonl"}, {"validation_data": "v.jsonl"}):
        assert noted(store, TrainingSpec(**{**given, **other})) is None
    (_,) = store.names("watched")
    with pytest.raises(UserError, match="a password"):  # so none can be noted
        TrainingSpec(**{**given, "train_data": "s3://me:pw@b/*.jsonl"})
