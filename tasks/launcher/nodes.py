"""The machines of one training: the first one leads, the others join it.

In:   a shared ANNEAL_HOME, ANNEAL_NODES and ANNEAL_RENDEZVOUS on the first node; on the others `anneal join`, or runs
      of the deployment ANNEAL_NODE_DEPLOYMENT, which the first node starts (tasks/runs/start.py)
On disk:   <home>/launches/<id>.json    one start of ranks: what to run, and a beat while the first node runs it
           <home>/launches/<id>.node1   that node has seen it and starts its ranks
           <home>/launches/<id>.ended1  its ranks have ended with an exit code, and not well
Each start of ranks is a launch of its own, so a retry never meets the remains of the try before it. What is run stands
in the launch: nothing is decided twice. The ranks meet by torchrun's static rendezvous.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from infra.errors import Transient, UserError, shown
from infra.files import write_atomic
from infra.settings import Settings

FOLDER = "launches"
ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:%\[\]]+):([0-9]{1,5})")
BEAT_S = 2.0
POLL_S = 0.2
ENDING_S = 5.0
"""When one node's ranks have ended, the others' have this long to notice by themselves; then they are stopped."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True, slots=True)
class Nodes:
    """How many there are, and where the first one waits for the others. Raises UserError."""

    count: int = 1
    rendezvous: str = ""
    """host:port of the first node, as the others see it; [host]:port for IPv6."""

    def __post_init__(self) -> None:
        if self.count > 1 and not 0 < _split(self.rendezvous)[1] < 1 << 16:
            raise UserError(f"ANNEAL_RENDEZVOUS is {shown(self.rendezvous)}",
                            allowed="host:port of this machine with ANNEAL_NODES above 1",
                            fix="Take an address that the other nodes can reach and a free port: 10.0.0.1:29500.")


def machines_of(settings: Settings) -> Nodes:
    """The machines that train together. Raises UserError."""
    found = settings.nodes > 1 and settings.node_deployment and not settings.rendezvous
    return Nodes(settings.nodes, own_rendezvous(settings.prefect_api) if found else settings.rendezvous)


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of ranks on all nodes."""

    id: str
    nodes: int
    rendezvous: str
    ranks: int
    """On each node."""
    job: str
    """Path of the job file; logs lie beside it."""
    beat: int = 0

    def torchrun(self, node: int, module: str) -> list[str]:
        """Its options on that node, to run a Python module with the job file.

        No restarts by torchrun: with gloo they hang. The task's retry launches anew.
        """
        host, port = _split(self.rendezvous)
        meeting = ["--standalone"] if self.nodes == 1 else [
            f"--nnodes={self.nodes}", f"--node-rank={node}", f"--master-addr={host}", f"--master-port={port}",
            f"--rdzv-id={self.id}"]
        logs = Path(self.job).with_name("torchrun")  # else empty folders stay in /tmp for good
        return ["-m", "tasks.distributed.torchrun", *meeting, f"--nproc-per-node={self.ranks}", "--max-restarts=0",
                f"--log-dir={logs}", "-m", module, self.job]


class NodeEnded(Exception):
    """The ranks of another node have ended, and not well."""


class Lead:
    """The first node's side of a launch. Used as a context; at its end the other nodes stop their ranks."""

    def __init__(self, home: Path, launch: Launch) -> None:
        self.launch = launch
        self._path = home / FOLDER / f"{launch.id}.json"
        self._next_beat, self._ended_at = 0.0, 0.0

    def __enter__(self) -> Lead:
        self.beat()
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._path.parent.glob(f"{self.launch.id}.*"):
            path.unlink(missing_ok=True)

    def beat(self) -> None:
        """Show that this node still runs the launch. Raises NodeEnded some time after another one's ranks ended."""
        now = time.monotonic()
        if self.launch.nodes > 1 and now >= self._next_beat:
            self.launch = replace(self.launch, beat=self.launch.beat + 1)
            write_atomic(self._path, json.dumps(asdict(self.launch)))
            self._next_beat = now + BEAT_S
        for node in range(1, self.launch.nodes):
            if (mark := ended_mark(self._path, node)).exists():
                self._ended_at = self._ended_at or now
                if now - self._ended_at > ENDING_S:
                    raise NodeEnded(f"the ranks of node {node} ended with exit code {mark.read_text(encoding='utf-8')}")

    def wait_for_all(self, timeout_s: float, on_poll: Callable[[], None]) -> None:
        """Until every other node has seen the launch. Raises Transient, naming those that have not."""
        deadline = time.monotonic() + timeout_s
        while missing := [n for n in range(1, self.launch.nodes) if not seen_by(self._path, n).exists()]:
            if time.monotonic() > deadline:
                raise Transient(
                    f"node {', '.join(map(str, missing))} of {self.launch.nodes} has not joined within "
                    f"{timeout_s:.0f} s", where="training",
                    fix="Run `anneal join <number>` there, or workers for the queue `nodes`, with the same ANNEAL_HOME "
                        "on a shared file system.")
            self.beat()
            on_poll()
            time.sleep(POLL_S)


