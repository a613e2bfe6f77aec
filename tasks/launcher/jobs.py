"""Run one child job and say in one sentence what went wrong with it.

In:   a job (tasks/distributed/contract.py), the module that does it, the number of ranks
Out:  the child's result; raises what the child left in error.json, or what its death means
The child's output goes to log.txt, never to our own stdout: a child that holds the flow's stdout delays the detection
of the flow's death by minutes. The run's log shows it from there (tasks/launcher/rank_logs.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.errors import AnnealError, Broken, Transient, UserError, read_error
from infra.process import run_group, tail
from infra.settings import Settings
from infra.spec import TrainingSpec
from tasks.distributed.contract import ERROR, EVENTS, GPUS_SEEN, JOB, RESULT, ROOM, Job
from tasks.launcher.devices import environment, gpus, gpus_have_bf16
from tasks.launcher.nodes import Launch, Lead, NodeEnded, Nodes, interface_to, new_launch
from tasks.launcher.rank_logs import RankLines
from tasks.runs.fence import stop_grace_s

LOG = "log.txt"
TRAIN = "tasks.distributed.train"
"""The module that every node runs: a launch cannot name another."""
ALONE = Nodes()
TAIL_LINES = 12
RANK_LOST = re.compile(r"Signal \d+ \(SIG|Connection (closed|reset) by peer|Timed out waiting")
"""What torchrun and gloo say when a rank was killed or its host went away."""
RAISED = re.compile(r"^(?:\[rank\d+\]: ?)?((?!.*ChildFailedError)[\w.]+(?:Error|Exception)\b.*)", re.MULTILINE)
"""The last line of a Python traceback."""
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
"""Bars are for terminals, and what libraries will rename is not the user's business; who sets them decides."""
CONTRACT_FILES = (JOB, ROOM, EVENTS, RESULT, ERROR, LOG)
COMPILED = "TORCHINDUCTOR_CACHE_DIR"
"""Code that compiled layers run is kept there: by itself torch takes a folder in /tmp, whoever made it."""


def run_child(
    settings: Settings, job: Job, module: str, *, ranks: int | None = None, on_poll: Callable[[], None] | None = None,
    nodes: Nodes = ALONE, call: Callable[[Launch], None] | None = None, patience_s: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Run `python -m module`, or with `ranks` the same under torchrun, on all `nodes`; returns result.json.

    `call` is told of the launch, to bring the other nodes. `patience_s`: how long the ranks may tell nothing, where
    that is not always the same.

    Raises:
        AnnealError: as the child said, or Transient with the log's end if it said nothing.
    """
    path = job.write()
    log = path.with_name(LOG)
    log.unlink(missing_ok=True)
    look = on_poll or (lambda: None)
    launch = new_launch(nodes, ranks or 1, path)
    command = ["-m", module, str(path)] if ranks is None else launch.torchrun(0, module)
    environment = rank_environment(settings, ranks or 1) | interface_to(launch, os.environ)
    with Lead(settings.home_path, launch) as lead, RankLines(path.parent) as lines:

        def poll() -> None:
            lead.beat()
            look()
            lines.look()

        try:
            if call is not None:
                call(lead.launch)
            lead.wait_for_all(settings.join_timeout_s, look)
            code = run_group(
                [sys.executable, *command], log=log, env=environment, on_poll=poll,
                progress=path.with_name(EVENTS) if ranks else None,
                stall_timeout_s=patience_s or (lambda: settings.stall_timeout_s),
                grace_s=lambda: stop_grace_s(settings))
        except NodeEnded as ended:
            raise read_error(path.with_name(ERROR), 1) or Transient(
                str(ended), where="training", fix=f"Its log is beside {log}.") from ended
    if code != 0:
        raise failure(path.parent, code, module)
    return dict(json.loads(path.with_name(RESULT).read_text(encoding="utf-8")))


def rank_environment(settings: Settings, ranks: int) -> dict[str, str]:
    """What each of this machine's ranks is told beside torchrun's own variables."""
    threads = str(settings.threads_for(ranks))
    quiet = {name: os.environ.get(name, value) for name, value in QUIET.items()}
    return {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", GPUS_SEEN: str(len(gpus())), **quiet,
            COMPILED: compiled_in(settings), **environment()}


def compiled_in(settings: Settings) -> str:
    """Where this machine's ranks keep the code of compiled layers. A value that torch has put into our own environment,
    its default for all programs, is not a user's."""
    given = os.environ.get(COMPILED, "")
    if given and not Path(given).name.startswith("torchinductor_"):
        return given
    return str(settings.home_path / "compiled" / socket.gethostname())


def rank_log(run: Path, node: int) -> Path:
    """A node's own log beside that of the first: several must not write to one file of a shared file system."""
    path = run / LOG
    return path.with_stem(f"{path.stem}-node{node}") if node else path


def failure(folder: Path, code: int, module: str) -> AnnealError:
    """What a child's end means."""
    told = read_error(folder / ERROR, code)
    if told is not None:
        return told
    log = tail(folder / LOG, lines=200)
    name = module.rsplit(".", 1)[-1]
    cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if said := RAISED.findall(log):  # torchrun's banner comes after it
        cause += f" ({said[-1]})"
    kind = Transient if code < 0 or RANK_LOST.search(log) else Broken
    return kind(f"the child process ended with {cause}", where=name,
                fix="The end of its log:\n" + "\n".join(log.splitlines()[-TAIL_LINES:]))


def settled(spec: TrainingSpec) -> TrainingSpec:
    """The spec with what `precision=auto` means on this machine: bf16 on GPUs that have it, fp32 on every CPU.

    Two CPUs then give one training; whether bf16 is faster there depends on the CPU and on the model.
    """
    if spec.precision != "auto":
        return spec
    return dataclasses.replace(spec, precision="bf16" if gpus() and gpus_have_bf16() else "fp32")


def ranks_of(wanted: int) -> int:
    """Training processes for a spec's num_ranks. Raises UserError for more than there are GPUs."""
    if gpus() and wanted > len(gpus()):
        raise UserError(f"num_ranks is {wanted}", allowed=f"at most {len(gpus())}, one a GPU of this machine")
    return wanted or len(gpus()) or 1
