"""Another user of the machine plants links and folders under names that can be told beforehand."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.cli.merge import part_of
from infra.errors import UserError
from infra.files import lock_file, write_atomic
from infra.settings import Settings
from tasks.launcher import devices, gpu_locks
from tasks.launcher.devices import environment, held
from tasks.launcher.gpu_locks import LockFolder, lock_folder
from tasks.launcher.jobs import rank_environment
from tasks.runs.locks import exclusive_lock
from tests.security.second_user import NOBODY, as_nobody, common_folder, running

KEPT: list[object] = []


@pytest.fixture
def common() -> Iterator[Path]:
    with common_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs."""
    monkeypatch.setattr(devices, "gpus", lambda: ("H100",) * 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def hold(folder: Path) -> str:
    """Which device a training gets; its process keeps it."""
    holding = held(1, folder)
    holding.__enter__()
    KEPT.append(holding)
    return environment()["CUDA_VISIBLE_DEVICES"]


# GPU locks.


def test_a_link_in_place_of_a_gpu_lock_makes_no_file(common: Path, tmp_path: Path) -> None:
    victim = tmp_path / "made-by-the-victim"
    as_nobody(lambda: (common / "0.lock").symlink_to(victim))
    with pytest.raises(UserError, match=r"0\.lock: it is a link"), held(1, common):
        pass
    assert not victim.exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.link(Path(path).with_name("file"), path)],
                         ids=["pipe", "folder", "hard link"])
def test_what_is_no_lock_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "file").write_text("mine")
    make(tmp_path / "0.lock")
    with pytest.raises(UserError, match="it is a link, a pipe or has a second name"), held(1, tmp_path):
        pass


def test_users_who_share_roots_folder_never_share_a_gpu(common: Path) -> None:
    with running(lambda: hold(common)) as theirs, held(1, common):
        assert (theirs, environment()) == ("0", {"CUDA_VISIBLE_DEVICES": "1"})
        assert as_nobody(lambda: [LockFolder(common).take(device) for device in "01"]) == "[None, None]"
    assert {mode_of(path) for path in common.iterdir()} == {0o644}
    assert {path.stat().st_uid for path in common.iterdir()} == {0, NOBODY}


@pytest.mark.parametrize(("owner", "mode", "found"), [
    (1000, 0o1777, "belongs to user 1000"), (1000, 0o755, "belongs to user 1000"), (0, 0o777, "no sticky bit"),
    (0, 0o755, "Permission denied"), (0, 0o700, "Permission denied")])
def test_a_folder_that_others_could_turn_against_us_is_refused(
    common: Path, owner: int, mode: int, found: str,
) -> None:
    folder = common / "gpus"
    folder.mkdir()
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    said = as_nobody(lambda: hold(folder))
    assert said.startswith(f"UserError: {folder}") and found in said and "root" in said


def test_a_lock_of_another_user_in_a_folder_of_ours_is_refused(common: Path) -> None:
    folder = common / "gpus"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    (folder / "0.lock").touch(0o666)
    os.chown(folder / "0.lock", 1000, 1000)
    assert "0.lock: it belongs to user 1000" in as_nobody(lambda: hold(folder))


def test_a_folder_of_an_earlier_release_is_closed_and_used(tmp_path: Path) -> None:
    """In Docker's volume it was made for all, without the sticky bit."""
    folder = tmp_path / "gpus"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "0.lock").touch(0o666)
    with held(1, folder):
        assert mode_of(folder) == 0o1777


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "gpus").symlink_to("real")
    with pytest.raises(UserError, match="gpus: it is a link"), held(1, tmp_path / "gpus"):
        pass
    assert not list((tmp_path / "real").iterdir())


def test_the_folder_is_the_users_own_unless_root_made_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_locks, "SHARED", tmp_path / "run")
    assert lock_folder("") == Path(f"/tmp/anneal-gpus-{os.getuid()}") and lock_folder("/x/y") == Path("/x/y")
    assert as_nobody(lambda: lock_folder("")) == f"/tmp/anneal-gpus-{NOBODY}"
    (tmp_path / "run").mkdir()
    assert lock_folder("") == tmp_path / "run"
    with held(1, tmp_path / "own" / "gpus"):
        pass
    assert (mode_of(tmp_path / "own" / "gpus"), mode_of(tmp_path / "own" / "gpus" / "0.lock")) == (0o700, 0o600)


@pytest.mark.parametrize("given", ["", "/tmp/torchinductor_me"])
def test_compiled_layers_are_kept_in_the_home(settings: Settings, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """torch takes /tmp/torchinductor_<user> by itself, whoever made that, and runs the code in it. It also puts that
    into the environment of a process that compiles."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
    folder = Path(rank_environment(settings, 1)["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.is_relative_to(settings.home_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/scratch/compiled")
    assert rank_environment(settings, 1)["TORCHINDUCTOR_CACHE_DIR"] == "/scratch/compiled"


# Other locks and temporary names.


@pytest.mark.parametrize("hard", [False, True])
def test_a_lock_leaves_what_a_link_names_as_it_is(tmp_path: Path, hard: bool) -> None:
    tmp_path.chmod(0o1777)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "lock").hardlink_to(victim) if hard else (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(UserError, match="it is a link"), exclusive_lock(tmp_path / "lock", "a run"):
        pass
    assert victim.read_text() == "mine"
    with pytest.raises(UserError, match="it is a link"):
        lock_file(tmp_path / "lock")


def test_a_copy_of_a_home_by_hard_links_can_be_used(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "lock", "a run"):
        (tmp_path / "of-the-copy").hardlink_to(tmp_path / "lock")
    with exclusive_lock(tmp_path / "of-the-copy", "a run"):
        pass


def test_a_file_is_not_written_through_a_link_in_place_of_its_temporary_name(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".state.{os.getpid()}.tmp").symlink_to(victim)
    write_atomic(tmp_path / "state", "new")
    assert (victim.read_text(), (tmp_path / "state").read_text()) == ("mine", "new")
    assert not (tmp_path / "state").is_symlink()


def test_a_merge_into_a_folder_of_all_empties_no_file_of_ours(common: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    as_nobody(lambda: (common / "out.part.lock").symlink_to(victim))
    with pytest.raises(UserError, match=r"out\.part\.lock: it belongs to another"), part_of(common / "out"):
        pass
    (common / "out.part.lock").unlink()
    (common / "out.part.lock").symlink_to(victim)  # one of our own is not followed either
    with pytest.raises(UserError, match="it is a link"), part_of(common / "out"):
        pass
    assert victim.read_text() == "mine"


def test_a_merge_writes_into_no_folder_of_another_user(common: Path) -> None:
    as_nobody((common / "out.part.lock").touch)
    as_nobody((common / "out.part").mkdir)
    with pytest.raises(UserError, match=r"part: it belongs to another user"), part_of(common / "out"):
        pass
    shutil.rmtree(common / "out.part")
    with pytest.raises(UserError, match=r"lock: it belongs to another user"), part_of(common / "out"):
        pass
    with part_of(common / "mine") as part:
        assert part.is_dir()


def test_a_merge_where_all_may_take_files_away_is_refused(common: Path) -> None:
    common.chmod(0o777)
    with pytest.raises(UserError, match=r"all users may write there.*chmod o-w"), part_of(common / "out"):
        pass
    assert not list(common.iterdir())
