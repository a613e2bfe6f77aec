"""Against real servers that cut, lie, stall and change the file."""

from __future__ import annotations

import threading
import time
import tracemalloc
from email.utils import formatdate
from itertools import count
from typing import Any

import pytest

from infra.errors import DataChanged, DataError, Interrupted, Transient
from infra.settings import Settings
from infra.storage.https import headers_of, open_https, without_secrets
from infra.storage.timeouts import Patience
from tests.support.site import BODY, ETAG, Site, private, site

__all__ = ["private", "site"]

OLD = formatdate(0, usegmt=True)
AHEAD = {"Last-Modified": formatdate(time.time() + 3600, usegmt=True)}
"""Not yet settled, however long the tests before this one take."""
HASTY = Patience(delays_s=(0, 0, 0), sleep=lambda _: None)


def read(site: Site, settings: Settings, patience: Patience = HASTY, path: str = "/data.jsonl") -> bytes:
    with open_https(f"http://127.0.0.1:{site.server_port}{path}", settings, patience) as body:
        return body.read()


@pytest.mark.parametrize("path", ["/data.jsonl", "/moved"])
def test_the_body_streams(site: Site, private: Settings, path: str) -> None:
    assert read(site, private, path=path) == BODY
    assert site.asked[-1]["Accept-Encoding"] == "identity" and "Range" not in site.asked[-1]


def test_memory_is_constant(site: Site, private: Settings) -> None:
    site.body, site.ends = bytes(32_000_000), [20_000_000]
    tracemalloc.start()
    try:
        with open_https(site.address, private, HASTY) as body:
            seen = sum(len(chunk) for chunk in iter(lambda: body.read(100_000), b""))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == 32_000_000 and peak < 3_000_000


@pytest.mark.parametrize(("status", "kind"), [
    (404, DataError), (403, DataError), (204, DataError), (503, Transient), (429, Transient)])
def test_failures_are_told_apart(site: Site, private: Settings, status: int, kind: type[Exception]) -> None:
    site.statuses = [status]
    with pytest.raises(kind, match=str(status)):
        read(site, private)
    assert len(site.asked) == 1


def test_nobody_there_may_pass(site: Site, private: Settings) -> None:
    site.shutdown()
    site.server_close()
    with pytest.raises(Transient, match="does not answer"):
        read(site, private)


@pytest.mark.parametrize(("version", "named"), [(ETAG, '"one"'), ({"Last-Modified": OLD}, OLD)])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_download_that_breaks_off_goes_on(
    site: Site, private: Settings, caplog: pytest.LogCaptureFixture, version: dict[str, str], named: str, chunked: bool,
) -> None:
    site.version, site.is_chunked, site.ends = version, chunked, [1000, 100_000, 0]
    assert read(site, private) == BODY
    assert site.asked_from == ["", "bytes=1000-", "bytes=101000-", "bytes=101000-"]
    assert [request["If-Range"] for request in site.asked[1:]] == [named] * 3
    assert ["broke off" in message for message in caplog.messages] == [True] * 3
    assert "after 1000 bytes; going on from there" in caplog.messages[0]


@pytest.mark.parametrize("version", [{}, {"ETag": 'W/"one"'}, AHEAD, {"ETag": 'W/"one"', "Last-Modified": OLD},
                                     {"Last-Modified": "yesterday"}])
def test_without_a_sure_version_nothing_is_joined(site: Site, private: Settings, version: dict[str, str]) -> None:
    site.version, site.ends = version, [1000]
    with pytest.raises(Transient, match="after 1000 bytes; it does not say which version"):
        read(site, private)
    assert len(site.asked) == 1


@pytest.mark.parametrize("later", [
    {"version": {"ETag": '"two"'}}, {"version": {"ETag": '"two"'}, "minds_version": False},
    {"version": {}, "minds_version": False}, {"version": {"ETag": 'W/"one"'}, "minds_version": False},
    {"body": BODY[:-1]}, {"body": BODY[:500]}],
    ids=["other", "other, and blind to If-Range", "no ETag", "weak ETag", "other size", "shorter"])
def test_two_versions_are_never_mixed(site: Site, private: Settings, later: dict[str, Any]) -> None:
    site.ends, site.later = [1000], later
    with pytest.raises(DataChanged, match="the file changed while it was read"):
        read(site, private)
    assert len(site.asked) == 2


def test_a_date_need_not_be_repeated(site: Site, private: Settings) -> None:
    site.version, site.ends, site.later = {"Last-Modified": OLD}, [1000], {"version": {}, "minds_version": False}
    assert read(site, private) == BODY


