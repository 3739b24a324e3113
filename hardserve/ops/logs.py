"""Python's `logging`, set up once: what the server and the app have to say, in one place and one form.

`configure` runs on the main thread before the app is imported. From then on a logging call, on any thread, formats
its record and leaves it with a `LogWriter`: a stalled disk stalls nobody, and neither does another thread that is
just formatting a long traceback, since no lock is taken. This module knows nothing of what is logged.

Whose logging is it? The app may configure logging itself, when it is imported or later.

- The root logger gets our handler and level, so that an app that configures nothing, Flask's `app.logger` included,
  logs to the same place. If the root has handlers already, the program that calls `serve()` has made its own
  arrangements, and the root is left alone.
- The app may then replace the root's handlers (`dictConfig`, `basicConfig(force=True)`): its records go where it
  says. A plain `basicConfig()` does nothing when the root has a handler, by its own rule: the operator's level and
  place stand.
- "hardserve" has the handler itself and does not propagate: the server's messages are the operator's, and go where
  `log.error` says whatever the app does with the root. `dictConfig` disables all loggers it does not name unless told
  otherwise; the server's do not take that. An app that names "hardserve" in its configuration is obeyed.

A record is one line, and further lines, of a traceback or of a message, are indented: a newline in something that a
client sent cannot pass for the beginning of a record. Characters that do not print are escaped.

What is logged while a request is being answered carries its id, which is also in the response and the access log.

file      2026-11-22 15:30:12.345 +0000 WARNING hardserve.wsgi: [6616402ce32e6dce] message
terminal  15:30:12 WARNING hardserve.edge: message, with the level in colour
journal   <4>hardserve.edge: message: the journal has the time, and takes the priority from the number (sd-daemon(3))
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import time
from collections.abc import Mapping

from hardserve.ops.logfile import STREAMS, Destination, LogFile, destination
from hardserve.ops.logwriter import LogWriter
from hardserve.protocol import CURRENT_REQUEST
from hardserve.settings import LogSettings

SERVER = "hardserve"

logger = logging.getLogger("hardserve.ops")

# A longer record is cut: it would take the queue from all others.
RECORD_MAX = 256 * 1024

_FLUSH_TIMEOUT_S = 1.0

_LEVEL_COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
_PLAIN = "\x1b[0m"


class Logs:
    """The logging in force. `close` gives it back."""

    def __init__(self, writer: LogWriter, handler: LineHandler, *, root_level: int | None) -> None:
        self._writer = writer
        self._handler = handler
        # The level to give back, or None when the root was left alone.
        self._root_level = root_level

    def __repr__(self) -> str:
        return f"<Logs {self._writer}>"

    def reopen(self) -> None:
        """Have the file opened again: for SIGHUP, also from inside its handler."""
        self._writer.reopen()

    def prepare(self, log: LogSettings) -> LogWriter:
        """Open another place for what is logged, where `take` is to write. Any thread. Raises LogFileError."""
        writer = _writer(log)
        writer.start()
        return writer

    def set_level(self, level: str) -> None:
        """Log what is at least so severe from now on. Any thread."""
        logging.getLogger(SERVER).setLevel(level.upper())
        if self._root_level is not None:
            logging.getLogger().setLevel(level.upper())

    def take(self, log: LogSettings, writer: LogWriter) -> LogWriter:
        """Log to what `prepare` has opened from now on. Any thread.

        Return the former writer: the caller closes it. Lines may be on their way there for a moment.
        """
        former = self._writer
        self._handler.setFormatter(_formatter(log))
        self._handler.writer = self._writer = writer
        return former

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was logged so far is written; say whether it was in time. Before `os._exit`."""
        return self._writer.flush(timeout_s)

    def close(self, timeout_s: float = 2.0) -> bool:
        """Take our handler out of `logging`, write what is queued, end the thread; say whether it was in time.

        Can be called again. What is logged later does not raise; it goes where `logging` without us sends it.
        """
        atexit.unregister(self.close)
        root = logging.getLogger()
        if self._root_level is not None:
            if self._handler in root.handlers:
                root.removeHandler(self._handler)
                root.setLevel(self._root_level)
            logging.captureWarnings(False)
            self._root_level = None
        server = logging.getLogger(SERVER)
        if self._handler in server.handlers:
            server.removeHandler(self._handler)
            if not server.handlers:
                server.setLevel(logging.NOTSET)
                server.propagate = True
        return self._writer.close(timeout_s)


def configure(log: LogSettings, *, environ: Mapping[str, str] | None = None) -> Logs:
    """Set up `logging` as `log` says and return what must be closed at the end.

    Call it when the server's modules, and with them their loggers, are imported and the app is not. Raises
    LogFileError, whose text is for the operator; then nothing was changed.
    """
    writer = _writer(log)
    writer.start()

    handler = LineHandler(writer)
    handler.setFormatter(_formatter(log, environ))
    level = log.level.upper()
    server = logging.getLogger(SERVER)
    server.addHandler(handler)
    server.setLevel(level)
    server.propagate = False
    _keep_enabled()

    root = logging.getLogger()
    root_level = None
    if not root.handlers:
        root_level = root.level
        root.addHandler(handler)
        root.setLevel(level)
        logging.captureWarnings(True)

    logs = Logs(writer, handler, root_level=root_level)
    # A start that fails, or an app that ends the process, must not take its last words with it.
    atexit.register(logs.close)
    return logs


