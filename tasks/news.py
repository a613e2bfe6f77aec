"""What is new in data that came in several files, since a version learned from it.

In:   the split that a training has now, the data digest of the version     Out: a few words, or none
Two small files of the store are read for each: the split's manifest, which names its data, and the data's shards.json.
"""

from __future__ import annotations

import logging

from infra.errors import AnnealError
from infra.files import MANIFEST, Manifest
from infra.models.registry import Origin, Registry
from infra.records import Dataset, Split
from infra.settings import Settings
from infra.storage.store import Store
from tasks.data.sources import shards_in
from tasks.runs.retries import HOUR_S, step
from tasks.validate import split_folder

log = logging.getLogger(__name__)


@step("newest version", timeout_s=HOUR_S)
def newest_task(destination: str, subject: str) -> Origin | None:
    """What the destination's newest version learned from; None if there is none."""
    return Registry(Settings()).newest(destination)


def shard_news(store: Store, split: Split, newest: Origin | None) -> str:
    """Such as "5 shards, 2 new and 0 gone since version 3"; empty for one file. Never fails: they are only words."""
    try:
        now = contents(store, split.data) if split.data else []
        if len(now) < 2:
            return ""
        before = contents_of_split(store, newest.data_digest) if newest is not None else []
    except (AnnealError, ValueError) as error:
        log.warning("what is new is not known: %s", error)
        return ""
    if newest is None or not before:
        return f"{len(now)} shards"
    new, gone = (sum(one not in others for one in some) for some, others in ((now, before), (before, now)))
    return f"{len(now)} shards, {new} new and {gone} gone since version {newest.number}"


def contents_of_split(store: Store, digest: str) -> list[str]:
    """The files that a split was made of, by their sha256; none if that is not known any more."""
    text = store.read(f"{split_folder(digest)}/{MANIFEST}")
    split = Split.kept(Manifest.from_json(text).record if text else None)
    return contents(store, split.data) if split and split.data else []


def contents(store: Store, folder: str) -> list[str]:
    """The files that a data set was joined of, by their sha256."""
    if found := shards_in(store, folder):
        return [shard.sha256 for shard in found]
    text = store.read(f"{folder}/{MANIFEST}")
    data = Dataset.kept(Manifest.from_json(text).record if text else None)
    return [data.sha256] if data else []
