"""Tell from outside whether a source's files changed: by their names, sizes and marks, without reading them.

In:   a source, the marks of its files (S3: ETag; web: ETag by HEAD; disk: time of the last change)
Out:  sources/<key>.txt in the store: the data set that came of them, so that the same content is not downloaded twice;
      watched/<key>.json: the last `Look` of a watched training that was trained on
What is downloaded once needs marks that tell two versions apart to the byte: files on a disk are always read, their
times can be set. Such a mark is taken before and after the reading, and noted only if it is the same. A look takes
weaker marks. Dies half-way: nothing is noted, and the data is read again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from infra.errors import AnnealError, DataError
from infra.files import digest_of
from infra.records import Dataset, Record
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.addresses import form_of
from infra.storage.clouds import in_object_store
from infra.storage.http_client import number_in
from infra.storage.https import headers_of, without_secrets
from infra.storage.store import Store
from tasks.data.sources import SourceFile, find_shards

SOURCES = "sources"
SETTLE_S = 10.0
"""Between two looks at files that changed: what is still being written is looked at again."""
LOOKS = 30
"""At most, at files that go on changing; the next run looks again."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Look(Record):
    """What the sources of a training hold, as it is seen from outside."""

    fingerprint: str
    files: int
    bytes: int
    run: str = field(default="", compare=False)
    """Id of the flow run that trained on it."""
    version: int = field(default=0, compare=False)
    """Number of the version that learned from it; 0: none did."""

    def __str__(self) -> str:
        return f"{self.files} file{'' if self.files == 1 else 's'}, {self.bytes} bytes"


def source_key(settings: Settings, source: str) -> str:
    """What stands for the content that the source has now; empty where that cannot be told from outside."""
    address = form_of(source)[1]
    if not in_object_store(address) and not address.startswith(("https://", "http://")):
        return ""
    found = [_marked(settings, one) for one in find_shards(settings, source)]
    if not all(one.mark for one in found):
        return ""
    return digest_of([source, [(one.name, one.bytes, one.mark) for one in found]])


def known(store: Store, key: str) -> Dataset | None:
    """The data set that came of that content, if it still verifies."""
    folder = store.read(note_name(key)) if key else None
    manifest = store.find(folder) if folder else None
    return Dataset.kept(manifest.record if manifest else None)


def note_source(store: Store, key: str, dataset: Dataset) -> None:
    """Remember it."""
    if key:
        store.write(note_name(key), dataset.folder)


def note_name(key: str) -> str:
    """Where the note stands in the store."""
    return f"{SOURCES}/{key[:32]}.txt"


def _marked(settings: Settings, one: SourceFile) -> SourceFile:
    """The same with a mark, where the server gives one that tells two versions apart to the byte."""
    if one.mark or in_object_store(one.address):
        return one
    try:
        etag = headers_of(one.address, settings).get("etag", "")
    except AnnealError as error:  # some servers, and signed addresses, know no HEAD
        log.info("%s is read without looking whether it is known: %s", one.name, error)
        return one
    return dataclasses.replace(one, mark=etag if etag.startswith('"') else "")


def sources_of(spec: TrainingSpec) -> list[str]:
    """Where the examples of a training come from."""
    return [source for source in (spec.train_data, spec.validation_data) if source]


def look(settings: Settings, sources: Iterable[str]) -> Look:
    """List the files. Raises DataError for a source that is not there or gives no marks, Transient for one that is
    away."""
    seen = {source: [_seen(settings, one) for one in find_shards(settings, source)] for source in sources}
    files = [one for found in seen.values() for one in found]
    listed = {source: [(one.name, one.bytes, one.mark) for one in found] for source, found in seen.items()}
    return Look(fingerprint=digest_of(listed), files=len(files), bytes=sum(one.bytes or 0 for one in files))


def look_until_settled(
    settings: Settings, sources: list[str], sleep: Callable[[float], None] = time.sleep,
) -> Look | None:
    """What two looks in a row saw; None if the files go on changing."""
    last = look(settings, sources)
    for _ in range(LOOKS):
        sleep(SETTLE_S)
        seen = look(settings, sources)
        if seen == last:
            return seen
        last = seen
    return None


def last_look(store: Store, spec: TrainingSpec) -> Look | None:
    """The look that the training was last started for; None if there was none."""
    return Look.kept(json.loads(store.read(look_name(spec)) or "null"))


def note_look(store: Store, spec: TrainingSpec, seen: Look) -> None:
    """Remember that a training was started for it."""
    about = {"destination": spec.destination, "sources": [without_secrets(source) for source in sources_of(spec)]}
    store.write(look_name(spec), json.dumps({**seen.to_json(), **about}, indent=1))


def look_name(spec: TrainingSpec) -> str:
    """Where the last look stands in the store."""
    return f"watched/{digest_of([spec.destination, *sources_of(spec)])[:32]}.json"


def _seen(settings: Settings, one: SourceFile) -> SourceFile:
    """The same with a mark, where the listing gave none: a weak one will do, as a look too many costs little."""
    if one.mark:
        return one
    headers = {} if in_object_store(one.address) else headers_of(one.address, settings)
    mark = headers.get("etag") or headers.get("last-modified")
    if not mark:
        raise DataError("the server tells neither ETag nor Last-Modified", where=one.name,
                        fix="It cannot be watched; put a schedule on retrain/retrain, which reads the data.")
    return dataclasses.replace(one, mark=mark, bytes=number_in(headers.get("content-length", "")))
