"""Whom the home is for: other users of the machine must not read data, logs and databases in it.

A home that Anneal makes is its user's alone (0700). One that is there and open to all is closed: to 0770 if its group
may write there, else to 0700. A home that others cannot enter keeps its mode, so 0770 or 0750 shares it with a group.
What a command makes, and all that it starts, is for the same users.
A folder that is somebody else's, a mount point or sticky is never changed.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

GROUP, OTHERS = 0o070, 0o007


def closed(home: Path) -> Path:
    """The folder, made if need be. Raises OSError when it cannot be; one that cannot be closed stays open."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = home.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & OTHERS and status.st_uid == os.getuid() and not mode & stat.S_ISVTX and not home.is_mount():
        with suppress(OSError):  # a file system that is read-only, or has no modes
            home.chmod(mode & ~(GROUP | OTHERS) | _of_group(mode))
    return home


def umask_for(home: Path, current: int) -> int:
    """The umask of whoever writes into that home: at least as strict as the current one."""
    return current | (GROUP | OTHERS) & ~_of_group(home.stat().st_mode)


def _of_group(mode: int) -> int:
    """The group's rights, unless they are only what everybody has."""
    return mode & GROUP if mode & stat.S_IWGRP or not mode & OTHERS else 0
