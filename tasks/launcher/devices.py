"""The GPUs of this machine: which there are, and which of them a step has for its own.

In:   nvidia-smi, CUDA_VISIBLE_DEVICES     Out: devices that no other training on this machine uses meanwhile
A lock file for each device says so, whoever starts the training and with whatever server.
Dies half-way: the kernel drops the locks at once.
"""

from __future__ import annotations

import contextvars
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

from infra.errors import UserError
from infra.spec import TrainingSpec
from tasks.launcher.gpu_locks import LockFolder

LOCK_POLL_S = 1.0
BF16_CAPABILITY = 8.0
log = logging.getLogger(__name__)
_held: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("held", default=())


@cache
def gpus() -> tuple[str, ...]:
    """Names of this machine's GPUs, asked without torch."""
    names = _asked("name")
    visible = visible_devices()
    return names if visible is None else names[: len(visible)]


@cache
def gpus_have_bf16() -> bool:
    """Whether all of them compute in bf16: compute capability 8.0 (Ampere) or more. One that does not tell passes."""
    told = [capability for capability in _asked("compute_cap") if capability.replace(".", "").isdecimal()]
    return all(float(capability) >= BF16_CAPABILITY for capability in told)


def refuse_optimizer(spec: TrainingSpec) -> None:
    """Raise UserError for an optimizer that this machine does not have."""
    if spec.optimizer != "adamw_8bit":
        return
    lacks = "there is no CUDA device" if not gpus() else "" if find_spec("bitsandbytes") else (
        "bitsandbytes is not installed")
    if lacks:
        raise UserError(f"optimizer is adamw_8bit, and {lacks}", where="this machine", allowed="adamw",
                        fix="Leave optimizer out, or train on a machine with a GPU and pip install 'anneal[gpu]'.")


def _asked(what: str) -> tuple[str, ...]:
    """What nvidia-smi says of each GPU; nothing without it."""
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in found.splitlines() if line.strip())


def visible_devices() -> tuple[str, ...] | None:
    """What CUDA_VISIBLE_DEVICES names: numbers or ids of devices; None where it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    # CUDA takes the devices before the first one that is not there; -1 is the usual way to say none.
    return tuple(takewhile(lambda device: device not in ("", "-1"), map(str.strip, visible.split(","))))


@contextmanager
def held(count: int, folder: Path, look: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Lock that many devices, all or none, waiting as long as it takes; `environment` then names them.

    `folder`: where the locks lie, `lock_folder` of ANNEAL_GPU_LOCKS. What `look` raises ends the wait. Raises UserError
    for a folder or a lock that other users could turn against us.
    """
    candidates = visible_devices() or tuple(map(str, range(len(gpus()))))
    while count > 0:
        with LockFolder(folder) as locks, ExitStack() as stack:
            mine: list[str] = []
            for device in candidates:
                if len(mine) < count and (lock := locks.take(device)):
                    stack.enter_context(lock)
                    mine.append(device)
            if len(mine) == count:
                token = _held.set(tuple(mine))
                try:
                    yield
                finally:
                    _held.reset(token)
                return
        log.info("waiting for %d GPUs, %d are free", count, len(mine))
        look()
        time.sleep(LOCK_POLL_S)
    yield


def environment() -> dict[str, str]:
    """Shows a child only the devices that are held for it."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(_held.get())} if _held.get() else {}
