"""From a registered version to a folder of one's own, by the real child process, and nothing half."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.cli import main as cli
from deployments.cli.merge import merge
from infra.crashpoints import AT, FIRED
from infra.errors import AnnealError, BaseModelError, Broken, Transient, UserError
from infra.models.base_models import find_base
from infra.models.registry import Registry
from infra.settings import Settings
from infra.storage.store import Store
from tests.conftest import wait_for
from tests.deployments.cli.conftest import Make

pytestmark = pytest.mark.usefixtures("database")
NAME = "acme/summarizer"


@pytest.mark.slow
@pytest.mark.usefixtures("held_out")
def test_the_folder_is_a_whole_model(
    settings: Settings, store: Store, base: Path, make: Make, tmp_path: Path,
) -> None:
    version, out = make(), tmp_path / "deep" / "out"
    done = merge(settings, NAME, out, dtype="fp32")
    assert (done.version, done.dtype, done.probe, done.folder) == (version, "fp32", "held-out rows", str(out))
    assert done.merged["max_relative"] <= 1e-5 < 0.1 < done.effect and done.reloaded["max_absolute"] == 0

    ids = AutoTokenizer.from_pretrained(out)("Anna: Where is my cheesecake?", return_tensors="pt")["input_ids"]
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), store.fetch(version.folder))
    theirs, ours = (model(input_ids=ids).logits for model in (tuned, AutoModelForCausalLM.from_pretrained(out)))
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()

    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "README.md"}
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "whoever reads the configuration reads the rest"
    assert done.bytes == sum(path.stat().st_size for path in out.iterdir())
    for path in out.iterdir():
        assert b"secret-place" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes(), path.name
    assert not out.with_name("out.part").exists() and not list((settings.home_path / "work").iterdir())
    assert find_base(settings, str(out)).context_tokens == 512, "the next training can start from it"


@pytest.mark.slow
def test_the_command_tells_what_was_compared(
    settings: Settings, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(seed=0)
    second = make(seed=1)
    monkeypatch.setenv("ANNEAL_HOME", str(settings.home_path))
    monkeypatch.setattr("infra.stack.services.for_runs", lambda _: {})
    command = ["export", "--format", "merged"]
    assert cli.main([*command, f"{NAME}:2", str(tmp_path / "out"), "--dtype", "bf16", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    done = answer["merged"]
    assert (answer["version"], done["dtype"]) == (second.to_json(), "bf16")
    assert done["probe"] == "token ids from all over the vocabulary" and done["probe_tokens"] == 128
    assert 0 < done["reloaded"]["max_relative"] < done["reloaded"]["bound"] < 0.1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16

    assert cli.main([*command, NAME, str(tmp_path / "out")]) == 2
    assert "the folder is not empty" in capsys.readouterr().err
    assert cli.main([*command, NAME, str(tmp_path / "other")]) == 0
    told = capsys.readouterr().out
    assert f"version 2 of {NAME}, {second.id}" in told and "of the largest logit, allowed 0)" in told


def test_a_version_is_found_by_alias_number_or_id(settings: Settings, make: Make) -> None:
    first, second = make(seed=0), make(seed=1)
    registry = Registry(settings)
    assert registry.look_up(NAME) == second, "the newest one"
    registry.point("champion", NAME, 1)
    assert registry.look_up(NAME) == first, "the one that is served"
    assert {which: registry.look_up(NAME, which).number for which in ("1", "challenger", "champion", second.id)} == {
        "1": 1, "challenger": 2, "champion": 1, second.id: 2}
    with pytest.raises(UserError, match='there is no version "3"; expected one of 1, 2, challenger, champion'):
        registry.look_up(NAME, "3")
    with pytest.raises(UserError, match="acme/other: no version of it is registered"):
        registry.look_up("acme/other")


# What is refused, before anything heavy is done.


@pytest.mark.parametrize("target", ["acme", "Acme/x:1", "acme/x' or 'a"])
def test_a_name_that_is_none_is_refused(settings: Settings, tmp_path: Path, target: str) -> None:
    with pytest.raises(UserError, match="expected owner/name"):
        merge(settings, target, tmp_path / "out")


@pytest.mark.parametrize("folder", ["full", "file", "link"])
def test_a_folder_in_use_is_refused(settings: Settings, tmp_path: Path, folder: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="expected a folder that is new or empty"):
        merge(settings, NAME, tmp_path / folder)


@pytest.mark.slow
def test_a_base_that_is_gone_is_asked_for(settings: Settings, make: Make, base: Path, tmp_path: Path) -> None:
    make()
    base.rename(tmp_path / "moved")
    with pytest.raises(BaseModelError, match=r'"tiny" is not known on this machine.*--base-model'):
        merge(settings, NAME, tmp_path / "out")
    done = merge(settings, NAME, tmp_path / "out", base_model=str(tmp_path / "moved"))
    assert done.dtype == "fp32"


def test_another_base_is_refused(settings: Settings, make: Make, base: Path, tmp_path: Path) -> None:
    make()
    shutil.copytree(base, tmp_path / "other")
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] * 2}, tmp_path / "other/model.safetensors")
    with pytest.raises(BaseModelError, match=r"has digest [0-9a-f]{12}; expected [0-9a-f]{12}, the one"):
        merge(settings, NAME, tmp_path / "out", base_model=str(tmp_path / "other"))
    shutil.copy(tmp_path / "other/model.safetensors", base)  # the folder that was remembered has changed
    with pytest.raises(BaseModelError, match="has digest"):
        merge(settings, NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_folder_that_is_not_ours_stays(settings: Settings, make: Make, tmp_path: Path) -> None:
    make()
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "mine").write_text("x")
    with pytest.raises(UserError, match="was not left by an export"):
        merge(settings, NAME, tmp_path / "out")
    with (tmp_path / "out.part.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another export writes there"):
            merge(settings, NAME, tmp_path / "out")
    assert (part / "mine").read_text() == "x"


# Whatever goes wrong later leaves nothing.


def stopped_at(point: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AT, f"{point}:{how}:1")
    monkeypatch.setenv(FIRED, str(tmp_path / "fired"))


def child_of(process: psutil.Process) -> psutil.Process:
    """The stopped process that merges."""
    return next(one for one in process.children(recursive=True) if one.status() == psutil.STATUS_STOPPED)


def nothing_left(settings: Settings, tmp_path: Path) -> bool:
    return not list(tmp_path.glob("out*")) and not list((settings.home_path / "work").iterdir())


@pytest.mark.slow
def test_weights_that_change_on_the_disk_are_noticed(
    settings: Settings, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    make()
    stopped_at("merge.saved", "SIGSTOP", tmp_path, monkeypatch)
    raised: list[AnnealError] = []

    def run() -> None:
        try:
            merge(settings, NAME, tmp_path / "out")
        except AnnealError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for((tmp_path / "fired").exists, "the child did not get so far")
    path = tmp_path / "out.part" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 0x40
    path.write_bytes(bytes(data))
    wait_for(lambda: any(one.status() == psutil.STATUS_STOPPED for one in psutil.Process().children(recursive=True)),
             "the child did not stop")
    child_of(psutil.Process()).send_signal(signal.SIGCONT)
    thread.join(60)
    assert [type(error) for error in raised] == [Broken] and "not those that were written" in str(raised[0])
    assert nothing_left(settings, tmp_path)


@pytest.mark.chaos
def test_a_killed_child_leaves_nothing(
    settings: Settings, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    make()
    stopped_at("merge.saved", "SIGKILL", tmp_path, monkeypatch)
    with pytest.raises(Transient, match="SIGKILL"):
        merge(settings, NAME, tmp_path / "out")
    assert nothing_left(settings, tmp_path)


@pytest.mark.chaos
def test_a_merge_that_was_killed_can_be_done_again(
    settings: Settings, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    make()
    stopped_at("merge.saved", "SIGSTOP", tmp_path, monkeypatch)
    code = ("import sys; from pathlib import Path; from infra.settings import Settings; "
            "from deployments.cli.merge import merge; "
            "merge(Settings(home=Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]))")
    arguments = [str(settings.home_path), NAME, str(tmp_path / "out")]
    parent = subprocess.Popen([sys.executable, "-c", code, *arguments])
    wait_for((tmp_path / "fired").exists, "the child did not get so far")
    wait_for(lambda: any(one.status() == psutil.STATUS_STOPPED
                         for one in psutil.Process(parent.pid).children(recursive=True)), "the child did not stop")
    child = child_of(psutil.Process(parent.pid))
    parent.kill()
    parent.wait()
    child.wait(10)
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.part", "out.part.lock"]
    merge(settings, NAME, tmp_path / "out")
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


@pytest.mark.chaos
def test_an_adapter_that_is_not_finite_leaves_nothing(settings: Settings, make: Make, tmp_path: Path) -> None:
    def spoil(path: Path) -> None:
        weights = load_file(path)
        next(iter(weights.values()))[0, 0] = float("nan")
        save_file(weights, path)

    make(change=spoil)
    with pytest.raises(UserError, match="adapter: it cannot be merged"):
        merge(settings, NAME, tmp_path / "out")
    assert nothing_left(settings, tmp_path)
