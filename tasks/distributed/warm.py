"""The process that ranks are forked from: it has made their imports, and does nothing else.

In:   on a socket, a line for each launch (infra/warm.py)     Out: a process that runs it; its pid, its exit code
A rank's imports cost seconds of a processor, for each rank and at every launch; a fork costs milliseconds, and the
ranks share the memory. torchrun cannot: it starts a program for each rank. So its agent runs in a fork of this
process, and starts ranks by forking itself.
This process has one thread and never touches a GPU, as one that is forked must not. Where an import did (bitsandbytes
does), the command is started as a program, as if this process were not there.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from contextlib import suppress
from importlib.util import find_spec

import torch
import torch.distributed.run as torchrun
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.launcher.api import elastic_launch

from infra.orphan import die_with_parent, name_process
from tasks.distributed.job import GPUS_SEEN

# What the modules that ranks run import; not those modules, which run as programs.
MODULES = ("tasks.distributed.build", "tasks.distributed.data", "tasks.distributed.validation", "torch._dynamo")
TORCHRUN = ["-m", torchrun.__name__]


def preload(base: str) -> None:
    """Import what a training of that base needs. What cannot be imported fails again where it is needed."""
    with suppress(ImportError, OSError, ValueError, KeyError):
        for module in MODULES:
            importlib.import_module(module)
        # PEFT imports bitsandbytes, which asks the driver for GPUs.
        if not int(os.environ.get(GPUS_SEEN, 0)) or find_spec("bitsandbytes") is None:
            importlib.import_module("peft")
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # imports the model's own module


def serve(talk: socket.socket) -> None:
    """Fork for every line until there is nobody any more who writes them."""
    mother = os.getpid()
    gc.freeze()  # else the first collection in a fork would copy every page
    with talk.makefile("rb") as lines:
        for line in lines:
            child = os.fork()
            if child == 0:
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
    if options[:2] != TORCHRUN or torch.cuda._is_in_bad_fork():
        os.execv(sys.executable, [sys.executable, *options])
    name_process("torchrun")
    agent(options[2:])


@record
def agent(options: list[str]) -> None:
    """torchrun with those options, of ranks that are forked."""
    wanted = torchrun.parse_args(options)
    config, _, _ = torchrun.config_from_args(wanted)
    config.start_method = "fork"
    elastic_launch(config, rank)(str(os.getpid()), wanted.training_script, *wanted.training_script_args)


def rank(agent_pid: str, module: str, *arguments: str) -> None:
    """Run a module as a program, as one of the ranks. What the agent does with signals is not for them."""
    die_with_parent(int(agent_pid))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise


def main(run: str, base: str, descriptor: str) -> None:
    """Import, then serve. The folder `run` is only for who looks at command lines."""
    name_process("anneal warm")
    preload(base)
    serve(socket.socket(fileno=int(descriptor)))


if __name__ == "__main__":
    main(*sys.argv[1:])
