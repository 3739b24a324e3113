"""The addresses that can be listened on, as people write them: host:port, [v6]:port, unix:/path, fd:N.

Pure functions, any thread. Whether an address can be bound it must not ask.
"""

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass


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

ADDRESS_FORMS = "host:port, [v6]:port, unix:/path?mode=660&owner=user:group or fd:N"
HTTP_PORT, HTTPS_PORT = 80, 443
PROXY_PROTOCOL = "proxy_protocol"
LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
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
    if query != (PROXY_PROTOCOL if question_mark else ""):
        raise ValueError(f"expected nothing after the question mark but {PROXY_PROTOCOL}")
    if text.startswith("fd:"):
        if not re.fullmatch(r"fd:[0-9]{1,7}", text):
            raise ValueError("expected the number of an open socket, such as fd:3")
        return FdAddress(int(text.removeprefix("fd:")), bool(query))
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(f"expected {ADDRESS_FORMS}")
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
    if len(host) > 253 or not re.fullmatch(rf"{LABEL}(?:\.{LABEL})*", host):
        raise ValueError(f"expected {ADDRESS_FORMS}")
    return host


def _parse_unix_address(text: str) -> UnixAddress:
    path, _, query = text.partition("?")
    if not path.startswith("/") or path.endswith("/") or not path.isprintable():
        raise ValueError("expected the absolute path of a socket, such as unix:/run/hardserve/web.sock")
    if len(os.fsencode(path)) > _UNIX_PATH_BYTES:
        raise ValueError(f"expected a path of at most {_UNIX_PATH_BYTES} bytes")
    parameters = [part.partition("=")[::2] for part in query.split("&") if part]
    values = dict(parameters)
    wrong = len(values) < len(parameters) or not values.keys() <= {"mode", "owner", PROXY_PROTOCOL}
    if wrong or values.get(PROXY_PROTOCOL):
        raise ValueError(
            f"expected nothing after the question mark but mode=660, owner=user:group and {PROXY_PROTOCOL}"
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
    return UnixAddress(path, octal, user or None, group or None, PROXY_PROTOCOL in values)


def ports(addresses: Iterable[str]) -> set[int]:
    """Return the TCP ports of some addresses of settings."""
    parsed = map(parse_address, addresses)
    return {address.port for address in parsed if isinstance(address, TcpAddress)}
