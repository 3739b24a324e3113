"""What there is of memory, disk and descriptors on this box, gathered once. Judging is boxroom's.

Main thread, of a command; reads /proc, /sys and journald's configuration below `root`.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hardserve.audit.boxplace import Mount, below, exists, mount_of, mounts, names, number, processes, read

_JOURNALD = ("/usr/lib/systemd", "/usr/local/lib/systemd", "/run/systemd", "/etc/systemd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A file system with something of ours in it; sizes in bytes."""

    path: str  # what is there
    type: str
    source: str
    is_sd_card: bool = False
    size: int = 0
    free: int = 0


@dataclass(frozen=True, slots=True)
class Swap:
    """Where memory goes that is not used: "zram", "sd-card" or "disk". The highest priority is taken first."""

    name: str
    kind: str
    size: int
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What journald is told, and where its files are if it keeps any on a disk."""

    disk: Disk | None
    max_use: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxFacts:
    """Room on this box; sizes in bytes, None for what is not known or has no limit."""

    shares_kernel: bool = False
    memory: int | None = None
    available: int | None = None
    ours: int = 0  # of the memory, what servers of this kind have that run already
    memory_limit: int | None = None  # of the control group
    swaps: tuple[Swap, ...] = ()
    tmp: Disk | None = None
    max_descriptors: int | None = None
    descriptors_by: str = "ulimit -Hn"  # who says that
    somaxconn: int | None = None
    journal: Journal | None = None
    rotated: tuple[str, ...] = ()  # patterns of the files that logrotate knows


def box_facts(root: Path, environ: Mapping[str, str], *, shares_kernel: bool) -> BoxFacts:
    """Look at everything once."""
    memory = _meminfo(read(root, "proc/meminfo"))
    mounted = mounts(root)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return BoxFacts(
        shares_kernel=shares_kernel,
        memory=memory.get("MemTotal"),
        available=memory.get("MemAvailable"),
        ours=sum(resident for _, command, resident in processes(root) if _is_ours(command)),
        memory_limit=_group_limit(root, memory.get("MemTotal")),
        swaps=() if shares_kernel else tuple(_swaps(root, mounted)),
        tmp=_disk(root, environ.get("TMPDIR") or "/tmp", mounted),  # noqa: S108  # where temporary files go
        max_descriptors=None if hard == resource.RLIM_INFINITY else hard,
        somaxconn=number(read(root, "proc/sys/net/core/somaxconn")),
        journal=_journal(root, mounted),
        rotated=tuple(_rotated(root)),
    )


def _is_ours(command: tuple[str, ...]) -> bool:
    return any(os.path.basename(word) == "hardserve" for word in command[:4])


def _meminfo(text: str) -> dict[str, int]:
    """Read /proc/meminfo, whose kB are KiB."""
    found = re.findall(r"^(\w+):\s+([0-9]+) kB$", text, re.MULTILINE)
    return {name: int(count) * 1024 for name, count in found}


def _group_limit(root: Path, memory: int | None) -> int | None:
    """Return the least memory that a control group above this process has, None for all there is (cgroups(7))."""
    limits = []
    for line in read(root, "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base, file = (
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("sys/fs/cgroup", "memory.max")
        )
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for length in range(len(parts) + 1):
            limit = number(read(root, "/".join((base, *parts[:length], file))))
            # Version 1 writes "no limit" as a number that no box has.
            if limit and (memory is None or limit < memory):
                limits.append(limit)
    return min(limits, default=None)


def _disk(root: Path, path: str, mounted: list[Mount]) -> Disk | None:
    mount = mount_of(path, mounted)
    if mount is None:
        return None
    try:
        room = os.statvfs(below(root, path))
    except OSError:
        return None
    return Disk(
        path=path,
        type=mount.type,
        source=mount.source,
        is_sd_card=_is_sd_card(root, mount.source, mount.number),
        size=room.f_blocks * room.f_frsize,
        free=room.f_bavail * room.f_frsize,
    )


def _is_sd_card(root: Path, source: str, device: str) -> bool:
    """Return whether a block device is a card: an eMMC, which lasts longer, has the same kind of name."""
    name = source
    if device:
        with contextlib.suppress(OSError):  # /dev/root is what some boxes call theirs
            name += " " + os.readlink(below(root, f"sys/dev/block/{device}"))
    card = re.search(r"\b(mmcblk[0-9]+)(?:p[0-9]+)?\b", name)
    return card is not None and read(root, f"sys/block/{card[1]}/device/type").strip() == "SD"


def _swaps(root: Path, mounted: list[Mount]) -> list[Swap]:
    found = []
    for line in read(root, "proc/swaps").splitlines()[1:]:
        fields = line.split()
        if len(fields) != 5 or not fields[2].isdecimal():
            continue
        name, device = fields[0], ""
        source = name
        if fields[1] == "file" and (mount := mount_of(name, mounted)) is not None:
            source, device = mount.source, mount.number
        kind = "zram" if "zram" in name else "sd-card" if _is_sd_card(root, source, device) else "disk"
        priority = int(fields[4]) if fields[4].removeprefix("-").isdecimal() else 0
        found.append(Swap(name, kind, int(fields[2]) * 1024, priority))
    return found


def _rotated(root: Path) -> Iterator[str]:
    """Yield the patterns before the braces of logrotate's configuration (logrotate.conf(5))."""
    for path in ("etc/logrotate.conf", *(f"etc/logrotate.d/{name}" for name in names(root, "etc/logrotate.d"))):
        depth = 0
        for line in read(root, path).splitlines():
            if depth == 0:
                yield from re.findall(r"""["']?(/[^\s"'{]+)""", line.partition("#")[0].partition("{")[0])
            depth += line.count("{") - line.count("}")


def _journal(root: Path, mounted: list[Mount]) -> Journal | None:
    """Return what journald keeps and where (journald.conf(5)), None without systemd."""
    if not exists(root, "run/systemd/system"):
        return None
    texts = [next(filter(None, (read(root, f"{each}/journald.conf") for each in reversed(_JOURNALD))), "")]
    # By their names, whatever directory they are in; of two with one name that in /etc counts.
    drop_ins = {}
    for directory in _JOURNALD:
        for name in names(root, f"{directory}/journald.conf.d"):
            if name.endswith(".conf"):
                drop_ins[name] = read(root, f"{directory}/journald.conf.d/{name}")
    texts += [drop_ins[name] for name in sorted(drop_ins)]
    said: dict[str, str] = {}
    for line in "\n".join(texts).splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", ";")):
            said[key.strip()] = value.strip()
    storage = said.get("Storage") or "auto"
    kept = storage == "persistent" or (storage == "auto" and exists(root, "var/log/journal"))
    path = "/var/log/journal" if exists(root, "var/log/journal") else "/var/log"
    return Journal(disk=_disk(root, path, mounted) if kept else None, max_use=said.get("SystemMaxUse", ""))
