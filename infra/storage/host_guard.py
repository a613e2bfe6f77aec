"""Which web addresses data may come from: their spelling, their port, and where their host really is.

In:   an address as somebody wrote it, or as a server redirects to it
Out:  an Address that httpx has parsed, and the sockets' addresses of its host, every one of them judged
Whoever connects, connects to what `reachable` returned and never looks the name up again: a second look may
give another answer (DNS rebinding). On disk: nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import httpx

from infra.errors import DataError, Interrupted, UserError, shown
from infra.settings import Settings
from infra.storage.clouds import CLOUDS

PORTS = {"https": 443, "http": 80}
OPEN = (("https", 443),)
"""What any public host may be asked for; everything else only hosts that the settings name."""
ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
"""Control characters and the backslash: programs differ on what they mean in an address."""
HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*")
"""After httpx: lower case, IDNA done, no brackets. No %, so neither escapes nor IPv6 zones."""
ENTRY = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<ip>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?")

NAT64 = IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = IPv6Network("2000::/3")
SPECIAL_V4 = tuple(map(IPv4Network, (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3")))
SPECIAL_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")))
"""IANA's registries of special-purpose addresses (RFC 6890, read in 2026), whole: also what they call global, which is
a relay or an anycast service of the nearest network (PCP, TURN, AMT, AS112, 6to4), where nobody serves data. All other
special IPv6 addresses lie outside of GLOBAL_UNICAST. Kept here because `is_global` differs between Pythons."""
INSIDE_V4 = SPECIAL_V4[1:-1]
"""What a gateway of an operator's own may lead to: hosts of its network. Not 0.0.0.0/8 and 224.0.0.0/3: no gateway
passes them on, and many public hosts end in a small number or a word."""
ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""What stands before the IPv4 address in an interface's identifier (RFC 5214, section 6.1)."""

IP = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Address:
    """A web address, parsed once: what is judged is what is asked for."""

    scheme: str
    host: str
    """A name in ASCII, or an IP address without brackets."""
    port: int
    target: str
    """Path and query, escaped."""
    netloc: str
    """The Host header: host and, unless it is the scheme's own, port."""

    def redirected(self, location: str, where: str) -> Address:
        """The address that a Location header names. Raises DataError as `parsed` does."""
        _refuse_odd_characters(location, where)  # before urljoin, which drops some of them
        try:
            text = str(httpx.URL(f"{self.scheme}://{self.netloc}{self.target}").join(location))
        except (httpx.InvalidURL, ValueError):
            raise DataError("it redirects to what is not an address", where=where) from None
        return parsed(text, where)


