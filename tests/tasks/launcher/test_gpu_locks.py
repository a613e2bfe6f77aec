"""tasks/launcher/devices.py and tasks/launcher/gpu_slots.py: who has which GPU of this machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra.settings import Settings
from tasks.launcher import devices
from tasks.launcher.devices import environment, held
from tasks.launcher.gpu_slots import limit_of
from tasks.launcher.jobs import rank_environment
from tests.conftest import ROOT

HOLD = """
import sys, pathlib, tasks.launcher.devices as g
g.gpus = lambda: ("H100",) * 4
with g.held(3, pathlib.Path(sys.argv[1])):
    print(g.environment()["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four GPUs whose locks lie in a folder of the test's."""
    monkeypatch.setattr(devices, "gpus", lambda: ("H100",) * 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "LOCK_POLL_S", 0.01)


def test_two_trainings_get_different_devices(tmp_path: Path) -> None:
    with held(2, tmp_path):
        assert environment() == {"CUDA_VISIBLE_DEVICES": "0,1"}
        with held(2, tmp_path):
            assert environment() == {"CUDA_VISIBLE_DEVICES": "2,3"}
        assert environment() == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert environment() == {}


def test_ranks_see_the_devices_of_their_training_alone(settings: Settings, tmp_path: Path) -> None:
    with held(1, tmp_path), held(2, tmp_path):
        assert rank_environment(settings, 2)["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert "CUDA_VISIBLE_DEVICES" not in rank_environment(settings, 2)


def test_only_visible_devices_are_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3b, 2")
    with held(2, tmp_path):
        assert environment() == {"CUDA_VISIBLE_DEVICES": "GPU-3b,2"}


def test_no_device_held_shows_all(tmp_path: Path) -> None:
    with held(0, tmp_path):
        assert environment() == {}


def test_one_waits_until_enough_are_free(tmp_path: Path) -> None:
    got = threading.Event()

    def wait() -> None:
        with held(3, tmp_path):
            got.set()

    with held(2, tmp_path):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.2)
    thread.join(10)
    assert got.is_set()


def test_one_that_needs_them_no_more_does_not_wait(tmp_path: Path) -> None:
    def look() -> None:
        raise KeyError("over")

    with held(2, tmp_path), pytest.raises(KeyError, match="over"), held(3, tmp_path, look):
        pass
    with held(4, tmp_path, look):
        assert environment() == {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "what it had locked meanwhile is free"


def test_a_killed_training_gives_its_devices_back(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "0,1,2\n"
    with held(1, tmp_path):
        assert environment() == {"CUDA_VISIBLE_DEVICES": "3"}
    holder.kill()
    holder.communicate()
    with held(4, tmp_path):
        assert environment() == {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}


@pytest.mark.parametrize(("wanted", "name"), [("", "gpu-"), ("lab", "lab"), ("none", "")])
def test_the_limit_has_the_machines_name_unless_told_otherwise(settings: Settings, wanted: str, name: str) -> None:
    found = limit_of(settings.model_copy(update={"gpu_limit": wanted}))
    assert found.startswith(name) if wanted == "" else found == name
