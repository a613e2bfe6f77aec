"""tasks/data/streams.py: how far it is stands in the log; what changes while it is read; what is interrupted.

Tests infra/progress.py too.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DataChanged, DataError, Transient
from infra.files import READ_BYTES
from infra.settings import Settings
from infra.storage import https, s3
from infra.storage.s3 import AHEAD_BYTES
from infra.storage.store import Store, filesystem
from infra.storage.timeouts import Patience
from tasks.data import streams
from tasks.data.datasets import FILE
from tasks.data.streams import BLOCK_BYTES, ProgressListener, ReadProgress
from tasks.ingest import ingest
from tests.conftest import BUCKET, S3Server
from tests.support.site import Site, private, site

__all__ = ["private", "site"]

MANY_REQUESTS_BYTES = 4 * (AHEAD_BYTES + BLOCK_BYTES)
"""A shorter object may have been read whole when it changes."""


def row(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of half a million rows."""
    (tmp_path / "d").mkdir()
    for name in ("a", "b"):
        (tmp_path / "d" / f"{name}.jsonl").write_bytes(row(name) * 500_000)
    return tmp_path / "d"


@pytest.mark.slow
@pytest.mark.parametrize("changes", [1, 2])
def test_an_object_that_changes_while_it_is_read_is_read_once_more(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: int,
) -> None:
    settings, prefix = Settings(home=tmp_path, s3_endpoint_url=s3_endpoint), f"s3://{BUCKET}/changing"
    store, left = Store(settings), changes

    def put(name: str, content: bytes) -> None:
        filesystem(prefix, settings).pipe_file(f"{prefix}/{name}", content)

    put("a.jsonl", row("first"))
    put("b.jsonl", row("new 9") * (MANY_REQUESTS_BYTES // len(row("new 9"))))
    monkeypatch.setattr(streams, "TELL_EVERY_S", 0.0)

    class Changing(ProgressListener):
        def see(self, standing: ReadProgress) -> None:
            nonlocal left
            if left and standing.bytes == len(row("first")) + READ_BYTES:  # once an attempt
                left -= 1
                put("b.jsonl", row(f"new {left}") * (MANY_REQUESTS_BYTES // len(row("new 0"))))

    if changes == 2:
        with pytest.raises(DataError, match=r"b.jsonl: it changes while it is read"):
            ingest(settings, store, f"{prefix}/", Changing())
        assert store.names("datasets") == []
    else:
        dataset = ingest(settings, store, f"{prefix}/", Changing())
        lines = (store.fetch(dataset.folder) / FILE).read_bytes().splitlines(keepends=True)
        assert lines[0] == row("first") and set(lines[1:]) == {row("new 0")}


@pytest.mark.parametrize("changes", [1, 2])
def test_a_file_on_a_disk_that_changes_while_it_is_read_is_read_once_more(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: int,
) -> None:
    file, left = tmp_path / "d.jsonl", changes
    file.write_bytes(row("new 9") * (2 * BLOCK_BYTES // len(row("new 9"))))
    monkeypatch.setattr(streams, "TELL_EVERY_S", 0.0)

    class Changing(ProgressListener):
        def see(self, standing: ReadProgress) -> None:
            nonlocal left
            if left and standing.bytes == READ_BYTES:  # once an attempt
                left -= 1
                with file.open("ab") as more:
                    more.write(row(f"new {left}"))

    if changes == 2:
        with pytest.raises(DataError, match=r"d.jsonl: it changed while it was read"):
            ingest(settings, store, str(file), Changing())
        assert store.names("datasets") == []
    else:
        dataset = ingest(settings, store, str(file), Changing())
        assert (store.fetch(dataset.folder) / FILE).read_bytes() == file.read_bytes()
        assert file.read_bytes().endswith(row("new 0"))


@pytest.mark.slow
def test_a_server_that_dies_while_it_is_read_is_blamed_and_not_the_store(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "s3").mkdir()
    server = S3Server(tmp_path / "s3")
    address = f"s3://{BUCKET}/d.jsonl"
    monkeypatch.setattr(s3, "PATIENCE", Patience(delays_s=(0.0,)))
    (tmp_path / "s3" / BUCKET / "d.jsonl").write_bytes(row("a") * (MANY_REQUESTS_BYTES // len(row("a"))))
    monkeypatch.setattr(streams, "TELL_EVERY_S", 0.0)

    class Killing(ProgressListener):
        def see(self, standing: ReadProgress) -> None:
            server.kill()

    with pytest.raises(Transient) as raised:
        ingest(settings.model_copy(update={"s3_endpoint_url": server.url}), store, address, Killing())
    assert "d.jsonl" in raised.value.where and str(store.root) not in str(raised.value)
    assert store.names("datasets") == []


def test_how_far_the_reading_is_stands_in_the_log(
    settings: Settings, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[ReadProgress] = []

    class Seeing(ProgressListener):
        def see(self, standing: ReadProgress) -> None:
            seen.append(standing)

    ingest(settings, store, str(folder), Seeing())
    assert seen == []
    monkeypatch.setattr(streams, "TELL_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        ingest(settings, store, str(folder))
        ingest(settings, store, str(folder), Seeing())
    assert (seen[-1].lines, seen[-1].share, seen[-1].file, seen[-1].files) == (1_000_000, 1.0, 2, 2)
    assert seen[-1].left_s == 0 and all((standing.left_s or 0) >= 0 for standing in seen)
    assert [standing.share for standing in seen] == sorted(standing.share or 0 for standing in seen)
    assert any("(100%)" in line and "file 2 of 2" in line and "1000000 lines" in line for line in caplog.messages)


def test_what_is_left_takes_as_long_as_the_same_of_what_was_read() -> None:
    standing = ReadProgress(lines=10, bytes=3_000_000, total_bytes=12_000_000, seconds=2.0, file=1, files=1)
    assert standing.left_s == 6.0 and str(standing) == "10 lines, 3 MB read (25%), 1.5 MB/s, 6 s left"
    assert str(dataclasses.replace(standing, total_bytes=0)) == "10 lines, 3 MB read, 1.5 MB/s"


@pytest.mark.parametrize("told", [True, False])
def test_of_a_file_on_the_web_the_size_is_known_if_the_server_tells(
    site: Site, private: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, told: bool,
) -> None:
    monkeypatch.setattr(streams, "TELL_EVERY_S", 0.0)
    seen: list[ReadProgress] = []

    class Seeing(ProgressListener):
        def see(self, standing: ReadProgress) -> None:
            seen.append(standing)

    site.body, site.is_chunked = row("a") * 50_000, not told
    ingest(private, store, site.address, Seeing())
    assert seen[-1].share == (1.0 if told else None) and seen[-1].bytes == len(site.body)


@pytest.mark.parametrize("changes", [1, 2])
def test_a_file_on_the_web_that_changes_is_read_once_more(
    site: Site, private: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, changes: int,
) -> None:
    """It breaks off, and is another version when it is asked for again."""
    old, new = row("old") * 2000, row("new") * 2000
    site.body, site.ends = old, [len(old) // 2] * (2 * changes)  # of what is asked for first, and of what follows
    asked, left = https._asked, changes

    def changing(method: str, address: str, settings: Settings, headers: dict[str, str], patience: Any) -> Any:
        nonlocal left
        if "Range" in headers and left:
            left -= 1
            site.body, site.version = new, {"ETag": f'"{left}"'}
        return asked(method, address, settings, headers, patience)

    monkeypatch.setattr(https, "_asked", changing)
    if changes == 2:
        with pytest.raises(DataChanged):
            ingest(private, store, site.address)
        assert store.names("datasets") == []
    else:
        dataset = ingest(private, store, site.address)
        assert (store.fetch(dataset.folder) / FILE).read_bytes() == new


def test_a_reading_that_is_interrupted_leaves_nothing(
    settings: Settings, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "TELL_EVERY_S", 0.0)

    class Impatient(ProgressListener):
        def see(self, standing: ReadProgress) -> None:
            if standing.file == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(settings, store, str(folder), Impatient())
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == []
