"""Start commands from a process that has made their imports already: in milliseconds instead of seconds.

In:   the command of that process (tasks/distributed/warm.py), which gets one end of a socket
Talk: a line to it      {"options", "log", "environment"}: run `python options...`
      lines from it     {"pid"} of what it forked for that, then {"code"} once that has ended
Dies half-way: what it forked dies with it, and it with us; the next start brings another one.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.process import environment_with, spawn

LINE_BYTES = 1 << 16
LOOK_S = 0.5
"""So often it is looked whether it lives: what it forked may hold the socket open a little longer than it."""
ANSWERS_S = 2.0
"""It says within this time that a killed process has ended, or is killed itself."""


@dataclass(frozen=True, slots=True)
class Mother:
    """The process, and our end of the socket."""

    process: subprocess.Popen[bytes]
    talk: socket.socket

    def end(self) -> None:
        """Kill it, and so what it forked."""
        self.process.kill()
        self.process.wait()
        self.talk.close()


class Warm:
    """Used as a context: at its end the process is gone, and with it what it forked.

    Use it in one thread, which outlives what is started: the kernel ends the process with the thread.
    """

    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> None:
        """`env`: what its imports have to see, on top of our own environment."""
        self._command, self._log, self._env = command, log, env
        self._mother: Mother | None = None

    @property
    def recipe(self) -> str:
        """What `start_ahead` needs to know."""
        return json.dumps({"command": [*self._command], "log": str(self._log), "env": dict(self._env)}, sort_keys=True)

    def __enter__(self) -> Warm:
        self._mother = _ahead.pop(self.recipe, None) or self._new()
        end_those_ahead()
        return self

    def __exit__(self, *_: object) -> None:
        if self._mother is not None:
            self._mother.end()

    def spawn(self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Forked:
        """Like `infra.process.spawn`, for `sys.executable ...`. Only once what was started before has ended."""
        if self._mother is None or self._mother.process.poll() is not None:
            if self._mother is not None:
                self._mother.end()
            self._mother = self._new()
        log.parent.mkdir(parents=True, exist_ok=True)
        wanted = {"options": list(command[1:]), "log": str(log), "environment": environment_with(env)}
        with suppress(BrokenPipeError):  # the first look will find it dead
            self._mother.talk.sendall(json.dumps(wanted).encode() + b"\n")
        return Forked(self._mother)

    def _new(self) -> Mother:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = spawn([*self._command, str(theirs.fileno())], log=self._log, env=self._env,
                                pass_fds=[theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return Mother(process, ours)


_ahead: dict[str, Mother] = {}
"""Started before they were asked for, by their recipe."""


def start_ahead(recipe: str) -> None:
    """Start what the next Warm of that recipe, in this process, finds ready. Raises OSError; ValueError, KeyError or
    TypeError for what is no recipe."""
    told = json.loads(recipe)
    wanted = Warm(told["command"], log=Path(told["log"]), env=told["env"])
    _ahead[wanted.recipe] = wanted._new()


def end_those_ahead() -> None:
    """Those that nobody asked for: another recipe is made."""
    while _ahead:
        _ahead.popitem()[1].end()


class Forked:
    """What a Warm has started: as much of subprocess.Popen as infra/process.py needs."""

    def __init__(self, mother: Mother) -> None:
        self.pid = mother.process.pid
        """Not its own, which is not known at first: of the process above it."""
        self.returncode: int | None = None
        self._mother = mother
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
            rest = LOOK_S if deadline is None else deadline - time.monotonic()
            if not self._hear(min(LOOK_S, max(0.0, rest))) and rest <= 0:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return self.returncode

    def terminate(self) -> None:
        """SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL. It has ended when this returns, or is about to."""
        self._send(signal.SIGKILL)
        try:
            self.wait(ANSWERS_S)
        except subprocess.TimeoutExpired:  # who would tell is stopped, or waits for the kernel
            self._mother.process.kill()
            self.returncode = self._mother.process.wait()

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is not None:
            return
        if self._process is None:  # not forked yet, and is not to be
            self._mother.process.kill()
            return
        with suppress(psutil.NoSuchProcess):
            self._process.send_signal(number)

    def _hear(self, timeout_s: float) -> bool:
        """Take in what has been told; false if that was nothing."""
        poll = select.poll()
        poll.register(self._mother.talk, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            self.returncode = self._mother.process.poll()  # its own death, if it could not tell
            return self.returncode is not None
        try:
            found = self._mother.talk.recv(LINE_BYTES)
        except ConnectionResetError:
            found = b""
        if not found:
            self.returncode = self._mother.process.wait()
            return True
        *lines, self._heard = (self._heard + found).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "pid" in told:
                with suppress(psutil.NoSuchProcess):
                    self._process = psutil.Process(told["pid"])
            self.returncode = told.get("code", self.returncode)
        return True
