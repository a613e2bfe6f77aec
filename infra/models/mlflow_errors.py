"""MLflow's failures as errors of ours: what may pass, what its user or its owner has to mend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from infra.errors import Broken, Transient, UserError, from_os_error

PASSING = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED",
           "DEADLINE_EXCEEDED")
REFUSING = {"UNAUTHENTICATED": "the user or the password", "CUSTOMER_UNAUTHORIZED": "the user or the password",
            "PERMISSION_DENIED": "this to the user: it may read, not write"}
AGAIN = ("Look at the MLflow server; when it answers again, start the same again (Retry in the UI): finished steps and "
         "trained weights are kept.")
FULL = re.compile(r"disk is full|No space left on device|Disk quota exceeded")
FREE = "Free some space there and run the same command again; finished steps and trained weights are kept."
RELEASE = ("Use the release of Anneal that made it, or bring the database up to date with `mlflow db upgrade` after a "
           "backup; then run the same command again.")
AUTHENTICATE = ("Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of a user who may write where this runs; "
                "then start the same again: finished steps and the weights are kept.")


@contextmanager
def translate_mlflow_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's failures into Transient where they may pass, and into UserError where it refuses who asks."""
    from mlflow.exceptions import MlflowException

    where = uri.split("@")[-1]
    try:
        yield
    except MlflowException as error:
        if error.error_code in REFUSING:
            raise UserError(f"MLflow refuses {REFUSING[error.error_code]}", where=where, fix=AUTHENTICATE) from error
        if FULL.search(str(error.message)):
            raise UserError("the disk of MLflow's database or files is full", where=where, fix=FREE) from error
        if "database schema" in str(error.message) or "locate revision" in str(error.message):
            raise UserError("the database is one of another release of MLflow", where=where, fix=RELEASE) from error
        if error.error_code in PASSING:
            raise Transient(f"MLflow does not do it ({error.message})", where=where, fix=AGAIN) from error
        raise Broken(f"MLflow does not do it ({error.message})", where=where) from error
    except OSError as error:
        found = from_os_error(error, where)  # without a server it is this machine's disk that is full or read-only
        if isinstance(found, UserError):
            raise found from error
        raise Transient(f"MLflow does not answer ({error})", where=where, fix=AGAIN) from error
