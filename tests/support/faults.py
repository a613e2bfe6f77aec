"""What the tests of faults share: a disk of its own that fills up, real commands that stop at a named point.

In:   a folder, an `anneal` command line     Out: what the command said, with every promise of infra/errors.py looked at
A test that may not mount a file system skips.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.crashpoints import AT, FIRED
from tests.conftest import ROOT, wait_for
from tests.e2e.conftest import KNOBS

ENDS_S = 200
BLOCK_BYTES = 4096
RANKS = "| tasks.launcher.rank_logs -"
"""Stands before what ranks and torchrun print."""


@dataclass(frozen=True)
class Disk:
    """A file system of a few MiB in memory."""

    folder: Path

    def fill(self) -> None:
        """To the last byte."""
        with (self.folder / "filler").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(BLOCK_BYTES))

    def free(self) -> None:
        """Take away what filled it."""
        (self.folder / "filler").unlink()

    def mount(self, options: str) -> None:
        """Raises CalledProcessError where that is not allowed."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(self.folder)], check=True,
                       capture_output=True, text=True)


@contextmanager
def disk(folder: Path, mebibytes: int) -> Iterator[Disk]:
    """Mounted at that folder."""
    made = Disk(folder)
    folder.mkdir()
    try:
        made.mount(f"size={mebibytes}m")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs the right to mount a file system ({error.stderr.strip()})")
    try:
        yield made
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def training(shared: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """The parameters of a training of seconds."""
    for name, rows in (("train", 40), ("validation", 6)):
        with (shared / "data" / "mts_dialog" / f"{name}.jsonl").open(encoding="utf-8") as file:
            (folder / f"{name}.jsonl").write_text("".join(islice(file, rows)), encoding="utf-8")
    return {"train_data": str(folder / "train.jsonl"), "validation_data": str(folder / "validation.jsonl"),
            "base_model": str(shared / "models" / "stories260K" / "hf"), "destination": "acme/faults", **KNOBS,
            "checkpoint_steps": 1, **more}


def started(arguments: list[str], by: tuple[str, ...] = (), /, **environment: str) -> subprocess.Popen[str]:
    """An `anneal` command, in a session of its own. `by`: a command that becomes it."""
    return subprocess.Popen(
        [*by, sys.executable, "-m", "deployments.cli.main", *arguments], cwd=ROOT, text=True, start_new_session=True,
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[str], timeout_s: float = ENDS_S) -> subprocess.CompletedProcess[str]:
    """How it ended; a command that hangs is killed with all that it started."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        family: list[Any] = [process, *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        raise AssertionError(f"it hangs:\n{process.communicate()[1][-3000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def sentence(code: int, stderr: str) -> str:
    """What a refused command said last, which is one error; of tracebacks there is only torchrun's own, in its log."""
    assert code in (1, 2), (code, stderr[-3000:])
    own = [line for line in stderr.splitlines() if RANKS not in line]
    assert not [line for line in own if "Traceback" in line], stderr[-3000:]
    (found,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return found.removeprefix("error: ")


def stops_at(point: str, folder: Path) -> dict[str, str]:
    """The environment of a command that stops there."""
    (folder / "fired").unlink(missing_ok=True)
    return {AT: f"{point}:SIGSTOP:1", FIRED: str(folder / "fired")}


def stopped(pid: int, folder: Path) -> list[psutil.Process]:
    """The processes of a command that has come to that point."""
    found: list[psutil.Process] = []

    def look() -> bool:
        assert psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE, "it ended before"
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        with suppress(psutil.NoSuchProcess):
            found[:] = [one for one in family if one.status() == psutil.STATUS_STOPPED]
        return bool(found) and (folder / "fired").exists()

    wait_for(look, "it does not come to that point", ENDS_S)
    time.sleep(0.2)
    return found


def go_on(processes: list[psutil.Process]) -> None:
    """SIGCONT."""
    for process in processes:
        process.send_signal(signal.SIGCONT)
