"""Start commands from a process that has made their imports already: in milliseconds instead of seconds.

In:   the command of that process (tasks/distributed/warm.py), which gets one end of a socket
Talk: a line to it      {"options", "log", "environment"}: run `python options...`
      lines from it     {"pid"} of what it forked for that, then {"code"} once that has ended
Dies half-way: what it forked dies with it, and it with us; the next start brings another one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from infra.launch import ROOT, spawn

LINE_BYTES = 1 << 16
ANSWERS_S = 2.0
"""It says that a killed process has ended within this time, or is killed itself."""


class Warm:
    """Used as a context: at its end the process is gone, and with it what it forked.

    Use it in one thread, which outlives what is started: the kernel ends the process with the thread.
    """

    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> None:
        """`env`: what its imports have to see, on top of our own environment."""
        self._command, self._log, self._env = command, log, env
        self._mother: subprocess.Popen[bytes] | None = None
        self._talk: socket.socket | None = None

    def __enter__(self) -> Warm:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def spawn(self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Forked:
        """Like `infra.launch.spawn`, for `sys.executable -m module...`. One at a time."""
        if self._mother is None or self._talk is None or self._mother.poll() is not None:
            self._end()
            self._start()
        assert self._mother is not None and self._talk is not None
        log.parent.mkdir(parents=True, exist_ok=True)
        wanted = {"options": list(command[1:]), "log": str(log), "environment": {**_environment(), **(env or {})}}
        with suppress(BrokenPipeError):  # the first look will find it dead
            self._talk.sendall(json.dumps(wanted).encode() + b"\n")
        return Forked(self._mother, self._talk)

    def _start(self) -> None:
        self._talk, theirs = socket.socketpair()
        with theirs:
            self._mother = spawn(
                [*self._command, str(theirs.fileno())], log=self._log, env=self._env, pass_fds=[theirs.fileno()])

    def _end(self) -> None:
        if self._mother is not None:
            self._mother.kill()
            self._mother.wait()
        if self._talk is not None:
            self._talk.close()


class Forked:
    """What a Warm has started: as much of subprocess.Popen as infra/launch.py needs."""

    def __init__(self, mother: subprocess.Popen[bytes], talk: socket.socket) -> None:
        self.pid = mother.pid
        """Of the process above all of it."""
        self.returncode: int | None = None
        self._mother, self._talk = mother, talk
        self._process: psutil.Process | None = None
        self._heard = b""

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        while self.returncode is None and self._hear(0):
            pass
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            if not self._hear(None if deadline is None else max(0.0, deadline - time.monotonic())):
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return self.returncode

    def terminate(self) -> None:
        """SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL. It has ended when this returns."""
        self._send(signal.SIGKILL)
        try:
            self.wait(ANSWERS_S)
        except subprocess.TimeoutExpired:  # somebody has stopped the one who would tell
            self._mother.kill()
            self.wait()

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is not None:
            return
        if self._process is None:  # not forked yet, and is not to be
            self._mother.kill()
            return
        with suppress(psutil.NoSuchProcess):
            self._process.send_signal(number)

    def _hear(self, timeout_s: float | None) -> bool:
        """Take in what has been told; false if that was nothing."""
        if not select.select([self._talk], [], [], timeout_s)[0]:
            return False
        try:
            found = self._talk.recv(LINE_BYTES)
        except ConnectionResetError:
            found = b""
        if not found:
            self.returncode = self._mother.wait()
            return True
        *lines, self._heard = (self._heard + found).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "pid" in told:
                with suppress(psutil.NoSuchProcess):
                    self._process = psutil.Process(told["pid"])
            self.returncode = told.get("code", self.returncode)
        return True


def _environment() -> dict[str, str]:
    """Ours, with the project on Python's path, as for what `infra.launch.spawn` starts."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
