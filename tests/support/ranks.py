"""Real ranks without the wait for their imports: forked from one process that has made them.

A rank started here is a process of its own with its own gloo connections; it can be killed like
any other. What is missing is torchrun's agent: when a rank dies, the others have NOTICE_S to
notice by themselves. The whole chain with torchrun is run by tests/e2e.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import torch

from tasks.distributed.contract import TrainJob
from tests.conftest import free_port, rank_variables

PRELOAD = ["tasks.distributed.train", "peft", "torch._dynamo", "tests.support.ranks"]
WAIT_S = 120
POLL_S = 0.02
NOTICE_S = 5
"""A rank that has lost another one may take this long to notice by itself."""
# bitsandbytes starts CUDA when it is imported, and a process that has cannot be forked.
forked: ForkServerContext | SpawnContext = (
    multiprocessing.get_context("spawn") if torch.cuda.is_available() else multiprocessing.get_context("forkserver"))
if isinstance(forked, ForkServerContext):
    forked.set_forkserver_preload(PRELOAD)


@dataclass(frozen=True)
class Ranks:
    """The ranks of one launch."""

    processes: list[ForkServerProcess | SpawnProcess]

    def wait(self, timeout_s: float = WAIT_S) -> list[int | None]:
        """Exit codes by rank; a rank that is still there after `timeout_s` is killed and has None."""
        deadline = time.monotonic() + timeout_s
        while any(process.is_alive() for process in self.processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in self.processes):  # torchrun would stop the others
                deadline = min(deadline, time.monotonic() + NOTICE_S)
            time.sleep(POLL_S)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    def send(self, number: signal.Signals, *, rank: int | None = None) -> None:
        """A signal to one rank, or to all of them."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            assert process.pid is not None
            os.kill(process.pid, number)


def start(job: TrainJob, ranks: int, *, constants: dict[str, Any] | None = None, **environment: Any) -> Ranks:
    """Start the trainer on `ranks` ranks; their output goes to <out>/log.txt.

    `constants`: values for names such as "tasks.distributed.attention.SHORT" in those ranks.
    """
    path, port = str(job.write()), free_port()
    processes = []
    for rank in range(ranks):
        variables = {"OMP_NUM_THREADS": 1, **environment}
        process = forked.Process(target=_rank, args=(
            path, rank_variables(rank, ranks, port) | {name: str(value) for name, value in variables.items()},
            constants or {}))
        process.start()
        processes.append(process)
    return Ranks(processes)


def run(job: TrainJob, ranks: int, **options: Any) -> list[int | None]:
    """The same to the end; exit codes by rank."""
    return start(job, ranks, **options).wait()


def _rank(path: str, environment: dict[str, str], constants: dict[str, Any]) -> None:
    os.environ.update(environment)
    with (Path(path).parent / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from tasks.distributed import train
    from tasks.distributed.contract import main_of

    for name, value in constants.items():
        module, constant = name.rsplit(".", 1)
        assert hasattr(sys.modules[module], constant), name
        setattr(sys.modules[module], constant, value)
    sys.argv = ["train", path]
    main_of(TrainJob, train.main)
