"""What the service manager is told: the protocol of sd_notify(3), a datagram of VARIABLE=value lines to a Unix socket.

Any thread, and signal handlers. What systemd has no room for, while it is busy, is said with what comes next, in a
second at most, as far as that matters then; only `main_pid` waits. Without $NOTIFY_SOCKET all of this does nothing.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import deque
from collections.abc import Mapping
from time import monotonic, sleep

# Of a status, on one line: systemd shows it in one.
_MAX_STATUS_CHARS = 300
# Of what has not been said, the oldest is dropped: nobody seems to listen.
_MAX_UNSAID = 16
# For a service manager that is busy to hear what will not be said again.
_WAIT_S = 5.0
_RETRY_S = 0.02


class Notifier:
    """Speaks to the service manager at `address`, "" for none. `watchdog_s` is how long it waits for `alive`, 0 ever.

    An address that begins with @ is one of Linux's abstract ones (unix(7)).
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._status = ""
        self._unsaid: deque[str] = deque(maxlen=_MAX_UNSAID)
        self._lock = threading.RLock()  # a signal handler may come in between
        self.silent = False  # what is said meanwhile is dropped: another process is the service
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
        self._send("READY=1", matters=True)

    def reloading(self) -> None:
        """It reads its settings again; `ready` follows, whatever comes of it. The time is for Type=notify-reload."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic() * 1e6)}", matters=True)

    def stopping(self) -> None:
        self._send("STOPPING=1", matters=True)

    def extend(self, seconds: float) -> None:
        """It needs so much more time to start, stop or reload than the unit gives it."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def status(self, text: str) -> None:
        """Say for `systemctl status` how it is, if that is anything new."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + " ".join(text.split())[:_MAX_STATUS_CHARS])
        elif self._unsaid:
            self._send()

    def alive(self) -> None:
        """Keep the watchdog quiet for `watchdog_s`."""
        self._send("WATCHDOG=1")

    def hangs(self) -> None:
        """Have the watchdog bark now, and not when it has waited long enough (systemd 243)."""
        self._send("WATCHDOG=trigger")

    def main_pid(self, pid: int) -> None:
        """Another process is the service from now on: nothing more is said by this one. It may wait for a moment."""
        self._send(f"MAINPID={pid}", matters=True)
        until = monotonic() + _WAIT_S
        while self._unsaid and monotonic() < until:
            sleep(_RETRY_S)
            self._send()
        self.silent = True

    def _send(self, message: str = "", *, matters: bool = False) -> None:
        """Say what could not be said before, and `message`; keep it for the next time if it `matters`."""
        sending = self._socket
        if sending is None or self.silent:
            return
        with self._lock, contextlib.suppress(OSError):
            if matters:
                self._unsaid.append(message)
            while self._unsaid:
                first = self._unsaid.popleft()
                try:
                    sending.sendto(first.encode(), self._address)
                except BlockingIOError:
                    self._unsaid.appendleft(first)
                    return
            if message and not matters:
                sending.sendto(message.encode(), self._address)
