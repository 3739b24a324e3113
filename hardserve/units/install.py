"""Units into systemd's directory and out of it again, and started and ended by systemctl.

Main thread, in the command only. It writes over and removes only what begins with our mark.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hardserve.units.plan import UnitsError, is_marked

# A start may take TimeoutStartSec=, and a restart TimeoutStopSec= besides.
PATIENCE_S = 420.0
VERIFY_PATIENCE_S = 60.0
LAST_WORDS = 60  # lines: a traceback, and what it is about above it


class Systemd:
    """One systemd, of the machine or of a user; `directory` is where its units are written."""

    def __init__(self, directory: Path, *, of_user: bool, say: Callable[[str], None]) -> None:
        self.directory = directory
        self._scope = ["--user"] if of_user else []
        self._say = say

    def __repr__(self) -> str:
        return f"<Systemd {' '.join([*self._scope, str(self.directory)])}>"

    def install(self, units: Mapping[str, str], *, formerly: Sequence[str], start: bool = True) -> None:
        """Have these units, by their file names, written and running, and those of `formerly` not, if they are ours.

        What is that way already is left alone. Raises UnitsError, before anything is changed if the units are no good.
        """
        there = {name: self._read(name) for name in (*units, *formerly)}
        self._refuse_others(there)
        self._verify(units)
        changed = [name for name, text in units.items() if there[name] != text]
        dropped = [name for name in formerly if there[name] is not None and name not in units]
        if dropped:
            self._end(dropped)
        for name in dropped:
            (self.directory / name).unlink()
            self._say(f"removed {self.directory / name}")
        for name in changed:
            self._write(name, units[name])
            self._say(f"{'wrote' if there[name] is None else 'changed'} {self.directory / name}")
        if changed or dropped:
            self._call("daemon-reload")
        if start:
            self._run(list(units), changed)
        elif not changed:
            self._say("nothing to change")

    def remove(self, names: Sequence[str]) -> None:
        """End, disable and remove those of these units that are there. Raises UnitsError if one is not ours."""
        there = {name: self._read(name) for name in names}
        self._refuse_others(there)
        found = [name for name, text in there.items() if text is not None]
        if not found:
            self._say(f"nothing to remove: there is no {' and no '.join(names)} in {self.directory}")
            return
        self._end(found)
        for name in found:
            (self.directory / name).unlink()
            self._say(f"removed {self.directory / name}")
        self._call("daemon-reload")
        self._ask("reset-failed", *found)  # of what had failed nothing remains, either
        for name in found:
            if (self.directory / f"{name}.d").exists():
                self._say(f"left, for it is yours: {self.directory / name}.d")

    # --- running ---

    def _run(self, names: Sequence[str], changed: Sequence[str]) -> None:
        """Have all be enabled and active. Sockets come first, and need the service stopped to be opened."""
        sockets = [name for name in names if name.endswith(".socket")]
        services = [name for name in names if not name.endswith(".socket")]
        disabled = [
            name for name in names if name in changed or self._ask("is-enabled", "--quiet", name).returncode != 0
        ]
        inactive = [name for name in names if self._ask("is-active", "--quiet", name).returncode != 0]
        if disabled:
            self._call("enable", *disabled)
            self._say(f"enabled {', '.join(disabled)}")
        if any(name in changed or name in inactive for name in sockets):
            self._call("stop", *sockets, *services)
        elif not inactive and not changed:
            if not disabled:
                self._say(f"nothing to change: {' and '.join(names)} {'are' if len(names) > 1 else 'is'} running")
            return
        self._ask("reset-failed", *names)  # who mends what looped must not wait for the hour to be over
        if sockets:
            self._start("start", sockets)
        self._start("restart", services)
        self._say(f"started {', '.join(services)}")

    def _end(self, names: Sequence[str]) -> None:
        """Have none be active or enabled; of a template, no instance."""
        self._call("stop", *(name.replace("@.", "@*.") for name in names))
        self._call("disable", *names)

    def _start(self, verb: str, names: Sequence[str]) -> None:
        began = time.time()
        done = self._ask(verb, *names)
        if done.returncode != 0:
            said = self._last_words(names, began)
            on = "systemd goes on trying, as the unit says; `hardserve systemd --remove` ends that"
            raise UnitsError("\n".join([done.stderr.strip(), *said, *_advice("\n".join(said)), on]))

    def _last_words(self, services: Sequence[str], since: float) -> list[str]:
        """Return what units have said before they failed, if that can be had. `since` is seconds of the epoch."""
        if shutil.which("journalctl") is None:
            return []
        which = "--user-unit" if self._scope else "--unit"
        units = [f"{which}={name}" for name in services]
        _program("journalctl", "--sync", patience_s=VERIFY_PATIENCE_S)  # else these may be on their way
        said = _program(
            *("journalctl", "--no-pager", "--output=cat", f"--since=@{since:.3f}", f"--lines={LAST_WORDS}", *units),
            patience_s=VERIFY_PATIENCE_S,
        )
        return ["its last words, of journalctl:", *said.stdout.splitlines()]

    def _call(self, *arguments: str) -> None:
        """Have systemctl do something. Raises UnitsError if it does not."""
        done = self._ask(*arguments)
        if done.returncode != 0:
            what = done.stderr.strip() or f"exit code {done.returncode}"
            raise UnitsError(f"systemctl {' '.join((*self._scope, *arguments))}: {what}")

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _program("systemctl", *self._scope, *arguments, patience_s=PATIENCE_S)

    # --- files ---

    def _read(self, name: str) -> str | None:
        try:
            return (self.directory / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnitsError(f"{self.directory / name}: {error.strerror}") from None

    def _refuse_others(self, there: Mapping[str, str | None]) -> None:
        foreign = [
            str(self.directory / name) for name, text in there.items() if text is not None and not is_marked(text)
        ]
        if foreign:
            raise UnitsError(
                f"{' and '.join(foreign)}: not written by this command, and left alone: move it away, or choose "
                "another name with --name"
            )

    def _verify(self, units: Mapping[str, str]) -> None:
        """Raises UnitsError with what systemd-analyze says against the units."""
        if shutil.which("systemd-analyze") is None:
            return
        with tempfile.TemporaryDirectory(prefix="hardserve-") as directory:
            for name, text in units.items():
                Path(directory, name).write_text(text, encoding="utf-8")
            paths = [str(Path(directory, name)) for name in units]
            done = _program("systemd-analyze", *self._scope, "verify", *paths, patience_s=VERIFY_PATIENCE_S)
        # It also reads, and finds fault with, units of others that these come after.
        said = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            if (directory in line or any(name.partition(".")[0] in line for name in units))
            and not ("hardserve@" in line and "is not executable" in line)  # of a template: no app is called i
        ]
        if said:
            raise UnitsError("\n".join(["systemd-analyze verify:", *said]))

    def _write(self, name: str, text: str) -> None:
        """Replace a unit in one step. Raises UnitsError."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self.directory, prefix=".hardserve-")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                    os.fchmod(file.fileno(), 0o644)
                os.replace(temporary, self.directory / name)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise UnitsError(f"{self.directory / name}: {error.strerror}") from None