def new_launch(nodes: Nodes, ranks: int, job: Path) -> Launch:
    """A launch that nobody has seen yet."""
    return Launch(uuid.uuid4().hex, nodes.count, nodes.rendezvous, ranks, str(job))


def read_launch(path: Path) -> Launch | None:
    """What stands in a launch file; None once it is gone."""
    try:
        return Launch(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def seen_by(path: Path, node: int) -> Path:
    """The mark of a node beside a launch file."""
    return path.with_suffix(f".node{node}")


def ended_mark(path: Path, node: int) -> Path:
    """Where a node says that its ranks have failed."""
    return path.with_suffix(f".ended{node}")


def interface_to(launch: Launch, environment: Mapping[str, str]) -> dict[str, str]:
    """The network interface through which the first node is reached, for gloo and NCCL, unless it is chosen already.

    Left to themselves they take the one of the host's own name, which is often the loopback. Raises UserError for
    a first node that calls itself so, and Transient for one that cannot be found.
    """
    if launch.nodes == 1 or any(name in environment for name in INTERFACES):
        return {}
    host, port = _split(launch.rendezvous)
    try:
        family, own = own_address(host, port)
    except OSError as error:
        raise Transient(f"the first node cannot be found ({error})", where=f"ANNEAL_RENDEZVOUS {launch.rendezvous}",
                        fix="Check the address, and that this node is on the same network.") from error
    if own.is_loopback:
        raise UserError(f"{host} is a loopback address here ({own})", where=f"ANNEAL_RENDEZVOUS {launch.rendezvous}",
                        allowed="an address that the other nodes can reach", fix="Give it as a number: 10.0.0.1:29500.")
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family == family and ipaddress.ip_address(entry.address.split("%")[0]) == own:
                return dict(zip(INTERFACES, (name, f"={name}"), strict=True))  # NCCL would take it for a prefix
    return {}


def own_rendezvous(server: str) -> str:
    """Where this machine can wait for others that know the same server: its own address on the way there, a free port.

    Raises UserError where that is a loopback address, and Transient for a server that cannot be found.
    """
    parts = urlsplit(server)
    fix = "Set ANNEAL_RENDEZVOUS to an address that the other nodes can reach and a free port: 10.0.0.1:29500."
    try:
        family, own = own_address(parts.hostname or "localhost", parts.port or 443)
    except OSError as error:
        raise Transient(f"the Prefect server cannot be found ({error})", where=server, fix=fix) from error
    if own.is_loopback:
        raise UserError(f"this machine calls itself {own}", where="the way to the Prefect server", fix=fix)
    with socket.socket(family) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"[{own}]:{port}" if own.version == 6 else f"{own}:{port}"


def own_address(host: str, port: int) -> tuple[socket.AddressFamily, ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """This machine's address on the way to a host. Raises OSError."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # nothing is sent: the kernel only picks the way
        return family, ipaddress.ip_address(probe.getsockname()[0])


def _split(rendezvous: str) -> tuple[str, int]:
    """Host and port; port 0 where there is no such address."""
    found = ADDRESS.fullmatch(rendezvous)
    return (found[1].strip("[]"), int(found[2])) if found else ("", 0)
