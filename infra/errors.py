"""Every error Anneal raises on purpose, and the exit codes of its child processes.

    AnnealError
    |- UserError        the user can mend it; shown as it is (CLI exit 2, HTTP 422); never retried
    |  |- DataError        the training data
    |  |  |- DataChanged      it changed while it was read
    |  |- BaseModelError   the base model's folder or name
    |  |- GateError        the trained version is not good enough to be deployed
    |- Transient        may pass by itself; retried with backoff
    |  |- Interrupted      a connection failed; another may go on where it ended
    |  |- Preempted        training stopped after a checkpoint
    |  |- RanksLost        training's processes died; retried for as long as each launch comes further
    |  |- Missing          a finished folder is not in the store any more; retried for seconds
    |- Broken           our fault or the machine's; shown as one sentence
       |- Diverged         loss or gradient stopped being finite
       |- OutOfMemory      does not fit even with the smallest micro-batch

A message says where, what was found, what is allowed, and what to do:

    data.jsonl line 4811: "completion" is a number (17); expected a string. Quote it.

Standard library only: ranks import this file.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from infra.redaction import redacted

EXIT_DONE = 0
EXIT_USER_ERROR = 3
EXIT_PREEMPTED = 4
EXIT_NON_FINITE = 5
EXIT_OUT_OF_MEMORY = 6

SHOWN_CHARACTERS = 80
PATH_CHARACTERS = 4096
SIMILAR_AT_MOST, SIMILARITY, ENTRIES_AT_MOST = 3, 0.7, 10_000
"""Names that are offered for one that is wrong, how alike they must be (difflib), entries of a folder looked at."""


class AnnealError(Exception):
    """Root of the tree. `fix` is a full sentence; the other parts are clauses. None of them keeps a secret: errors are
    logged, stored and shown."""

    def __init__(self, found: str, *, where: str = "", allowed: str = "", fix: str = "") -> None:
        found, where, allowed, fix = map(redacted, (found, where, allowed, fix))
        self.found, self.where, self.allowed, self.fix = found, where, allowed, fix
        head = f"{where}: {found}" if where else found
        body = f"{head}; expected {allowed}" if allowed else head
        super().__init__(f"{body}. {fix}" if fix else body)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by keyword, so that Prefect can carry the error between processes."""
        return (_rebuild, (type(self), self.found, self.where, self.allowed, self.fix))


def sentence_in(body: str | bytes, otherwise: str) -> str:
    """The sentence in a refusal: {"detail": sentence} or {"detail": [{"msg": sentence}, ...]}, as FastAPI and Cog write
    them, or OpenAI's {"error": {"message": sentence}}; `otherwise` for another body."""
    try:
        said = json.loads(body)
        if isinstance(said.get("error"), dict):
            return str(said["error"]["message"])
        detail = said["detail"]
        return " ".join(str(one["msg"]) for one in detail) if isinstance(detail, list) else str(detail)
    except (ValueError, KeyError, TypeError, AttributeError):
        return otherwise


class UserError(AnnealError):
    """The user can mend it."""


class DataError(UserError):
    """The training or validation data cannot be used."""


class DataChanged(DataError):
    """The training data changed while it was read."""

    FIX = "Start again when it is written, or write new data into new files."


class BaseModelError(UserError):
    """The base model cannot be found, read or trained."""


class GateError(UserError):
    """The version was registered, but is not good enough to be deployed."""


class Transient(AnnealError):
    """A service, a disk or a process failed in a way that may pass."""


class Interrupted(Transient):
    """A connection failed or was too slow; another one may go on where it ended."""


class Preempted(Transient):
    """Training was told to stop and saved a checkpoint first."""


class RanksLost(Transient):
    """Training's processes died or were stopped; it goes on at the last checkpoint."""


class Missing(Transient):
    """A finished folder is not in the store any more: only the step that made it can bring it back."""


class Broken(AnnealError):
    """Nothing the user did explains it."""


class Diverged(Broken):
    """The loss or the gradient norm was not finite; the update was not applied."""


class OutOfMemory(Broken):
    """The smallest micro-batch does not fit."""


BY_EXIT_CODE: dict[int, type[AnnealError]] = {
    EXIT_USER_ERROR: UserError,
    EXIT_PREEMPTED: Preempted,
    EXIT_NON_FINITE: Diverged,
    EXIT_OUT_OF_MEMORY: OutOfMemory,
}


def shown(value: object, most: int = SHOWN_CHARACTERS) -> str:
    """A value as it may stand in a message: quoted, escaped, shortened to `most` characters."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= most else text[: most - 3] + "..."


def shown_path(path: str) -> str:
    """A path or address as it may stand in a message: its end matters most, so it is there."""
    return shown(path, PATH_CHARACTERS)


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """A question with the names that look most like `found`, and a space; empty where none does. One whose words hold
    what was written comes first: epochs, num_train_epochs."""
    known = list(known)
    wanted = found.strip("-_").replace("-", "_").lower()
    within = [name for name in known if wanted and wanted in name.replace("-", "_").lower()]
    near = get_close_matches(found, known, SIMILAR_AT_MOST, SIMILARITY)
    names = list(dict.fromkeys([*near, *within] if near else within))[:SIMILAR_AT_MOST]
    return f"Did you mean {' or '.join(names)}? " if names else ""


def near_names(path: str) -> str:
    """The same of a path that leads nowhere: names in its folder, or the folder that is not there."""
    place = Path(path).expanduser()
    try:
        while not place.parent.exists():
            place = place.parent
        names = [other.name for other in islice(place.parent.iterdir(), ENTRIES_AT_MOST)]
    except OSError:
        return ""
    return did_you_mean(place.name, [] if place.name in names else names)


def from_os_error(error: OSError, where: str) -> AnnealError:
    """What a failed read or write means to the user."""
    found = f"{error.strerror or error} ({error.filename})" if error.filename else str(error.strerror or error)
    full = (errno.ENOSPC, errno.EDQUOT)  # shutil.Error carries the number only in its text
    if error.errno in full or any(f"[Errno {number}]" in str(error) for number in full):
        return UserError(
            "the disk is full", where=where,
            fix="Free some space and run the same command again; finished steps are kept.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(found, where=where, fix="Choose a folder that can be written.")
    return Transient(found, where=where)


def write_error(path: Path, error: AnnealError) -> None:
    """Leave the error of a child process where its parent looks for it."""
    parts = {"found": error.found, "where": error.where, "allowed": error.allowed, "fix": error.fix}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"type": type(error).__name__, **parts}), encoding="utf-8")
    temporary.replace(path)


def read_error(path: Path, exit_code: int) -> AnnealError | None:
    """The error that a child process left, or None when it left none."""
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kinds = {kind.__name__: kind for kind in _subclasses(AnnealError)}
    kind = kinds.get(parts.pop("type", ""), BY_EXIT_CODE.get(exit_code, Broken))
    return _rebuild(kind, parts["found"], parts["where"], parts["allowed"], parts["fix"])


def _rebuild(kind: type[AnnealError], found: str, where: str, allowed: str, fix: str) -> AnnealError:
    return kind(found, where=where, allowed=allowed, fix=fix)


def _subclasses(kind: type[AnnealError]) -> list[type[AnnealError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _subclasses(child))]
