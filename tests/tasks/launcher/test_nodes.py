"""tasks/launcher/nodes.py: what a launch says, who has seen it, and where it meets.

Tests tasks/launcher/join.py too.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from infra.errors import Transient, UserError
from infra.settings import Settings
from tasks.launcher.nodes import (
    FOLDER,
    Launch,
    Lead,
    NodeEnded,
    Nodes,
    ended_mark,
    interface_to,
    machines_of,
    new_launch,
    own_rendezvous,
    read_launch,
    seen_by,
)


def launch(rendezvous: str = "10.0.0.1:29500", nodes: int = 2) -> Launch:
    return new_launch(Nodes(nodes, rendezvous), 8, Path("/shared/run/job.json"))


def test_one_machine_needs_no_meeting_place(tmp_path: Path) -> None:
    alone = new_launch(machines_of(Settings()), 2, tmp_path / "job.json")
    options = alone.torchrun(0, "m")
    assert "--standalone" in options and "--nproc-per-node=2" in options and options[-2:] == ["m", alone.job]
    assert interface_to(alone, {}) == {}
    with Lead(tmp_path, alone) as lead:
        lead.wait_for_all(0.0, lambda: None)
        assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize(("place", "host"), [
    ("10.0.0.1:29500", "10.0.0.1"), ("gpu-1.example.org:29500", "gpu-1.example.org"), ("[fd00::1]:29500", "fd00::1")])
def test_several_meet_at_the_first(monkeypatch: pytest.MonkeyPatch, place: str, host: str) -> None:
    monkeypatch.setenv("ANNEAL_NODES", "3")
    monkeypatch.setenv("ANNEAL_RENDEZVOUS", place)
    one, other = (new_launch(machines_of(Settings()), 8, Path("job.json")) for _ in range(2))
    options = one.torchrun(2, "m")
    assert {"--nnodes=3", "--node-rank=2", f"--master-addr={host}", "--master-port=29500"} <= set(options)
    assert "--standalone" not in options and f"--rdzv-id={one.id}" in options and one.id != other.id


@pytest.mark.parametrize("place", ["", "10.0.0.1", "a:0", "a:65536", "fd00::1:29500", "a b:29500", "[fe80::1%eth0]:1"])
def test_a_place_that_is_not_there_is_refused(place: str) -> None:
    with pytest.raises(UserError, match=r"ANNEAL_RENDEZVOUS is .*expected host:port"):
        Nodes(2, place)


def test_a_launch_beats_waits_for_all_and_leaves_nothing(tmp_path: Path) -> None:
    lead = Lead(tmp_path, launch(nodes=3))
    path = tmp_path / FOLDER / f"{lead.launch.id}.json"
    with lead:
        first = read_launch(path)
        assert first == lead.launch and first.beat == 1
        seen_by(path, 1).touch()
        with pytest.raises(Transient, match=r"node 2 of 3 has not joined within 0 s.*anneal join"):
            lead.wait_for_all(0.0, lambda: None)
        seen_by(path, 2).touch()
        lead.wait_for_all(0.0, lambda: None)
    assert read_launch(path) is None and list((tmp_path / FOLDER).iterdir()) == []


def test_ranks_that_ended_elsewhere_end_the_launch_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Lead(tmp_path, launch()) as lead:
        ended_mark(tmp_path / FOLDER / f"{lead.launch.id}.json", 1).write_text("1")
        lead.beat()
        monkeypatch.setattr("tasks.launcher.nodes.ENDING_S", -1.0)
        with pytest.raises(NodeEnded, match="the ranks of node 1 ended with exit code 1"):
            lead.beat()
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_what_asks_to_stop_is_heard_while_others_are_waited_for(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Lead(tmp_path, launch()) as lead:
        lead.wait_for_all(60.0, stop)


def test_an_interface_that_was_chosen_is_kept_and_the_loopback_is_refused() -> None:
    assert interface_to(launch("127.0.0.1:29500"), {"NCCL_SOCKET_IFNAME": "ib0"}) == {}
    with pytest.raises(UserError, match=r"127\.0\.0\.1 is a loopback address here"):
        interface_to(launch("127.0.0.1:29500"), {})


def test_a_first_node_that_cannot_be_found_is_said() -> None:
    with pytest.raises(Transient, match="the first node cannot be found"):
        interface_to(launch("no-such-host.invalid:29500"), {})


def test_a_machine_finds_its_own_address_on_the_way_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.launcher.nodes.own_address", lambda host, port: (socket.AF_INET, ip_address("10.1.2.3")))
    host, port = own_rendezvous("http://prefect.example.org:4200/api").split(":")
    assert host == "10.1.2.3" and 0 < int(port) < 1 << 16
    assert Nodes(2, f"{host}:{port}").count == 2


@pytest.mark.parametrize(("server", "kind", "words"), [
    ("http://127.0.0.1:4200/api", UserError, "calls itself 127.0.0.1"), ("", UserError, "calls itself"),
    ("http://no-such-host.invalid/api", Transient, "cannot be found")])
def test_where_it_finds_none_it_says_what_to_set(server: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"{words}.*ANNEAL_RENDEZVOUS"):
        own_rendezvous(server)


def test_only_a_machine_that_calls_others_looks_for_its_address() -> None:
    assert machines_of(Settings(prefect_url="http://127.0.0.1:4200/api")).count == 1
    with pytest.raises(UserError, match="ANNEAL_RENDEZVOUS is"):
        _ = machines_of(Settings(nodes=2))
    with pytest.raises(UserError, match="calls itself"):
        _ = machines_of(Settings(nodes=2, node_deployment="join/machine", prefect_url="http://127.0.0.1:4200/api"))
    given = machines_of(Settings(nodes=2, node_deployment="join/machine", rendezvous="10.0.0.1:29500"))
    assert given.rendezvous == "10.0.0.1:29500"
