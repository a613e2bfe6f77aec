"""What workers of a machine start for a flow run: Prefect's engine, out of reach of a Ctrl-C at the worker.

A worker that is given no command starts one more process, which makes Prefect's imports only to look for the code, and
after a crash another one, to look for hooks.
Run alone: python -m infra.engine, with the variables that a worker sets
"""

from __future__ import annotations

import os
import runpy
import sys
from contextlib import suppress
from pathlib import Path

from infra.settings import Settings

RUN = "PREFECT__FLOW_RUN_ID"


def is_engine() -> bool:
    """Whether this process is one."""
    return sys.orig_argv[1:3] == ["-m", "infra.engine"]


def runs_of(settings: Settings) -> Path:
    """Where this machine keeps locks of its flow runs."""
    return settings.home_path / "runs"


if __name__ == "__main__":
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
