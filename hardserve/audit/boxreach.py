"""What strangers can reach on this box: the server's own addresses, and others' ports that need no password.

Main thread, of a command. Whether a firewall stands before all this cannot be seen from here, so that findings say
what is open and not that somebody gets in. A box without a public IPv4 address of its own, as at home or behind a
cloud's gateway, is taken to be out of reach.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hardserve.addresses import TcpAddress, parse_address, ports
from hardserve.audit.boxplace import number, read
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.settings import Settings

PLAIN = Check(
    "socket-plain-in-public",
    Severity.WARNING,
    "a socket unit has the server speak plain HTTP on a public address",
    "passwords and session cookies can be read and changed on the way",
    'tls.domain = ["NAME"] and acme.agree = "on", with ListenStream=443; or ListenStream=127.0.0.1:8000',
)
OTHERS = Check(
    "open-without-password",
    Severity.WARNING,
    "a service that needs no password by itself listens on a public address",
    "whoever finds it reads and changes what is in it, or has the whole box",
    "have it listen on 127.0.0.1, or close its port in the firewall",
)
LOW_PORT = Check(
    "low-port",
    Severity.ERROR,
    "a port that this user may not open",
    "the server does not start",
    "hardserve systemd APP --install: its socket unit opens the port",
)
CHECKS = (PLAIN, OTHERS, LOW_PORT)

# Who listens there by default, and lets everybody in until told otherwise.
RISKY_PORTS = {
    2375: "Docker's API",
    2379: "etcd",
    3306: "MySQL or MariaDB",
    5000: "Flask's development server or a Docker registry",
    5432: "PostgreSQL",
    6379: "Redis or Valkey",
    9200: "Elasticsearch",
    11211: "memcached",
    27017: "MongoDB",
}
_CAP_NET_BIND_SERVICE = 10
_LISTENING = "0A"


@dataclass(frozen=True, slots=True)
class Listening:
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachFacts:
    """Addresses of this box, what listens on them, and which ports a service may open."""

    public: tuple[str, ...] = ()  # IPv4
    listening: tuple[Listening, ...] = ()
    first_free_port: int | None = None  # from here on, everybody may listen
    may_open_low: bool = True  # for being root, or having the capability


def reach_facts(root: Path, *, is_root: bool) -> ReachFacts:
    """Read what /proc/net has."""
    listening = [*_listening(read(root, "proc/net/tcp")), *_listening(read(root, "proc/net/tcp6"))]
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)$", read(root, "proc/self/status"), re.MULTILINE)
    return ReachFacts(
        public=tuple(_public(read(root, "proc/net/fib_trie"))),
        listening=tuple(dict.fromkeys(listening)),
        first_free_port=number(read(root, "proc/sys/net/ipv4/ip_unprivileged_port_start")),
        may_open_low=is_root or bool(capabilities and int(capabilities[1], 16) >> _CAP_NET_BIND_SERVICE & 1),
    )


def _listening(table: str) -> Iterator[Listening]:
    """Read /proc/net/tcp or tcp6, whose addresses are words in the processor's order of bytes."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if (
            len(fields) > 3
            and fields[3] == _LISTENING
            and (match := re.fullmatch(r"((?:[0-9A-F]{8})+):([0-9A-F]{4})", fields[1]))
        ):
            words = [int(match[1][at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(match[1]), 8)]
            yield Listening(str(ipaddress.ip_address(b"".join(words))), int(match[2], 16))


def _public(trie: str) -> list[str]:
    """Return the public IPv4 addresses of this box, from /proc/net/fib_trie."""
    own = re.findall(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL", trie)
    return [address for address in dict.fromkeys(own) if ipaddress.ip_address(address).is_global]


def reach_findings(
    settings: Settings, facts: ReachFacts, *, bound: Sequence[str] | None = None, has_unit: bool = False
) -> Iterator[Finding]:
    """Judge. `bound` are the addresses of a socket unit, if that opens them in place of server.bind."""
    if not has_unit:
        yield from _low_ports(settings, facts)
    if not facts.public:
        return
    # Of server.bind the settings speak (settingfindings); what takes its place is seen here only.
    if bound and not settings.serves_tls and not settings.proxy.trusted:
        yield from _plain(settings, bound, facts)
    own = ports([*(bound or settings.server.bind), *settings.server.redirect])
    seen: set[int] = set()
    for each in facts.listening:
        if each.port in RISKY_PORTS and each.port not in own | seen and _is_public(each.host, facts):
            seen.add(each.port)
            yield OTHERS.found(
                f"port {each.port} ({RISKY_PORTS[each.port]}) is open on {_where(each.host, facts)}",
                f"have it listen on 127.0.0.1, or close port {each.port} in the firewall",
            )


def _is_public(host: str, facts: ReachFacts) -> bool:
    address = ipaddress.ip_address(host.removeprefix("::ffff:"))
    return address.is_unspecified or str(address) in facts.public


def _where(host: str, facts: ReachFacts) -> str:
    """Say which public address that is."""
    return f"{host}, and so on {facts.public[0]}" if ipaddress.ip_address(host).is_unspecified else host


def _plain(settings: Settings, addresses: Sequence[str], facts: ReachFacts) -> Iterator[Finding]:
    if settings.access.allow and all(_is_inside(network) for network in settings.access.allow):
        return
    for text in addresses:
        address = parse_address(text)
        if not isinstance(address, TcpAddress) or not _is_address(address.host) or not _is_public(address.host, facts):
            continue
        yield PLAIN.found(f"it opens {text}: plain HTTP on {_where(address.host, facts)}")
        return  # one is enough: the fix is for all of them


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_inside(network: str) -> bool:
    """Return whether a network of settings is one that strangers are not in."""
    if network in ("unix", "loopback", "private"):
        return True
    try:
        return ipaddress.ip_network(network, strict=False).is_private
    except ValueError:
        return False


def _low_ports(settings: Settings, facts: ReachFacts) -> Iterator[Finding]:
    if facts.may_open_low or facts.first_free_port is None:
        return
    for port in sorted(ports([*settings.server.bind, *settings.server.redirect])):
        if 0 < port < facts.first_free_port:
            yield LOW_PORT.found(
                f"port {port}, and net.ipv4.ip_unprivileged_port_start is {facts.first_free_port}",
                "hardserve systemd APP --install: its socket unit opens the port; "
                f"or sysctl net.ipv4.ip_unprivileged_port_start={port}",
            )
            return
