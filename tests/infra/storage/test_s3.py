"""infra/storage/s3.py: parts of an object that break off, come too slowly, or are taken away while they are read."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import BinaryIO

import pytest

from infra.errors import DataChanged, Transient
from infra.settings import Settings
from infra.storage import s3
from infra.storage.s3 import AHEAD_BYTES, REQUESTS
from infra.storage.store import filesystem, open_remote
from infra.storage.timeouts import PROGRESS_BYTES, Patience
from tests.conftest import BUCKET
from tests.support.relay import relay

QUARTER = AHEAD_BYTES // 4


@pytest.fixture
def here(s3_endpoint: str, settings: Settings) -> Settings:
    """With the real server."""
    return settings.model_copy(update={"s3_endpoint_url": s3_endpoint})


def put(settings: Settings, name: str, content: bytes) -> str:
    """An object; returns its address."""
    address = f"s3://{BUCKET}/parts/{name}"
    filesystem(address, settings).pipe_file(address, content)
    return address


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """All of it."""
    while chunk := stream.read(1 << 20):
        yield chunk


def read(address: str, settings: Settings) -> bytes:
    """The whole object."""
    with open_remote(address, settings) as stream:
        return b"".join(chunks(stream))


def went_on_at(caplog: pytest.LogCaptureFixture) -> list[int]:
    """The bytes at which the log says that reading went on."""
    found = map(re.compile(r"at byte (\d+); going on").search, caplog.messages)
    return [int(one[1]) for one in found if one]


def test_parts_that_break_off_go_on_from_there(
    s3_endpoint: str, here: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    """Six connections are cut after a quarter of a part each: more often than there are delays."""
    content = random.Random(5).randbytes(2 * AHEAD_BYTES + 12_345)
    address = put(here, "broken", content)
    monkeypatch.setattr(s3, "PATIENCE", Patience(delays_s=(0.0,)))
    with relay(s3_endpoint, QUARTER, 6) as wire:
        assert read(address, here.model_copy(update={"s3_endpoint_url": wire.url})) == content
        assert wire.cuts == 0, "each of them was cut"
    assert len(went_on_at(caplog)) == 6 and all(at % AHEAD_BYTES for at in went_on_at(caplog))


def test_a_part_that_brings_little_at_each_try_is_given_up(
    s3_endpoint: str, here: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    address = put(here, "broken-for-ever", bytes(AHEAD_BYTES))
    monkeypatch.setattr(s3, "PATIENCE", Patience(delays_s=(0.0, 0.0)))
    with (relay(s3_endpoint, PROGRESS_BYTES // 2, 100) as wire,
          pytest.raises(Transient, match=re.escape(address))):
        read(address, here.model_copy(update={"s3_endpoint_url": wire.url}))
    assert len(went_on_at(caplog)) == 2


def test_an_object_that_comes_too_slowly_is_given_up(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    address = put(here, "slow", b"a" * 1000)
    monkeypatch.setattr(s3, "PATIENCE", Patience(window_s=0.0, slowest_bytes_per_s=1e15, delays_s=()))
    with pytest.raises(Transient, match=r"less than 1e\+15 bytes a second"):
        read(address, here)


def test_a_server_that_sends_no_more_is_left(
    s3_endpoint: str, here: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    """By the timeout of a client of its own."""
    content = random.Random(6).randbytes(AHEAD_BYTES)
    address = put(here, "silent", content)
    monkeypatch.setattr(s3, "PATIENCE", Patience(stall_s=1.0, delays_s=(0.0,)))
    with relay(s3_endpoint, QUARTER, 1, stalls=True) as wire:
        assert read(address, here.model_copy(update={"s3_endpoint_url": wire.url})) == content
        assert wire.cuts == 0
    assert "the server sent nothing for 1 s, at byte" in caplog.text and len(went_on_at(caplog)) == 1


@pytest.mark.parametrize(("now", "found"), [
    (None, "taken away"), (b"short", "shorter|changes"), (b"b" * 2 * REQUESTS * AHEAD_BYTES, "changes")])
def test_an_object_that_is_another_one_by_now_has_changed(here: Settings, now: bytes | None, found: str) -> None:
    address = put(here, "changing", b"a" * 2 * REQUESTS * AHEAD_BYTES)
    with open_remote(address, here) as stream:
        assert stream.read(1000) == b"a" * 1000
        if now is None:
            filesystem(address, here).rm_file(address)
        else:
            put(here, "changing", now)
        with pytest.raises(DataChanged, match=found):
            assert {byte for chunk in chunks(stream) for byte in set(chunk)} == {ord("a")}


def test_a_part_that_breaks_off_never_goes_on_in_another_object(
    s3_endpoint: str, here: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is replaced before the rest of its only part is asked for."""
    address = put(here, "replaced", b"a" * AHEAD_BYTES)

    class Replacing(Event):
        def wait(self, timeout: float | None = None) -> bool:
            put(here, "replaced", b"b" * AHEAD_BYTES)
            return super().wait(timeout)

    monkeypatch.setattr(s3, "Event", Replacing)
    monkeypatch.setattr(s3, "PATIENCE", Patience(delays_s=(0.0,)))
    with relay(s3_endpoint, QUARTER, 1) as wire, pytest.raises(DataChanged, match="changes while"):
        read(address, here.model_copy(update={"s3_endpoint_url": wire.url}))


def test_closing_waits_for_no_server(
    s3_endpoint: str, here: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour's delay would be slept."""
    address = put(here, "closed", bytes(AHEAD_BYTES))
    monkeypatch.setattr(s3, "PATIENCE", Patience(delays_s=(3600.0,)))
    waits = Event()

    class Waiting(Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.set()
            return super().wait(timeout)

    monkeypatch.setattr(s3, "Event", Waiting)
    with relay(s3_endpoint, QUARTER, 100) as wire:
        stream = open_remote(address, here.model_copy(update={"s3_endpoint_url": wire.url}))
        with ThreadPoolExecutor(1) as reader:
            asked = reader.submit(stream.read)
            assert waits.wait(60)
            stream.close()
            assert isinstance(asked.exception(60), Transient)


def test_an_empty_object_is_read(here: Settings) -> None:
    assert read(put(here, "empty", b""), here) == b""