def _writer(log: LogSettings) -> LogWriter:
    return LogWriter(
        "error",
        LogFile(log.error, max_bytes=log.max_size, backups=log.backups),
        report=logger.log if log.error in STREAMS else _report_elsewhere_too,
    )


def _formatter(log: LogSettings, environ: Mapping[str, str] | None = None) -> FileFormatter:
    there = Destination.PLAIN
    if log.error in STREAMS:
        there = destination(STREAMS[log.error], os.environ if environ is None else environ)
    return FORMATTERS[there]()


def _report_elsewhere_too(level: int, text: str) -> None:
    """Say what is wrong with the error log in the error log, once it can be, and on stderr now."""
    logger.log(level, text)
    with contextlib.suppress(OSError):
        os.write(STREAMS["stderr"], f"hardserve: {text}\n".encode(errors="backslashreplace"))


class _ServerLogger(logging.Logger):
    """A logger that an app's `dictConfig` cannot disable for not being named in it."""

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        """Deliberately nothing."""


def _keep_enabled() -> None:
    # The loggers exist, made at import. Their class is changed rather than `logging`'s default one, which would
    # change the app's loggers too.
    for name, known in list(logging.root.manager.loggerDict.items()):
        if type(known) is logging.Logger and (name == SERVER or name.startswith(f"{SERVER}.")):
            known.__class__ = _ServerLogger


class LineHandler(logging.Handler):
    """Leaves formatted records with a LogWriter.

    `close` does not end the writer: `dictConfig` closes every handler there is and leaves them in place.
    """

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self.writer = writer

    def __repr__(self) -> str:
        return f"<LineHandler {self.writer}>"

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit `record` unless a filter is against it; unlike the original, without the handler's lock.

        Formatting a traceback reads source files. Under the lock, the I/O thread would wait for that disk.
        """
        accepted = self.filter(record)
        if isinstance(accepted, logging.LogRecord):  # a filter of Python 3.12 may replace it
            record = accepted
        if accepted:
            self.emit(record)
        return bool(accepted)

    def emit(self, record: logging.LogRecord) -> None:
        """Format and queue `record`. A record that cannot be formatted is logged as just that, by its place."""
        try:
            text = self.format(record)
        except Exception as error:  # the app's mistake, in any of the objects it logs
            said = f"a record logged at {record.pathname}:{record.lineno} cannot be formatted: {type(error).__name__}"
            text = self.format(logging.LogRecord(record.name, logging.ERROR, "", 0, "%s", (said,), None))
        self.writer.write(f"{text}\n".encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Wait a moment for the writer, as `logging.shutdown` expects at exit."""
        self.writer.flush(_FLUSH_TIMEOUT_S)


class FileFormatter(logging.Formatter):
    """Formats a record as one line and indented further ones, all of them printable."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)  # the message, the traceback and the stack
        if len(text) > RECORD_MAX:
            text = text[:RECORD_MAX] + "..."
        first, *more = text.split("\n")
        request_id = CURRENT_REQUEST.get()
        about = f"{record.name}: [{request_id}] " if request_id else f"{record.name}: "
        lines = [f"{self.mark(record)}{self.head(record)}{about}{_printable(first)}"]
        lines += [f"{self.mark(record)}  {_printable(line)}" for line in more]
        return "\n".join(lines)

    def head(self, record: logging.LogRecord) -> str:
        """Return what stands before the logger's name."""
        local = time.localtime(record.created)
        offset = time.strftime("%z", local)
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', local)}.{int(record.msecs):03d} {offset} {record.levelname} "

    def mark(self, record: logging.LogRecord) -> str:  # noqa: ARG002 - the journal's needs it
        """Return what stands before every line."""
        return ""


class TerminalFormatter(FileFormatter):
    """For people: the time of day is enough."""

    def head(self, record: logging.LogRecord) -> str:
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname} "


class ColourFormatter(FileFormatter):
    """The same with the level in colour."""

    def head(self, record: logging.LogRecord) -> str:
        colour = _LEVEL_COLOURS.get(record.levelname)
        level = f"{colour}{record.levelname}{_PLAIN}" if colour else record.levelname
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {level} "


class JournalFormatter(FileFormatter):
    """For systemd, which takes each line for a message: every one says its priority."""

    def head(self, record: logging.LogRecord) -> str:  # noqa: ARG002 - see mark
        return ""

    def mark(self, record: logging.LogRecord) -> str:
        return f"<{_priority(record.levelno)}>"


FORMATTERS: dict[Destination, type[FileFormatter]] = {
    Destination.PLAIN: FileFormatter,
    Destination.TERMINAL: TerminalFormatter,
    Destination.COLOUR_TERMINAL: ColourFormatter,
    Destination.JOURNAL: JournalFormatter,
}


def _priority(level: int) -> int:
    """Return the syslog priority (syslog(3)) of a `logging` level."""
    if level >= logging.CRITICAL:
        return 2
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(
        character
        if character.isprintable() or character == "\t"
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in line
    )
