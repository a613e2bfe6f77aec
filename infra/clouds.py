"""Object stores other than S3 that data can come from, by fsspec and the library of each.

Their keys come from the environment, as each library has it. Schemes that lead to a host of the address's choice
(http, ftp, webhdfs, ...) or into this machine (file, ...) are not among them: data from the web goes through
infra/fetch.py, which judges every host.
"""

from __future__ import annotations

from typing import Any

import fsspec

from infra.errors import UserError

CLOUDS = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "oss": "ossfs",
          "hf": "huggingface_hub"}
"""{scheme of an address: the Python package that reads it}"""
MARKS = ("ETag", "etag", "md5Hash", "blob_id")
"""What these libraries call a value that changes whenever the content does."""


def cloud_of(address: str) -> str:
    """The scheme of an address in one of these stores; empty for another address."""
    scheme, found, _ = address.partition("://")
    return scheme if found and scheme in CLOUDS else ""


def in_object_store(address: str) -> bool:
    """Whether an address is of S3 or of one of these stores."""
    return address.startswith("s3://") or bool(cloud_of(address))


def cloud(scheme: str) -> Any:
    """The fsspec filesystem. Raises UserError where its library is not installed."""
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(f"{scheme}:// addresses need a library that is not installed ({error})", where=f"{scheme}://",
                        fix=f"pip install {CLOUDS[scheme]}") from error


def mark_of(about: dict[str, Any]) -> str:
    """What changes with the content, as the store tells it; empty if it tells nothing of the kind."""
    return next((str(about[name]).strip('"') for name in MARKS if about.get(name)), "")
