"""What the service manager is told: the protocol of sd_notify(3), a datagram of VARIABLE=value lines to a Unix socket.

Any thread. Nothing is waited for: what systemd has no room for is dropped, and said again in the next second. Without
$NOTIFY_SOCKET all of this does nothing.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Mapping
from time import monotonic

# Of a status, on one line: systemd shows it in one.
_MAX_STATUS_CHARS = 300


class Notifier:
    """Speaks to the service manager at `address`, "" for none. `watchdog_s` is how long it waits for `alive`, 0 ever.

    An address that begins with @ is one of Linux's abstract ones (unix(7)).
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._status = ""
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def __repr__(self) -> str:
        return f"<Notifier {'of nobody' if self._socket is None else repr(self._address)} {self.watchdog_s:g} s>"

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> Notifier:
        """Return the one that `environ` asks for; $WATCHDOG_PID says which process the watchdog is for."""
        wanted = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", "") in ("", str(pid))
        watchdog_s = int(wanted) / 1e6 if mine and re.fullmatch(r"[0-9]{1,15}", wanted) else 0.0
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog_s)

    @property
    def listened_to(self) -> bool:
        """Whether anybody is told anything."""
        return self._socket is not None

    def close(self) -> None:
        """Say nothing more. Once; no other method may be called by another thread meanwhile."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self) -> None:
        """It serves, or has reloaded."""
        self._send("READY=1")

    def reloading(self) -> None:
        """It reads its settings again; `ready` follows, whatever comes of it. The time is for Type=notify-reload."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic() * 1e6)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """It needs so much more time to start, stop or reload than the unit gives it."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def status(self, text: str) -> None:
        """Say for `systemctl status` how it is, if that is anything new."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + " ".join(text.split())[:_MAX_STATUS_CHARS])

    def alive(self) -> None:
        """Keep the watchdog quiet for `watchdog_s`."""
        self._send("WATCHDOG=1")

    def hangs(self) -> None:
        """Have the watchdog bark now, and not when it has waited long enough (systemd 243)."""
        self._send("WATCHDOG=trigger")

    def main_pid(self, pid: int) -> None:
        """Another process is the service from now on: what it says counts, and what this one says does no more."""
        self._send(f"MAINPID={pid}")

    def _send(self, message: str) -> None:
        sending = self._socket
        if sending is not None:
            with contextlib.suppress(OSError):
                sending.sendto(message.encode(), self._address)
