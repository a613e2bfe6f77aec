"""No process outlives the one that started it. Standard library only: ranks import this first."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to SIGKILL this process when its parent's thread ends; exit if it already has.

    torchrun starts each rank in a group of its own, so no signal to a process group reaches a
    rank whose torchrun was killed.
    """
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def be_rank() -> None:
    """What a rank does before its slow imports."""
    die_with_parent()
    name_process(f"rank {os.environ.get('RANK', '0')}")


def name_process(name: str) -> None:
    """What `ps -o comm` and `top` call this process: up to 15 bytes. Forked ones share their command line."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())
