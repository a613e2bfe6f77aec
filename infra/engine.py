"""What workers of a machine start for a flow run: Prefect's engine, out of reach of a Ctrl-C at the worker.

A worker that is given no command starts one more process, which makes Prefect's imports only to look for the code, and
after a crash another one, to look for hooks.
Run alone: python -m infra.engine, with the variables that a worker sets
"""

from __future__ import annotations

import os
import runpy
from contextlib import suppress

RUN = "PREFECT__FLOW_RUN_ID"


if __name__ == "__main__":
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
