"""What people write for the value of a setting, read and written: durations, sizes, addresses and the rest.

Pure functions, any thread. It knows the kinds of settings.py, and of the refusals their statuses, and nothing of names,
files or variables. Whether an address can be bound, or a file be opened, it must not ask.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hardserve.settings import (
    GIB,
    KIB,
    MIB,
    TIB,
    AddressList,
    Choice,
    Duration,
    FilePath,
    HostList,
    Int,
    Kind,
    ListKind,
    MethodList,
    NetworkList,
    Output,
    PageFile,
    PathGlob,
    Rate,
    RateKey,
    RefusalStatus,
    Size,
    StatusList,
    StorageUrl,
    Text,
)

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network


def parse_duration(text: str) -> float:
    """Read "10s", "1m30s", "1.5h", "500ms" or plain seconds. Raises ValueError for anything else."""
    number = r"([0-9]{1,12}(?:\.[0-9]{1,25})?)"
    if re.fullmatch(number, text):
        return float(text)
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?(?:{number}ms)?", text.lower())
    if not text or match is None:
        raise ValueError
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def format_duration(seconds: float) -> str:
    """Write seconds as parse_duration() reads them: "0.5s", "90s", "2h"."""
    if seconds >= 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:.0f}h"
    text = repr(float(seconds))
    if "e" in text:  # too near to zero for anybody to have meant all of its digits
        text = f"{seconds:.12f}"
    return text.removesuffix(".0") + "s"


_SIZE_UNITS = (
    {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
    | {"kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB}
    | {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
)


def parse_size(text: str) -> int:
    """Read "10MiB" or "10m" (of 1024), "10MB" (of 1000), "1.5g" or plain bytes.

    Raises ValueError for anything else, and for a fraction of a byte.
    """
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,15}))? ?([a-z]*)", text.lower())
    if match is None or match[3] not in _SIZE_UNITS:
        raise ValueError
    decimals = match[2] or ""
    scale: int = 10 ** len(decimals)
    size, fraction = divmod(int(match[1] + decimals) * _SIZE_UNITS[match[3]], scale)
    if fraction:
        raise ValueError
    return size


def format_size(size: int) -> str:
    """Write bytes as parse_size() reads them, in the largest unit of 1024 that divides them: "64KiB"."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str  # a name, an IPv4 address, or an IPv6 address without its brackets
    port: int  # 0 = any that is free
    proxy_protocol: bool = False  # each connection begins with a PROXY protocol header; so below


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str
    mode: int | None = None  # None, here and below: as the system makes it
    user: str | None = None
    group: str | None = None
    proxy_protocol: bool = False


@dataclass(frozen=True, slots=True)
class FdAddress:
    fd: int  # inherited, and bound already
    proxy_protocol: bool = False


Address = TcpAddress | UnixAddress | FdAddress

_ADDRESS_FORMS = "host:port, [v6]:port, unix:/path?mode=660&owner=user:group or fd:N"
_PROXY_PROTOCOL = "proxy_protocol"
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
# sockaddr_un holds 108 bytes on Linux, 104 on macOS and the BSDs, of which a zero ends the path.
_UNIX_PATH_BYTES = 107 if sys.platform == "linux" else 103


def parse_address(text: str) -> Address:
    """Read host:port, [v6]:port, unix:/path?mode=660&owner=user:group or fd:N, each with ?proxy_protocol.

    Raises ValueError that says what was expected. Nothing is looked up: whether the host, the user and
    the directory exist is found out when the address is bound.
    """
    if text.startswith("unix:"):
        return _parse_unix_address(text.removeprefix("unix:"))
    text, question_mark, query = text.partition("?")
    if query != (_PROXY_PROTOCOL if question_mark else ""):
        raise ValueError(f"expected nothing after the question mark but {_PROXY_PROTOCOL}")
    if text.startswith("fd:"):
        if not re.fullmatch(r"fd:[0-9]{1,7}", text):
            raise ValueError("expected the number of an open socket, such as fd:3")
        return FdAddress(int(text.removeprefix("fd:")), bool(query))
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(f"expected {_ADDRESS_FORMS}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("expected brackets around an IPv6 address and a port after them, such as [::1]:8000")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise ValueError("expected a port from 0 to 65535")
    return TcpAddress(_parse_host(host), int(port), bool(query))


def _parse_host(host: str) -> str:
    import ipaddress  # noqa: PLC0415 - the command starts sooner without it where no address is read

    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]")))
        if re.fullmatch(r"[0-9.]+", host):
            return str(ipaddress.IPv4Address(host))
    except ValueError as problem:
        raise ValueError(f"expected an IP address, but {problem}") from None
    if len(host) > 253 or not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", host):
        raise ValueError(f"expected {_ADDRESS_FORMS}")
    return host


