"""What a node beside the first one does: wait for launches, run its ranks of each, stop them with it.

In:   <home>/launches/*.json, written by the first node (tasks/launcher/nodes.py)     Out: nothing of its own but a log
It decides nothing and judges nothing: the first node sees how a launch ends, and retries.
Dies half-way: its ranks die with it, the launch fails on the first node, and the retry waits until this is run again.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from infra.errors import AnnealError
from infra.process import run_group
from infra.settings import Settings
from tasks.launcher.jobs import TRAIN, rank_environment, rank_log
from tasks.launcher.nodes import ENDING_S, FOLDER, POLL_S, Launch, ended_mark, interface_to, read_launch, seen_by
from tasks.runs.fence import stop_grace_s

APPEARS_S = 30.0
"""A shared file system may show a new file that late."""
LOST_S = 60.0
"""A first node that has not beaten for this long is gone."""
log = logging.getLogger(__name__)


class Over(Exception):
    """The first node has ended the launch, or is gone."""


def join(settings: Settings, node: int) -> None:
    """Take part in every launch of `settings.home`, as node number `node`, until this process is stopped."""
    folder = settings.home_path / FOLDER
    beats: dict[str, int] = {}
    log.info("node %d waits for trainings in %s", node, settings.home_path)
    while True:
        for path in launches_in(folder):
            launch = read_launch(path)
            if launch is None or node >= launch.nodes:
                continue
            # What was left by a first node that was killed does not beat; what was joined once is not joined again.
            if 0 <= beats.setdefault(launch.id, launch.beat) < launch.beat:
                beats[launch.id] = -1
                take_part(settings, launch, path, node)
        time.sleep(POLL_S)


def launches_in(folder: Path) -> list[Path]:
    """The files of launches; none while the shared folder cannot be listed."""
    try:
        return sorted(folder.glob("*.json"))
    except OSError as error:
        log.warning("%s cannot be read: %s", folder, error)
        return []


def join_launch(
    settings: Settings, identity: str, node: int,
    hold: Callable[[int, Callable[[], None]], AbstractContextManager[None]],
) -> str:
    """Take part in one launch; returns how that ended. `hold` waits for that many GPUs of this machine, and looks
    meanwhile whether they are still needed."""
    path = settings.home_path / FOLDER / f"{identity}.json"
    deadline = time.monotonic() + APPEARS_S
    while (launch := read_launch(path)) is None:
        if time.monotonic() > deadline:
            return f"the launch is over: {path} is not there"
        time.sleep(POLL_S)
    try:
        with hold(launch.ranks, Watch(path)):
            return take_part(settings, launch, path, node)
    except Over as error:
        return f"{error}: no GPU was free before"


def take_part(settings: Settings, launch: Launch, path: Path, node: int) -> str:
    """Run this node's ranks of one launch to their end, or until the first node's; returns how they ended."""
    work, watch = Path(launch.job).parent.name, Watch(path)
    log.info("training=%s node %d starts %d ranks", work, node, launch.ranks)
    try:
        environment = rank_environment(settings, launch.ranks) | interface_to(launch, os.environ)
        seen_by(path, node).touch()
        if not path.exists():  # ended in between: nobody would remove the mark
            seen_by(path, node).unlink(missing_ok=True)
            return "the launch was over before its ranks were started"
        code = run_group(
            [sys.executable, *launch.torchrun(node, TRAIN)], env=environment, on_poll=watch,
            log=rank_log(Path(launch.job).parent, node),
            # ranks save together: those whose first node has stopped its own cannot
            grace_s=lambda: 0.0 if watch.is_left else stop_grace_s(settings))
        log.info("training=%s node %d has ended with exit code %d", work, node, code)
        if code != 0 and path.exists():
            ended_mark(path, node).write_text(str(code), encoding="utf-8")
        return f"its ranks ended with exit code {code}"
    except (Over, AnnealError, OSError) as error:
        log.warning("training=%s node %d: %s", work, node, error)
        return str(error)


class Watch:
    """Raises Over when the launch is over for the first node."""

    def __init__(self, path: Path) -> None:
        self._path, self._beat = path, -1
        self._seen = time.monotonic()
        self.is_left = False
        """The first node has stopped its ranks, not only been silent."""

    def __call__(self) -> None:
        launch = read_launch(self._path)
        now = time.monotonic()
        if launch is not None and launch.beat != self._beat:
            self._beat, self._seen = launch.beat, now
            return
        limit_s, reason = LOST_S, f"has not been heard of for {LOST_S:.0f} s"
        if launch is None:
            limit_s, reason = ENDING_S, "has ended the launch"
        if now - self._seen > limit_s:
            self.is_left = launch is None
            raise Over(f"the first node {reason}")
