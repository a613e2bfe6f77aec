"""The machines of one training: how many, which of them this is, and where they meet.

The first node listens at `rendezvous`, the others connect to it: torchrun's static rendezvous. Every node runs
the same command; what they share is a folder (ANNEAL_HOME) on which each sees what the others write.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

import psutil

from infra.errors import Transient, UserError, shown

ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]]+):([0-9]{1,5})")
JOIN_S = 900
"""A node waits this long for the others to come."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Where this node stands among `count`. Raises UserError for a place that is not there."""

    count: int = 1
    rank: int = 0
    rendezvous: str = ""
    """host:port of the first node, as the others see it; [host]:port for IPv6."""

    def __post_init__(self) -> None:
        if self.rank >= self.count:
            raise UserError(f"ANNEAL_NODE_RANK is {self.rank}", allowed=f"0 to {self.count - 1} with "
                            f"ANNEAL_NODES={self.count}", fix="Number the nodes from 0; the first one is 0.")
        found = ADDRESS.fullmatch(self.rendezvous)
        if self.count > 1 and not (found and 0 < int(found[2]) < 1 << 16):
            raise UserError(f"ANNEAL_RENDEZVOUS is {shown(self.rendezvous)}",
                            allowed="host:port of the first node, the same on all of them",
                            fix="Take a free port that the other nodes can reach, such as 10.0.0.1:29500.")

    @property
    def is_first(self) -> bool:
        """True on the node that keeps the checkpoints and the result."""
        return self.rank == 0

    @property
    def suffix(self) -> str:
        """For the names of files that each node has of its own."""
        return "" if self.is_first else f"-node{self.rank}"

    def launcher(self, ranks: int) -> list[str]:
        """torchrun's options for `ranks` processes on each node.

        No restarts by torchrun: with gloo they hang. The task's retry launches anew, on every node.
        """
        found = ADDRESS.fullmatch(self.rendezvous)
        meeting = ["--standalone"] if self.count == 1 or not found else [
            f"--nnodes={self.count}", f"--node-rank={self.rank}", f"--master-addr={found[1].strip('[]')}",
            f"--master-port={found[2]}", f"--rdzv-conf=timeout={JOIN_S}"]
        return ["-m", "torch.distributed.run", *meeting, f"--nproc-per-node={ranks}", "--max-restarts=0"]

    def environment(self) -> dict[str, str]:
        """The network interface through which this node reaches the first one, for gloo and NCCL.

        Left to themselves they take the one of the host's own name, which is often the loopback.
        Raises Transient for a host that cannot be found.
        """
        found = ADDRESS.fullmatch(self.rendezvous)
        if self.count == 1 or not found:
            return {}
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                found[1].strip("[]"), int(found[2]), type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # nothing is sent: the kernel only picks the way
                own = ipaddress.ip_address(probe.getsockname()[0].split("%")[0])
        except OSError as error:
            raise Transient(f"the first node cannot be found ({error})", where=f"ANNEAL_RENDEZVOUS {self.rendezvous}",
                            fix="Check the address, and that this node is on the same network.") from error
        for name, addresses in psutil.net_if_addrs().items():
            for entry in addresses:
                if entry.family == family and ipaddress.ip_address(entry.address.split("%")[0]) == own:
                    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
        return {}
