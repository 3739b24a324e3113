"""Addresses and the networks they are in: whether one is in any of a list, and by which network to count it.

Pure but for a memory of answers; any thread. It knows no socket (but the C library's functions for addresses, which are
ten times as fast as `ipaddress`), and nothing of what follows from an answer.

An address is text: "192.0.2.1", "2001:db8::1", or "unix:" for the peer of a Unix socket, which has none. An IPv4-mapped
IPv6 address (RFC 4291 2.5.5.2) is the IPv4 address in it everywhere, because an IPv6 socket that takes IPv4 as well has
no other way to say it. A zone id (RFC 4007 11) is left out everywhere: it says which interface of ours, not who.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from hardserve import values

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX: Final = "unix:"
# What a word stands for.
WORDS: Final = {
    "unix": (),
    "loopback": ("127.0.0.0/8", "::1"),
    "private": (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # RFC 1918
        "100.64.0.0/10",  # RFC 6598: behind the NAT of a provider
        "169.254.0.0/16", "fe80::/10",  # RFC 3927, RFC 4291 2.5.6: of one link
        "fc00::/7",  # RFC 4193
    ),
}  # fmt: skip
# Answers that a list remembers, about 100 bytes each: as many clients as are likely to be there at once. A flood of
# addresses costs what it would without a memory, and a refill.
MAX_REMEMBERED: Final = 4096
# The longest text of an address (INET6_ADDRSTRLEN) and a short zone id; a longer one is not remembered.
_REMEMBERED_CHARS = 64

_MAPPED_IPV4 = b"\0" * 10 + b"\xff\xff"
_MAPPED_NETWORK = ipaddress.IPv6Network("::ffff:0:0/96")


def parse_network(text: str) -> IPNetwork:
    """Return the network that `text` is, as `values.parse_network` reads it; one of mapped addresses is IPv4's."""
    network = values.parse_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED_NETWORK):
        packed = network.network_address.packed[12:]
        return ipaddress.IPv4Network((packed, network.prefixlen - 96))
    return network


def pack(address: str) -> bytes:
    """Return the 4 or 16 bytes of an address. Raises ValueError for text that is none, "unix:" among it."""
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        raise ValueError("not an address") from None
    return packed[12:] if packed.startswith(_MAPPED_IPV4) else packed


def unpack(packed: bytes) -> str:
    """Return the canonical text (RFC 5952) of the 4 or 16 bytes of an address."""
    if packed.startswith(_MAPPED_IPV4):
        packed = packed[12:]
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def canonical(address: str) -> str:
    """Return the one text of an address, whatever way of writing it (RFC 5952). Raises ValueError as `pack`."""
    packed = pack(address)
    return address if len(packed) == 4 and ":" not in address else unpack(packed)


def prefix_key(address: str, v4_bits: int, v6_bits: int) -> str:
    """Return by whom to count a client: its address, or the network of so many bits that it is in, in CIDR notation.

    Whoever has an IPv6 address has at least a /64 of them (RFC 6177), and may use a new one for each connection. All 32
    or 128 bits are the address itself, without the "/32". A Unix socket's peer is "", which is nobody: nothing is
    counted of it. Raises ValueError for text that is no address, which neither the kernel nor edge.forwarded reports.
    """
    if ":" not in address and v4_bits == 32:
        return address  # nearly all there are
    if address == UNIX:
        return ""
    packed = pack(address)
    bits, of = (v4_bits, 32) if len(packed) == 4 else (v6_bits, 128)
    if bits == of:
        return unpack(packed)
    whole, rest = divmod(bits, 8)
    kept = packed[:whole]
    if rest:
        kept += bytes((packed[whole] & (0xFF00 >> rest),))
    return f"{unpack(kept.ljust(len(packed), bytes(1)))}/{bits}"


class Networks:
    """A list of networks, of which an address is in one or in none. Any thread.

    `texts` are CIDR, addresses, and the words "unix", "loopback" and "private". It is false when it is empty. Raises
    ValueError with a message for operators.

    What an address was found to be is remembered, of `MAX_REMEMBERED` addresses; then all of it is forgotten at once.
    What is not remembered costs a look for each length of prefix in the list, however many networks have it.
    """

    __slots__ = ("_by_mask", "_remembered", "_texts", "_unix")

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._unix = "unix" in self._texts
        # By length in bytes of the address: the mask of each length of prefix, and the networks that have it.
        self._by_mask: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}
        for text in self._texts:
            for network in map(parse_network, WORDS.get(text, (text,))):
                masks = self._by_mask[network.max_prefixlen // 8]
                masks.setdefault(int(network.netmask), set()).add(int(network.network_address))
        self._remembered: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"<Networks of {len(self._texts)} texts, {len(self._remembered)} addresses remembered>"

    def __bool__(self) -> bool:
        return bool(self._texts)

    def contains(self, address: str) -> bool:
        """Return whether an address is in one of the networks. What is no address is in none."""
        answer = self._remembered.get(address)
        if answer is None:
            answer = self._find(address)
            if len(address) <= _REMEMBERED_CHARS:
                if len(self._remembered) >= MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[address] = answer
        return answer

    def _find(self, address: str) -> bool:
        if address == UNIX:
            return self._unix
        try:
            packed = pack(address)
        except ValueError:
            return False
        number = int.from_bytes(packed, "big")
        return any(number & mask in networks for mask, networks in self._by_mask[len(packed)].items())
