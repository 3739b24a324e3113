"""Settings that are read again while a server runs: SIGHUP. They are taken as a whole, or refused as a whole.

What may block, files, hashes and opening logs, is done by a thread of its own, "hardserve-reload", one at a time; it
changes nothing. Then one action on the I/O thread takes all of it, or says why nothing is taken. Asked again meanwhile,
it is done once more after that, so that the last one wins. A server that has begun to end takes nothing.

Which settings those are is in changes.py, and how they are taken in replacing.py. What needs a restart is named each
time, until there was one: a comparison is with what is in force.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hardserve.changes import Change, anchored, cannot_go_together, changes, taken
from hardserve.configfiles import SettingsError
from hardserve.ops.accesslog import AccessLog
from hardserve.ops.logwriter import LogFileError, LogWriter

if TYPE_CHECKING:
    from hardserve.ops.logs import Logs
    from hardserve.options import Resolved
    from hardserve.replacing import Replacement
    from hardserve.server import Server
    from hardserve.settings import Settings

logger = logging.getLogger("hardserve")

# Lines may be on their way to a log that was replaced, from threads that were just about to write them.
LAST_LINES_S = 1.0
# A file system that hangs is said to hang when somebody asks again after so long.
SLOW_S = 10.0
# Of what has changed, and of what is wrong, in one record.
MAX_NAMED = 50


class Reread(Protocol):
    """Reads the settings: files, and what else there was at the start. Blocks on files; raises SettingsError.

    `wanted`: a signal came before the server ran. `later`: what it has found besides settings that needs a restart.
    """

    wanted: bool
    later: Sequence[str]

    def __call__(self) -> Resolved: ...


@dataclass(frozen=True, slots=True)
class _Ready:
    """What was read and opened, and waits to be taken."""

    found: Sequence[Change]
    later: Sequence[str]  # what else needs a restart
    replacement: Replacement
    access_log: AccessLog | None  # None where it stays
    error_log: LogWriter | None


class Reload:
    """Reads the settings of `server` again, by `reread`.

    `begun` and `done` are called on the I/O thread, before and after each one, whatever comes of it.
    """

    def __init__(
        self,
        server: Server,
        access_log: AccessLog,
        logs: Logs,
        reread: Reread,
        *,
        begun: Callable[[], object] = lambda: None,
        done: Callable[[], object] = lambda: None,
    ) -> None:
        self._server = server
        self._access_log = access_log
        self._logs = logs
        self._reread = reread
        self._begun = begun
        self._done = done
        self._directory = _cwd()  # an app that goes elsewhere does not take the files along
        # The I/O thread's.
        self._thread: threading.Thread | None = None
        self._since = 0.0
        self._again = False
        self._former: list[LogWriter] = []

    def __repr__(self) -> str:
        return f"<Reload {'under way' if self._thread is not None else 'idle'}>"

    def ask(self) -> None:
        """Have it done soon. Any thread, and signal handlers."""
        # Twice: what was posted before the server ran is a part of its start, and comes first.
        self._server.post(lambda _now: self._server.post(self._begin))

    def close(self, timeout_s: float) -> None:
        """Wait for a moment for what is under way. After the server has ended."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        for writer in self._former:
            writer.close(timeout_s)

    # --- I/O thread ---

    def _begin(self, now: float) -> None:
        if self._server.is_draining:
            logger.info("not reloaded: the server is stopping")
            return
        if self._thread is not None:
            if now - self._since >= SLOW_S:
                logger.warning("the reload before this one is still reading files, after %.0f s", now - self._since)
            self._again = True
            return
        self._again = False
        self._since = now
        self._begun()
        thread = threading.Thread(target=self._run, name="hardserve-reload", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            logger.error("not reloaded: no thread can be started (%s)", error)  # noqa: TRY400  # no bug of ours
            self._done()
        else:
            self._thread = thread

    def _finish(self, outcome: _Ready | BaseException, now: float) -> None:
        self._thread = None
        try:
            if isinstance(outcome, SettingsError):
                _refuse(outcome.problems)
            elif isinstance(outcome, BaseException):
                logger.error("not reloaded: internal error", exc_info=outcome)
            else:
                self._take(outcome, now)
        finally:
            self._done()
            if self._again:
                self._begin(now)

    def _take(self, ready: _Ready, now: float) -> None:
        log = ready.replacement.settings.log
        former: list[LogWriter | None] = []
        if log.level != self._server.settings.log.level:  # else the app's own doing is left alone
            self._logs.set_level(log.level)
        if ready.error_log is not None:
            former.append(self._logs.take(log, ready.error_log))
        if ready.access_log is not None:
            former.append(self._access_log.take(ready.access_log))
        self._server.take(ready.replacement, now)
        self._retire([writer for writer in former if writer is not None], now)
        _tell(ready.found, ready.replacement.also, ready.later)

    def _retire(self, writers: Sequence[LogWriter], now: float) -> None:
        if not writers:
            return
        self._former += writers

        def close(_now: float) -> None:
            for writer in writers:
                self._former.remove(writer)
                writer.close(0.0)

        self._server.plan(now + LAST_LINES_S, close)

    # --- the reload's thread ---

    def _run(self) -> None:
        outcome: _Ready | BaseException
        try:
            outcome = self._prepare()
        except BaseException as error:
            outcome = error
        self._server.post(lambda now: self._finish(outcome, now))

    def _prepare(self) -> _Ready:
        """Read, open and make everything. Raises SettingsError with every problem, and has then changed nothing."""
        resolved = self._reread()
        running, wanted = self._server.settings, resolved.settings
        found = changes(running, wanted)
        settings = taken(running, wanted)
        problems = cannot_go_together(settings, resolved) if not all(change.live for change in found) else []
        problems += _problems_of_storage(running, wanted)
        files = settings if _cwd() == self._directory else anchored(settings, self._directory)
        access_log: AccessLog | None = None
        error_log: LogWriter | None = None
        replacement: Replacement | None = None
        try:
            replacement = self._server.prepare(settings, files)
        except SettingsError as error:
            problems += error.problems
        try:
            error_log, access_log = self._open_logs(running, settings, files)
        except LogFileError as error:
            problems.append(str(error))
        if problems or replacement is None:
            if error_log is not None:
                error_log.close(0.0)
            if access_log is not None:
                access_log.close(0.0)
            raise SettingsError([resolved.placed(problem) for problem in problems])
        return _Ready(found, self._reread.later, replacement, access_log, error_log)

    def _open_logs(
        self, running: Settings, settings: Settings, files: Settings
    ) -> tuple[LogWriter | None, AccessLog | None]:
        """Return the logs that go elsewhere, or look different, opened. Raises LogFileError, and then holds nothing."""
        old, new = running.log, settings.log
        sizes = (old.max_size, old.backups) != (new.max_size, new.backups)
        error_log = self._logs.prepare(files.log) if sizes or old.error != new.error else None
        if not sizes and (old.access, old.access_format) == (new.access, new.access_format):
            return error_log, None
        access_log = AccessLog(files.log)
        try:
            access_log.start()
        except LogFileError:
            if error_log is not None:
                error_log.close(0.0)
            raise
        return error_log, access_log


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _problems_of_storage(running: Settings, wanted: Settings) -> list[str]:
    """Say why a store that is to be used after a restart is no use, so that it is known before."""
    storage = wanted.rate_limiting.storage
    if storage in ("memory", running.rate_limiting.storage):
        return []
    from hardserve.checks.sharedrates import check_settings  # noqa: PLC0415  # it brings all of `limits`

    return check_settings(storage, wanted.rate_limit)


def _refuse(problems: Sequence[str]) -> None:
    count = len(problems)
    more = [f"and {count - MAX_NAMED} more"] if count > MAX_NAMED else []
    logger.error(
        "not reloaded: %d problem%s with the settings, and those before go on:\n%s",
        count,
        "s"[: count > 1],
        "\n".join([*problems[:MAX_NAMED], *more]),
    )


def _tell(found: Sequence[Change], also: Sequence[str], needing_restart: Sequence[str]) -> None:
    """Say what has changed, and what would have to, in order that the settings are as they are written."""
    live = [*(str(change) for change in found if change.live), *also]
    later = [*(str(change) for change in found if not change.live), *needing_restart]
    more = f", and {len(live) - MAX_NAMED} more" if len(live) > MAX_NAMED else ""
    if live:
        logger.info("reloaded: %s%s", ", ".join(live[:MAX_NAMED]), more)
    else:
        logger.info("reloaded: nothing %shas changed", "that can change while running " if later else "")
    for change in later:
        logger.warning("%s needs a restart", change)
