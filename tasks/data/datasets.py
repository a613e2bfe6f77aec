"""Data in the store: its names and addresses.

In:   store://datasets/<hash>/<name>, or a Dataset     Out: the Dataset, or its address
On disk, in the store: datasets/<hash>/data.jsonl; uploads/<hash>, a name for data that stays.
"""

from __future__ import annotations

import re

from infra.errors import DataError
from infra.records import Dataset
from infra.storage.store import Store

FILE = "data.jsonl"
UPLOADS = "uploads"
"""In the store: names of datasets that stay."""
IN_STORE = "store://"
"""Begins the address of data that was brought in before: by a run that hands over to another one."""
ADDRESS = re.compile(IN_STORE + r"(datasets/\w+)/[^/]+")


def address_of(dataset: Dataset) -> str:
    """Where a dataset lies in the store, for a run on another machine; its last part is the name of the data."""
    return f"{IN_STORE}{dataset.folder}/{dataset.source.rstrip('/').rsplit('/', 1)[-1]}"


def stored(store: Store, address: str) -> Dataset:
    """The dataset at an address of the store. Raises DataError if it is not there."""
    manifest = store.find(folder_at(address))
    found = Dataset.kept(manifest.record if manifest else None)
    if found is None:
        raise DataError("it is not in the store", where=address, allowed=f"{IN_STORE}datasets/<hash>/<name>",
                        fix="Give the address that the data came from.")
    return found


def folder_at(address: str) -> str:
    """The folder in the store that an address names. Raises DataError for anything but a dataset's."""
    if not (found := ADDRESS.fullmatch(address)):
        raise DataError("it is no address of data in the store", where=address,
                        allowed=f"{IN_STORE}datasets/<hash>/<name>", fix="Give the one that `anneal upload` printed.")
    return found[1]


def folder_of(sha256: str) -> str:
    """Name in the store of the data with this hash."""
    return f"datasets/{sha256[:32]}"
