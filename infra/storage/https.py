"""Read a file from the web, without letting its address reach into our own network.

In:   an https:// address     Out: its body as a stream, in constant memory
Every address on the way, redirects included, is judged by infra/storage/host_guard.py and connected to as judged. What
breaks off goes on by Range where the server names the version of the file (a strong ETag, or a Last-Modified that is
old enough): bytes of two versions are never mixed. Dies half-way: nothing is kept; the caller starts again.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import BinaryIO
from urllib.parse import urlsplit

from infra.errors import DataChanged, DataError, Interrupted, Transient, shown
from infra.settings import Settings
from infra.storage.addresses import form_of
from infra.storage.clouds import in_object_store
from infra.storage.host_guard import parsed, reachable
from infra.storage.http_client import Answer, number_in, request
from infra.storage.timeouts import Patience, Tries

PATIENCE = Patience()
REDIRECTS = 5
REDIRECTING = (301, 302, 303, 307, 308)
SETTLED_S = 60
"""A Last-Modified this much older than the answer tells two versions apart (RFC 9110, 8.8.2.2)."""
PARTIAL = re.compile(r"bytes (?P<first>\d+)-\d+/(?P<size>\d+|\*)")

log = logging.getLogger(__name__)


def without_secrets(address: str) -> str:
    """An address that may be shown: no user, password, query or fragment. In a key of S3 ? and # are letters."""
    if "://" not in address:
        return address
    place = address
    while place != (place := form_of(place)[1]):
        pass
    return address.removesuffix(place) + _without_secrets(place)


def _without_secrets(address: str) -> str:
    if in_object_store(address) or address.startswith("store://"):
        return re.sub(r"^(\w+://)[^/]*@", r"\1", address)
    try:
        parts = urlsplit(address)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:  # its text quotes the address, and a password with it
        raise DataError("it is not an address", where=f"{address.partition('://')[0]}:// address",
                        fix="Check its spelling.") from None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


@contextmanager
def open_https(address: str, settings: Settings, patience: Patience = PATIENCE) -> Iterator[BinaryIO]:
    """The body of a web address as a stream.

    Raises, here and while it is read:
        DataError: the address is not allowed, or the server says it is wrong (4xx).
        DataChanged: it is another file than when reading began; what was read is worthless. Start anew, once.
        Transient: the server does not answer, says it is its own fault (5xx, 429), or broke off too often.
    """
    with io.BufferedReader(_Body(address, settings, patience)) as body:
        yield body


def bytes_of(body: BinaryIO) -> int | None:
    """How many bytes the server of an `open_https` has announced; None if it has not, or for another stream."""
    raw = body.raw if isinstance(body, io.BufferedReader) else None
    return number_in(raw.announced) if isinstance(raw, _Body) else None


def headers_of(address: str, settings: Settings) -> dict[str, str]:
    """What the server says of the file, without the file (HEAD); names in lower case. Raises as `open_https` does."""
    answer = _asked("HEAD", address, settings, {}, PATIENCE)
    answer.close()
    _check(answer, without_secrets(address))
    return answer.headers


