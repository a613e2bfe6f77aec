"""The secret of a home: what Prefect, MLflow and the predictor of `anneal up` ask for.

In:   the home folder          Out: <home>/secret, 43 characters, mode 0600, made once
Dies half-way: nothing, or a whole secret, stands there. Delete the file and start the stack again to change it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from infra.errors import UserError, from_os_error

BYTES = 32
USER = "anneal"
"""The name that goes with the secret where a protocol wants one (HTTP's Basic, RFC 7617)."""


def secret_of(home: Path) -> str:
    """The home's secret, made if there is none. Raises UserError when the file is not ours alone, or cannot be made."""
    path = home / "secret"
    try:
        _make(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
            found = os.fstat(file.fileno())
            secret = file.read(1024).strip()
    except OSError as error:
        if path.exists() and not os.access(path, os.R_OK):
            raise UserError(
                "it is another user's", where=str(path), allowed="a home of your own",
                fix="Set ANNEAL_HOME to one. A group that shares a home sets ANNEAL_REQUIRE_SECRET=false, or gives its "
                    "services passwords of their own (infra/README.md).") from error
        raise from_os_error(error, str(path)) from error
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o077:
        raise UserError(
            f"others may read it (mode {found.st_mode & 0o777:04o}, owner {found.st_uid})", where=str(path),
            allowed="a file of your own with mode 0600",
            fix="Delete it, and run `anneal down` and `anneal up`. On a disk without file modes, put ANNEAL_HOME "
                "elsewhere, or set ANNEAL_REQUIRE_SECRET=false.")
    if len(secret) < BYTES:
        raise UserError(f"it holds {len(secret)} characters", where=str(path), allowed=f"{BYTES} or more",
                        fix="Delete it, and run `anneal down` and `anneal up`.")
    return secret


def _make(path: Path) -> None:
    """Put a secret there unless one is there. It gets its name when it is whole, also when two processes come at once.

    A disk that has no hard links has renames; there, of two processes that come at once, the later one's secret stays.
    """
    if os.path.lexists(path):
        return
    temporary = path.with_name(f".secret.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
