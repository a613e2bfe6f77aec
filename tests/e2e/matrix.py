"""Every named crash point, where a test lets it fire, and what a training that survived must have left behind.

A row is a point and two places in it, each as <nth pass>[:<rank>]; both are tried with SIGKILL and with SIGTERM.
What the second place means beside that: TWIST.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infra.crashpoints import AT, FIRED
from infra.settings import Settings
from infra.storage.store import Store
from tests.conftest import ROOT, wait_for
from tests.e2e.conftest import COMMAND_TIMEOUT_S, options
from tests.e2e.forked import Commands

SIGNALS = ("SIGKILL", "SIGTERM")
PLACES = {
    "ingest.opened": ("1", "2"), "ingest.half_written": ("1", "3"), "ingest.before_commit": ("1", "2"),
    "validate.mid_file": ("2", "42"), "validate.before_commit": ("1", "1"),
    "pack.mid_file": ("1", "2"), "pack.before_commit": ("1", "1"), "store.mid_publish": ("1", "6"),
    "train.before_init": ("1:0", "1:1"), "train.after_init": ("1:0", "1:1"), "train.mid_step": ("3:0", "3:1"),
    "train.after_backward": ("1:0", "4:1"), "train.checkpoint.mid_write": ("1:0", "2:1"),
    "train.checkpoint.before_commit": ("1:0", "2:1"), "train.checkpoint.after_commit": ("1:0", "2:0"),
    "train.final.before_commit": ("1:0", "1:1"),
    "evaluate.mid_generation": ("1:0", "2:1"), "evaluate.before_commit": ("1", "1"),
    "register.after_commit": ("1", "1"), "register.after_upload": ("1", "1"),
    "register.after_create_version": ("1", "1"), "register.after_alias": ("1", "1"),
    "deploy.after_load": ("1", "2"), "deploy.after_record": ("1", "2"), "deploy.after_swap": ("1", "1"),
    "deploy.before_champion": ("1", "1"),
    "merge.saved": ("1", "1"), "notify.after_send": ("1", "1"), "notify.after_note": ("1", "1")}
TWIST = {
    "ingest": "the validation data", "validate.mid_file": "the held-out rows", "pack.mid_file": "the held-out rows",
    "validate.before_commit": "a store in a local folder", "pack.before_commit": "a store in a local folder",
    "evaluate.before_commit": "a store in a local folder", "store": "in the pack, its folder half there",
    "train": "the second rank, full fine-tuning", "evaluate.mid_generation": "the second rank, the base's answers",
    "register": "a destination that has a version", "deploy": "a destination that answers with another version",
    "merge": "bf16", "notify": "a receiver that refuses at first"}
GONE_S = 5
"""Processes of a command that was killed are gone by then."""
FOLDERS = {"ingest": ("datasets",), "validate": ("splits",), "pack": ("packs",), "train": ("trainings",),
           "evaluate": ("evaluations",), "store": ("datasets", "splits", "packs")}
"""What a step leaves in the store; it is taken away before the step is to be killed."""
KEPT = "torchinductor_"
"""torch's cache, one for all processes of a user."""
CHECKED = ("datasets", "splits", "packs", "evaluations")


@dataclass(frozen=True)
class Case:
    """One fault."""

    point: str
    signal: str
    second: bool

    @property
    def step(self) -> str:
        return self.point.split(".")[0]

    @property
    def twist(self) -> str:
        """What the second place means; empty for the first."""
        return TWIST.get(self.point, TWIST.get(self.step, "")) if self.second else ""

    @property
    def is_in_child(self) -> bool:
        """A child of the command dies, and the command goes on."""
        return self.step == "train" or self.point in ("pack.mid_file", "evaluate.mid_generation")

    @property
    def name(self) -> str:
        """As a model's name."""
        return f"{self.point}-{self.signal.lower()}-{1 + self.second}".replace("_", "-")

    def wish(self, folder: Path) -> dict[str, str]:
        """The environment that lets it fire; the file tells that it did."""
        nth, *rank = PLACES[self.point][self.second].split(":")
        return {AT: ":".join([self.point, self.signal, nth, *rank]), FIRED: str(folder / "fired")}


CASES = [Case(point, signal, second) for point in PLACES for signal in SIGNALS for second in (False, True)]


@dataclass(frozen=True)
class Clean:
    """A training that nobody killed: its command and what it left in the store."""

    parameters: Mapping[str, Any]
    training: str
    weights: str
    """Digest of the trained files."""
    folders: Mapping[str, tuple[str, ...]]
    digests: Mapping[str, str]

    def command(self, destination: str, *more: str) -> list[str]:
        """The command line of the same training for another model."""
        return ["train", "--json", *options({**self.parameters, "destination": destination}), *more]


def trained(commands: Commands, folder: Path, parameters: dict[str, Any]) -> Clean:
    """Train without a fault."""
    store = Store(Settings())
    kinds = (*CHECKED, "trainings")
    before = {kind: set(store.names(kind)) for kind in kinds}
    done = commands.start(["train", "--json", *options(parameters)], folder)
    assert done.wait(COMMAND_TIMEOUT_S) == 0, done.stderr
    folders = {kind: tuple(sorted(set(store.names(kind)) - before[kind])) for kind in kinds}
    (training,) = folders["trainings"]
    found = store.find(training)
    assert found is not None
    return Clean(parameters, training.split("/")[1], found.record["digest"], folders, digests(store, folders))


def digests(store: Store, folders: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Over the contents of every finished folder."""
    found = {name: store.find(name) for kind in CHECKED for name in folders[kind]}
    return {name: manifest.digest if manifest else "missing" for name, manifest in found.items()}


def forget(store: Store, clean: Clean, step: str) -> None:
    """Take away what a step left."""
    for kind in FOLDERS.get(step, ()):
        for name in clean.folders[kind]:
            store.remove(name)


def copied(store: Store, clean: Clean, target: Settings) -> None:
    """Put what the training left into another store, in a local folder."""
    there = Store(target)
    for name in (name for names in clean.folders.values() for name in names):
        manifest = store.find(name)
        assert manifest is not None
        with there.draft() as draft:
            shutil.copytree(store.fetch(name), draft.path, dirs_exist_ok=True)
            draft.commit(name, manifest.record)


def of_home(home: Path) -> list[psutil.Process]:
    """Processes that inherited this home, whoever started them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("ANNEAL_HOME") == str(home):
                found.append(process)
    return found


def none_left(home: Path) -> None:
    """Nothing of a command that has ended lives on."""
    wait_for(lambda: not of_home(home), f"left: {of_home(home)}", GONE_S)


def left_on_disk(home: Path, temporary: Path) -> list[str]:
    """Work that nobody will go on with: drafts, half downloads, the folders of children, checkpoints."""
    folders = [home / "drafts", home / "work", home / "trainings", home / "store" / ".drafts", temporary]
    inside = (path for folder in folders if folder.exists() for path in folder.iterdir())
    found = (path for path in [*inside, *home.glob("cache/draft-*")] if path.suffix != ".lock")
    return [str(path) for path in found if not path.name.startswith(KEPT)]


@dataclass
class Respawned:
    """A predictor of one's own that is started again when it dies, as the keeper would."""

    environment: dict[str, str]
    log: Path
    deaths: int = 0
    process: subprocess.Popen[bytes] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deployments.predictor"], cwd=ROOT, env=self.environment, stdout=log, stderr=log)

    def look(self) -> int:
        """Start it again if it is dead; how often it has died."""
        if self.process.poll() is not None:
            self.deaths += 1
            self.start()
        return self.deaths

