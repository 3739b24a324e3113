"""What people write for the value of a setting, read and written: durations, sizes, rates and the rest.

Pure functions, any thread. It knows the kinds of settings.py, and of the refusals their statuses, and nothing of names,
files or variables. Whether a file can be opened it must not ask.
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hardserve.addresses import LABEL, Address, TcpAddress, parse_address
from hardserve.settings import (
    GIB,
    KIB,
    MIB,
    TIB,
    AddressList,
    Choice,
    Directory,
    Duration,
    FieldValue,
    FileName,
    FilePath,
    HostList,
    Int,
    Kind,
    ListKind,
    MethodList,
    MountList,
    NetworkList,
    Output,
    PageFile,
    PathGlob,
    PathGlobList,
    Rate,
    RateKey,
    RefusalStatus,
    Size,
    StatusList,
    StorageUrl,
    Text,
    UrlPath,
)

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network


def parse_duration(text: str) -> float:
    """Read "10s", "1m30s", "1.5h", "30d", "500ms" or plain seconds. Raises ValueError for anything else."""
    number = r"([0-9]{1,12}(?:\.[0-9]{1,25})?)"
    if re.fullmatch(number, text):
        return float(text)
    match = re.fullmatch(rf"(?:{number}d)?(?:{number}h)?(?:{number}m)?(?:{number}s)?(?:{number}ms)?", text.lower())
    if not text or match is None:
        raise ValueError
    days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


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
        case Choice() if isinstance(raw, bool):
            return _text(kind, str(raw))
        case _ if isinstance(raw, str):
            return _text(kind, raw)
    raise ValueError


def _list(kind: ListKind, raw: object) -> tuple[Any, ...]:
    read: dict[type, Callable[[object], tuple[Any, ...]]] = {
        AddressList: partial(_addresses, none=isinstance(kind, AddressList) and kind.none),
        MethodList: _methods,
        StatusList: _statuses,
        NetworkList: partial(_each, read=_network),
        HostList: partial(_each, read=_domain if isinstance(kind, HostList) and kind.domains else _host_name),
        MountList: partial(_each, read=parse_mount),
        PathGlobList: partial(_each, read=parse_path_glob),
    }
    return read[type(kind)](raw)


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
        case Choice() if _word(kind, raw) in kind.values:
            return _word(kind, raw)
        case Output() | FilePath() if raw in kind.words or _is_path(raw):
            return raw
        case PathGlob() | UrlPath():
            return parse_path_glob(raw) if isinstance(kind, PathGlob) else parse_url_path(raw)
        case Text() if len(raw) <= kind.max and re.fullmatch(r"[ !#-\[\]-~]+", raw):
            return raw
        case Rate() | RateKey() | StorageUrl():
            return _rule(kind, raw)
        case FieldValue() | FileName() | Directory() | PageFile():
            return _of_files(kind, raw)
    raise ValueError


def _word(kind: Choice, raw: str) -> str:
    """Return the word that is meant: true and false, in any source, are on and off where there are both."""
    word = raw.lower()
    if {"on", "off"} <= set(kind.values):
        return {"true": "on", "false": "off"}.get(word, word)
    return word


def _of_files(kind: FieldValue | FileName | Directory | PageFile, raw: str) -> str:
    match kind:
        case FieldValue() | FileName() | Directory() if raw.lower() in kind.words:
            return raw.lower()
        case FieldValue() if len(raw) <= kind.max and re.fullmatch(r"[!-~]+(?: +[!-~]+)*", raw):
            return raw
        case FileName() if raw.isprintable() and re.fullmatch(r"[^/\\.][^/\\]*", raw):
            return raw
        case Directory() if raw.strip() and raw.isprintable():
            return raw
        case PageFile() if _is_path(raw) and raw.lower().endswith(kind.suffixes):
            return raw
    raise ValueError


def parse_url_path(text: str) -> str:
    """Read where something is on the site: "/media", "/media/" or "/". Raises ValueError."""
    if not text.startswith("/") or not text.isprintable() or text != text.strip() or "\\" in text:
        raise ValueError
    if "*" in text:
        raise ValueError("expected a path without *: everything below it is meant as well")
    for mistake, what in _GLOB_MISTAKES:
        if re.search(mistake, text):
            raise ValueError(what)
    if re.search(r"/\.", text.replace("/.well-known", "/")):
        raise ValueError("expected a path without names that begin with a dot: those are never served")
    return text.rstrip("/") or "/"


def parse_mount(text: str) -> str:
    """Read URL=PATH, such as "/media=uploads". Raises ValueError."""
    url, equals, path = text.partition("=")
    if not equals or not path.strip() or not path.isprintable():
        raise ValueError(f'{show(text)}: expected URL=PATH, such as "/media=uploads"')
    try:
        return f"{parse_url_path(url)}={path}"
    except ValueError as problem:
        what = str(problem) or 'expected URL=PATH with a URL that begins with a slash, such as "/media=uploads"'
        raise ValueError(f"{show(text)}: {what}") from None


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
    if name == "*" or re.fullmatch(rf"\.?{LABEL}(?:\.{LABEL})*", name):
        return name
    try:
        return f"[{ipaddress.IPv6Address(name.removeprefix('[').removesuffix(']'))}]"
    except ValueError:
        raise ValueError(
            f'{show(text)}: expected a name such as "example.com", ".example.com" for it and all below, an address, '
            'or "*"; without a port'
        ) from None


def _domain(text: str) -> str:
    from hardserve.http.hostnames import domain_name  # noqa: PLC0415  # few have any, and it takes milliseconds

    return domain_name(text)


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


def _addresses(raw: object, *, none: bool) -> tuple[str, ...]:
    texts = (raw,) if isinstance(raw, str) else raw
    if not isinstance(texts, list | tuple) or not (texts or none) or not all(isinstance(text, str) for text in texts):
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
    """Return every status with which a request may be refused, and not just sent elsewhere."""
    from hardserve import refusals  # noqa: PLC0415 - it imports logging, and the command starts sooner without

    return tuple(
        sorted(
            {
                each.status
                for each in vars(refusals).values()
                if isinstance(each, refusals.Refusal) and each.status >= 400
            }
        )
    )


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