def _parse_unix_address(text: str) -> UnixAddress:
    path, _, query = text.partition("?")
    if not path.startswith("/") or path.endswith("/") or not path.isprintable():
        raise ValueError("expected the absolute path of a socket, such as unix:/run/hardserve/web.sock")
    if len(os.fsencode(path)) > _UNIX_PATH_BYTES:
        raise ValueError(f"expected a path of at most {_UNIX_PATH_BYTES} bytes")
    parameters = [part.partition("=")[::2] for part in query.split("&") if part]
    values = dict(parameters)
    wrong = len(values) < len(parameters) or not values.keys() <= {"mode", "owner", _PROXY_PROTOCOL}
    if wrong or values.get(_PROXY_PROTOCOL):
        raise ValueError(
            f"expected nothing after the question mark but mode=660, owner=user:group and {_PROXY_PROTOCOL}"
        )
    mode, owner = values.get("mode"), values.get("owner")
    if mode is not None and not re.fullmatch(r"0?[0-7]{3}", mode):
        raise ValueError("expected a mode of three octal digits, such as mode=660")
    user = group = None
    if owner is not None:
        user, _, group = owner.partition(":")
        if not re.fullmatch(r"[\w.-]+(:[\w.-]+)?|:[\w.-]+", owner):
            raise ValueError("expected owner=user, owner=user:group or owner=:group")
    octal = None if mode is None else int(mode, 8)
    return UnixAddress(path, octal, user or None, group or None, _PROXY_PROTOCOL in values)


_UNITS_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_RATE = re.compile(r"([0-9]{1,9})(?: ?/ ?| per )(?:([0-9]{1,5}) ?)?(second|minute|hour|day)s?")
MAX_RATE_AMOUNT = 1_000_000
MAX_RATE_PERIOD_S = 30 * 86_400


def parse_rates(text: str) -> list[tuple[int, int]]:
    """Read "20/second; 300/minute", "10 per 5 minutes": how many, in how many seconds, the shortest time first.

    Raises ValueError that says what was expected.
    """
    rates: dict[int, int] = {}
    for part in text.lower().split(";"):
        match = _RATE.fullmatch(part.strip())
        if match is None:
            raise ValueError('expected a rate such as "300/minute", "10/5 minutes" or "20/second; 300/minute"')
        amount, period = int(match[1]), int(match[2] or 1) * _UNITS_S[match[3]]
        if not 1 <= amount <= MAX_RATE_AMOUNT or not 1 <= period <= MAX_RATE_PERIOD_S:
            raise ValueError(f"expected from 1 to {MAX_RATE_AMOUNT} in at most 30 days")
        if period in rates:
            raise ValueError("expected one rate for each length of time")
        rates[period] = amount
    ordered = sorted(rates.items())
    for (shorter, fewer), (longer, more) in pairwise(ordered):
        if more <= fewer:
            raise ValueError(f"{fewer} in {shorter} s never counts beside {more} in {longer} s")
    return [(amount, period) for period, amount in ordered]


# What `limits` can talk to, with the extra that brings the client library.
STORAGES = {
    "redis": "redis",
    "rediss": "redis",
    "redis+unix": "redis",
    "redis+sentinel": "redis",
    "redis+cluster": "redis",
    "valkey": "valkey",
    "valkeys": "valkey",
    "valkey+unix": "valkey",
    "valkey+sentinel": "valkey",
    "valkey+cluster": "valkey",
    "memcached": "memcached",
    "mongodb": "mongodb",
    "mongodb+srv": "mongodb",
}

