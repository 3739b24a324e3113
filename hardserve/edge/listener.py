"""The addresses the server listens on: `host:port`, `[v6]:port`, `unix:/path` and inherited `fd:N`.

Opened and closed by the thread that starts and ends the server; its sockets are accepted from by the I/O thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import pwd
import socket
import stat
import struct
import sys
from collections.abc import Callable, Sequence

from hardserve.addresses import FdAddress, UnixAddress, parse_address
from hardserve.edge.transport import UNSENT_BYTES

SO_ATTACH_FILTER = 26  # linux/asm-generic; the socket module has no name for it
# Classic BPF on a TCP segment: load the byte of its flags, and keep no byte of what has SYN set, that is, drop it. What
# else comes to a listening socket ends the handshake of a client that is about to send its request, or has: that stays.
_DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
)


_FD_ADVICE = "it must be a listening stream socket that the parent process passed on"


class ListenError(Exception):
    """An address cannot be listened on. The text says which, why, and what to do."""


class Listener:
    """One bound, listening, non-blocking socket. `name` and `port` become SERVER_NAME and SERVER_PORT.

    `address` is one that the settings have checked.
    """

    def __init__(self, address: str, bound: socket.socket, *, unix_path: str | None = None) -> None:
        self.address = address
        self.socket = bound
        self.proxy_protocol = parse_address(address).proxy_protocol  # each connection begins with its header
        self.tls = False  # or with a handshake, or with one after the other
        self.redirects = False  # requests are sent on to HTTPS
        self.shared = address.startswith("fd:")  # somebody else has the socket, too, and keeps listening
        self.number = -1  # under which somebody else has passed it on
        self._unix_path = unix_path
        self._unix_inode = os.stat(unix_path).st_ino if unix_path else 0
        if bound.family == socket.AF_UNIX:
            self.name, self.port = "localhost", ""
            self._place = f"unix:{unix_path or bound.getsockname()}"
        else:
            host, port = bound.getsockname()[:2]
            self.name, self.port = host, str(port)
            self._place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def __repr__(self) -> str:
        return f"<Listener {self.url}>"

    @property
    def fd(self) -> int:
        """The descriptor to be handed on, -1 when it is closed: the settings may name the number that it came with."""
        open_one = self.socket.fileno()
        return open_one if open_one < 0 or self.number < 0 else self.number

    @property
    def url(self) -> str:
        if self.socket.family == socket.AF_UNIX:
            return self._place
        return f"{'https' if self.tls else 'http'}://{self._place}"

    def quiesce(self) -> bool:
        """Let no new connection begin, so that the queue can be emptied and closed without losing one.

        Return whether handshakes may be under way, whose clients come to the queue yet.

        Closing a listening socket resets the connections that wait in its queue, and there is always one more that
        came between the last accept and the close. On Linux a filter that drops every SYN to the listening socket
        ends that: a client then repeats its SYN a second later, to whoever listens by then. A Unix socket's name is
        removed instead. A shared socket goes on: nothing to do.
        """
        if self.shared:
            return False
        if self._unix_path is not None:
            self._unlink()
        elif self.socket.family != socket.AF_UNIX and sys.platform == "linux":
            program = ctypes.create_string_buffer(_DROP_SYN)
            # SO_ATTACH_FILTER may be forbidden by a sandbox; then the window is as small as the next two calls.
            with contextlib.suppress(OSError):
                self.socket.setsockopt(
                    socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 4, ctypes.addressof(program))
                )
            return True
        return False

    def close(self) -> None:
        """Stop listening, and remove the name of a Unix socket that is still ours, or that was left to nobody."""
        self.socket.close()
        if self._unix_path is not None and not (self.shared and _is_listened_on(self._unix_path)):
            self._unlink()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            if self._unix_path is not None and os.stat(self._unix_path).st_ino == self._unix_inode:
                os.unlink(self._unix_path)


def open_listeners(
    address: str, backlog: int, *, tls: bool = False, redirects: bool = False, handed: Sequence[int] = ()
) -> list[Listener]:
    """Bind and listen on an address whose form the settings have checked; a host name may stand for several.

    `handed` are descriptors of sockets that a former process has listened on at this address: they are taken instead.
    Raises ListenError, and then holds nothing.
    """
    opened = [_take_over(address, fd, backlog) for fd in handed] if handed else _open(address, backlog)
    for listener in opened:
        listener.tls, listener.redirects = tls, redirects
    return opened


def _open(address: str, backlog: int) -> list[Listener]:
    parsed = parse_address(address)
    if isinstance(parsed, FdAddress):
        return [_adopt(address, parsed.fd, backlog)]
    if isinstance(parsed, UnixAddress):
        return [_open_unix(address, parsed, backlog)]
    opened: list[Listener] = []
    lacking: OSError | None = None
    try:
        # A name such as localhost is both 127.0.0.1 and ::1, and clients try either.
        for family, kind, protocol, _, sockaddr in socket.getaddrinfo(
            parsed.host, parsed.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                opened.append(_open_tcp(address, backlog, socket.socket(family, kind, protocol), sockaddr))
            except OSError as error:
                # One of them may not exist here: a machine without IPv6 has a localhost, too.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                lacking = error
        if lacking is not None and not opened:
            raise lacking
    except OSError as error:
        for listener in opened:
            listener.close()
        raise ListenError(_explain(address, parsed.port, error)) from None
    return opened


def _open_tcp(
    address: str, backlog: int, bound: socket.socket, sockaddr: tuple[str | int, ...] | tuple[int, bytes]
) -> Listener:
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:
            # [::] is IPv6 alone, whatever the system's default, so that 0.0.0.0 can stand beside it.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(sockaddr)
        _tune(bound)
        bound.listen(backlog)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return Listener(address, bound)


def _tune(listening: socket.socket) -> None:
    """Set what every connection is to have: it inherits from the socket that it is accepted from (tcp(7))."""
    # A response leaves when it is sent, not when the client acknowledges the one before.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # The kernel takes no more than this beyond what the network takes: otherwise megabytes for each slow reader.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def _explain(address: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"cannot listen on {address}: port {port} is in use by another program; "
            f"stop it (ss -ltnp 'sport = :{port}' names it) or choose another with --bind"
        )
    if error.errno == errno.EACCES:
        return (
            f"cannot listen on {address}: port {port} needs a privilege this user does not have: in a systemd unit "
            f"AmbientCapabilities=CAP_NET_BIND_SERVICE, by hand `sysctl net.ipv4.ip_unprivileged_port_start={port}`, "
            "or let systemd pass the socket (fd:3), or choose a port from 1024 up"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {address}: no interface of this machine has that address; see `ip address`"
    return f"cannot listen on {address}: {error.strerror}"


def _take_over(address: str, fd: int, backlog: int) -> Listener:
    """Go on with a socket that a former process of ours has bound and set up."""
    parsed = parse_address(address)
    if isinstance(parsed, UnixAddress) and not os.path.exists(parsed.path):
        os.close(fd)  # somebody has removed its name: nobody comes to it any more
        return _open_unix(address, parsed, backlog)
    bound = socket.socket(fileno=fd)
    bound.set_inheritable(False)
    bound.setblocking(False)
    bound.listen(backlog)  # which may have been set to something else
    listener = Listener(address, bound, unix_path=parsed.path if isinstance(parsed, UnixAddress) else None)
    listener.shared = True  # until the former process has stepped back
    return listener


def _adopt(address: str, number: int, backlog: int) -> Listener:
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise ListenError(f"cannot listen on {address}: that descriptor is not a socket")
        inherited = socket.socket(fileno=os.dup(number))
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}; {_FD_ADVICE}") from None
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if inherited.type != socket.SOCK_STREAM or inherited.family not in families:
        inherited.close()
        raise ListenError(f"cannot listen on {address}: that socket is not a TCP or Unix stream socket; {_FD_ADVICE}")
    try:
        if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            inherited.listen(backlog)
        if inherited.family != socket.AF_UNIX:
            _tune(inherited)
        inherited.setblocking(False)
    except OSError as error:
        inherited.close()
        raise ListenError(f"cannot listen on {address}: {error.strerror}; {_FD_ADVICE}") from None
    listener = Listener(address, inherited)
    listener.number = number
    return listener


def _open_unix(address: str, parsed: UnixAddress, backlog: int) -> Listener:
    try:
        uid = -1 if parsed.user is None else _number(parsed.user, lambda name: pwd.getpwnam(name).pw_uid)
        gid = -1 if parsed.group is None else _number(parsed.group, lambda name: grp.getgrnam(name).gr_gid)
    except KeyError as error:
        raise ListenError(f"cannot listen on {address}: {error.args[0]}") from None
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    is_ours = False
    try:
        _remove_stale(parsed.path)
        # Nobody may connect between bind and chmod: the mode is right from the first moment.
        mask = None if parsed.mode is None else os.umask(0o777 & ~parsed.mode)
        try:
            bound.bind(parsed.path)
        finally:
            if mask is not None:
                os.umask(mask)
        is_ours = True
        if (uid, gid) != (-1, -1):
            os.chown(parsed.path, uid, gid)
        bound.listen(backlog)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        if is_ours:
            os.unlink(parsed.path)
        in_use = error.errno == errno.EADDRINUSE
        reason = "the socket is in use by another program" if in_use else error.strerror
        raise ListenError(f"cannot listen on {address}: {reason}") from None
    return Listener(address, bound, unix_path=parsed.path)


def _number(name: str, look_up: Callable[[str], int]) -> int:
    return int(name) if name.isdigit() else look_up(name)


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; leave anything else for bind to complain about."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode) and not _is_listened_on(path):
            os.unlink(path)


def _is_listened_on(path: str) -> bool:
    """Return whether somebody listens on a Unix socket, as far as can be seen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server that is too busy to accept is there all the same
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
