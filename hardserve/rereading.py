"""Settings that a server reads again as its command has read them: the same flags, files and environment.

The thread of a reload, but for what is said to be the main thread's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hardserve.configfiles import SettingsError, shown_path
from hardserve.names import VARIABLE_PREFIX
from hardserve.options import DEFAULT, DotEnv, Resolved

if TYPE_CHECKING:
    from hardserve.successor import Started


class Rereader:
    """Reads the settings again as at the start: the same flags and environment, and what files say now.

    `read` does that; a file that was read before must be there. Called by the thread of a reload, one at a time.
    """

    def __init__(self, read: Callable[[], tuple[Resolved, DotEnv]], started: Started, directory: Path) -> None:
        self._read = read
        self.started = started
        self._directory = directory
        self._files: set[Path] = set()
        self._applied: Mapping[str, str] = {}  # what .env files had for the app at the start
        self.wanted = False  # since before there was a server
        self.later: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"<Rereader of {sorted(map(str, self._files))}>"

    def note(self, _number: int, _frame: object) -> None:
        """Note that it was asked for by a signal, while the server is being put together. Main thread."""
        self.wanted = True

    def has_begun(self, resolved: Resolved, dotenv: DotEnv) -> None:
        """Note with what the server begins."""
        self._applied = self._of_app(dotenv)
        self._note_files(resolved)

    def _of_app(self, dotenv: DotEnv) -> dict[str, str]:
        """Return what is not for the server, and counts: the environment goes before."""
        environ = self.started.environ
        return {
            name: value
            for name, value in dotenv.values.items()
            if not name.startswith(VARIABLE_PREFIX) and name not in environ
        }

    def _note_files(self, resolved: Resolved) -> None:
        self._files = {path for path in (resolved.config_path, resolved.dotenv_path) if path is not None}

    def __call__(self) -> Resolved:
        """Return the settings. Raises SettingsError with every problem of every source."""
        from hardserve.inherited import with_passed  # noqa: PLC0415

        # Without it, what it said against clients would not hold any more, and nobody need have meant that.
        gone = [path for path in self._files if not os.path.lexists(self._directory / path)]
        if gone:
            said = "it was read before, and is not there any more; a restart does without it"
            raise SettingsError([f"{shown_path(path, self._directory)}: {said}" for path in sorted(gone)])
        resolved, dotenv = self._read()
        try:
            settings = with_passed(resolved.settings, self.started.passed, is_set(resolved))
        except SettingsError as error:
            raise SettingsError([resolved.placed(problem) for problem in error.problems]) from None
        self._note_files(resolved)
        before, now = self._applied, self._of_app(dotenv)
        differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        self.later = [f"{name}: another value in .env for the app" for name in differing]
        return replace(resolved, settings=settings)


def noting_reloads(
    read: Callable[[Mapping[str, str]], tuple[Resolved, DotEnv]], started: Started, directory: Path
) -> Rereader:
    """Return what reads the settings again, which knows by now if that is asked for before there is a server."""
    reread = Rereader(lambda: read(started.environ), started, directory)
    signal.signal(signal.SIGHUP, reread.note)
    return reread


def is_set(resolved: Resolved) -> Callable[[str], bool]:
    """Return what says of a setting whether sockets that are passed on have to be what it says.

    A site with a certificate from a CA is to be on port 443, also where nobody has said so; its redirect can be left
    out.
    """
    return lambda key: key in resolved.where or (key == "server.bind" and resolved.origins[key] != DEFAULT)
