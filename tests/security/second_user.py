"""Another user of the machine, for real: parts of a test that run as `nobody`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.errors import AnnealError

NOBODY = 65534


@contextmanager
def common_folder(mode: int = 0o1777) -> Iterator[Path]:
    """A folder of root's that both users reach, unlike those that pytest makes."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be a second user of the machine too")
    folder = Path(tempfile.mkdtemp(prefix="second-user-"))
    folder.chmod(mode)
    yield folder
    shutil.rmtree(folder)


def as_nobody(act: Callable[[], object]) -> str:
    """Run it as that user in a process of its own; returns what it returned, or the error that it raised, as text."""
    with running(act) as told:
        return told


@contextmanager
def running(act: Callable[[], object]) -> Iterator[str]:
    """The same; its process, and what that holds, stays until the end of the block."""
    read, write = os.pipe()
    wait, over = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(over)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.umask(0o022)
        try:
            told = str(act())
        except (AnnealError, OSError) as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write, told.encode())
        os.close(write)
        os.read(wait, 1)
        os._exit(0)
    os.close(write)
    os.close(wait)
    with os.fdopen(read, encoding="utf-8") as pipe:
        told = pipe.read()
    try:
        yield told
    finally:
        os.close(over)
        os.waitpid(child, 0)
