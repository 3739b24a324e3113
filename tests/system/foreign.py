"""Programs of a Debian for another architecture, run by an emulator: a small board without the board.

The root is made once and kept, as that of debian.py is. Its packages are unpacked and not configured, for their scripts
would have to be run by an emulator in every program that they start. Nothing is registered with the kernel for that
either, so a program here can start no other: enough for a server, and for pip as it installs wheels.

The root is never written to. What a program may change is in directories that are put over it while it runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.system.debian import DEBOOTSTRAP_LIMIT_S, mirror, proxies, release
from tests.system.debian import missing as missing_for_root

PROGRAMS = ("dpkg-deb", "unshare", "mount")
PACKAGES = ("python3", "python3-pip")
# Where the emulator is seen from within.
_EMULATOR = "emulator"
# Differs between two makings of one root, or is of no use in it.
_LEFTOVERS = ("var/cache/apt", "var/lib/apt/lists", "var/log/bootstrap.log", "debootstrap", "etc/resolv.conf")
# In namespaces of its own, which end with the program: $1 is the root, $2 what it may write to, $3 where Python keeps
# what it has compiled, for the next run, too: that is half of an emulated pip's time.
_ENTER = f"""
root=$1 scratch=$2 compiled=$3; shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$scratch" "$root/srv"
mkdir -p "$scratch/tmp"
mount --bind "$scratch/tmp" "$root/tmp"
mount --bind "$compiled" "$root/var/cache"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$EMULATOR" "$root/{_EMULATOR}"
exec env -i PATH="$PATH" HOME=/tmp LANG=C.UTF-8 PYTHONPATH=/srv/site PYTHONPYCACHEPREFIX=/var/cache \
    chroot "$root" /{_EMULATOR} "$@"
"""


@dataclass(frozen=True, slots=True)
class Architecture:
    """`name` is Debian's, `machine` that of wheels, and `emulator` is the program that runs it."""

    name: str
    machine: str
    emulator: str


ARM64 = Architecture("arm64", "aarch64", "qemu-aarch64-static")
ARMHF = Architecture("armhf", "armv7l", "qemu-arm-static")  # 32 bits


class NoRootError(Exception):
    """A root could not be made; the text says why."""


def missing(architecture: Architecture) -> str:
    """Return why programs of this architecture cannot be run here, "" when they can."""
    lacking = [name for name in (*PROGRAMS, architecture.emulator) if shutil.which(name) is None]
    if reason := missing_for_root() or (f"missing: {', '.join(lacking)}" if lacking else ""):
        return reason
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, timeout=10, check=False)
    return "" if tried.returncode == 0 else "nothing may be mounted here"


class Board:
    """A root, and `scratch`, which is /srv in it. Modules are looked for in /srv/site."""

    def __init__(self, architecture: Architecture, scratch: Path) -> None:
        self.architecture = architecture
        self.scratch = scratch
        self._root = foreign_root(architecture.name, PACKAGES)
        self._compiled = self._root.with_name(f"{self._root.name}.compiled")
        self._compiled.mkdir(exist_ok=True)
        (python,) = self._root.glob("usr/bin/python3.*[0-9]")
        self.python = f"/usr/bin/{python.name}"
        self.python_version = python.name.removeprefix("python")

    def __repr__(self) -> str:
        return f"<Board {self.architecture.name} in {self.scratch}>"

    def command(self, *arguments: str) -> list[str]:
        """Return what runs Python with these arguments. It becomes the process that it is started as."""
        directories = (self._root, self.scratch, self._compiled)
        enter = ["unshare", "--mount", "--", "sh", "-euc", _ENTER, "sh", *map(str, directories)]
        return [*enter, self.python, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """What the command has to be started with. Within, nothing of it is seen."""
        emulator = shutil.which(self.architecture.emulator)
        assert emulator is not None
        return {"PATH": os.environ["PATH"], "EMULATOR": str(Path(emulator).resolve())}

    def wheel_options(self) -> list[str]:
        """Return what has pip take the wheels that fit here, and nothing that would have to be compiled."""
        # What a C library of the root's age can load; that of Debian 12 is 2.36.
        platforms = [f"manylinux_2_{minor}_{self.architecture.machine}" for minor in range(17, 37)]
        options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={self.python_version}"]
        return [*options, *(f"--platform={platform}" for platform in platforms)]


def foreign_root(architecture: str, packages: Sequence[str]) -> Path:
    """Return the directory of a minimal Debian with these packages, making it if that was not done before.

    Nobody may change it. What was made stays until somebody removes it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hardserve-tests"
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(" ".join(sorted(packages)).encode()).hexdigest()[:12]
    root = cache / f"unpacked-{release()}-{architecture}-{digest}"
    with root.with_name(f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once make it once
        if not root.exists():
            unfinished = root.with_name(f"{root.name}.unfinished")
            _remove(unfinished)
            _make(unfinished, architecture, packages)
            unfinished.rename(root)
    return root


def _make(root: Path, architecture: str, packages: Sequence[str]) -> None:
    command = ["debootstrap", "--foreign", f"--arch={architecture}", "--variant=minbase"]
    command += [f"--include={','.join(packages)}", release(), str(root), mirror()]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | proxies(),
        timeout=DEBOOTSTRAP_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise NoRootError(f"debootstrap ended with {done.returncode}: {done.stdout[-2000:]}")
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        _unpack(package, root)
    for name in _LEFTOVERS:
        _remove(root / name)
    (root / _EMULATOR).touch()
    (root / "srv").mkdir(exist_ok=True)  # which a script would have made


def _unpack(package: Path, root: Path) -> None:
    """Put the files of a package in place, through the links that merge /lib into /usr/lib."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as packed:
        tar = ["tar", "--extract", "--keep-directory-symlink", "--directory", str(root)]
        done = subprocess.run(tar, stdin=packed.stdout, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode or packed.returncode:
        raise NoRootError(f"{package.name} cannot be unpacked: {done.stderr}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
