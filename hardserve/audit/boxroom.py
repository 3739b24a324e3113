"""Whether what the settings allow fits into this box: memory, temporary files, descriptors, swap, the journal.

Pure: judges what boxfacts has gathered.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

from hardserve.audit.boxfacts import BoxFacts
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.settings import GIB, KIB, MIB, Settings

MEMORY = Check(
    "memory-caps",
    Severity.WARNING,
    "what the settings allow to be kept in memory does not fit into this box",
    "the kernel ends the server, or something else, when strangers fill what they are allowed to",
    "smaller limits, above all the largest of those that are said; config/raspberry-pi.toml has what fits 512 MB",
)
TMP = Check(
    "tmp-space",
    Severity.WARNING,
    "the disk for temporary files has less room than limits.buffered_files",
    "uploads fail when it is full, and so does whatever else needs that disk",
    'limits.buffered_files = "64MiB", or what fits',
)
TMP_IN_MEMORY = Check(
    "tmp-in-memory",
    Severity.NOTE,
    "temporary files are in memory, and fewer fit there than limits.buffered_files says",
    "uploads fail before that limit is reached, and so does whatever else writes there",
    'limits.buffered_files = "64MiB", or what fits',
)
DESCRIPTORS = Check(
    "descriptors",
    Severity.WARNING,
    "limits.connections is more than the process may have descriptors for",
    "fewer connections are taken than the settings say",
    "LimitNOFILE= in the unit, twice limits.connections and 256 more; or fewer connections",
)
BACKLOG = Check(
    "backlog-capped",
    Severity.NOTE,
    "server.backlog is more than the kernel allows",
    "connections that come in a burst are dropped, and tried again a second later",
    "net.core.somaxconn in a file in /etc/sysctl.d, or a smaller server.backlog",
)
NO_SWAP = Check(
    "no-swap",
    Severity.NOTE,
    "a small box without any swap",
    "one request that takes more memory than there is ends the server instead of slowing it down",
    "apt install systemd-zram-generator, with [zram0] in /etc/systemd/zram-generator.conf",
)
SWAP_ON_CARD = Check(
    "swap-on-sd-card",
    Severity.NOTE,
    "swap is on the SD card",
    "it is slow enough to look like a hang, and wears the card out",
    "apt install systemd-zram-generator, with [zram0] in /etc/systemd/zram-generator.conf",
)
JOURNAL = Check(
    "journal-size",
    Severity.NOTE,
    "the journal may grow on a small disk or an SD card, and nothing says how far",
    "it takes a tenth of the disk by itself, and each line of the access log is written to the card",
    "SystemMaxUse=64M, or Storage=volatile, below [Journal] in /etc/systemd/journald.conf.d/size.conf",
)
LOG = Check(
    "log-unbounded",
    Severity.NOTE,
    "a log file grows without end",
    "it fills the disk one day, and then nothing can be written",
    'log.max_size = "10MiB"',
)
CHECKS = (MEMORY, TMP, TMP_IN_MEMORY, DESCRIPTORS, BACKLOG, NO_SWAP, SWAP_ON_CARD, JOURNAL, LOG)

# Python, Flask and the server, before the first request, and what a thread that runs an app keeps besides.
BASE, THREAD = 40 * MIB, MIB
# Of an idle connection, in plain, and over TLS after a large response; of a count in memory (see README.md).
CONNECTION, TLS_CONNECTION, COUNT = KIB, 27 * KIB, 350
# See server.SPARE_DESCRIPTORS, which this must not import: it brings the server.
SPARE_DESCRIPTORS = 256
SMALL_MEMORY, SMALL_DISK = GIB, 10 * GIB
# What a box that is sold as one of so much has of it.
_NOMINAL = 0.9


def room_findings(
    settings: Settings, facts: BoxFacts, *, directory: Path = Path("/"), stdout_is_journal: bool = True
) -> Iterator[Finding]:
    """Judge. `directory` is where the app is; `stdout_is_journal` tells whether the server's lines go there."""
    yield from _memory(settings, facts)
    yield from _tmp(settings, facts)
    yield from _descriptors(settings, facts.max_descriptors, facts.descriptors_by)
    backlog = settings.server.backlog
    if facts.somaxconn is not None and facts.somaxconn < backlog:
        yield BACKLOG.found(
            f"server.backlog = {backlog}, and net.core.somaxconn is {facts.somaxconn}",
            f"server.backlog = {facts.somaxconn}; or net.core.somaxconn = {backlog} in a file in /etc/sysctl.d",
        )
    yield from _swap(facts)
    yield from _logs(settings, facts, directory)
    journal = facts.journal
    if stdout_is_journal and journal is not None and journal.disk is not None and not journal.max_use:
        disk = journal.disk
        if disk.is_sd_card or 0 < disk.size < SMALL_DISK:
            where = f"an SD card ({disk.source})" if disk.is_sd_card else f"{disk.source} of {shown(disk.size)}"
            yield JOURNAL.found(f"{disk.path} is on {where}, and no journald.conf has SystemMaxUse=")


def kept_in_memory(settings: Settings, facts: BoxFacts) -> list[tuple[str, int]]:
    """Return what the server may keep for long, in bytes, and the setting that says so.

    What an app takes for a moment is its own affair, and not in here.
    """
    limits, connections = settings.limits, settings.limits.connections
    each = TLS_CONNECTION if settings.serves_tls else CONNECTION
    parts = [
        ("limits.buffered_memory", limits.buffered_memory),
        ("limits.connections", connections * each),
        ("files.memory", settings.files.memory),
        ("server.threads", settings.server.threads * THREAD),
        ("rate_limiting.max_keys", settings.rate_limiting.max_keys * COUNT),
    ]
    if facts.tmp is not None and facts.tmp.type in ("tmpfs", "ramfs"):
        # It cannot be larger than the file system, which another finding is about.
        parts.append(("limits.buffered_files", min(limits.buffered_files, facts.tmp.size or limits.buffered_files)))
    return parts


