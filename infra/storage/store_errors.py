"""What disks and object stores raise, as errors that a user can act on.

In:   a block that reads or writes, and where     Out: AnnealErrors in place of what libraries raise
On disk: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from infra.errors import AnnealError, Transient, UserError, from_os_error
from infra.storage.clouds import CLOUDS, hint, says_no


@contextmanager
def existing(address: str) -> Iterator[None]:
    """Say that an object is not there."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            "no such object", where=address, fix="Check bucket, key and ANNEAL_S3_ENDPOINT_URL.") from error


@contextmanager
def translate_storage_errors(where: str) -> Iterator[None]:
    """Turn what disks and S3 servers raise into errors a user can act on."""
    try:
        yield
    except AnnealError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"it does not exist ({error})", where=where,
                        fix="Check the bucket's name and ANNEAL_S3_ENDPOINT_URL; the bucket is not made for you."
                        ) from error
    except PermissionError as error:
        raise UserError(f"access denied ({error})", where=where, fix=hint(where)) from error
    except Exception as error:
        if says_no(error, where):
            raise UserError(f"it cannot be read ({error})", where=where, fix=hint(where)) from error
        if isinstance(error, OSError):
            raise from_os_error(error, where) from error
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            raise UserError("there are no keys for it", where=where,
                            fix="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.") from error
        if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp", *CLOUDS.values(), "azure"):
            raise Transient(f"the store does not answer ({type(error).__name__}: {error})", where=where) from error
        raise
