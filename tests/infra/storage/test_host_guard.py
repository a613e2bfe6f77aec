"""Which addresses are public, and which hosts the settings add. The doors are in test_guard.py."""

from __future__ import annotations

import socket
from contextlib import nullcontext

import pytest

from infra.errors import DataError, Interrupted, UserError
from infra.settings import Settings
from infra.storage.host_guard import Endpoint, is_public, parsed, reachable

PUBLIC = "93.184.216.34"
resolve = socket.getaddrinfo


@pytest.mark.parametrize(("ip", "public"), [
    ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("100.64.0.1", False), ("224.0.0.1", False),
    ("::ffff:93.184.216.34", True), ("::ffff:10.0.0.1", False), ("64:ff9b::5db8:d822", True),
    ("64:ff9b::a00:1", False), ("64:ff9b:1::5db8:d822", False), ("2002:5db8:d822::1", False), ("2001::1", False),
    ("fec0::1", False), ("::5db8:d822", False), ("100::1", False), ("2001:db8::1", False), ("fe80::1%lo", False)])
def test_public_addresses_are_known(ip: str, public: bool) -> None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    assert is_public(Endpoint(family, (ip, 443)).ip) is public


@pytest.mark.parametrize(("allowed", "address", "passes"), [
    ("data.lan", "http://data.lan:8080/d", True), ("data.lan", "https://DATA.lan/d", True),
    ("data.lan:8080", "http://data.lan:8080/d", True), ("data.lan:8080", "http://data.lan:8081/d", False),
    ("data.lan:80", "http://data.lan/d", True), ("data.lan", "http://not.data.lan/d", False),
    ("10.1.0.0/16", "http://data.lan:8080/d", True), ("10.2.0.0/16", "http://data.lan:8080/d", False),
    ("10.1.0.0/16", "https://both.lan/d", True), ("10.1.0.0/16", "http://both.lan/d", False),
    ("10.1.0.9", "https://data.lan/d", True), ("10.1.0.0/16", "https://[::ffff:10.1.0.9]/d", True),
    ("[fd00::1]:8080, x", "http://[fd00::1]:8080/d", True), ("", "https://data.lan/d", False)])
def test_hosts_of_our_own_can_be_allowed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, allowed: str, address: str, passes: bool,
) -> None:
    names = {"data.lan": ["10.1.0.9"], "not.data.lan": ["10.1.0.9"], "both.lan": ["10.1.0.9", PUBLIC]}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, type: [
        entry for ip in names.get(host, [host]) for entry in resolve(ip, port, type=type)])
    listed = settings.model_copy(update={"allowed_hosts": allowed})
    with nullcontext() if passes else pytest.raises(DataError):
        assert reachable(parsed(address, ""), listed, "")


@pytest.mark.parametrize("entry", [
    "10.1.0.9/16", "http://data.lan", "*.lan", "data.lan/d", "a b", "data.lan:99999", "::1:8080x"])
def test_a_wrong_entry_of_the_allow_list_is_named(settings: Settings, entry: str) -> None:
    wrong = settings.model_copy(update={"allowed_hosts": f"data.lan, {entry}"})
    with pytest.raises(UserError, match="ANNEAL_ALLOWED_HOSTS"):
        reachable(parsed("https://data.lan/d", ""), wrong, "")


@pytest.mark.parametrize(("text", "target", "netloc"), [
    ("https://data.test", "/", "data.test"), ("HTTPS://Data.Test:443/a b?c=%20#d", "/a%20b?c=%20", "data.test"),
    ("https://data.test:8443/?x", "/?x", "data.test:8443"), ("http://[FD00::1]:80/\u00fc", "/%C3%BC", "[fd00::1]"),
    ("https://b\u00fccher.test/", "/", "xn--bcher-kva.test")])
def test_what_is_asked_for_is_what_was_judged(text: str, target: str, netloc: str) -> None:
    found = parsed(text, "")
    assert (found.target, found.netloc) == (target, netloc)


@pytest.mark.parametrize("text", [
    "https://", "https:///d", "https:data.test/d", "https://data.test:0/d", "https://data.test:65536/d",
    "https://a%2eb/d", "https://a b/d", "https://[::1/d", "https://data.test\x00/d", "//data.test/d"])
def test_odd_addresses_are_refused(text: str) -> None:
    with pytest.raises(DataError):
        parsed(text, "")


@pytest.mark.parametrize(("number", "kind"), [
    (socket.EAI_AGAIN, Interrupted), (socket.EAI_NONAME, DataError)])
def test_a_resolver_that_is_away_is_not_a_wrong_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception],
) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(kind, match="no answer"):
        reachable(parsed("https://data.test/d", ""), settings, "")


@pytest.mark.parametrize("host", ["a" * 300, "a..b"])
def test_a_name_that_cannot_exist_is_refused(settings: Settings, host: str) -> None:
    with pytest.raises(DataError, match="too long or has an empty part"):
        reachable(parsed(f"https://{host}/d", ""), settings, "")


@pytest.mark.parametrize("ip", [
    "192.0.0.8", "192.0.0.9", "192.0.0.170", "192.88.99.1", "192.88.99.2", "192.31.196.1", "192.52.193.1",
    "192.175.48.6", "198.18.0.1", "198.51.100.1", "203.0.113.1", "0.1.2.3", "240.0.0.1", "255.255.255.255",
    "64:ff9b::c058:6301", "64:ff9b:1::1", "100:0:0:1::1", "2001:1::1", "2001:2::1", "2001:3::1", "2001:4:112::1",
    "2001:20::1", "2001:30::1", "2001:1ff::1", "2620:4f:8000::1", "3fff::1", "5f00::1", "fc00::1", "ff0e::1"])
def test_special_addresses_are_not_public(ip: str) -> None:
    """IANA's registries of special-purpose addresses for IPv4 and IPv6."""
    assert not is_public(Endpoint(0, (ip, 443)).ip)


@pytest.mark.parametrize(("ip", "public"), [
    ("2a00:64::5efe:5db8:d822", False), ("2a00:64::200:5efe:5db8:d822", False), ("2a00:64::100:5efe:5db8:d822", True),
    ("2a00:64::a00:1", False), ("2a00:64::a9fe:a9fe", False), ("2a00:64::7f00:1", False), ("2a00:64::5db8:d822", True),
    ("2a00:64:a00:1::", False), ("2a00:64:a:0:1::", False), ("2a00:64:7:a00:0:100::", False),
    ("2a00:64:7:a:0:1::", False), ("2a00:64:7:8:a:0:100::", False), ("2a00:64:5db8:d822::", True),
    ("2a00:64::1", True), ("2a00:64::face:b00c", True), ("2a00:64:7:8:a:0:1ff:1", True), ("2600::", True)])
def test_what_may_carry_a_private_ipv4_address_is_not_public(ip: str, public: bool) -> None:
    """ISATAP, and the six lengths of a NAT64 prefix of an operator's own (RFC 6052)."""
    assert is_public(Endpoint(0, (ip, 443)).ip) is public
