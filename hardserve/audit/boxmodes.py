"""Who else on this box can read or change what the server reads: settings, .env, users, keys, the app itself.

Main thread, of a command. Only what everybody may do is looked at, and only where everybody gets to it: a directory
above that lets nobody in is as good as a mode. Groups are left alone, for whoever made one meant it.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hardserve.audit.boxplace import Mount, Place, below, mount_of, mounts, names, read
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.settings import Settings

READABLE = Check(
    "password-file-open",
    Severity.WARNING,
    "every user of this machine can read a password of the server",
    "so can whoever finds a hole in any other program here",
    "chmod o= FILE",
)
WRITABLE = Check(
    "writable-by-everybody",
    Severity.ERROR,
    "everybody on this box can change what the server runs or reads",
    "any other program that is broken into becomes this one",
    "chmod o-w FILE",
)
CHECKS = (READABLE, WRITABLE)

# Files of an app that are looked at, of its own directory: those that are run.
_MAX_SOURCES = 200


@dataclass(frozen=True, slots=True)
class Guarded:
    """A file or directory that is not for everybody. `mode` is that of stat(2), `reached` whether they get to it."""

    path: str
    what: str
    mode: int
    reached: bool
    is_secret: bool

    @property
    def can_read(self) -> bool:
        return self.reached and bool(self.mode & stat.S_IROTH)

    @property
    def can_write(self) -> bool:
        """Whether everybody can change it; in a sticky directory only what is their own."""
        return self.reached and bool(self.mode & stat.S_IWOTH) and not self.mode & stat.S_ISVTX


def guarded_files(settings: Settings, place: Place, root: Path) -> list[Guarded]:
    """Look at all of them once."""
    mounted = mounts(root)
    found: list[Guarded] = []
    seen: set[str] = set()
    for path, what, is_secret in _wanted(settings, place, root):
        full = os.path.normpath(os.path.join(place.directory, path))
        if full not in seen:
            seen.add(full)
            found += _look(root, full, what, mounted, is_secret=is_secret)
    return found


def mode_findings(files: list[Guarded]) -> Iterator[Finding]:
    """Judge."""
    for file in files:
        if file.can_write:
            flag = " -R" if stat.S_ISDIR(file.mode) else ""
            yield WRITABLE.found(
                f"{file.what}: {file.path} has mode {_mode(file)}", f"chmod{flag} o-w {shlex.quote(file.path)}"
            )
        elif file.is_secret and file.can_read:
            yield READABLE.found(
                f"{file.what}: {file.path} has mode {_mode(file)}", f"chmod o= {shlex.quote(file.path)}"
            )


def _mode(file: Guarded) -> str:
    return f"{stat.S_IMODE(file.mode):04o}"


def _wanted(settings: Settings, place: Place, root: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield paths, what each is, and whether it has a secret that nobody else looks after.

    Keys stop a start by themselves (tls.pemfiles); .env is secretfindings' and auth.users is settingfindings'.
    """
    yield str(place.directory), "the app's directory", False
    if place.config is not None:
        password = urlsplit(settings.rate_limiting.storage).password
        text = read(root, place.directory / place.config)
        yield str(place.config), "the settings", bool(password) and str(password) in text
    for path in place.dotenv:
        yield str(path), "the environment", False
    if settings.auth.users != "none":
        yield settings.auth.users, "auth.users", False
    if settings.acme.eab_key_file != "none":
        yield settings.acme.eab_key_file, "acme.eab_key_file", True
    for file in (settings.tls.passphrase_file, *(each.passphrase_file for each in settings.certificate)):
        if file != "none":
            yield file, "the passphrase of a key", True
    if settings.tls.state != "auto":
        yield settings.tls.state, "tls.state", False
    sources = [name for name in names(root, place.directory) if name.endswith(".py")]
    for name in sources[:_MAX_SOURCES]:
        yield name, "the app", False


def _look(root: Path, path: str, what: str, mounted: list[Mount], *, is_secret: bool) -> Iterator[Guarded]:
    mount = mount_of(path, mounted)
    if mount is not None and not mount.has_modes:
        return
    try:
        mode = below(root, path).stat().st_mode
    except OSError:
        return  # what is missing is said elsewhere
    yield Guarded(path, what, mode, _is_reached(root, path), is_secret)


def _is_reached(root: Path, path: str) -> bool:
    """Return whether everybody may pass all directories above."""
    for directory in Path(path).parents:
        if directory == Path("/"):
            break
        try:
            if not below(root, directory).stat().st_mode & stat.S_IXOTH:
                return False
        except OSError:
            return False
    return True
