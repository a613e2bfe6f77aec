"""Every benchmark that can be made small, from its command line to its JSON: pytest -m chaos tests/benchmarks

The figures of such a run say nothing; what is tested is that the program still fits the code that it measures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT, SHARED

pytestmark = [pytest.mark.slow, pytest.mark.chaos,
              pytest.mark.skipif(not SHARED.is_dir(), reason="needs the folder ../shared (real data and models)"),
              pytest.mark.skipif(find_spec("trl") is None, reason="needs the peers: pip install -e '.[bench]'")]

SMALL = {
    "gpu": ["--part", "lora"],
    "preparing": ["--sizes", "0.001", "0.002", "--part", "0.001", "--rounds", "1", "--copies", "1"],
    "large": ["--gigabytes", "0.001", "0.002"],
    "soak": ["--minutes", "1"]}
TIMEOUT_S = 900


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("name", SMALL)
def test_a_small_run_comes_to_its_figures(name: str) -> None:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *SMALL[name]]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode in (0, 1), ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert {"versions", "date", "machine", "missed", "ok"} <= found.keys()
    assert found["ok"] is (found["missed"] == []) is (ended.returncode == 0)
