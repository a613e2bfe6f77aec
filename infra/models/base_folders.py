"""Base models by their content, and the folders from which the predictor may load one.

In:   a folder in Hugging Face format     Out: its digest; a `Checked` folder, or a sentence why it is not loaded
A digest is remembered by the files' sizes, times and inodes, so that a restart does not read 14 GB again. ctime is
among them: a program can set mtime back, but not ctime.
On disk: <home>/cache/digests/<stamp>, the digest; <home>/bases/<key>, the path of a folder that a deployed version
needs. Both are written whole or not at all, and only by processes that may write the home.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra.errors import Transient, UserError, from_os_error, shown_path
from infra.files import digest_of, model_files, sha256_of, write_atomic
from infra.settings import Settings

CHANGED = "its files changed while they were read"
SETTLED_S = 2.0
"""A file that is younger may change again without another time: the clock of a file system ticks, the slowest ones
once in two seconds. What is that young is not remembered."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A base whose content was compared with the digest that was asked for."""

    folder: Path
    stamp: str
    place: tuple[int, int]
    """The folder's inode and ctime: another one may stand in its place for a while."""

    def is_unchanged(self) -> bool:
        """Whether its files are still those that were compared."""
        try:
            return (stamp_of(self.folder, model_files(self.folder)), _place_of(self.folder)) == (self.stamp, self.place)
        except OSError:
            return False


def digest_of_base(settings: Settings, folder: Path) -> str:
    """sha256 over the files that make the model what it is: transformers sees no others
    (infra/models/model_folder.py).

    Raises Transient when it is being changed.
    """
    return _digested(settings, folder)[0]


def note_base(settings: Settings, folder: Path) -> None:
    """Write down that a version which is deployed now needs this base: the predictor of this home trusts it then."""
    place, path = _note_of(settings, folder.resolve()), str(folder.resolve())
    if not place.exists() or place.read_text(encoding="utf-8") != path:
        write_atomic(place, path)
        place.chmod(0o644)  # whatever the umask: others may read it, nobody else may write it


def check(settings: Settings, path: str, digest: str, where: str) -> Checked:
    """Compare the base in `path` with `digest`, before anything is loaded from there.

    Raises:
        UserError: the predictor was not told to trust that folder, or it holds another model.
        Transient: it is being changed, or the disk does not answer.
    """
    folder = _real(path)
    if folder is None or not is_trusted(settings, folder) or not folder.is_dir():
        raise UserError(
            f"the base model's folder is {shown_path(path)}", where=where,
            allowed="a folder on the predictor's machine from which a training with the same ANNEAL_HOME was deployed, "
                    "or one below ANNEAL_BASE_FOLDERS",
            fix="Put the base model there, or set ANNEAL_BASE_FOLDERS for the predictor and start it again.")
    try:
        place = _place_of(folder)
        found, stamp = _digested(settings, folder)
    except OSError as error:
        raise from_os_error(error, where) from error
    if found != digest:
        raise UserError(
            f"the base model in {shown_path(path)} has digest {found[:12]}", where=where,
            allowed=f"{digest[:12]}, the one that it was trained on",
            fix="Bring back the files that it was trained on, or train again on those that are there now.")
    return Checked(folder, stamp, place)


def is_trusted(settings: Settings, folder: Path) -> bool:
    """Whether the predictor may load a base from this folder, whose path holds no symbolic links."""
    own = [(settings.home_path / "cache" / name).resolve() for name in ("hub", "bases")]
    if any(folder.is_relative_to(root) for root in [*own, *settings.trusted_bases]):
        return True
    try:
        return _note_of(settings, folder).read_text(encoding="utf-8") == str(folder)
    except (OSError, ValueError):
        return False


def stamp_of(folder: Path, files: Iterable[Path]) -> str:
    """What is another one when any of the files has changed: their sizes, times and inodes. Raises OSError."""
    # Not the device: network disks and containers get another number at every start.
    stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    return digest_of([str(folder), [
        [name, one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino] for name, one in stats]])


def _digested(settings: Settings, folder: Path) -> tuple[str, str]:
    """The digest, and the stamp of what it was made of."""
    files, now = model_files(folder), time.time()
    stamp = stamp_of(folder, files)
    remembered = settings.home_path / "cache" / "digests" / stamp
    with suppress(FileNotFoundError):
        return remembered.read_text(encoding="utf-8"), stamp
    digest = digest_of({path.name: sha256_of(path) for path in files})
    if stamp_of(folder, model_files(folder)) != stamp:
        raise Transient(CHANGED, where=f"base model {shown_path(str(folder))}",
                        fix="Try again when all of them are written.")
    if all(path.stat().st_ctime < now - SETTLED_S for path in files):
        with suppress(PermissionError):  # a predictor under another user hashes at every start
            write_atomic(remembered, digest)
    return digest, stamp


def _real(path: str) -> Path | None:
    """The path without symbolic links; None for one that is relative or none at all."""
    try:
        return Path(os.path.realpath(path)) if Path(path).is_absolute() else None
    except ValueError:  # a NUL in it
        return None


def _place_of(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_ino, stat.st_ctime_ns


def _note_of(settings: Settings, folder: Path) -> Path:
    return settings.home_path / "bases" / digest_of(str(folder))
