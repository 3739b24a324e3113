"""A Debian root directory, made by debootstrap once and kept for later runs.

The release is this machine's own, and so are the mirror, the proxy and the keyring: apt is asked. What is kept is a tar
archive in the user's cache, named after everything that it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

# What a small Debian box has and what the service needs; dbus is how a user's own systemd is asked.
PACKAGES = ("systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "ca-certificates", "python3", "python3-venv")
# Where the virtual environment is that every app of the tests uses: it takes seconds to make, and is kept, too.
VENV = "/opt/venv"
PROGRAMS = ("debootstrap", "apt-get", "apt-config", "dpkg", "tar", "chroot")

MEMORY = Path("/dev/shm")
ROOM_BYTES = 1 << 30  # of which a root takes a quarter
SCRATCH = "hardserve-tests-"

# Takes a minute on two slow cores; a mirror may be slow as well.
DEBOOTSTRAP_LIMIT_S = 600
UNPACK_LIMIT_S = 120


def missing() -> str:
    """Return why no root can be made here, "" when it can."""
    if os.geteuid() != 0:
        return "only root can make a Debian root directory"
    if lacking := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"missing: {', '.join(lacking)}"
    return "" if release() else "this is not Debian, or its release has no name"


def release() -> str:
    """Return the name of this machine's own Debian release."""
    about = platform.freedesktop_os_release()
    return about.get("VERSION_CODENAME", "") if about["ID"] == "debian" else ""


def unpack_root(root: Path) -> None:
    """Make `root`, in which nothing runs yet; from nothing if there is no archive of it."""
    archive = _archive()
    if not archive.exists():
        _make(archive)
    root.mkdir()
    _run("tar", "-C", str(root), "-xpf", str(archive), limit_s=UNPACK_LIMIT_S)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make an empty directory for a root: in memory if there is room, for a slow disk takes half a minute over one."""
    directory = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=_memory()))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _memory() -> Path | None:
    """Return a directory in memory, None where there is none that will do, or little room."""
    try:
        about = os.statvfs(MEMORY)
    except OSError:
        return None
    for left in MEMORY.glob(f"{SCRATCH}*-*"):
        # By tests that were killed.
        if not Path("/proc", left.name.removeprefix(SCRATCH).partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    may_run = not about.f_flag & os.ST_NOEXEC
    return MEMORY if may_run and about.f_bavail * about.f_frsize >= ROOM_BYTES else None


def _archive() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hardserve-tests"
    architecture = _run("dpkg", "--print-architecture").strip()
    made_from = " ".join((release(), architecture, *PACKAGES, VENV))
    return cache / f"debian-{release()}-{architecture}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}.tar"


def _make(archive: Path) -> None:
    """Have `archive` be there, whole or not at all: somebody else may be making it at the same time."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    scratch = archive.with_name(f"{archive.name}.{os.getpid()}")
    root = scratch / "root"
    try:
        root.mkdir(parents=True)
        _run(
            *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release(), str(root), mirror()),
            limit_s=DEBOOTSTRAP_LIMIT_S,
            environ=os.environ | proxies(),
        )
        _run("chroot", str(root), "python3", "-m", "venv", VENV, limit_s=UNPACK_LIMIT_S)
        for leftover in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
            leftover.unlink()
        packed = scratch / "root.tar"
        _run("tar", "-C", str(root), "-cf", str(packed), ".", limit_s=UNPACK_LIMIT_S)
        packed.rename(archive)
    finally:
        shutil.rmtree(scratch)


def mirror() -> str:
    """Return where apt has this release's packages from."""
    form = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    for line in _run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines():
        suite, component, url = line.split()
        if (suite, component) == (release(), "main"):
            return url
    raise AssertionError(f"apt has no source of {release()} main")


def proxies() -> dict[str, str]:
    """Return what has debootstrap's downloader use the proxies that apt uses."""
    proxies = {}
    for scheme in ("http", "https"):
        said = _run("apt-config", "--format", "%v", "dump", f"Acquire::{scheme}::Proxy").strip()
        if said:
            proxies[f"{scheme}_proxy"] = said
    return proxies


def _run(*command: str, limit_s: float = 20, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, env=environ)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