def _memory(settings: Settings, facts: BoxFacts) -> Iterator[Finding]:
    if facts.memory is None:
        return
    parts = sorted(kept_in_memory(settings, facts), key=lambda part: -part[1])
    needed = BASE + sum(size for _, size in parts)
    swap = 0 if facts.shares_kernel else sum(each.size for each in facts.swaps)
    and_swap = f" and {shown(swap)} of swap" if swap else ""
    rooms = [(facts.memory + swap, f"this box has {shown(facts.memory)}{and_swap}")]
    if facts.memory_limit is not None:
        rooms.append((facts.memory_limit, f"the service may have {shown(facts.memory_limit)}"))
    if facts.available is not None and not facts.shares_kernel:
        left = facts.available + facts.ours
        rooms.append((left + swap, f"other programs leave {shown(left)} of {shown(facts.memory)}{and_swap}"))
    # What all of the box cannot hold is said first.
    room, what = next((each for each in rooms if needed > each[0]), rooms[0])
    if needed <= room:
        return
    said = ", ".join(f"{name} {shown(size)}" for name, size in parts if size >= 0.05 * needed)
    over, (largest, size) = needed - room, parts[0]
    tmp = facts.tmp
    in_tmp = f" ({tmp.path} is a {tmp.type}, which is memory)" if tmp and largest == "limits.buffered_files" else ""
    yield MEMORY.found(
        f"up to {shown(needed)} may be kept ({said}), and {what}",
        f"{_smaller(settings, largest, size, over)}{in_tmp}",
    )


def _smaller(settings: Settings, name: str, size: int, over: int) -> str:
    """Say what to set the largest part to, if that alone would do."""
    left = size - over
    if left < size // 8:
        return f"make {name} smaller, and others: config/raspberry-pi.toml has what fits 512 MB"
    if name in ("limits.connections", "server.threads", "rate_limiting.max_keys"):
        count = {
            "limits.connections": settings.limits.connections,
            "server.threads": settings.server.threads,
            "rate_limiting.max_keys": settings.rate_limiting.max_keys,
        }[name]
        return f"{name} = {_rounded(count * left // size)}"
    return f'{name} = "{max(1, _rounded(left // MIB))}MiB"'


def _rounded(count: int) -> int:
    """Round down to two digits."""
    power = int(10 ** max(0, len(str(count)) - 2))
    return max(1, count // power * power)


def _tmp(settings: Settings, facts: BoxFacts) -> Iterator[Finding]:
    wanted, tmp = settings.limits.buffered_files, facts.tmp
    if tmp is None or not tmp.size:
        return
    # A file system in memory is empty when the box has started; of a disk, what is free now is what there is.
    in_memory = tmp.type in ("tmpfs", "ramfs")
    room = tmp.size if in_memory else tmp.free
    if room < wanted:
        check, how = (TMP_IN_MEMORY, "has") if in_memory else (TMP, "has a free")
        yield check.found(
            f"limits.buffered_files = {shown(wanted)}, and {tmp.path} ({tmp.type}) {how} {shown(room)}",
            f'limits.buffered_files = "{max(1, _rounded(room * 3 // 4 // MIB))}MiB"',
        )


def _descriptors(settings: Settings, maximum: int | None, said_by: str) -> Iterator[Finding]:
    """Say so where the server itself would: it takes fewer connections, in server._max_connections."""
    wanted = settings.limits.connections
    if maximum is None or maximum >= 2 * wanted + SPARE_DESCRIPTORS:
        return
    possible = max(1, maximum - SPARE_DESCRIPTORS, maximum // 2)
    if possible < wanted:
        yield DESCRIPTORS.found(
            f"limits.connections = {wanted}, and {maximum} descriptors ({said_by}) are enough for {possible}",
            f"LimitNOFILE={2 * wanted + SPARE_DESCRIPTORS} in the unit, or limits.connections = {possible}",
        )


def _logs(settings: Settings, facts: BoxFacts, directory: Path) -> Iterator[Finding]:
    if settings.log.max_size:
        return
    for name, value in (("log.access", settings.log.access), ("log.error", settings.log.error)):
        path = os.path.normpath(directory / value)
        is_file = value not in ("stdout", "stderr", "off") and not path.startswith("/dev/")
        if is_file and not any(fnmatch.fnmatch(path, pattern) for pattern in facts.rotated):
            yield LOG.found(f"{name} = {value}, log.max_size is 0, and logrotate does not know {path}")
            return


def _swap(facts: BoxFacts) -> Iterator[Finding]:
    if facts.shares_kernel or facts.memory is None:
        return
    if not facts.swaps:
        if facts.memory < SMALL_MEMORY * _NOMINAL:
            yield NO_SWAP.found(f"{shown(facts.memory)} of memory, and /proc/swaps has nothing")
        return
    first = max(facts.swaps, key=lambda swap: swap.priority)
    if first.kind == "sd-card":
        yield SWAP_ON_CARD.found(f"{first.name} of {shown(first.size)} is on an SD card, and no zram comes before it")


def shown(size: int) -> str:
    """Write a size for people, with two or three digits that count."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor:
            return (
                f"{size / factor:.1f}".removesuffix(".0") + f" {unit}"
                if size < 10 * factor
                else f"{size // factor} {unit}"
            )
    return f"{size} bytes"