_MAX_GLOB = 1024
_GLOB_MISTAKES = (
    (r"[?#]", "expected a path alone, without a query"),
    (r"%[0-9A-Fa-f]{2}", "expected the path as it is when decoded, without escapes such as %20"),
    (r"<[^/]*>", 'expected * in place of a variable part, as in "/users/*"'),
    (r"/\.{0,2}/|/\.\.?$", "expected a path without //, /./ and /../, as those of requests are compared"),
)


def parse_path_glob(text: str) -> str:
    """Read the paths of some requests: a path from its first slash on, or with * for what may differ.

    Raises ValueError, with a message for what could never be the path of a request.
    """
    if not text.startswith(("/", "*")) or not text.isprintable() or text != text.rstrip():
        raise ValueError
    if len(text) > _MAX_GLOB:
        raise ValueError(f"expected at most {_MAX_GLOB} characters")
    for mistake, what in _GLOB_MISTAKES:
        if re.search(mistake, text):
            raise ValueError(what)
    return text


def parse(kind: Kind, raw: object) -> Any:
    """Read a value as it came from a file, a variable, a flag or Python: text, or a number of that unit.

    Raises ValueError, without a message where expected() says all there is to say.
    """
    match kind:
        case Duration():
            return float(_bounded(kind, parse_duration(raw) if isinstance(raw, str) else raw, int | float))
        case Size():
            return _bounded(kind, parse_size(raw) if isinstance(raw, str) else raw, int)
        case Int() | RefusalStatus():
            return _whole(kind, raw)
        case _ if isinstance(kind, ListKind):
            return _list(kind, raw)
        case _ if isinstance(raw, str):
            return _text(kind, raw)
    raise ValueError


def _list(kind: ListKind, raw: object) -> tuple[Any, ...]:
    match kind:
        case AddressList():
            return _addresses(raw)
        case MethodList():
            return _methods(raw)
        case NetworkList():
            return _each(raw, _network)
        case HostList():
            return _each(raw, _host_name)
        case StatusList():
            return _statuses(raw)


def _whole(kind: Int | RefusalStatus, raw: object) -> Any:
    digits = isinstance(raw, str) and re.fullmatch(r"[0-9]{1,15}", raw)
    number = int(digits[0]) if digits else raw
    if isinstance(kind, Int):
        return _bounded(kind, number, int)
    if type(number) is not int or number not in refusal_statuses():
        raise ValueError
    return number


def _text(kind: Kind, raw: str) -> str:
    match kind:
        case Choice() if raw.lower() in kind.values:
            return raw.lower()
        case Output() | FilePath() if raw in kind.words or _is_path(raw):
            return raw
        case PathGlob():
            return parse_path_glob(raw)
        case PageFile() if _is_path(raw) and raw.lower().endswith(kind.suffixes):
            return raw
        case Text() if len(raw) <= kind.max and re.fullmatch(r"[ !#-\[\]-~]+", raw):
            return raw
        case Rate() | RateKey() | StorageUrl():
            return _rule(kind, raw)
    raise ValueError


RATE_KEYS = ("client", "client+path", "user", "global")


def _rule(kind: Rate | RateKey | StorageUrl, raw: str) -> str:
    match kind:
        case Rate() if kind.off and raw.lower() == "off":
            return "off"
        case Rate():
            if len(parse_rates(raw)) > 1 and not kind.several:
                raise ValueError('expected one rate, such as "300/minute"')
            return raw
        case RateKey() if raw in RATE_KEYS or re.fullmatch(r"header:[A-Za-z0-9!#$%&'*+.^`|~-]{1,64}", raw):
            return raw
        case StorageUrl():
            scheme, separator, rest = raw.partition("://")
            if raw == "memory" or (separator and rest and scheme in STORAGES and raw.isprintable()):
                return raw
    raise ValueError


def _each(raw: object, read: Callable[[str], str]) -> tuple[str, ...]:
    texts = (raw,) if isinstance(raw, str) else raw
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError
    values = tuple(read(text.strip()) for text in texts)
    if len(set(values)) < len(values):
        raise ValueError("expected each once")
    return values


NETWORK_WORDS = ("unix", "loopback", "private")


