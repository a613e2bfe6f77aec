"""infra/warm.py: what is started from a process that has imported already behaves like a process of one's own."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.errors import Transient
from infra.launch import run_group, tail
from infra.warm import Forked, Warm
from tests.conftest import wait_for

NOBODY = "/nobody/has/this/base"
BAD_FORK = ("import sys, torch; torch.cuda._is_in_bad_fork = lambda: True; "
            "from tasks.distributed.warm import main; main(*sys.argv[1:])")
SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


def command(tmp_path: Path) -> list[str]:
    return [sys.executable, "-m", "tasks.distributed.warm", str(tmp_path), NOBODY]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """One that has started something, and so has made its imports."""
    folder = tmp_path_factory.mktemp("warm")
    with Warm(command(folder), log=folder / "warm", env={}) as imported:
        assert run_group([sys.executable, "-c", "pass"], log=folder / "log", start=imported.spawn) == 0
        yield imported
    assert not psutil.Process().children(recursive=True)


def mother() -> psutil.Process:
    """The one child of ours that waits for lines."""
    (found,) = (child for child in psutil.Process().children() if "tasks.distributed.warm" in child.cmdline())
    return found


def begun(imported: Warm, tmp_path: Path) -> Forked:
    """Something that sleeps by now."""
    child = imported.spawn(SLEEPS, log=tmp_path / "log")
    wait_for(lambda: mother().children() and child.poll() is None)
    child.poll()
    return child


def test_exit_codes_output_and_environment_are_those_of_the_command(imported: Warm, tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['HERE']); print('err', file=sys.stderr); sys.exit(int(os.environ['CODE']))"
    for number in (0, 7):
        log = tmp_path / "runs" / f"log{number}"
        assert run_group([sys.executable, "-c", code], log=log, start=imported.spawn,
                         env={"HERE": f"run {number}", "CODE": str(number)}) == number
        assert sorted(tail(log).splitlines()) == ["err", f"run {number}"]
    assert run_group([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log=log, start=imported.spawn) == -9


def test_it_has_one_thread_and_stays_for_the_next(imported: Warm, tmp_path: Path) -> None:
    before = mother()
    assert run_group([sys.executable, "-c", "pass"], log=tmp_path / "log", start=imported.spawn) == 0
    assert mother() == before
    assert before.num_threads() == 1, "one with more cannot be forked safely"


@pytest.mark.parametrize(("method", "code"), [("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL)])
def test_it_ends_when_told(imported: Warm, tmp_path: Path, method: str, code: int) -> None:
    child = begun(imported, tmp_path)
    getattr(child, method)()
    assert child.wait(5) == code


def test_without_progress_what_it_forked_is_stopped(imported: Warm, tmp_path: Path) -> None:
    before = mother()
    with pytest.raises(Transient, match="no progress for 1 s"):
        run_group(SLEEPS, log=tmp_path / "log", progress=tmp_path / "events", stall_timeout_s=lambda: 1,
                  start=imported.spawn)
    assert psutil.Process().children(recursive=True) == [before], "it stays for the next"


def test_a_killed_one_takes_what_it_forked_with_it_and_another_takes_its_place(imported: Warm, tmp_path: Path) -> None:
    child, before = begun(imported, tmp_path), mother()
    forked = before.children()
    assert len(forked) == 1
    before.kill()
    assert child.wait(5) == -signal.SIGKILL
    assert psutil.wait_procs(forked, timeout=5)[1] == []
    assert run_group([sys.executable, "-c", "pass"], log=tmp_path / "log", start=imported.spawn) == 0
    assert mother() != before


def test_a_stopped_one_does_not_hold_up_who_kills(imported: Warm, tmp_path: Path) -> None:
    child, before = begun(imported, tmp_path), mother()
    before.suspend()
    child.kill()
    assert child.returncode == -signal.SIGKILL and not before.is_running()


def test_what_is_told_to_end_before_it_began_never_begins(tmp_path: Path) -> None:
    with Warm(command(tmp_path), log=tmp_path / "warm", env={}) as imported:
        child = imported.spawn([sys.executable, "-c", f"open({str(tmp_path / 'began')!r}, 'w')"], log=tmp_path / "log")
        child.terminate()
        assert child.wait(5) == -signal.SIGKILL
        assert run_group([sys.executable, "-c", "pass"], log=tmp_path / "log", start=imported.spawn) == 0
        assert not (tmp_path / "began").exists()


def test_one_that_cannot_start_says_so_by_its_code(tmp_path: Path) -> None:
    with Warm([sys.executable, "-c", "import sys; sys.exit(3)"], log=tmp_path / "warm", env={}) as imported:
        time.sleep(0.5)
        assert run_group(SLEEPS, log=tmp_path / "log", start=imported.spawn) == 3


def test_where_an_import_touched_a_gpu_torchrun_is_a_program(tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text(
        "import json, os, psutil; print(json.dumps([psutil.Process().ppid(), psutil.Process(os.getppid()).cmdline()]))")
    with Warm([sys.executable, "-c", BAD_FORK, str(tmp_path), NOBODY], log=tmp_path / "warm", env={}) as imported:
        code = run_group([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "-m", "seen"],
                         log=tmp_path / "log", start=imported.spawn,
                         env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])})
    assert code == 0, tail(tmp_path / "log")
    _, parent = json.loads(tail(tmp_path / "log").splitlines()[-1])
    assert "torch.distributed.run" in parent
