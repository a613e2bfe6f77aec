"""Measure trainers that are alive at the same time, in turns.

A contender is a process (or one per rank) that trains only when it is told to: the parent sends a number of
steps, the first rank answers with tokens and seconds. Start-up is paid once, and a slow minute of the machine
hits every contender alike. Zero steps: it answers with its validation loss and peak memory, and ends.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tasks.distributed.process_group import PATIENCE
from tasks.launcher.jobs import RAISED
from tests.benchmarks.report import say
from tests.conftest import ROOT, free_port, rank_variables

MARK = "@window "
TRIALS = 2
WINDOW_S = 10.0
"""A shorter window does not tell two variants apart on a machine that others use too."""


class Windows:
    """The contender's side: `gate` before every step, on every rank."""

    def __init__(self) -> None:
        self.tokens, self.all_tokens = 0, 0
        self._left, self._began = 0, 0.0
        self._first = os.environ.get("RANK", "0") == "0"
        self._peak = 0
        self._patient: dist.ProcessGroup | None = None

    def gate(self) -> bool:
        """Wait until steps are wanted. False: no more."""
        if self._left == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds, tokens = time.perf_counter() - self._began, self._over_ranks(self.tokens)
            self.all_tokens += tokens
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # the others of this GPU need the room while they have their turn
            if self._began:
                self.tell({"tokens": tokens, "seconds": seconds})
            else:
                self.tell({"ready": True})
            self._left = self._over_ranks(int(sys.stdin.readline() or 0) if self._first else 0)
            self.tokens, self._began = 0, time.perf_counter()
        self._left -= 1
        return self._left >= 0

    def tell(self, answer: dict[str, Any]) -> None:
        """One line to the parent."""
        if self._first:
            print(MARK + json.dumps(answer), flush=True)

    def measured(self) -> None:
        """Training is over: note peak memory, resident bytes of the first rank or of its GPU."""
        self._peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    def end(self, validation_loss: float) -> None:
        """The last answer."""
        self.tell({"validation_loss": validation_loss, "peak_memory_bytes": self._peak, "tokens": self.all_tokens})

    def _over_ranks(self, value: int) -> int:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return value
        if self._patient is None:  # while others have their turn, a contender waits for minutes
            self._patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        total = torch.tensor(value)
        dist.all_reduce(total, group=self._patient)
        return int(total)


class DiedError(RuntimeError):
    """A contender is gone before its end; the text is the error it raised."""


class Contender:
    """The parent's side of one contender. `grouped`: it wants a process group also of one rank."""

    def __init__(self, module: str, options: dict[str, Any], ranks: int, log: Path, *, grouped: bool = False) -> None:
        port, cores = free_port(), os.cpu_count() or 1
        self._processes = []
        self.tokens_a_step = 0.0
        self.seconds: list[float] = []
        """Of each window."""
        self.steps: list[int] = []
        """The same."""
        self._log, self._log_from = log, log.stat().st_size if log.exists() else 0
        with log.open("ab") as errors:
            for rank in range(ranks):
                environment = {"OMP_NUM_THREADS": str(max(1, cores // ranks)), "HF_HUB_OFFLINE": "1"}
                if ranks > 1 or grouped:
                    environment |= rank_variables(rank, ranks, port)
                self._processes.append(subprocess.Popen(
                    [sys.executable, "-m", module, json.dumps(options)], cwd=ROOT, text=True, stderr=errors,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    env={**os.environ, **environment}))
        self._answer()

    def tokens_per_s(self, steps: int) -> float:
        """Real tokens a second over so many steps, all ranks together."""
        answer = self._ask(steps)
        self.tokens_a_step = answer["tokens"] / steps
        self.seconds.append(answer["seconds"])
        self.steps.append(steps)
        return float(answer["tokens"] / answer["seconds"])

    def steps_of_a_window(self, least: int) -> int:
        """So many steps that a window takes WINDOW_S, by the last window; at least so many."""
        last_s, steps = self.seconds[-1], self.steps[-1]
        return max(least, math.ceil(WINDOW_S * steps / last_s))

    def end(self) -> dict[str, Any]:
        """Its last answer; afterwards it is gone."""
        try:
            return self._ask(0)
        finally:
            self.kill()

    def kill(self) -> None:
        """Stop it now."""
        for process in self._processes:
            process.kill()
            process.communicate()

    def _ask(self, steps: int) -> dict[str, Any]:
        stdin = self._processes[0].stdin
        assert stdin is not None
        with suppress(BrokenPipeError):  # it died while others had their turn: _answer says of what
            stdin.write(f"{steps}\n")
            stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout = self._processes[0].stdout
        assert stdout is not None
        for line in stdout:
            if line.startswith(MARK):
                return dict(json.loads(line.removeprefix(MARK)))
        self.kill()
        words = self._log.read_bytes()[self._log_from :].decode(errors="replace")
        raise DiedError((RAISED.findall(words) or words.strip().splitlines() or ["it left no word"])[-1])


def best_of(variants: dict[str, Callable[[], Contender]], steps: int) -> tuple[str, Contender]:
    """The fastest of the variants, by the best of TRIALS windows of WINDOW_S after a warm-up; it is left alive.

    A variant may die, of memory for instance. Raises DiedError when all do. On a GPU each has the memory to itself
    while it is tried, and the fastest is started once more.
    """
    best_speed, best_name, best, death = 0.0, "", None, DiedError("there are no variants")
    alone = torch.cuda.is_available() and len(variants) > 1
    for name, start in variants.items():
        try:
            contender = start()
            contender.tokens_per_s(1)
            contender.tokens_per_s(steps)
            window = contender.steps_of_a_window(steps)
            speed = max(contender.tokens_per_s(window) for _ in range(TRIALS))
        except DiedError as died:
            say(f"  tried {name:<36} died: {died}")
            death = died
            continue
        say(f"  tried {name:<36} {speed:8.0f} tokens/s")
        if alone or speed <= best_speed:
            contender.kill()
        elif best is not None:
            best.kill()
        if speed > best_speed:
            best_speed, best_name, best = speed, name, contender
    if best is None:
        raise death
    if alone:
        best = variants[best_name]()
        best.tokens_per_s(1)
    return best_name, best