def parse_network(text: str) -> "IPv4Network | IPv6Network":
    """Read a network: CIDR, or an address, which is a network of one. Not the words, and without a zone id.

    Raises ValueError that says what was expected.
    """
    import ipaddress  # noqa: PLC0415

    address, slash, bits = text.partition("/")
    address = address.partition("%")[0]
    try:
        network = ipaddress.ip_network(f"{address}{slash}{bits}", strict=False)
    except ValueError:
        words = ", ".join(NETWORK_WORDS)
        raise ValueError(
            f"{show(text)}: expected a network such as 192.0.2.0/24 or 2001:db8::/32, an address, or one of {words}"
        ) from None
    if network.network_address != ipaddress.ip_address(address):
        raise ValueError(
            f"{show(text)}: has host bits set; probably meant is {network}, or {address} for that one address"
        )
    return network


def _network(text: str) -> str:
    if text in NETWORK_WORDS:
        return text
    network = parse_network(text)
    return str(network if "/" in text else network.network_address)


def _host_name(text: str) -> str:
    import ipaddress  # noqa: PLC0415

    name = text.lower().removesuffix(".") or text
    if name == "*" or re.fullmatch(rf"\.?{_LABEL}(?:\.{_LABEL})*", name):
        return name
    try:
        return f"[{ipaddress.IPv6Address(name.removeprefix('[').removesuffix(']'))}]"
    except ValueError:
        raise ValueError(
            f'{show(text)}: expected a name such as "example.com", ".example.com" for it and all below, an address, '
            'or "*"; without a port'
        ) from None


def _statuses(raw: object) -> tuple[int, ...]:
    given = list(raw) if isinstance(raw, list | tuple) else [raw]
    numbers = [int(text) for text in map(str, given) if re.fullmatch("[2-5][0-9]{2}", text)]
    if len(numbers) < len(given) or len(set(numbers)) < len(numbers):
        raise ValueError
    return tuple(numbers)


def _bounded(kind: Duration | Size | Int, value: Any, type_: Any) -> Any:
    # bool is a subclass of int, but `threads = true` is a mistake and not one thread. The comparison
    # is also false for what is not a number (nan).
    if isinstance(value, bool) or not isinstance(value, type_) or not kind.min <= value <= kind.max:
        raise ValueError
    return value


def _is_path(text: str) -> bool:
    return text.isprintable() and not text.endswith("/") and ("/" in text or "." in text)


def _addresses(raw: object) -> tuple[str, ...]:
    texts = (raw,) if isinstance(raw, str) else raw
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError
    seen: list[Address] = []
    for text in texts:
        try:
            address = parse_address(text)
        except ValueError as problem:
            raise ValueError(f"{show(text)}: {problem}" if len(texts) > 1 else str(problem)) from None
        if address in seen and not (isinstance(address, TcpAddress) and address.port == 0):
            raise ValueError(f"expected each address once, but {show(text)} is repeated")
        seen.append(address)
    return tuple(texts)


_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


def _methods(raw: object) -> tuple[str, ...]:
    texts = (raw,) if isinstance(raw, str) else raw
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError
    methods = tuple(text.upper() for text in texts)
    for method in methods:
        if not re.fullmatch(r"[A-Z][A-Z0-9!#$%&'*+.^_`|~-]{0,31}", method):  # what edge.parsing takes
            raise ValueError
        if method not in _METHODS:
            import difflib  # noqa: PLC0415

            # PROPPATCH is no misspelt PATCH: other methods are taken as they are.
            near = [known for known in _METHODS if abs(len(known) - len(method)) <= 1]
            for known in difflib.get_close_matches(method, near, n=1):
                raise ValueError(f"did you mean {show(known)}?")
    if len(set(methods)) < len(methods):
        raise ValueError("expected each method once")
    return methods


def refusal_statuses() -> tuple[int, ...]:
    """Return every status with which a request may be refused."""
    from hardserve import refusals  # noqa: PLC0415 - it imports logging, and the command starts sooner without

    return tuple(sorted({each.status for each in vars(refusals).values() if isinstance(each, refusals.Refusal)}))


def expected(kind: Kind, default: Any) -> str:
    """Say what is allowed, and the default for an example: the second half of a message about a mistake."""
    example = write(kind, default)
    match kind:
        case AddressList():
            return f"expected {_ADDRESS_FORMS}; a list such as {example}"
        case _ if isinstance(kind, ListKind | Choice | RefusalStatus | Rate | RateKey | StorageUrl | Text):
            return f"expected {describe(kind)}"
        case Output() | FilePath():
            return f"expected {describe(kind)} (with a slash or a dot in it)"
        case PathGlob():
            return 'expected a path such as "/upload", "/upload/*" or "*.iso"'
        case _:
            return f"expected a {describe(kind)}, such as {example}"


