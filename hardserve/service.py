"""A server as a process: its logs, its signals, what it tells whoever started it, and its exit code.

Main thread, which becomes the I/O thread; a signal handler runs there, too, between two instructions.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING

from hardserve import __version__
from hardserve.inherited import Handed
from hardserve.ops.accesslog import AccessLog
from hardserve.ops.banner import banner
from hardserve.ops.control import ControlError
from hardserve.ops.notify import Notifier
from hardserve.reload import Reload, Reread
from hardserve.server import LAST_WORDS_S, Server
from hardserve.successor import Started, Succession

if TYPE_CHECKING:
    from hardserve.ops.control import ControlSocket
    from hardserve.ops.logs import Logs
    from hardserve.settings import Settings
    from hardserve.wsgi.context import Application

logger = logging.getLogger("hardserve")


def run(
    app: Application,
    name: str,
    settings: Settings,
    logs: Logs,
    ready: Callable[[Server], None] | None = None,
    *,
    started: Started,
    reread: Reread | None = None,
) -> int:
    """Serve `app` until a signal or `Server.stop` ends it; return the exit code. `logs` is closed at the end.

    In the main thread, SIGTERM and SIGINT drain (twice: end at once), SIGHUP reopens log files, looks at
    certificates and takes of the settings that `reread` returns what can change, SIGUSR1 logs what every thread is
    doing, SIGUSR2 has another process take over. An address that cannot be opened is 1.
    """
    return _Service(app, name, settings, logs, ready, started, reread).run()


class _Service:
    """One server, and what is around it. Main thread where nothing else is said."""

    def __init__(
        self,
        app: Application,
        name: str,
        settings: Settings,
        logs: Logs,
        ready: Callable[[Server], None] | None,
        started: Started,
        reread: Reread | None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._logs = logs
        self._ready = ready
        self._started = started
        self._access_log = AccessLog(settings.log)
        self._server = Server(app, settings, self._access_log)
        self._notifier = Notifier.of(started.environ, os.getpid())
        self._notifier.silent = started.predecessor is not None  # until that one has left
        self._succession = Succession(
            started,
            sockets=self._sockets,
            step_back=self._step_back,
            leave=self._server.hand_over,
            stay=lambda: self._server.share(False),
        )
        self._reread = reread
        self._reload: Reload | None = None
        if reread is not None:
            begun, done = self._notifier.reloading, self._notifier.ready
            self._reload = Reload(self._server, self._access_log, logs, reread, begun=begun, done=done)
        self._control: ControlSocket | None = None
        self._control_lock = threading.Lock()  # a successor's and a predecessor's thread open and close it, too
        self._ended = False
        self._on_duty = started.predecessor is None

    def run(self) -> int:
        with contextlib.ExitStack() as last:
            last.callback(self._notifier.close)
            last.callback(self._logs.close, LAST_WORDS_S)
            last.callback(self._access_log.close, LAST_WORDS_S)
            self._access_log.start()
            if self._reload is not None:
                last.callback(self._reload.close, LAST_WORDS_S)
            self._server.bind(self._started.handed_fds)
            self._heartbeat = self._server.make_heartbeat(self._notifier)
            last.callback(self._close_control, for_good=True)
            if self._started.predecessor is None:
                self._open_control()
            with self._handling_signals():
                if self._reread is not None and self._reload is not None and self._reread.wanted:
                    self._reload.ask()
                code = self._server.run(self._announce)
                if code == 0:  # else a new one may go on where this one hangs
                    self._succession.cancel()
                self._succession.close(LAST_WORDS_S)
                # With our handlers still in place: an impatient second signal must not kill the last lines.
                last.close()
                return code

    def _announce(self, server: Server) -> None:
        """Say that connections are accepted. I/O thread."""
        if sys.stderr is not None:  # where it was closed by whoever started this
            banner(
                self._settings,
                app=self._name,
                urls=(*server.urls, *(f"{url} (redirects)" for url in server.redirects)),
                files=server.files,
                certificate=server.certificate,
                version=__version__,
                stream=sys.stderr,
            )
        if self._started.predecessor is None:
            self._notifier.ready()
            if self._notifier.listened_to:
                server.post(self._heartbeat.begin)
        else:
            self._started.predecessor.ready(self._take_over)
        if self._ready is not None:
            self._ready(server)

    # --- one process after the other ---

    def _sockets(self) -> Iterable[Handed]:
        """Return what another process goes on with, also if this one ends meanwhile. The successor's thread."""
        self._server.share(True)
        return [Handed(fd, address, self._started.name_of(address)) for fd, address in self._server.sockets]

    def _step_back(self, pid: int) -> None:
        """Leave to the process `pid` what only one can have. The successor's thread."""
        self._server.post(self._heartbeat.end)
        self._notifier.main_pid(pid)
        self._close_control()

    def _take_over(self) -> None:
        """Take what the former process has let go of. The predecessor's thread."""
        self._server.share(False)
        try:
            self._open_control()
        except ControlError as error:
            logger.error("%s; it serves all the same", error)  # noqa: TRY400  # it says all there is to know
        self._notifier.silent = False
        self._notifier.ready()
        if self._notifier.listened_to:
            self._server.post(self._heartbeat.begin)
        self._on_duty = True

    def _open_control(self) -> None:
        with self._control_lock:
            if not self._ended:
                self._control = self._server.open_control()

    def _close_control(self, *, for_good: bool = False) -> None:
        with self._control_lock:
            self._ended = self._ended or for_good
            if self._control is not None:
                self._control.close()
                self._control = None

    # --- signals ---

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Have signals steer the server while the block runs. Python allows that in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_reload,
            signal.SIGUSR1: lambda _number, _frame: self._server.report_threads(),
            signal.SIGUSR2: lambda _number, _frame: self._server.post(self._replace),
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        # systemd's watchdog ends a process by SIGABRT: where each thread was is then the only trace.
        tracing = faulthandler.is_enabled()
        if not tracing:
            faulthandler.enable(file=2)  # not sys.stderr, which need not be a file
        try:
            yield
        finally:
            if not tracing:
                faulthandler.disable()
            for number, handler in before.items():
                # None is a handler that was not installed from Python, and cannot be put back from there.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._notifier.stopping()
        self._server.post(lambda _now: self._succession.cancel())  # before what `stop` posts
        self._server.stop()

    def _replace(self, _now: float) -> None:
        """I/O thread."""
        if self._server.is_draining:
            logger.info("SIGUSR2: no new process is started: the server is stopping")
        elif not self._on_duty:
            logger.warning("SIGUSR2: no new process is started: this one is just taking over")
        else:
            self._succession.begin()

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._access_log.reopen()
        self._logs.reopen()
        self._server.look_at_certificates()
        if self._reload is not None:
            self._reload.ask()
        else:  # systemd waits for both (Type=notify-reload)
            self._notifier.reloading()
            self._notifier.ready()
