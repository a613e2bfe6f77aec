"""What a worker starts for a flow run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from uuid import uuid4

import pytest

from infra.engine import RUN

NOWHERE = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}


@pytest.mark.slow
def test_the_engine_is_prefects_in_a_session_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent("""
        import atexit, os, sys
        atexit.register(lambda: print("session of its own:", os.getsid(0) == os.getpid(), file=sys.stderr))
    """))
    run = str(uuid4())
    engine = subprocess.run(
        [sys.executable, "-m", "infra.engine"], capture_output=True, text=True, check=False,
        env={**os.environ, **NOWHERE, RUN: run, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    assert engine.returncode != 0 and "prefect" in engine.stderr.lower(), "it was Prefect's engine, without a server"
    assert run in engine.stderr or "connect" in engine.stderr.lower()
    assert "session of its own: True" in engine.stderr