# The whole definition, for the reference: whatever takes a path takes it like this.
_GLOB_MEANING = (
    'path in which * stands for any characters, slashes too, and all else for itself: "/upload", "*.iso",'
    ' "/files/*/raw"; "/upload/*" is /upload and all below it. It is compared with the decoded path of a request,'
    " without //, /./ and /../; a slash at the end of that makes no difference"
)


def describe(kind: Kind) -> str:
    """Name the kind and its bounds in a few words."""
    match kind:
        case Duration() | Size() | Int():
            text = _range(kind)
        case Choice():
            text = f"one of {', '.join(kind.values)}"
        case Output() | FilePath():
            words = ", ".join(map(show, kind.words))
            text = f"{words} or the path of a file" if words else "the path of a file"
        case AddressList():
            text = f"{_ADDRESS_FORMS}; a PROXY protocol header begins each connection with ?{_PROXY_PROTOCOL}"
        case PathGlob():
            text = _GLOB_MEANING
        case MethodList():
            text = 'some methods, such as ["POST"]'
        case RefusalStatus():
            text = f"one of {', '.join(map(str, refusal_statuses()))}"
        case PageFile():
            *others, last = kind.suffixes
            text = f"path of a file in {', '.join(others)} or {last} of at most {format_size(kind.max)} in UTF-8"
        case _:
            text = _describe_rule(kind)
    return text


def _describe_rule(kind: Kind) -> str:
    """Name a kind that says who may come in, or how often."""
    match kind:
        case NetworkList():
            text = (
                f'some of {", ".join(NETWORK_WORDS)}, networks and addresses, such as ["192.0.2.0/24", "2001:db8::/32"]'
            )
        case HostList():
            text = 'some names and addresses without a port, such as ["example.com", ".example.org"], or "*" for any'
        case StatusList():
            text = "some statuses, such as [401, 404]"
        case Rate():
            one = 'a rate such as "300/minute" or "10/5 minutes"'
            text = one + ', several such as "20/second; 300/minute"' * kind.several + ', or "off"' * kind.off
        case RateKey():
            text = f"one of {', '.join(RATE_KEYS)} and header:NAME"
        case StorageUrl():
            text = f'"memory", or a URL of {", ".join(STORAGES)}'
        case Text():
            text = f"text of at most {kind.max} printable ASCII characters, without quotes and backslashes"
        case _:
            raise TypeError(kind)
    return text


def _range(kind: Duration | Size | Int) -> str:
    match kind:
        case Duration():
            return f"duration from {format_duration(kind.min)} to {format_duration(kind.max)}"
        case Size():
            return f"size from {format_size(kind.min)} to {format_size(kind.max)}"
        case Int():
            return f"whole number from {kind.min} to {kind.max}"


def plain(kind: Kind, value: Any) -> str:
    """Write a value as people do, and as a variable or a flag takes it: 10s, 64KiB, stdout."""
    match kind:
        case Duration():
            return format_duration(value)
        case Size():
            return format_size(value)
        case _ if isinstance(kind, ListKind):
            return ",".join(map(str, value))
        case _:
            return str(value)


def write(kind: Kind, value: Any) -> str:
    """Write a value as TOML: "10s", 8, ["127.0.0.1:8000"]."""
    text = plain(kind, value)
    return show(value) if isinstance(kind, ListKind) else text if text.isdecimal() else show(text)


def without_password(url: str) -> str:
    """Return a URL of a store as it may be shown: with asterisks where a password is."""
    return re.sub(r"(://[^/?#]*?):[^/?#]*@", r"\1:***@", url)


def show(raw: object) -> str:
    """Write whatever was given on one line, as TOML does where it can, with no control character in it."""
    match raw:
        case str():
            escaped = raw.replace("\\", "\\\\").replace('"', '\\"')
            return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
        case bool():
            return str(raw).lower()
        case list() | tuple():
            return f"[{', '.join(show(item) for item in raw)}]"
        case dict():
            return "a table"
        case _:
            return str(raw)
