"""GPU slots of a limit on the stack's server.

Tests tasks/launcher/gpu_slots.py too.
"""

from __future__ import annotations

import contextvars
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
import pytest

from infra.settings import Settings
from infra.stack import local as running
from tasks.launcher.nodes import FOLDER, Launch
from tests.conftest import ROOT, wait_for
from tests.e2e.conftest import Stack

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow

HOLD = """
import flows, sys
from infra.settings import Settings
from tasks.launcher.gpu_slots import gpu_slots
with gpu_slots(Settings(), 1):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def settings(stack: Stack, client: SyncPrefectClient, tmp_path: Path) -> Iterator[Settings]:
    """A home and a limit of the test's own, on the stack's server."""
    limit = f"gpu-{uuid4().hex[:8]}"
    yield Settings(home=tmp_path, gpu_limit=limit)
    client.delete_global_concurrency_limit_by_name(limit)


def taken(client: SyncPrefectClient, settings: Settings) -> int:
    """Slots that somebody has."""
    return client.read_global_concurrency_limit_by_name(settings.gpu_limit).active_slots


def holder(stack: Stack, settings: Settings) -> subprocess.Popen[str]:
    """Another process that has the slot."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **stack.environment, "PREFECT_API_URL": stack.settings.prefect_api,
             "ANNEAL_HOME": str(settings.home_path), "ANNEAL_GPU_LIMIT": settings.gpu_limit})
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_one_waits_for_the_other_and_says_so(
    stack: Stack, client: SyncPrefectClient, settings: Settings, caplog: pytest.LogCaptureFixture,
) -> None:
    from tasks.launcher.gpu_slots import gpu_slots

    other, got = holder(stack, settings), threading.Event()

    def wait() -> None:
        with gpu_slots(settings, 1):
            got.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(wait,))
    with caplog.at_level(logging.INFO, logger="tasks.launcher.gpu_slots"):
        thread.start()
        wait_for(lambda: caplog.messages, "it does not say that it waits", 30)
    assert caplog.messages == [f"waiting for 1 slots of the concurrency limit {settings.gpu_limit}"]
    assert not got.is_set()
    other.communicate("\n")
    thread.join(30)
    assert got.is_set()
    assert taken(client, settings) == 0


def test_a_machine_that_waits_for_a_slot_leaves_when_the_launch_is_over(
    stack: Stack, settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks.launcher import join
    from tasks.launcher.gpu_slots import hold

    monkeypatch.setattr(join, "ENDING_S", 0.1)
    other, folder = holder(stack, settings), settings.home_path / FOLDER
    folder.mkdir()
    launch = Launch(
        id="waits", nodes=2, ranks=1, rendezvous="10.0.0.1:1", job=str(settings.home_path / "job.json"), beat=1)
    path = folder / "waits.json"
    path.write_text(json.dumps(dataclasses.asdict(launch)))
    told = list[str]()

    def take_part() -> None:
        told.append(join.join_launch(settings, "waits", 1, lambda ranks, look: hold(settings, ranks, look)))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(take_part,), daemon=True)
    try:
        thread.start()
        thread.join(5)
        assert thread.is_alive(), "its launch is under way"
        path.unlink()
        thread.join(30)
        assert told == ["the first node has ended the launch: no GPU was free before"]
    finally:
        other.communicate("\n")


@pytest.mark.chaos
def test_the_slots_of_a_killed_process_are_free_a_minute_later(
    stack: Stack, client: SyncPrefectClient, settings: Settings,
) -> None:
    from tasks.launcher.gpu_slots import gpu_slots

    other = holder(stack, settings)
    other.kill()
    other.communicate()
    assert taken(client, settings) == 1
    killed = time.monotonic()
    with gpu_slots(settings, 1):
        assert time.monotonic() - killed < 100, "Prefect's minute, and its service that looks every 15 s"


def test_a_step_that_needs_more_slots_than_there_are_is_refused(settings: Settings) -> None:
    from infra.errors import UserError
    from tasks.launcher.gpu_slots import gpu_slots

    with pytest.raises(UserError, match="it has 1 slots, and the training needs 2"), gpu_slots(settings, 2):
        pass


@pytest.mark.chaos
def test_slots_stay_taken_when_the_server_is_killed_and_started_again(
    stack: Stack, client: SyncPrefectClient, settings: Settings,
) -> None:
    other = holder(stack, settings)
    psutil.Process(running.read_stack(stack.settings)["prefect"].pid).kill()
    wait_for(lambda: running.status(stack.settings)["prefect"] != "running", "it does not die", 30)
    wait_for(lambda: running.status(stack.settings)["prefect"] == "running", "the keeper does not start it", 120)
    assert taken(client, settings) == 1
    other.communicate("\n")
    assert other.returncode == 0
    assert taken(client, settings) == 0
