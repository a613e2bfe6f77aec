"""A machine runs out of memory, its clock jumps: pytest -m chaos tests/security/test_machine_faults.py

The kernel's own killer ends what does not fit into a control group; a small library between the processes and the C
library moves their clock.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from infra.models.registry import Registry
from infra.settings import Settings
from infra.storage.store import Store
from tests.conftest import needed, wait_for
from tests.e2e.conftest import checkpointed, options, ranks_of
from tests.support import faults

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

KINDS = ((Path("/sys/fs/cgroup/memory"), "memory.usage_in_bytes", "memory.limit_in_bytes"),
         (Path("/sys/fs/cgroup"), "memory.current", "memory.max"))
"""Of control groups: where one is made, what it uses, what it may use."""
MARGIN_BYTES, HOG_BYTES = 32 << 20, 96 << 20
HOG = f"open('/proc/self/oom_score_adj', 'w').write('-1000'); b'x' * {HOG_BYTES}"
DAY_S = 86_400
LONG = {"num_train_epochs": 40, "max_steps": 40, "checkpoint_steps": 4}
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

/* Seconds by which the clock is off, from a file that a test writes. */
static long off(void) {
    const char *path = getenv("TEST_CLOCK");
    FILE *file = path ? fopen(path, "r") : NULL;
    long seconds = 0;
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, now);
    if (code == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += off();
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    int code = clock_gettime(CLOCK_REALTIME, &exact);
    if (now) { now->tv_sec = exact.tv_sec; now->tv_usec = exact.tv_nsec / 1000; }
    return code;
}

time_t time(time_t *where) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (where) *where = exact.tv_sec;
    return exact.tv_sec;
}
"""


@dataclass(frozen=True)
class Group:
    """A control group of memory."""

    folder: Path
    usage: str
    limit: str

    @property
    def joined(self) -> tuple[str, ...]:
        """The command that joins it and becomes another."""
        return "sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(self.folder)

    def kill_for_memory(self, victim: psutil.Process) -> None:
        """Let the kernel kill that one, when another process of the group wants more than there is."""
        Path("/proc", str(victim.pid), "oom_score_adj").write_text("1000")
        most = int((self.folder / self.usage).read_text()) + MARGIN_BYTES
        (self.folder / self.limit).write_text(str(most))
        subprocess.run([*self.joined, sys.executable, "-c", HOG], check=True, timeout=60)
        (self.folder / self.limit).write_text(str(1 << 40))
        wait_for(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE,
                 "the kernel does not kill it", 60)


@pytest.fixture
def group() -> Iterator[Group]:
    """Skips where none can be made."""
    for root, usage, limit in KINDS:
        made = Group(root / f"anneal-test-{os.getpid()}", usage, limit)
        if (root / limit).exists() or (root / "cgroup.controllers").exists():
            with suppress(OSError):
                made.folder.mkdir()
                break
    else:
        pytest.skip("needs the right to make control groups of memory")
    yield made
    for pid in (made.folder / "cgroup.procs").read_text().split():
        psutil.Process(int(pid)).kill()
    wait_for(lambda: not (made.folder / "cgroup.procs").read_text(), "a process stays in the group", 30)
    made.folder.rmdir()


def events_of(home: Path, training: str) -> list[str]:
    """What the finished training told."""
    path = Store(Settings(home=home)).fetch(f"trainings/{training}") / "events.jsonl"
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_the_kernel_kills_a_rank_and_then_the_command_for_memory(
    shared: Path, tmp_path: Path, group: Group,
) -> None:
    home = tmp_path / "home"
    command = ["train", "--json", "--no-deploy", *options(faults.training(shared, tmp_path, **LONG))]
    process = faults.started(command, group.joined, ANNEAL_HOME=str(home))
    checkpointed(process, home)
    group.kill_for_memory(ranks_of(process)[-1])
    (told,) = home.glob("trainings/*/events.jsonl")
    wait_for(lambda: '"resume"' in told.read_text(), "it does not go on")
    ranks = ranks_of(process)
    group.kill_for_memory(psutil.Process(process.pid))
    process.wait(30)  # its temporary Prefect server outlives it and holds the pipes
    assert process.returncode == -signal.SIGKILL
    assert ranks and psutil.wait_procs(ranks, timeout=10)[1] == []

    done = faults.ended(faults.started(command, ANNEAL_HOME=str(home)))
    assert done.returncode == 0, done.stderr[-3000:]
    version = json.loads(done.stdout)
    events = events_of(home, version["training_id"])
    assert events.count("resume") >= 2 and events.count("done") == 1
    assert len(Registry(Settings(home=home)).client.search_model_versions("name='acme--faults'")) == 1


def test_a_clock_that_jumps_by_a_day_and_back_harms_no_training(shared: Path, tmp_path: Path) -> None:
    needed("cc", "gcc")
    source, library, clock, home = (tmp_path / name for name in ("clock.c", "clock.so", "clock", "home"))
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    clock.write_text("0")
    command = ["train", "--json", "--no-deploy", *options(faults.training(shared, tmp_path, **LONG))]
    process = faults.started(command, ANNEAL_HOME=str(home), LD_PRELOAD=str(library), TEST_CLOCK=str(clock))
    checkpointed(process, home)
    clock.write_text(str(DAY_S))
    time.sleep(3)
    assert process.poll() is None
    clock.write_text("0")
    finished = faults.ended(process)
    assert finished.returncode == 0, finished.stderr[-3000:]
    version = json.loads(finished.stdout)
    told = events_of(home, version["training_id"])
    assert "resume" not in told and told.count("done") == 1
    assert len(Registry(Settings(home=home)).client.search_model_versions("name='acme--faults'")) == 1
