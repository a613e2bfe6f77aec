"""infra/process.py: children end when they should, and never outlive us.

Tests infra/parent_death.py too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.errors import Transient
from infra.process import ROOT, run_group, tail

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_dead(pid: int, timeout_s: float = 5) -> bool:
    deadline = time.monotonic() + timeout_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_the_exit_code_and_the_output_come_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('out'); import sys; print('err', file=sys.stderr); sys.exit(7)"]
    assert run_group(command, log=tmp_path / "log") == 7
    assert tail(tmp_path / "log").split() == ["out", "err"]


def test_a_child_killed_by_a_signal_gives_its_number(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert run_group(command, log=tmp_path / "log") == -9


def test_a_child_without_progress_is_stopped(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(Transient, match="no progress for 1 s"):
        run_group(SLEEPER, log=tmp_path / "log", progress=tmp_path / "events", stall_timeout_s=lambda: 1,
                  grace_s=lambda: 5)
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_grandchildren_in_their_own_session_are_stopped_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (f"import subprocess, sys, time; p = subprocess.Popen({SLEEPER!r}, start_new_session=True); "
            f"open({str(pid_file)!r}, 'w').write(str(p.pid)); time.sleep(60)")

    def stop_once_started() -> None:
        if pid_file.exists() and pid_file.read_text():
            time.sleep(0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_group([sys.executable, "-c", code], log=tmp_path / "log", on_poll=stop_once_started, grace_s=lambda: 2)
    assert wait_dead(int(pid_file.read_text()))


def saver(saved: Path) -> list[str]:
    """A command that takes half a second after SIGTERM to save."""
    code = ("import signal, sys, time\n"
            f"def save(*_): time.sleep(0.5); open({str(saved)!r}, 'w').write('x'); sys.exit(4)\n"
            "signal.signal(signal.SIGTERM, save); print('ready', flush=True); time.sleep(60)")
    return [sys.executable, "-c", code]


def test_who_hangs_gets_no_time_to_save(tmp_path: Path) -> None:
    saved, log = tmp_path / "saved", tmp_path / "log"

    def patience_s() -> float:
        return 0 if "ready" in tail(log) else 60

    with pytest.raises(Transient):
        run_group(saver(saved), log=log, progress=tmp_path / "events", stall_timeout_s=patience_s, grace_s=lambda: 10)
    assert "ready" in tail(log) and not saved.exists()


def test_sigterm_comes_first_and_leaves_time_to_save(tmp_path: Path) -> None:
    saved = tmp_path / "saved"

    def stop_when_ready() -> None:
        if "ready" in tail(tmp_path / "log"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_group(saver(saved), log=tmp_path / "log", on_poll=stop_when_ready, grace_s=lambda: 10)
    assert saved.exists()


def test_time_to_save_can_become_shorter_while_it_runs(tmp_path: Path) -> None:
    asked: list[float] = []

    def grace_s() -> float:
        asked.append(60 if len(asked) < 2 else 0)
        return asked[-1]

    code = ("import signal, time; signal.signal(signal.SIGTERM, lambda *_: None)\n"
            "print('ready', flush=True); time.sleep(60)")

    def stop_when_ready() -> None:
        if "ready" in tail(tmp_path / "log"):
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_group([sys.executable, "-c", code], log=tmp_path / "log", on_poll=stop_when_ready, grace_s=grace_s)
    assert asked == [60, 60, 0] and time.monotonic() - began < 30


def test_a_second_sigterm_does_not_cut_the_time_to_save(tmp_path: Path) -> None:
    """A run is told to stop by its worker and by its own thread."""
    saved = tmp_path / "saved"
    code = f"""
import os, signal, sys
from pathlib import Path
from infra.process import run_group, tail
def stop(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
def look():
    if "ready" in tail(Path({str(tmp_path / "log")!r})):
        os.kill(os.getpid(), signal.SIGTERM)
def grace_s():
    os.kill(os.getpid(), signal.SIGTERM)
    return 10
run_group({saver(saved)!r}, log=Path({str(tmp_path / "log")!r}), on_poll=look, grace_s=grace_s)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "KeyboardInterrupt" in ended.stderr and saved.exists(), ended.stderr


def test_the_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path; from infra.process import run_group\n"
            f"run_group({SLEEPER!r}, log=Path({str(tmp_path / 'log')!r}))")
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert children and wait_dead(children[0].pid)