@pytest.mark.parametrize(("later", "words"), [
    ({"has_parts": False}, "does not send parts"), ({"extra": {"Content-Range": "bytes 0-9/10"}}, "something else"),
    ({"statuses": [404]}, "404")], ids=["no parts", "another part", "gone"])
def test_a_server_that_cannot_go_on_is_named(site: Site, private: Settings, later: dict[str, Any], words: str) -> None:
    site.ends, site.later = [1000], later
    with pytest.raises((Transient, DataError), match=words) as error:
        read(site, private)
    assert not isinstance(error.value, DataChanged) and len(site.asked) == 2


def test_a_server_that_is_busy_for_a_while_is_asked_again(site: Site, private: Settings) -> None:
    site.ends, site.statuses = [1000], [200, 503, 206]
    assert read(site, private) == BODY


def test_it_gives_up_after_the_last_delay(site: Site, private: Settings) -> None:
    waited: list[float] = []
    site.ends = [1000, 0, 10, 10, 10]
    with pytest.raises(Interrupted, match="broke off"):
        read(site, private, Patience(delays_s=(1, 4, 16), sleep=waited.append))
    assert waited == [1, 4, 16] and site.ends == [10]


def test_progress_buys_new_tries(site: Site, private: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.storage.timeouts.PROGRESS_BYTES", 10)
    site.ends = [9, 10, 0, 0, 10, 0, 0, 10, 0]
    assert read(site, private, Patience(delays_s=(0, 0, 0), sleep=lambda _: None)) == BODY


def test_a_server_that_sends_more_than_it_announced_is_not_believed(site: Site, private: Settings) -> None:
    site.surplus = b"!"
    with pytest.raises(Transient, match="sends more than it announced"):
        read(site, private)
    assert len(site.asked) == 1


def test_a_body_without_a_length_ends_with_the_connection(site: Site, private: Settings) -> None:
    site.has_length, site.ends = False, [1000]
    assert read(site, private) == BODY[:1000]


@pytest.mark.parametrize("sent", [0, 1000])
def test_a_stall_is_noticed_and_got_over(
    site: Site, private: Settings, caplog: pytest.LogCaptureFixture, sent: int,
) -> None:
    site.ends = [(sent, "stall")]
    assert read(site, private, Patience(stall_s=0.1, delays_s=(0,))) == BODY
    assert "the server sent nothing for 0.1 s" in caplog.text and len(site.asked) == 2


def test_a_server_that_only_drips_is_left(site: Site, private: Settings) -> None:
    clock, dripping = count(step=1000), threading.Event()
    patience = Patience(delays_s=(0,), clock=lambda: next(clock) if dripping.is_set() else 0)
    with open_https(site.address, private, patience) as body:
        dripping.set()
        with pytest.raises(Interrupted, match="less than 1000 bytes a second"):
            body.read()
    assert len(site.asked) == 2


def test_a_server_at_the_lowest_rate_is_borne(site: Site, private: Settings) -> None:
    site.body = BODY[:100_000]
    clock = count()  # at least a second for each piece
    patience = Patience(window_s=2, slowest_bytes_per_s=50, clock=lambda: next(clock))
    assert read(site, private, patience) == site.body


@pytest.mark.parametrize(("coding", "passes"), [("gzip", True), ("br", False)])
def test_a_coding_that_nobody_asked_for_is_refused(site: Site, private: Settings, coding: str, passes: bool) -> None:
    site.extra = {"Content-Encoding": coding}
    with open_https(site.address, private) if passes else pytest.raises(DataError, match="packed as"):
        if not passes:
            read(site, private)


def test_headers_come_without_the_file(site: Site, private: Settings) -> None:
    assert headers_of(site.address, private)["etag"] == '"one"'
    site.statuses = [404]
    with pytest.raises(DataError, match="404"):
        headers_of(site.address, private)


@pytest.mark.parametrize(("address", "shown"), [
    ("https://me:pw@host:8443/a/b.jsonl?sig=abc#x", "https://host:8443/a/b.jsonl"), ("data/d.jsonl", "data/d.jsonl"),
    ("https://me:pw@[fd00::1]:8443/d", "https://[fd00::1]:8443/d"),
    ("s3://me:pw@bucket/a@b/day=?/#1.jsonl", "s3://bucket/a@b/day=?/#1.jsonl")])
def test_a_shown_address_has_no_secrets(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_an_address_that_cannot_be_read_is_not_shown() -> None:
    with pytest.raises(DataError, match="not an address") as error:
        without_secrets("https://me:pw@[bad/d")
    assert "pw" not in str(error.value)
