"""Remember which data set came of a source's files, so that the same content is not downloaded twice.

In:   a source, the marks of its files (S3: ETag; web: strong ETag by HEAD)     Out: sources/<key>.json in the store
A mark is taken before and after the reading, and noted only if it is the same: what changed in between is not known.
Files on a disk are always read: their times can be set. Dies half-way: nothing is noted, and the data is read again.
"""

from __future__ import annotations

import dataclasses
import logging

from infra.errors import AnnealError
from infra.files import digest_of
from infra.records import Dataset
from infra.settings import Settings
from infra.storage.addresses import form_of
from infra.storage.clouds import in_object_store
from infra.storage.https import headers_of
from infra.storage.store import Store
from tasks.data.sources import Found, find_shards

SOURCES = "sources"
log = logging.getLogger(__name__)


def key_of(settings: Settings, source: str) -> str:
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
    folder = store.read(name_of(key)) if key else None
    manifest = store.find(folder) if folder else None
    return Dataset.kept(manifest.record if manifest else None)


def note(store: Store, key: str, dataset: Dataset) -> None:
    """Remember it."""
    if key:
        store.write(name_of(key), dataset.folder)


def name_of(key: str) -> str:
    """Where the note stands in the store."""
    return f"{SOURCES}/{key[:32]}.txt"


def _marked(settings: Settings, one: Found) -> Found:
    """The same with a mark, where the server gives one that tells two versions apart to the byte.

    tasks/watch.py takes weaker ones: a look too many costs little there.
    """
    if one.mark or in_object_store(one.address):
        return one
    try:
        etag = headers_of(one.address, settings).get("etag", "")
    except AnnealError as error:  # some servers, and signed addresses, know no HEAD
        log.info("%s is read without looking whether it is known: %s", one.name, error)
        return one
    return dataclasses.replace(one, mark=etag if etag.startswith('"') else "")
