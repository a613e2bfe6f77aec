"""infra/nodes.py: where a node stands, and how torchrun hears of it."""

from __future__ import annotations

import pytest

from infra.errors import Transient, UserError
from infra.nodes import Nodes
from infra.settings import Settings


def test_one_machine_needs_no_meeting_place() -> None:
    nodes = Settings().place
    assert nodes.is_first and nodes.suffix == "" and nodes.environment() == {}
    assert "--standalone" in nodes.launcher(2) and "--nproc-per-node=2" in nodes.launcher(2)


@pytest.mark.parametrize(("place", "host"), [
    ("10.0.0.1:29500", "10.0.0.1"), ("gpu-1.example.org:29500", "gpu-1.example.org"), ("[fd00::1]:29500", "fd00::1")])
def test_several_meet_at_the_first(monkeypatch: pytest.MonkeyPatch, place: str, host: str) -> None:
    for name, value in {"NODES": "3", "NODE_RANK": "2", "RENDEZVOUS": place}.items():
        monkeypatch.setenv(f"ANNEAL_{name}", value)
    nodes = Settings().place
    assert not nodes.is_first and nodes.suffix == "-node2"
    options = nodes.launcher(8)
    assert {"--nnodes=3", "--node-rank=2", f"--master-addr={host}", "--master-port=29500"} <= set(options)
    assert "--standalone" not in options


@pytest.mark.parametrize(("values", "says"), [
    ((2, 2, "a:1"), "ANNEAL_NODE_RANK is 2; expected 0 to 1"),
    ((1, 1, ""), "ANNEAL_NODE_RANK is 1; expected 0 to 0"),
    ((2, 0, ""), 'ANNEAL_RENDEZVOUS is ""'),
    ((2, 0, "10.0.0.1"), 'ANNEAL_RENDEZVOUS is "10.0.0.1"'),
    ((2, 1, "10.0.0.1:0"), "expected host:port"),
    ((2, 1, "10.0.0.1:65536"), "expected host:port"),
    ((2, 1, "fd00::1:29500"), "expected host:port"),
    ((2, 1, "a b:29500"), "expected host:port")])
def test_a_place_that_is_not_there_is_refused(values: tuple[int, int, str], says: str) -> None:
    with pytest.raises(UserError) as refused:
        Nodes(*values)
    assert says in str(refused.value)


def test_the_interface_is_the_one_that_leads_to_the_first_node() -> None:
    assert Nodes(2, 1, "127.0.0.1:29500").environment() == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def test_a_first_node_that_cannot_be_found_is_said() -> None:
    with pytest.raises(Transient, match="the first node cannot be found"):
        Nodes(2, 1, "no-such-host.invalid:29500").environment()
