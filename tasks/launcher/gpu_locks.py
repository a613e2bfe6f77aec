"""The lock files of GPUs: where they lie, and how they are opened so that no other user can turn them against us.

In:   ANNEAL_GPU_LOCKS     Out: open lock files, for reading only: that is enough to lock, and nothing is written
The folder is this user's own, or root's: all whom root lets in share the GPUs (infra/systemd/anneal.tmpfiles.conf).
In any other folder its owner could take a lock file away while it is held, or put a link in its place.
Dies half-way: the kernel drops the locks; the empty files stay.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from infra.errors import UserError
from infra.files import NO_LINKS, NOT_PLAIN, is_plain, not_plain, try_lock

SHARED = Path("/run/anneal/gpus")
"""Made by root, at every start of a machine whose users share its GPUs."""
ROOT = 0
OF_OURS = "a folder of your own, or one that root made for all who share the GPUs"
FIX = "Have root make it as infra/systemd/anneal.tmpfiles.conf does, or set ANNEAL_GPU_LOCKS to another folder."


def lock_folder(wanted: str) -> Path:
    """Where the locks lie: what ANNEAL_GPU_LOCKS says, else what root made, else a folder of this user's in /tmp."""
    if wanted:
        return Path(wanted).expanduser().absolute()
    return SHARED if os.path.lexists(SHARED) else Path(f"/tmp/anneal-gpus-{os.getuid()}")


class LockFolder:
    """The folder, open: what takes its place later is not looked at. Used as a context."""

    def __init__(self, path: Path) -> None:
        """Made for this user alone if there is none. Raises UserError for one that is not safe or cannot be used."""
        self._path = path
        with _usable(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        self._status = os.fstat(self._descriptor)

    def __enter__(self) -> LockFolder:
        try:
            with _usable(self._path):
                self._check()
        except UserError:
            os.close(self._descriptor)
            raise
        with suppress(OSError):  # keeps systemd-tmpfiles from removing old files in it (tmpfiles.d(5), Age)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def take(self, device: str) -> IO[bytes] | None:
        """The lock file of a device, locked by us, or None. Raises UserError for one that is not safe."""
        path = self._path / f"{device.replace('/', '-')}.lock"
        with _usable(path), ExitStack() as stack:
            file = stack.enter_context(os.fdopen(self._opened(path.name), "rb"))
            self._check_file(file.fileno(), path)
            if not try_lock(file):
                return None
            stack.pop_all()
            return file

    def _check(self) -> None:
        """Raise UserError for a folder in which others than root and we can take files away."""
        mode, owner = self._status.st_mode, self._status.st_uid
        if owner not in (ROOT, os.getuid()):
            raise UserError(f"it belongs to user {owner}", where=str(self._path), allowed=OF_OURS, fix=FIX)
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            if owner != os.getuid():
                raise UserError("others may write there, and it has no sticky bit", where=str(self._path),
                                allowed=OF_OURS, fix="Have root set it: chmod +t.")
            os.fchmod(self._descriptor, stat.S_IMODE(mode) | stat.S_ISVTX)  # as releases before this one made it

    def _opened(self, name: str) -> int:
        """The lock file's descriptor. Linux lets nobody open another user's file in such a folder with O_CREAT
        (fs.protected_regular), so that is asked for only where there is no file."""
        flags = os.O_RDONLY | NO_LINKS
        mode = 0o644 if self._status.st_mode & 0o077 else 0o600
        while True:
            with suppress(FileNotFoundError):
                return os.open(name, flags, dir_fd=self._descriptor)
            with suppress(FileExistsError):  # somebody else has just made it
                made = os.open(name, flags | os.O_CREAT | os.O_EXCL, mode, dir_fd=self._descriptor)
                os.fchmod(made, mode)  # whatever the umask: the others must be able to lock it too
                return made

    def _check_file(self, descriptor: int, path: Path) -> None:
        if not is_plain(descriptor, self._status):
            raise not_plain(path)
        owner = os.fstat(descriptor).st_uid
        if self._status.st_uid != ROOT and owner not in (ROOT, os.getuid()):
            raise UserError(f"it belongs to user {owner}", where=str(path), allowed="a lock file of your own",
                            fix="Remove it.")


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Say what a failed call means to the user."""
    try:
        yield
    except OSError as error:
        if error.errno in (*NOT_PLAIN, errno.ENOTDIR):
            raise not_plain(path) from error
        raise UserError(f"GPUs cannot be locked there ({error.strerror})", where=str(path), allowed=OF_OURS,
                        fix=FIX) from error