class _Body(io.RawIOBase):
    """A file on the web as a raw stream that outlives its connections."""

    def __init__(self, address: str, settings: Settings, patience: Patience) -> None:
        self._answer: Answer | None = None
        self._address, self._settings, self._patience = address, settings, patience
        self._where = without_secrets(address)
        self._rest, self._at, self._brought, self._tries = b"", 0, 0, Tries(patience)
        self._answer = self._begun()

    @property
    def announced(self) -> str:
        """The length of the whole, or *."""
        return self._size

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._hang_up()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            try:
                self._answer = self._answer or (self._resumed() if self._at else self._begun())
                self._rest = self._answer.read()
            except Interrupted as error:
                self._wait(error)
                continue
            if not self._rest:
                return 0
            self._at, self._brought = self._at + len(self._rest), self._brought + len(self._rest)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def _wait(self, error: Interrupted) -> None:
        """Before the next connection. Raises Transient where there is none to be made."""
        self._hang_up()
        delay_s, self._brought = self._tries.delay_s(self._brought), 0
        if self._at and not self._version:
            raise Transient(
                f"{error.found}, after {self._at} bytes; it does not say which version of the file it sends, so the "
                "download cannot go on from there", where=self._where) from error
        if delay_s is None:
            raise error
        log.warning("%s: %s, after %d bytes; going on from there in %g s", self._where, error.found, self._at, delay_s)
        self._patience.sleep(delay_s)

    def _begun(self) -> Answer:
        """The answer with the whole file, of whichever version."""
        answer = _asked("GET", self._address, self._settings, {}, self._patience)
        _check(answer, self._where)
        self._version, self._size = _version_of(answer), answer.headers.get("content-length", "*")
        return answer

    def _resumed(self) -> Answer:
        """The answer with the rest of the same file. Raises DataChanged if it is another one by now."""
        headers = {"Range": f"bytes={self._at}-", "If-Range": self._version}
        answer = _asked("GET", self._address, self._settings, headers, self._patience)
        try:
            self._check_part(answer)
        except BaseException:
            answer.close()
            raise
        return answer

    def _check_part(self, answer: Answer) -> None:
        same = _version_of(answer) == self._version or _undated(answer, self._version)
        if answer.status == 416 or (answer.status in (200, 206) and not same):
            raise self._changed("it is another version")
        if answer.status == 200:
            raise Transient(f"it broke off after {self._at} bytes, and the server does not send parts of a file",
                            where=self._where)
        _check(answer, self._where, 206)
        part = PARTIAL.fullmatch(answer.headers.get("content-range", ""))
        if part is None or int(part["first"]) != self._at:
            raise Transient(f"asked for what follows after {self._at} bytes, the server sends something else",
                            where=self._where)
        if "*" not in (part["size"], self._size) and part["size"] != self._size:
            raise self._changed(f"it has {part['size']} bytes instead of {self._size}")

    def _changed(self, found: str) -> DataChanged:
        return DataChanged(f"the file changed while it was read ({found})", where=self._where,
                           fix="Give the address of a file that stays as it is.")

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._answer = None


def _asked(method: str, address: str, settings: Settings, headers: dict[str, str], patience: Patience) -> Answer:
    """The answer of the address, or of the one that it redirects to; every one of them is judged."""
    where = without_secrets(address)
    hop = parsed(address, where)
    for _ in range(REDIRECTS + 1):
        answer = request(method, hop, reachable(hop, settings, where), headers, where, patience)
        location = answer.headers.get("location")
        if answer.status not in REDIRECTING or location is None:
            return answer
        answer.close()
        hop = hop.redirected(location, where)
    raise DataError(f"more than {REDIRECTS} redirects", where=where, fix="Give the final address.")


def _check(answer: Answer, where: str, wanted: int = 200) -> None:
    """Raises DataError or Transient, with the connection closed, unless this is the file."""
    status = f"the server answers {answer.status} {answer.reason}".rstrip()
    coding = answer.headers.get("content-encoding", "identity").lower()
    if answer.status == wanted and coding in ("identity", "gzip", "x-gzip"):  # gzip is unpacked like a .gz file
        return
    answer.close()
    if answer.status == 429 or answer.status >= 500:
        raise Interrupted(status, where=where)
    if answer.status != wanted:
        raise DataError(status, where=where, fix="Check the address and that it needs no login.")
    raise DataError(f"the server sends it packed as {shown(coding)}", where=where, allowed="plain or gzip",
                    fix="It was asked for the plain file; change the server's settings.")


def _version_of(answer: Answer) -> str:
    """What tells two versions of the file apart to the byte, or nothing.

    RFC 9110, 13.1.5: a strong ETag; a date only where there is no ETag at all, and only if it had settled.
    """
    etag, modified = answer.headers.get("etag", ""), answer.headers.get("last-modified", "")
    if etag or not modified:
        return etag if etag.startswith('"') else ""
    try:
        age = parsedate_to_datetime(answer.headers.get("date", "")) - parsedate_to_datetime(modified)
        return modified if age.total_seconds() >= SETTLED_S else ""
    except (TypeError, ValueError):
        return ""


def _undated(answer: Answer, pinned: str) -> bool:
    """A part asked for by its date need not repeat the date (RFC 9110, 15.3.7); an ETag must be repeated."""
    return not pinned.startswith('"') and "etag" not in answer.headers and "last-modified" not in answer.headers
