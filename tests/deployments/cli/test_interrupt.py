"""Ctrl-C at `anneal train` where no server runs: every process of the terminal gets it, and the training ends at once.

With the demo's own base, which ships with the project: pytest tests/deployments/cli/test_interrupt.py

Tests tasks/distributed/torchrun.py too.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deployments.cli.main import EXIT_INTERRUPTED
from deployments.examples.demo import BASE
from tests.conftest import ROOT, training_processes, wait_for

pytestmark = pytest.mark.slow

ENDS_WITHIN_S = 100
"""Its ranks have 25 s to save a checkpoint; a run that reports to a server that has gone takes eight minutes."""


@pytest.mark.usefixtures("clean_environment")
def test_ctrl_c_ends_a_training_on_its_own_server(tmp_path: Path) -> None:
    (data := tmp_path / "rows.jsonl").write_text("".join(
        json.dumps({"prompt": f"Say {number} twice.", "completion": f"{number} and {number}"}) + "\n"
        for number in range(200)))
    log, home = tmp_path / "log.txt", tmp_path / "home"
    with log.open("wb") as output:
        command = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli.main", "train", "--train-data", str(data), "--base-model",
             str(BASE), "--destination", "acme/twice", "--num-train-epochs", "1000"],
            cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "ANNEAL_HOME": str(home)})
    try:
        wait_for(lambda: "step 1/" in log.read_text(), "it does not train")
        os.killpg(command.pid, signal.SIGINT)
        assert command.wait(ENDS_WITHIN_S) == EXIT_INTERRUPTED
        wait_for(lambda: not processes_of(command.pid), "something of it is left")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
    told = log.read_text()
    assert "this training starts one for itself" in told, "it had a server of its own"
    assert "Interrupted. Run the same command again to go on." in told
    assert "stopped; checkpoint of step" in told and "are kept" in told
    for noise in ("Traceback", "Crash detected", "Connection refused", "Unable to connect", "Finished in state"):
        assert noise not in told, told
    wait_for(lambda: not training_processes(home), "a rank goes on")
    assert list(home.glob("trainings/*/step-??????")), "it goes on from there"
    with sqlite3.connect(home / "prefect" / "prefect.db") as runs:
        assert runs.execute("select state_type, state_name from flow_run").fetchall() == [("CANCELLED", "Cancelled")]
        assert "CRASHED" not in {row[0] for row in runs.execute("select state_type from task_run")}


def processes_of(group: int) -> list[int]:
    """Those of a terminal's command: its temporary server, if that is still there."""
    return [process.pid for process in psutil.process_iter() if group_of(process.pid) == group]


def group_of(process: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(process)
    return None
