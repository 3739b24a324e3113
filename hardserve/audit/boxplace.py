"""Where a check looks: the app's place on the box, and how files below a root are read without surprises.

Main thread, of a command that then ends. `root` is / but for tests, which make up a /proc, an /etc and a /sys; paths in
facts and findings are those that the box knows, without it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Nothing that is read here is longer, but for garbage.
_MAX_BYTES = 4 * 1024 * 1024
# What CI systems set, all of them.
_CI = "CI"
# A first process that starts a box. What else is a first process has been started by a container's runtime.
_INITS = {"systemd", "init", "openrc-init", "runit", "s6-svscan", "dinit", "shepherd", "finit", "procd"}
_CONTAINER_MARKS = (".dockerenv", "run/.containerenv", "run/systemd/container")
# File systems whose modes are made up for all files alike.
_WITHOUT_MODES = {
    "9p", "cifs", "drvfs", "exfat", "fuseblk", "hfsplus", "msdos", "ntfs", "ntfs3", "smb3", "smbfs", "vboxsf", "vfat",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where the app is: the directory from which it is served, its settings file, and its .env files."""

    directory: Path
    config: Path | None = None
    dotenv: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system and where it is. `source` is its device; `number` is that, too, as major:minor."""

    point: str
    type: str
    source: str
    number: str

    @property
    def has_modes(self) -> bool:
        """Whether the modes of its files say who may do what."""
        return self.type not in _WITHOUT_MODES


def below(root: Path, path: str | os.PathLike[str]) -> Path:
    """Return where an absolute path is for somebody to whom `root` is not the root."""
    return root / os.fspath(path).lstrip("/")


def read(root: Path, path: str | os.PathLike[str]) -> str:
    """Return the text of a file, "" for one that is missing, not readable or not a file."""
    try:
        descriptor = os.open(below(root, path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(descriptor, "rb") as file:
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return ""
            return file.read(_MAX_BYTES).decode("utf-8", "surrogateescape")
        except OSError:  # such as of a process that has ended meanwhile
            return ""


def names(root: Path, path: str | os.PathLike[str]) -> list[str]:
    """Return the names in a directory, sorted; none where it cannot be listed."""
    try:
        return sorted(os.listdir(below(root, path)))
    except OSError:
        return []


def exists(root: Path, path: str | os.PathLike[str]) -> bool:
    return os.path.lexists(below(root, path))


def number(text: str) -> int | None:
    """Read a file's only number, None for anything else."""
    text = text.strip()
    return int(text) if text.isdecimal() and text.isascii() else None


def mounts(root: Path) -> list[Mount]:
    """Return the file systems that this process sees (proc_pid_mountinfo(5))."""
    found = []
    for line in read(root, "proc/self/mountinfo").splitlines():
        ours, _, theirs = line.partition(" - ")
        fields, more = ours.split(" "), theirs.split(" ")
        if len(fields) > 5 and len(more) > 1:
            found.append(Mount(_unescaped(fields[4]), more[0], _unescaped(more[1]), fields[2]))
    return found


def _unescaped(text: str) -> str:
    """Put back the blanks and backslashes that the kernel has written in octal."""
    for octal, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, char)
    return text


def mount_of(path: str, among: list[Mount]) -> Mount | None:
    """Return the file system that a path is in: that with the longest way in common, the last of several there."""
    best = None
    for mount in among:
        point = mount.point.rstrip("/")
        if (path == point or path.startswith(point + "/")) and (
            best is None or len(point) >= len(best.point.rstrip("/"))
        ):
            best = mount
    return best


def is_ci(environ: Mapping[str, str]) -> bool:
    """Return whether this is no box that anything will be served from."""
    return environ.get(_CI, "").lower() not in ("", "0", "false", "no")


def is_container(root: Path, environ: Mapping[str, str]) -> bool:
    """Return whether the app is all that is here, and memory, clock and disk are somebody else's business.

    A container in which systemd has been booted is a box like any other.
    """
    if exists(root, "run/systemd/system"):
        return False
    if any(exists(root, mark) for mark in _CONTAINER_MARKS) or "KUBERNETES_SERVICE_HOST" in environ:
        return True
    first = read(root, "proc/1/comm").strip()
    return bool(first) and first not in _INITS


def shares_kernel(root: Path, environ: Mapping[str, str]) -> bool:
    """Return whether clock and swap are those of a host: of a container, also of one that was booted like a box."""
    return is_container(root, environ) or exists(root, "run/systemd/container")


def processes(root: Path) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yield of each process that can be seen its name, its command line and what it has in memory, in bytes."""
    for name in names(root, "proc"):
        if name.isdecimal():
            status = read(root, f"proc/{name}/status")
            command = tuple(read(root, f"proc/{name}/cmdline").rstrip("\0").split("\0"))
            resident = next((line for line in status.splitlines() if line.startswith("VmRSS:")), "").split()
            yield read(root, f"proc/{name}/comm").strip(), command, int(resident[1]) * 1024 if len(resident) > 1 else 0