@dataclass(frozen=True)
class Endpoint:
    """One socket's address of a host, as the resolver gave it."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]

    @property
    def ip(self) -> IP:
        """Its IP address; one IPv4 address written as IPv6 (mapped, or for a NAT64 gateway) is that IPv4 address."""
        ip = ipaddress.ip_address(self.sockaddr[0])
        if isinstance(ip, IPv6Address):
            if ip.ipv4_mapped:
                return ip.ipv4_mapped
            if ip in NAT64:
                return IPv4Address(int(ip) & 0xFFFF_FFFF)
        return ip


@dataclass(frozen=True)
class AllowList:
    """ANNEAL_ALLOWED_HOSTS: what may be read although it is private, on another port, or plain http://.

    A host in it is trusted wherever its name leads; a network only where all addresses of a name lie in it.
    """

    hosts: frozenset[tuple[str, int | None]]
    """Without a port: on any."""
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, text: str) -> AllowList:
        """Raises UserError for an entry that is neither a host nor a network."""
        hosts, networks = set(), []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            try:
                networks.append(ipaddress.ip_network(entry))
                continue
            except ValueError:
                found = ENTRY.fullmatch(entry)
            if found is None or int(found["port"] or 1) not in range(1, 65536):
                raise UserError(
                    f"{shown(entry)} is not a host", where="ANNEAL_ALLOWED_HOSTS",
                    allowed="host, host:port, or a network such as 10.1.0.0/16, separated by commas")
            hosts.add(((found["name"] or found["ip"]).lower(), int(found["port"]) if found["port"] else None))
        return cls(frozenset(hosts), tuple(networks))

    def names(self, address: Address) -> bool:
        """Whether the host stands in the list as it is written in the address."""
        return (address.host, address.port) in self.hosts or (address.host, None) in self.hosts

    def contains(self, ip: IP) -> bool:
        """Whether one of the networks has it."""
        return any(ip in network for network in self.networks)


def parsed(text: str, where: str) -> Address:
    """The parts of a web address. Raises DataError for one that is odd, or not of the web."""
    _refuse_odd_characters(text, where)
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):  # their texts quote parts of it, and a password may be among them
        raise DataError("it is not an address", where=where, fix="Check its spelling.") from None
    if url.scheme not in PORTS:
        raise DataError(
            f"the address begins with {shown(url.scheme + ':')}", where=where,
            allowed="a path, an https:// or an s3:// address, or " + ", ".join(f"{cloud}://" for cloud in CLOUDS))
    if url.userinfo:
        raise DataError("the address has a user name or an @ before its host", where=where,
                        fix="Leave them out; give a signed address if the server wants to know who asks.")
    host = url.raw_host.decode("ascii").lower()
    port = PORTS[url.scheme] if url.port is None else url.port
    if not HOST.fullmatch(host) or not 0 < port < 65536:
        raise DataError(f"the host is {shown(host)}, the port {port}", where=where, allowed="a host and a port",
                        fix="Check the spelling of the address.")
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port != PORTS[url.scheme] else "")
    return Address(url.scheme, host, port, url.raw_path.decode("ascii"), netloc)


def reachable(address: Address, settings: Settings, where: str) -> list[Endpoint]:
    """Where to connect to for this address: all that its host's name stands for.

    Raises:
        DataError: the host is unknown, or one of its addresses, its port or its scheme is not allowed.
        UserError: ANNEAL_ALLOWED_HOSTS is wrong.
        Interrupted: the name cannot be looked up just now.
    """
    allowed = AllowList.of(settings.allowed_hosts)
    if settings.allow_private_hosts or allowed.names(address):
        return _resolved(address, where)
    is_open = (address.scheme, address.port) in OPEN
    if not is_open and not allowed.networks:
        raise _not_open(address, where)
    found = _resolved(address, where)
    strangers = [endpoint.ip for endpoint in found if not allowed.contains(endpoint.ip)]
    if strangers and not is_open:
        raise _not_open(address, where)
    for ip in strangers:
        if not is_public(ip):
            raise DataError(f"the host {address.host} is {ip}, which is not a public address", where=where,
                            fix="If the server is yours, add it to ANNEAL_ALLOWED_HOSTS.")
    return found


def is_public(ip: IP) -> bool:
    """Whether it is a unicast address of the internet that leads to no other kind of address.

    An operator's own prefix of a NAT64 gateway cannot be known. Its addresses are told by their form.
    """
    if isinstance(ip, IPv4Address):
        return ip.is_global and not any(ip in network for network in SPECIAL_V4)
    if ip not in GLOBAL_UNICAST or not ip.is_global or any(ip in network for network in SPECIAL_V6):
        return False
    if int(ip) >> 32 & 0xFFFF_FFFF in ISATAP:
        return False
    return not any(inner in network for inner in _translated(ip) for network in INSIDE_V4)


def _translated(ip: IPv6Address) -> Iterator[IPv4Address]:
    """IPv4 addresses that a NAT64 gateway may take this one for: RFC 6052, section 2.2, with prefixes of 32 to 96 bits.

    Bits 64 to 71 and those after the IPv4 address are zero; with the longest prefix the whole of its second half is
    taken to be zero, or random identifiers of public hosts would fit.
    """
    high, low = divmod(int(ip), 1 << 64)
    if low >> 32 == 0:
        yield IPv4Address(low)
    for prefix in (32, 40, 48, 56, 64):
        rest = 88 - prefix  # bits after the IPv4 address
        if low >> 56 == 0 and low % (1 << rest) == 0:
            yield IPv4Address((high << prefix - 32 | low >> rest) & 0xFFFF_FFFF)


def _resolved(address: Address, where: str) -> list[Endpoint]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise Interrupted(f"the host name cannot be looked up ({error.strerror})", where=where) from error
        raise DataError(f"the host name is not known ({error.strerror})", where=where,
                        fix="Check its spelling.") from error
    except UnicodeError as error:
        raise DataError("the host name is too long or has an empty part", where=where,
                        fix="Check its spelling.") from error
    return [Endpoint(family, sockaddr) for family, _, _, _, sockaddr in found]  # type: ignore[arg-type]


def _not_open(address: Address, where: str) -> DataError:
    return DataError(
        f"it asks {address.host} for {address.scheme}:// on port {address.port}", where=where,
        allowed="https:// on port 443", fix="If the server is yours, add it to ANNEAL_ALLOWED_HOSTS.")


def _refuse_odd_characters(text: str, where: str) -> None:
    if odd := ODD.search(text):
        raise DataError(f"the address contains {shown(odd.group())}", where=where, allowed="no control characters "
                        "and no backslashes", fix="Check its spelling; a backslash in a path is written %5C.")
