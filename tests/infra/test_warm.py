"""infra/warm.py: what is started from a process that has imported already behaves like a process of one's own."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.errors import Transient
from infra.process import ROOT, run_group, tail
from infra.settings import Settings
from infra.warm import Forked, Warm
from tasks.launcher.jobs import warm
from tests.conftest import wait_for

NOBODY = "/nobody/has/this/base"
BAD_FORK = ("import sys, torch; torch.cuda._is_in_bad_fork = lambda: True; "
            "from tasks.distributed.warm import main; main(*sys.argv[1:])")
SLEEPS = [sys.executable, "-c", "import time; print('sleeps', flush=True); time.sleep(60)"]


def command(tmp_path: Path) -> list[str]:
    return [sys.executable, "-m", "tasks.distributed.warm", str(tmp_path), NOBODY]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """One that has started something, and so has made its imports. Programs lie in the folder above all tests' own."""
    folder = tmp_path_factory.mktemp("warm")
    with Warm(command(folder), log=folder / "warm", env=on_path(folder.parent)) as imported:
        assert run_group([sys.executable, "-c", "pass"], log=folder / "log", start=imported.spawn) == 0
        yield imported
    assert family() == []


def family() -> list[psutil.Process]:
    """Those of our children that wait for lines, and all that came of them."""
    mothers = [child for child in psutil.Process().children() if "tasks.distributed.warm" in child.cmdline()]
    return mothers + [child for one in mothers for child in one.children(recursive=True)]


def mother() -> psutil.Process:
    """The one child of ours that waits for lines."""
    return family()[0]


def begun(imported: Warm, tmp_path: Path) -> Forked:
    """Something that sleeps by now."""
    child = imported.spawn(SLEEPS, log=tmp_path / "log")
    wait_for(lambda: "sleeps" in tail(tmp_path / "log"))
    return child


