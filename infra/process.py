"""Run a child process group that cannot outlive us, hang unseen, or lose its output.

In:   a command, a log file     Out: the exit code; the child's stdout and stderr in the log
Dies half-way: the kernel kills the child when this process dies (PR_SET_PDEATHSIG); ranks do
the same towards torchrun. The child is its own session, so that a terminal's Ctrl-C reaches
only us, and we decide: SIGTERM, a grace period to save a checkpoint (none for who hangs), then SIGKILL to the tree.
Run alone: python -m infra.process PARENT_PID COMMAND...   (the wrapper the child starts as)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from infra.errors import Transient
from infra.parent_death import die_with_parent
from infra.redaction import is_secret

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.25
LOG_TAIL_BYTES = 16_000


def run_group(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None,
    on_poll: Callable[[], None] | None = None, progress: Path | None = None,
    stall_timeout_s: Callable[[], float] = lambda: 900.0, grace_s: Callable[[], float] = lambda: 25.0,
) -> int:
    """Run `command` to its end and return its exit code (negative: killed by that signal).

    Args:
        on_poll: called about four times a second while the child runs; may raise to stop it.
        progress: a file that grows while the child gets on; without it nothing counts as a stall.
        stall_timeout_s: how long it may stay as it is, asked anew at every look.
        grace_s: how long it may take to end after SIGTERM, asked anew while it ends.

    Raises:
        Transient: `progress` did not change for that long.
    """
    child = spawn(command, log=log, env=env)
    members: set[psutil.Process] = set()
    last_change, last_size = time.monotonic(), -1
    try:
        while child.poll() is None:
            members |= _descendants(child.pid)
            if on_poll is not None:
                on_poll()
            size = _size(progress)
            if size != last_size:
                last_change, last_size = time.monotonic(), size
            limit_s = stall_timeout_s()
            if progress is not None and time.monotonic() - last_change > limit_s:
                grace_s = no_grace  # who hangs does not come to the end of a step, where it could save
                raise Transient(
                    f"no progress for {limit_s:.0f} s", where=str(command[-1]),
                    fix="The processes were stopped; the next try resumes at the last checkpoint.")
            _wait(child, POLL_S)
        stop_tree(child, members, no_grace)
        return child.wait()
    except BaseException:
        with undisturbed():
            stop_tree(child, members, grace_s)
        raise


def spawn(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, tied: bool = True,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, output to `log`; `tied`: it dies with us."""
    log.parent.mkdir(parents=True, exist_ok=True)
    wrapper = [sys.executable, "-m", "infra.process", str(os.getpid())] if tied else []
    with log.open("ab") as output:
        return subprocess.Popen(
            [*wrapper, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env=environment_with(env, secrets=not tied))


def environment_with(env: Mapping[str, str] | None, *, secrets: bool = False) -> dict[str, str]:
    """What a child sees: our own environment with the project on Python's path, and `env` over it.

    `secrets`: with our passwords and keys. Services need them; ranks and other children read and write files alone.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    ours = os.environ if secrets else {name: value for name, value in os.environ.items() if not is_secret(name, value)}
    return {**ours, "PYTHONPATH": path, **(env or {})}


@contextmanager
def undisturbed() -> Iterator[None]:
    """While children are ended: another SIGTERM, to whoever ends already, must not leave one of them alive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def no_grace() -> float:
    """For who cannot save anything."""
    return 0.0


def stop_tree(child: subprocess.Popen[bytes], members: set[psutil.Process], grace_s: Callable[[], float]) -> None:
    """SIGTERM the child, wait, then SIGKILL it and every process it ever had.

    torchrun passes SIGTERM on to its ranks, which live in groups of their own.
    """
    members |= _descendants(child.pid)
    if child.poll() is None:
        child.terminate()
        told = time.monotonic()
        while child.poll() is None and time.monotonic() - told < grace_s():
            _wait(child, POLL_S)
    if child.poll() is None:
        child.kill()
        child.wait()
    for process in members:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(members, timeout=5)


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _size(progress: Path | None) -> int:
    try:
        return progress.stat().st_size if progress else -1
    except FileNotFoundError:  # not yet, or no longer
        return -1


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
