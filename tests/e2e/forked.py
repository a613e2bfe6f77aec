"""`anneal` commands without the wait for their imports: forked from one process that has made them.

In:   lines of JSON on stdin: what to start, or the process to ask after     Out: a line each, its id or its exit code
A command started here is a process of its own like any other; five CPU seconds of imports become 20 ms. One that
still runs when the server ends goes with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.parent_death import die_with_parent
from tests.conftest import ROOT

POLL_S = 0.02


class Commands:
    """The process that forks."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.forked"], cwd=ROOT, env={**os.environ, **environment}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, arguments: list[str], output: Path, **environment: str) -> Command:
        """An `anneal` command, its output in files."""
        output = Path(tempfile.mkdtemp(dir=output))
        pid = self.ask({"arguments": arguments, "output": str(output),
                        "environment": {**os.environ, **self._environment, **environment}})
        assert pid is not None
        return Command(self, pid, output)

    def ask(self, wanted: dict[str, Any]) -> int | None:
        """One line there, one back."""
        assert self._server.stdin and self._server.stdout
        print(json.dumps(wanted), file=self._server.stdin, flush=True)
        answer: int | None = json.loads(self._server.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self._server.kill()
        self._server.communicate()


@dataclass
class Command:
    """A command that was started."""

    server: Commands
    pid: int
    folder: Path

    def wait(self, timeout_s: float, look: Callable[[], object] = lambda: None) -> int:
        """Its exit code, negative where a signal killed it; `look` is called all the while."""
        deadline = time.monotonic() + timeout_s
        while (code := self.server.ask({"poll": self.pid})) is None:
            look()
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"the command does not end:\n{self.stderr}")
            time.sleep(POLL_S)
        return code

    @property
    def stdout(self) -> str:
        """What it printed."""
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it said beside that."""
        return (self.folder / "stderr").read_text()


def serve() -> None:
    """Answer every line."""
    import mlflow  # noqa: F401
    import s3fs  # noqa: F401

    import deployments.cli.main
    import flows.finetune  # noqa: F401

    for line in sys.stdin:
        wanted: dict[str, Any] = json.loads(line)
        if "poll" in wanted:
            pid, status = os.waitpid(wanted["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            run(wanted, deployments.cli.main.main)


def run(wanted: dict[str, Any], main: Callable[[list[str]], int]) -> None:
    """Be the command; does not return."""
    code = 1
    try:
        die_with_parent()
        for number, name in enumerate(("stdout", "stderr"), 1):
            os.dup2(os.open(Path(wanted["output"]) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        tempfile.tempdir = None
        code = main(wanted["arguments"])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
