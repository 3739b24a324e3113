"""A server as a process: its logs, its signals, what it tells whoever started it, and its exit code.

Main thread, which becomes the I/O thread; a signal handler runs there, too, between two instructions.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hardserve import __version__
from hardserve.ops.accesslog import AccessLog
from hardserve.ops.banner import banner
from hardserve.server import LAST_WORDS_S, Server

if TYPE_CHECKING:
    from types import FrameType

    from hardserve.ops.logs import Logs
    from hardserve.settings import Settings
    from hardserve.wsgi.context import Application


def run(
    app: Application, name: str, settings: Settings, logs: Logs, ready: Callable[[Server], None] | None = None
) -> int:
    """Serve `app` until a signal or `Server.stop` ends it; return the exit code. `logs` is closed at the end.

    In the main thread, SIGTERM and SIGINT drain (twice: end at once), SIGHUP reopens log files and looks at
    certificates, SIGUSR1 logs what every thread is doing. An address that cannot be opened is 1.
    """
    access_log = AccessLog(settings.log)
    server = Server(app, settings, access_log)

    def announce(server: Server) -> None:
        banner(
            settings,
            app=name,
            urls=(*server.urls, *(f"{url} (redirects)" for url in server.redirects)),
            files=server.files,
            certificate=server.certificate,
            version=__version__,
            stream=sys.stderr,
        )
        if ready is not None:
            ready(server)

    with contextlib.ExitStack() as last:
        last.callback(logs.close, LAST_WORDS_S)
        last.callback(access_log.close, LAST_WORDS_S)
        access_log.start()
        server.bind()
        control = server.open_control()
        if control is not None:
            last.callback(control.close)
        with _signals(server, reopen=(access_log.reopen, logs.reopen, server.look_at_certificates)):
            code = server.run(announce)
            last.close()  # with our handlers still in place: an impatient second signal must not kill the last lines
            return code


@contextlib.contextmanager
def _signals(server: Server, reopen: tuple[Callable[[], None], ...]) -> Iterator[None]:
    """Have signals steer `server` while the block runs. Python allows that in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.stop()

    def reopen_logs(_number: int, _frame: FrameType | None) -> None:
        for each in reopen:
            each()

    def report(_number: int, _frame: FrameType | None) -> None:
        server.report_threads()

    handlers = {
        signal.SIGTERM: stop,
        signal.SIGINT: stop,
        signal.SIGHUP: reopen_logs,
        signal.SIGUSR1: report,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None is a handler that was not installed from Python, and cannot be put back from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