def test_exit_codes_output_and_environment_are_those_of_the_command(imported: Warm, tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['HERE']); print('err', file=sys.stderr); sys.exit(int(os.environ['CODE']))"
    for number in (0, 7):
        log = tmp_path / "runs" / f"log{number}"
        assert run_group([sys.executable, "-c", code], log=log, start=imported.spawn,
                         env={"HERE": f"run {number}", "CODE": str(number)}) == number
        assert sorted(tail(log).splitlines()) == ["err", f"run {number}"]
    assert run_group([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log=log, start=imported.spawn) == -9


def test_it_stays_for_the_next(imported: Warm, tmp_path: Path) -> None:
    before = mother()
    assert run_group([sys.executable, "-c", "pass"], log=tmp_path / "log", start=imported.spawn) == 0
    assert mother() == before


def test_it_has_one_thread_before_it_forks(tmp_path: Path) -> None:
    """One with more cannot be forked safely."""
    with warm(Settings(home=tmp_path, threads=4), tmp_path, NOBODY, 1) as imported:
        process = imported._mother.process if imported._mother else None
        assert process is not None
        wait_for(lambda: NOBODY in (tmp_path / "warm.txt").read_text(), "it has not made its imports", 60)
        assert psutil.Process(process.pid).num_threads() == 1


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
    assert family() == [before], "it stays for the next"


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
    with Warm([sys.executable, "-c", BAD_FORK, str(tmp_path), NOBODY], log=tmp_path / "warm", env={}) as imported:
        code = torchrun(imported, tmp_path, "import os, psutil; print(psutil.Process(os.getppid()).cmdline())")
    assert code == 0, tail(tmp_path / "log")
    assert "torch.distributed.run" in tail(tmp_path / "log").splitlines()[-1]


def test_what_cannot_be_imported_early_is_told_and_nothing_else_happens(tmp_path: Path) -> None:
    (tmp_path / "peft.py").write_text("raise RuntimeError('a broken library')")
    with Warm(command(tmp_path), log=tmp_path / "warm", env=on_path(tmp_path)) as imported:
        assert run_group([sys.executable, "-c", "pass"], log=tmp_path / "log", start=imported.spawn) == 0
    told = (tmp_path / "warm").read_text()
    assert "RuntimeError: a broken library" in told and NOBODY in told


def test_torchrun_forks_its_ranks_which_are_programs_all_the_same(imported: Warm, tmp_path: Path) -> None:
    code = torchrun(imported, tmp_path, """
        import gc, json, os, signal, sys
        import torch
        handlers = [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
                and os.path.exists(f"/proc/self/fd/{fd}")]
        print(json.dumps({
            "name": __name__, "words": sys.argv[1:], "rank": os.environ["RANK"], "world": os.environ["WORLD_SIZE"],
            "handlers": handlers, "held": held, "group": os.getpgrp() == os.getpid(),
            "forked": "torch._dynamo" in sys.modules, "collects": gc.isenabled()}), flush=True)
        """, "--word")
    lines = [json.loads(line) for line in tail(tmp_path / "log", 50).splitlines() if line.startswith("{")]
    assert code == 0 and sorted(line.pop("rank") for line in lines) == ["0", "1"], tail(tmp_path / "log")
    assert lines[0] == lines[1] == {
        "name": "__main__", "words": ["--word"], "world": "2", "held": [], "group": True, "forked": True,
        "collects": True, "handlers": [str(signal.SIG_DFL), str(signal.SIG_DFL)]}


def test_every_rank_says_itself_why_it_ends_and_leaves_nothing_behind(imported: Warm, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    code = torchrun(imported, tmp_path, """
        import atexit, os, signal, sys, time
        atexit.register(lambda: print("rank", os.environ["RANK"], "has tidied up"))
        if os.environ["RANK"] == "1":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
            open(os.environ["READY"], "w").close()
            time.sleep(60)
        while not os.path.exists(os.environ["READY"]):
            time.sleep(0.05)
        raise ValueError("what rank 0 found")
        """, READY=str(tmp_path / "ready"))
    told = tail(tmp_path / "log", 200)
    assert code == 1
    assert "ValueError: what rank 0 found" in told and "exitcode  : 4" in told and "exitcode  : 1" in told
    assert "rank 0 has tidied up" in told and "rank 1 has tidied up" in told
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_signal_that_ends_a_rank_is_named(imported: Warm, tmp_path: Path) -> None:
    assert torchrun(imported, tmp_path, """
        import os, signal, time
        os.kill(os.getpid(), signal.SIGKILL) if os.environ["RANK"] == "1" else time.sleep(60)
        """) == 1
    assert "Signal 9 (SIGKILL)" in tail(tmp_path / "log", 50)


def test_sigterm_reaches_ranks_which_may_still_do_something(imported: Warm, tmp_path: Path) -> None:
    def stop_once_both_wait() -> None:
        if tail(tmp_path / "log", 50).count("waits") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torchrun(imported, tmp_path, """
            import os, signal, sys, time
            def end(*_):
                open(os.environ["SAVED"] + os.environ["RANK"], "w").close()
                sys.exit(4)
            signal.signal(signal.SIGTERM, end)
            print("waits", flush=True)
            time.sleep(60)
            """, on_poll=stop_once_both_wait, SAVED=str(tmp_path / "saved"))
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


def torchrun(
    imported: Warm, folder: Path, program: str, *words: str, on_poll: Callable[[], None] | None = None,
    **variables: str,
) -> int:
    """Two ranks of a module, on their own temporary folder."""
    folder.with_suffix(".py").write_text(textwrap.dedent(program))
    (folder / "tmp").mkdir(exist_ok=True)
    return run_group(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--log-dir={folder}",
         "-m", folder.name, *words], log=folder / "log", start=imported.spawn, on_poll=on_poll,
        env={**on_path(folder.parent), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", **variables})


def on_path(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]))}
