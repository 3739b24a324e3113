"""What people write for the value of a setting, read and written: durations, sizes, addresses and the rest.

Pure functions, any thread. It knows the kinds of settings.py, and of the refusals their statuses, and nothing of names,
files or variables. Whether an address can be bound, or a file be opened, it must not ask.
"""

import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from hardserve.settings import (
    GIB,
    KIB,
    MIB,
    TIB,
    AddressList,
    Choice,
    Duration,
    Int,
    Kind,
    MethodList,
    Output,
    PageFile,
    PathGlob,
    RefusalStatus,
    Size,
)


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


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str
    mode: int | None = None  # None, here and below: as the system makes it
    user: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class FdAddress:
    fd: int  # inherited, and bound already


Address = TcpAddress | UnixAddress | FdAddress

_ADDRESS_FORMS = "host:port, [v6]:port, unix:/path?mode=660&owner=user:group or fd:N"
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
# sockaddr_un holds 108 bytes on Linux, 104 on macOS and the BSDs, of which a zero ends the path.
_UNIX_PATH_BYTES = 107 if sys.platform == "linux" else 103


def parse_address(text: str) -> Address:
    """Read host:port, [v6]:port, unix:/path?mode=660&owner=user:group or fd:N.

    Raises ValueError that says what was expected. Nothing is looked up: whether the host, the user and
    the directory exist is found out when the address is bound.
    """
    if text.startswith("unix:"):
        return _parse_unix_address(text.removeprefix("unix:"))
    if text.startswith("fd:"):
        if not re.fullmatch(r"fd:[0-9]{1,7}", text):
            raise ValueError("expected the number of an open socket, such as fd:3")
        return FdAddress(int(text.removeprefix("fd:")))
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(f"expected {_ADDRESS_FORMS}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("expected brackets around an IPv6 address and a port after them, such as [::1]:8000")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise ValueError("expected a port from 0 to 65535")
    return TcpAddress(_parse_host(host), int(port))


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
    if len(values) < len(parameters) or not values.keys() <= {"mode", "owner"}:
        raise ValueError("expected nothing after the question mark but mode=660 and owner=user:group")
    mode, owner = values.get("mode"), values.get("owner")
    if mode is not None and not re.fullmatch(r"0?[0-7]{3}", mode):
        raise ValueError("expected a mode of three octal digits, such as mode=660")
    user = group = None
    if owner is not None:
        user, _, group = owner.partition(":")
        if not re.fullmatch(r"[\w.-]+(:[\w.-]+)?|:[\w.-]+", owner):
            raise ValueError("expected owner=user, owner=user:group or owner=:group")
    return UnixAddress(path, None if mode is None else int(mode, 8), user or None, group or None)


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
        case AddressList():
            return _addresses(raw)
        case MethodList():
            return _methods(raw)
        case _ if isinstance(raw, str):
            return _text(kind, raw)
    raise ValueError


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
        case Output() if raw in kind.words or _is_path(raw):
            return raw
        case PathGlob():
            return parse_path_glob(raw)
        case PageFile() if _is_path(raw) and raw.lower().endswith(kind.suffixes):
            return raw
    raise ValueError


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
        case Choice() | MethodList() | RefusalStatus():
            return f"expected {describe(kind)}"
        case Output():
            return f"expected {describe(kind)} (with a slash or a dot in it)"
        case AddressList():
            return f"expected {_ADDRESS_FORMS}; a list such as {example}"
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
        case Output():
            text = f"{', '.join(show(word) for word in kind.words)} or the path of a file"
        case AddressList():
            text = _ADDRESS_FORMS
        case PathGlob():
            text = _GLOB_MEANING
        case MethodList():
            text = 'some methods, such as ["POST"]'
        case RefusalStatus():
            text = f"one of {', '.join(map(str, refusal_statuses()))}"
        case PageFile():
            *others, last = kind.suffixes
            text = f"path of a file in {', '.join(others)} or {last} of at most {format_size(kind.max)} in UTF-8"
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
        case AddressList() | MethodList():
            return ",".join(value)
        case _:
            return str(value)


def write(kind: Kind, value: Any) -> str:
    """Write a value as TOML: "10s", 8, ["127.0.0.1:8000"]."""
    text = plain(kind, value)
    return show(value) if isinstance(kind, AddressList | MethodList) else text if text.isdecimal() else show(text)


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
