"""Object stores other than S3 that data can come from, by fsspec and the library of each.

Their keys come from the environment, as each library has it. Schemes that lead to a host of the address's choice
(http, ftp, webhdfs, ...) or into this machine (file, ...) are not among them: data from the web goes through
infra/storage/https.py, which judges every host.
"""

from __future__ import annotations

import re
from typing import Any

import fsspec

from infra.errors import UserError

CLOUDS = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "oss": "ossfs",
          "hf": "huggingface_hub"}
"""{scheme of an address: the Python package that reads it}"""
AZURE = ("az", "abfs", "abfss")
NO = ("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "EntryNotFoundError",
      "ClientAuthenticationError", "ResourceNotFoundError")
"""Names of errors of huggingface_hub and azure.core that another try would meet again."""
REFUSED = (401, 403)
"""Statuses that say that a token is wrong, or that it may not read this."""
MARKS = ("ETag", "etag", "md5Hash", "blob_id")
"""What these libraries call a value that changes whenever the content does."""


def cloud_of(address: str) -> str:
    """The scheme of an address in one of these stores; empty for another address."""
    scheme, found, _ = address.partition("://")
    return scheme if found and scheme in CLOUDS else ""


def in_object_store(address: str) -> bool:
    """Whether an address is of S3 or of one of these stores."""
    return address.startswith("s3://") or bool(cloud_of(address))


def cloud(address: str) -> Any:
    """The fsspec filesystem of an address. Raises UserError where its library or its keys are missing."""
    scheme = cloud_of(address)
    if scheme in AZURE and re.search("[@?]", address):
        raise UserError("the address names an account, or is signed", where=f"{scheme}:// address",
                        allowed=f"{scheme}://container/path",
                        fix="Account and key are set by AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY.")
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise UserError(f"{scheme}:// addresses need a library that is not installed ({error})", where=f"{scheme}://",
                        fix=f"pip install {CLOUDS[scheme]}") from error
    except ValueError as error:
        raise UserError(f"{CLOUDS[scheme]} cannot begin ({error})", where=f"{scheme}://", fix=hint(address)) from error


def hint(address: str) -> str:
    """What to look at when a store says no."""
    scheme = cloud_of(address)
    if scheme == "hf":
        return "Check the address; a private or gated data set needs HF_TOKEN set to a token that may read it."
    return f"Check the address, and the keys in the environment that {CLOUDS[scheme]} reads." if scheme else (
        "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or the folder's owner.")


def says_no(error: Exception, address: str) -> bool:
    """Whether an error of one of these libraries is for good: not there, not allowed, not an address."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return bool(cloud_of(address)) and (
        type(error).__name__ in NO or status in REFUSED or isinstance(error, (ValueError, NotImplementedError)))


def mark_of(about: dict[str, Any]) -> str:
    """What changes with the content, as the store tells it; empty if it tells nothing of the kind."""
    return next((str(about[name]).strip('"') for name in MARKS if about.get(name)), "")
