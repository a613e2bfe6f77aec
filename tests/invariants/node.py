"""The first node of a training, as the pipeline runs it: python -m tests.invariants.node JOB RANKS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from infra.errors import AnnealError
from infra.settings import Settings
from tasks.distributed.contract import TrainJob
from tasks.launcher.jobs import TRAIN, run_child
from tasks.launcher.nodes import machines_of

if __name__ == "__main__":
    settings, job = Settings(), TrainJob(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    ranks = int(sys.argv[2])
    try:
        run_child(settings, job, TRAIN, ranks=ranks, nodes=machines_of(settings))
    except AnnealError as error:
        sys.exit(f"{type(error).__name__}: {error}")
