"""Several processes that open MLflow's database of a new home at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

OPENED = """
import sys
import mlflow
from infra.models.registry import Registry
from infra.settings import Settings
print("ready", flush=True)
sys.stdin.readline()
print(Registry(Settings(home=sys.argv[1])).identities())
"""


@pytest.mark.slow
def test_processes_at_once_make_one_database(tmp_path: Path) -> None:
    opening = [subprocess.Popen([sys.executable, "-c", OPENED, str(tmp_path)], cwd=ROOT, text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for _ in range(3)]
    for process in opening:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in opening:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in opening:
        out, error = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, "set()\n"), error
