"""The process that ranks are forked from: it has made their imports, and does nothing else.

In:   on a socket, a line for each launch (infra/warm.py)     Out: a process that runs it; its pid, its exit code
A rank's imports cost seconds of a processor, for each rank and at every launch; a fork costs milliseconds, and the
ranks share the memory. torchrun starts programs, so its agent runs in a fork of this process, with one change: it
forks its ranks. Rendezvous, watching and signals are torchrun's.
A process that has touched a GPU must not be forked. If an import did (bitsandbytes does), torchrun is executed as a
program, as if this process were not there. The agent has threads when it forks: its store's, in C++, and one that tells
the store every few seconds that the agent lives; what they hold, ranks do not use.
Run alone: it is not; infra/warm.py starts it.
"""

from __future__ import annotations

if __name__ == "__main__":
    import gc

    gc.disable()  # before the slow imports, of whose time collections take a fifth; `serve` enables it

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import torch.distributed.run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing import api as agents
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from infra.parent_death import die_with_parent, name_process
from tasks.distributed.contract import GPUS_SEEN

# What the modules that ranks run import; not those modules, which run as programs.
MODULES = ("tasks.distributed.build", "tasks.distributed.batches", "tasks.distributed.validation", "torch._dynamo")
TORCHRUN = ["-m", torchrun.__name__]
RANK = (sys.executable, "-u", "-m")
"""How torchrun starts a module."""
DRIVERS = ("libcuda.so", "libnvidia-ml.so")
POLL_S = 0.02


def preload(base: str) -> None:
    """Import what a training of that base needs. What cannot be imported fails again where it is needed, if it is."""
    # PEFT imports bitsandbytes, which asks the driver for GPUs.
    safe = not int(os.environ.get(GPUS_SEEN, 0)) or find_spec("bitsandbytes") is None
    modules = (*MODULES, "peft") if safe else MODULES
    loads: list[Callable[[], object]] = [*(partial(importlib.import_module, name) for name in modules),
                                         partial(model_class, base)]
    for load in loads:
        try:
            load()
        except Exception:  # noqa: BLE001  # whatever a library raises: it is not needed here
            traceback.print_exc()


def model_class(base: str) -> object:
    """Import the module of a base model's architecture."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def serve(talk: socket.socket) -> None:
    """Fork for every line until there is nobody any more who writes them."""
    mother = os.getpid()
    gc.freeze()  # else the first collection in a fork would copy every page
    gc.enable()
    with talk.makefile("rb") as lines:
        for line in lines:
            flush()
            child = os.fork()
            if child == 0:
                lines.close()
                talk.close()
                become(mother, **json.loads(line))
                sys.exit(0)
            tell(talk, pid=child)
            tell(talk, code=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def tell(talk: socket.socket, **news: int) -> None:
    """A line to who asked."""
    talk.sendall(json.dumps(news).encode() + b"\n")


def become(mother: int, options: list[str], log: str, environment: dict[str, str]) -> None:
    """Be what `python options...` would be, with its output in `log`."""
    die_with_parent(mother)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    if options[:2] != TORCHRUN or has_touched_gpu():
        os.execv(sys.executable, [sys.executable, *options])
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    agents.get_subprocess_handler = ForkingHandler  # type: ignore[assignment, attr-defined]
    try:
        torchrun.main(options[2:])
    except SignalException:  # the log says already that it was told to stop; forty lines of traceback say no more
        sys.exit(1)


def has_touched_gpu() -> bool:
    """Whether torch counted GPUs, or anything loaded a library of the driver."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return torch.cuda._is_in_bad_fork() or any(name in maps for name in DRIVERS)


class ForkingHandler(SubprocessHandler):
    """torchrun's hold on a rank, which is forked where it can be."""

    def _popen(self, args: tuple[str, ...], env: dict[str, str]) -> subprocess.Popen[bytes]:
        if args[:3] != RANK or self._stdout or self._stderr:  # under numactl, or with a log of its own
            return cast("subprocess.Popen[bytes]", super()._popen(args, env))
        agent, words = os.getpid(), args[3:]
        return cast("subprocess.Popen[bytes]", Fork(lambda: run_as_rank(agent, words, env)))


class Fork:
    """A forked process with a process group of its own: as much of subprocess.Popen as torchrun's agent needs."""

    def __init__(self, work: Callable[[], object]) -> None:
        """`work` ends by SystemExit, or by returning."""
        self.returncode: int | None = None
        flush()
        self.pid = os.fork()
        if self.pid == 0:
            run_to_end(work)
        with suppress(OSError):  # both do it, or a signal could come before the group is there
            os.setpgid(self.pid, self.pid)

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a rank", timeout)
            time.sleep(POLL_S)
        return code


def run_to_end(work: Callable[[], object]) -> NoReturn:
    """Do it and leave this process as Python would, without going back through who forked it."""
    code: Any = 1
    held: BaseException | None = None  # with its frames: freeing a process group that lost its peers can take a minute
    try:
        os.setpgid(0, 0)
        work()
        code = 0
    except SystemExit as end:
        held, code = end, end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001  # it must not go on in the agent's frames
        held = error
        sys.excepthook(type(held), held, held.__traceback__)
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as multiprocessing's forks do
            atexit._run_exitfuncs()
            flush()
        finally:
            os._exit(code if isinstance(code, int) else 1)


def run_as_rank(agent: int, words: tuple[str, ...], environment: dict[str, str]) -> None:
    """Run a module as a program, `words` being its name and arguments; of the agent's nothing is left."""
    die_with_parent(agent)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    for descriptor in sorted(int(name) for name in os.listdir("/proc/self/fd"))[3:]:
        with suppress(OSError):  # the listing's own
            os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def flush() -> None:
    """What is written but not sent would be sent by each fork once more."""
    sys.stdout.flush()
    sys.stderr.flush()


def main(run: str, base: str, descriptor: str) -> None:
    """Import, then serve. The folder `run` tells who looks at the machine's processes which training this is."""
    name_process("anneal warm")
    preload(base)
    serve(socket.socket(fileno=int(descriptor)))


if __name__ == "__main__":
    main(*sys.argv[1:])
