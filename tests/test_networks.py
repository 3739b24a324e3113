"""Which addresses are in a list of networks, how one is read and written, and by which network it is counted."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.edge.networks import MAX_REMEMBERED, WORDS, Networks, canonical, pack, parse_network, prefix_key, unpack
from hardserve.values import NETWORK_WORDS

FAST = settings(deadline=None, derandomize=True)

# --- by whom to count ---


@pytest.mark.parametrize(
    ("address", "client"),
    [
        pytest.param("192.0.2.7", "192.0.2.7", id="an IPv4 address is itself"),
        pytest.param("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", id="an IPv6 address counts by its network"),
        pytest.param("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64", id="another one of the same network is the same"),
        pytest.param("2001:db8:1:3::1", "2001:db8:1:3::/64", id="one of the next network is another client"),
        pytest.param("2001:DB8:0001:2::1", "2001:db8:1:2::/64", id="however it is written"),
        pytest.param("::1", "::/64", id="the loopback address is one of a network, too"),
        pytest.param("::ffff:192.0.2.7", "192.0.2.7", id="an IPv4 address on an IPv6 socket is the IPv4 one"),
        pytest.param("::ffff:0:192.0.2.7", "::/64", id="a translated address is not a mapped one"),
        pytest.param("64:ff9b::192.0.2.7", "64:ff9b::/64", id="nor is one behind NAT64"),
        pytest.param("fe80::1:2%eth0", "fe80::/64", id="a zone is left out"),
        pytest.param("unix:", "", id="a Unix socket's peer is nobody"),
    ],
)
def test_the_usual_key(address: str, client: str) -> None:
    assert prefix_key(address, 32, 64) == client


@pytest.mark.parametrize(
    ("address", "v4_bits", "v6_bits", "client"),
    [
        pytest.param("192.0.2.7", 24, 64, "192.0.2.0/24", id="whole bytes of IPv4"),
        pytest.param("192.0.2.255", 27, 64, "192.0.2.224/27", id="and others"),
        pytest.param("::ffff:192.0.2.255", 27, 64, "192.0.2.224/27", id="of an address on an IPv6 socket"),
        pytest.param("192.0.2.7", 0, 64, "0.0.0.0/0", id="everybody"),
        pytest.param("2001:db8::1", 32, 128, "2001:db8::1", id="all bits are an address, and no network"),
        pytest.param("2001:db8:ffff:ffff::1", 32, 60, "2001:db8:ffff:fff0::/60", id="no whole bytes of IPv6"),
        pytest.param("2001:db8:ffff:ffff::1", 32, 48, "2001:db8:ffff::/48", id="a site"),
        pytest.param("2001:db8::1", 32, 1, "::/1", id="half of the world"),
        pytest.param("unix:", 24, 48, "", id="a Unix socket has no network"),
    ],
)
def test_coarser_keys(address: str, v4_bits: int, v6_bits: int, client: str) -> None:
    assert prefix_key(address, v4_bits, v6_bits) == client


@FAST
@given(st.ip_addresses(), st.integers(0, 32), st.integers(0, 128))
def test_a_key_is_what_ipaddress_says(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, v4_bits: int, v6_bits: int
) -> None:
    known = getattr(address, "ipv4_mapped", None) or address
    bits = v4_bits if known.version == 4 else v6_bits
    network = ipaddress.ip_network((known.packed, bits), strict=False)
    expected = str(known) if bits == known.max_prefixlen else str(network)
    key = prefix_key(str(address), v4_bits, v6_bits)
    # The C library writes the last two groups of ::192.0.2.1 as IPv4, which RFC 5952 5 leaves open.
    text, slash, length = key.partition("/")
    assert f"{ipaddress.ip_address(text)}{slash}{length}" == expected
    assert key == prefix_key(str(known), v4_bits, v6_bits)


@FAST
@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_all_addresses_of_a_network_are_one_client(address: ipaddress.IPv6Address, last_half: int) -> None:
    sibling = ipaddress.IPv6Network((address.packed, 64), strict=False).network_address + last_half
    if address.ipv4_mapped is None and sibling.ipv4_mapped is None:
        assert prefix_key(str(address), 32, 64) == prefix_key(str(sibling), 32, 64)


NO_ADDRESSES = [
    pytest.param("", id="nothing"),
    pytest.param("localhost", id="a name"),
    pytest.param("192.0.2", id="too short"),
    pytest.param("192.0.2.1.1", id="too long"),
    pytest.param("192.0.2.256", id="a byte too large"),
    pytest.param("192.0.2.01", id="a leading zero, which is octal for some"),
    pytest.param("0x7f.0.0.1", id="hexadecimal"),
    pytest.param("2130706433", id="one number"),
    pytest.param("192.0.2.1%eth0", id="IPv4 with a zone"),
    pytest.param("192.0.2.1:80", id="IPv4 with a port"),
    pytest.param("192.0.2.0/24", id="a network"),
    pytest.param(" 192.0.2.1", id="a space"),
    pytest.param("192.0.2.1\n", id="a line end"),
    pytest.param("192.0.2.1\0", id="a NUL"),
    pytest.param("١٩٢.0.2.1", id="other digits"),
    pytest.param("[2001:db8::1]", id="brackets"),
    pytest.param("2001:db8::1::", id="two gaps"),
    pytest.param("2001:db8:1:2:3:4:5:6:7", id="nine groups"),
    pytest.param("2001:db8::12345", id="a group too long"),
    pytest.param("::ffff:192.0.2.256", id="a mapped one that is none"),
    pytest.param("%eth0", id="a zone alone"),
    pytest.param("\ud800:", id="half a character"),
]


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_no_address(text: str) -> None:
    everybody = Networks(["0.0.0.0/0", "::/0", "unix"])
    assert [everybody.contains(text) for _ in range(2)] == [False, False], "at first, and remembered"
    for read in (pack, canonical, lambda text: prefix_key(text, 24, 64)):
        with pytest.raises(ValueError):  # noqa: PT011  # UnicodeError is one of them
            read(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("192.0.2.1", "192.0.2.1", id="IPv4"),
        pytest.param("2001:0DB8:0:0:0:0:0:1", "2001:db8::1", id="RFC 5952: short and lower case"),
        pytest.param("::FFFF:c000:0201", "192.0.2.1", id="mapped"),
        pytest.param("fe80::1%eth0", "fe80::1", id="with a zone"),
        pytest.param("::ffff:192.0.2.1%1", "192.0.2.1", id="mapped with a zone"),
    ],
)
def test_canonical(text: str, expected: str) -> None:
    assert canonical(text) == expected
    assert unpack(pack(text)) == expected


def test_unpacking_a_mapped_address() -> None:
    assert unpack(bytes(10) + b"\xff\xff\xc0\x00\x02\x01") == "192.0.2.1"


# --- what a network is ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("192.0.2.0/24", "192.0.2.0/24", id="CIDR"),
        pytest.param("192.0.2.1", "192.0.2.1/32", id="one IPv4 address"),
        pytest.param("2001:DB8::/32", "2001:db8::/32", id="IPv6"),
        pytest.param("2001:db8::1", "2001:db8::1/128", id="one IPv6 address"),
        pytest.param("fe80::1%eth0", "fe80::1/128", id="one with a zone"),
        pytest.param("::ffff:192.0.2.1", "192.0.2.1/32", id="a mapped address"),
        pytest.param("::ffff:192.0.2.0/120", "192.0.2.0/24", id="a mapped network"),
        pytest.param("::ffff:0:0/96", "0.0.0.0/0", id="all mapped addresses"),
        pytest.param("192.0.2.0/255.255.255.0", "192.0.2.0/24", id="a netmask"),
        pytest.param("0.0.0.0/0", "0.0.0.0/0", id="all of IPv4"),
        pytest.param("::/0", "::/0", id="all of IPv6"),
    ],
)
def test_parse_network(text: str, expected: str) -> None:
    assert str(parse_network(text)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("192.0.2.7/24", "host bits set; probably meant is 192.0.2.0/24, or 192.0.2.7", id="host bits"),
        pytest.param("2001:db8::1/32", "probably meant is 2001:db8::/32, or 2001:db8::1 ", id="host bits of IPv6"),
        pytest.param("192.0.2.0/33", "expected a network such as", id="too many bits"),
        pytest.param("example.org", "or one of unix, loopback, private", id="a name"),
        pytest.param("", "expected", id="nothing"),
        pytest.param("/24", "expected", id="no address"),
        pytest.param("10", "expected", id="a number"),
        pytest.param("unix", "expected", id="a word is no network"),
    ],
)
def test_what_is_no_network_is_explained(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^\"") as caught:
        parse_network(text)
    assert said in str(caught.value)
    assert f'"{text}"' in str(caught.value)


# --- lists ---


@pytest.mark.parametrize(
    ("texts", "inside", "outside"),
    [
        pytest.param(["192.0.2.0/24"], ["192.0.2.0", "192.0.2.255"], ["192.0.1.255", "192.0.3.0"], id="IPv4"),
        pytest.param(["192.0.2.1"], ["192.0.2.1", "::ffff:192.0.2.1"], ["192.0.2.2", "2001:db8::1"], id="one address"),
        pytest.param(
            ["2001:db8::/33"],
            ["2001:db8::", "2001:db8:7fff::1%eth0"],
            ["2001:db8:8000::", "2001:db7:ffff::", "192.0.2.1"],
            id="IPv6",
        ),
        pytest.param(
            ["192.0.2.0/25", "198.51.100.7", "192.0.2.192/26", "2001:db8::1"],
            ["192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1"],
            ["192.0.2.130", "198.51.100.8", "2001:db8::2"],
            id="several",
        ),
        pytest.param(["0.0.0.0/0"], ["192.0.2.1", "::ffff:192.0.2.1"], ["2001:db8::1", "unix:"], id="all of IPv4"),
        pytest.param(["::/0"], ["2001:db8::1", "::1"], ["192.0.2.1", "::ffff:192.0.2.1", "unix:"], id="all of IPv6"),
        pytest.param(["::ffff:192.0.2.0/120"], ["192.0.2.9"], ["192.0.3.9", "::192.0.2.9"], id="mapped is IPv4"),
        pytest.param(["unix"], ["unix:"], ["127.0.0.1", "unix", "unix:/run/x", ""], id="Unix sockets"),
        pytest.param(
            ["loopback"],
            ["127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1"],
            ["128.0.0.0", "::2", "10.0.0.1", "unix:"],
            id="loopback",
        ),
        pytest.param(
            ["private"],
            [
                *("10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"),
                *("100.64.0.0", "100.127.255.255", "169.254.0.0", "169.254.255.255"),
                *("fc00::", "fdff::1", "fe80::1%eth0", "febf:ffff::", "::ffff:10.1.2.3"),
            ],
            [
                *("9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0"),
                *("100.63.255.255", "100.128.0.0", "169.253.255.255", "169.255.0.0"),
                *("fbff::", "fe00::", "fe7f::", "fec0::", "127.0.0.1", "::1", "unix:", "2001:db8::1"),
            ],
            id="private",
        ),
        pytest.param(["private", "loopback", "unix"], ["unix:", "::1", "10.0.0.1"], ["192.0.2.1"], id="all words"),
        pytest.param([], [], ["192.0.2.1", "::1", "unix:", ""], id="none"),
    ],
)
def test_contains(texts: list[str], inside: list[str], outside: list[str]) -> None:
    networks = Networks(texts)
    assert bool(networks) == bool(texts)
    for _ in range(2):  # found, and remembered
        assert [address for address in inside if not networks.contains(address)] == []
        assert [address for address in outside if networks.contains(address)] == []


NETWORK_TEXTS = st.one_of(
    st.ip_addresses().map(str),
    st.builds(
        lambda address, bits: str(
            ipaddress.ip_network((address.packed, min(bits, address.max_prefixlen)), strict=False)
        ),
        st.ip_addresses(),
        st.integers(0, 128),
    ),
)


@FAST
@given(st.lists(NETWORK_TEXTS, max_size=6), st.data())
def test_a_list_contains_what_ipaddress_says(texts: list[str], data: st.DataObject) -> None:
    networks, known = Networks(texts), [parse_network(text) for text in texts]
    near = [str(network.broadcast_address) for network in known] + [str(network.network_address) for network in known]
    for address in [*near, str(data.draw(st.ip_addresses()))]:
        read = ipaddress.ip_address(address)
        read = getattr(read, "ipv4_mapped", None) or read
        assert networks.contains(address) == any(read in network for network in known), address


def test_a_bad_text_is_named() -> None:
    with pytest.raises(ValueError, match=r"192\.0\.2\.0/24"):
        Networks(["loopback", "192.0.2.1/24"])


def test_the_words_are_those_of_the_settings() -> None:
    assert set(WORDS) == set(NETWORK_WORDS)


def test_the_memory_is_bounded_and_the_answers_stay_right() -> None:
    networks = Networks(["10.0.0.0/8"])
    for number in range(2 * MAX_REMEMBERED + 10):
        address = f"{10 + number % 2}.0.{number >> 8}.{number & 255}"
        assert networks.contains(address) == (number % 2 == 0)
        assert len(networks._remembered) <= MAX_REMEMBERED
    assert len(networks._remembered) == 10


def test_a_long_text_is_not_remembered() -> None:
    networks = Networks(["fe80::/10"])
    assert networks.contains("fe80::1%" + "x" * 100_000)
    assert not networks.contains("x" * 100_000)
    assert not networks._remembered


def test_a_long_list_costs_no_more_than_a_short_one() -> None:
    networks = Networks([f"10.{number >> 8}.{number & 255}.0/24" for number in range(5000)])
    assert len(networks._by_mask[4]) == 1, "one look for all of them"
    assert networks.contains("10.19.135.1")
    assert not networks.contains("10.19.136.1")


def test_repr_says_how_much_there_is() -> None:
    networks = Networks(["private", "192.0.2.1"])
    assert networks.contains("192.0.2.1")
    assert repr(networks) == "<Networks of 2 texts, 1 addresses remembered>"