def _advice(said: str) -> list[str]:
    """Return what to do about the commonest of what a unit says at its end."""
    if "Read-only file system" in said:
        return [
            "The service may not write there: $STATE_DIRECTORY is for its data. Or make the directory before, if it is",
            "instance, uploads, media or data, give all of the app to a user (chown -R), and --install again.",
        ]
    if "Address already in use" in said:
        return ["Another program, or another app's socket unit, has the port: systemctl list-sockets and ss -ltnp"]
    return []


def version() -> int | None:
    """Return which systemd this machine has, None if it has none."""
    if shutil.which("systemctl") is None:
        return None
    words = _program("systemctl", "--version", patience_s=VERIFY_PATIENCE_S).stdout.split()
    return int(words[1]) if len(words) > 1 and words[1].isdecimal() else None


def _program(name: str, *arguments: str, patience_s: float) -> subprocess.CompletedProcess[str]:
    """Run one of systemd's programs: what is done to the machine is done here. Raises UnitsError."""
    path = shutil.which(name)
    if path is None:
        raise UnitsError(f"there is no {name} here: these units are for systemd")
    environ = os.environ | {"SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0", "LC_ALL": "C"}
    try:
        return subprocess.run(  # noqa: S603 - the arguments are units' names and paths of ours
            [path, *arguments], capture_output=True, text=True, check=False, timeout=patience_s, env=environ
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnitsError(f"{name} {' '.join(arguments)}: {error}") from None
