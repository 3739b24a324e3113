"""What `hardserve check` finds wrong with a box, of made-up ones, and that it says nothing of a good one."""

from __future__ import annotations

import ipaddress
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from hardserve import server
from hardserve.audit import boxclock, boxroom
from hardserve.audit.box import CHECKS, Place, box_findings
from hardserve.audit.boxclock import ClockFacts, clock_facts, clock_findings
from hardserve.audit.boxfacts import BoxFacts, Disk, Journal, Swap, box_facts
from hardserve.audit.boxmodes import guarded_files, mode_findings
from hardserve.audit.boxplace import is_ci, is_container, mount_of, mounts, shares_kernel
from hardserve.audit.boxreach import Listening, ReachFacts, reach_facts, reach_findings
from hardserve.audit.boxroom import room_findings, shown
from hardserve.audit.findings import Finding
from hardserve.options import from_keywords, resolve
from hardserve.settings import GIB, KIB, MIB, Settings

PRESETS = Path(__file__).parent.parent / "config"
# What a Raspberry Pi Zero 2 W has of its 512 MB.
ZERO = 427 * MIB
NOT_ROOT = 1000
# These fit on whatever disk this machine has.
LITTLE = from_keywords(limits_body="1MiB", limits_buffered_files="2MiB")


def ids(findings: Any) -> list[str]:
    return [finding.check.id for finding in findings]


def preset(name: str) -> Settings:
    return resolve(environ={}, config=PRESETS / name, directory=PRESETS.parent).settings


class Root:
    """A made-up root directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, path: str, text: str = "", mode: int = 0o644) -> Path:
        file = self.path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def directory(self, path: str, mode: int = 0o755) -> Path:
        directory = self.path / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
        return directory

    def good_box(self) -> None:
        """A small server as a Debian makes it, with an app in /srv/app."""
        self.file("proc/meminfo", "MemTotal:        2014000 kB\nMemFree:  90000 kB\nMemAvailable:    1700000 kB\n")
        self.file("proc/self/mountinfo", MOUNTS)
        self.file("proc/self/cgroup", "0::/user.slice/user-1000.slice/session-1.scope\n")
        self.file("proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n")
        self.file("proc/1/comm", "systemd\n")
        self.file("proc/swaps", SWAPS_HEAD)
        self.file("proc/sys/net/core/somaxconn", "4096\n")
        self.file("proc/sys/net/ipv4/ip_unprivileged_port_start", "1024\n")
        self.file("proc/net/tcp", tcp(("127.0.0.1", 6379), ("0.0.0.0", 22)))
        self.file("proc/net/tcp6", tcp(("::", 22), ("::1", 5432)))
        self.file("proc/net/fib_trie", trie("5.9.0.1", "127.0.0.1"))
        self.directory("run/systemd/system")
        self.directory("tmp", 0o1777)
        self.directory("var/log/journal")
        self.directory("etc/systemd/system")
        self.file("srv/app/app.py", "app = 1\n")
        self.file("srv/app/hardserve.toml", "")
        self.file("srv/app/.env", "SECRET_KEY=x\n", 0o600)


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /dev rw - devtmpfs udev rw
24 22 0:22 / /proc rw,nosuid shared:5 - proc proc rw
"""
MOUNTS_WITH_CARD = """\
22 1 179:2 / / rw,noatime - ext4 /dev/root rw
"""
SWAPS_HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
PLACE = Place(Path("/srv/app"), Path("/srv/app/hardserve.toml"), (Path("/srv/app/.env"),))


def tcp(*listening: tuple[str, int]) -> str:
    lines = ["  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"]
    for index, (host, port) in enumerate(listening):
        packed = ipaddress.ip_address(host).packed
        words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
        text = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
        zero = "0" * len(text)
        lines.append(f"{index:4}: {text}:{port:04X} {zero}:0000 0A 00000000:00000000 00:00000000 00000000     0   0 1")
    # A connection that somebody has made to a database elsewhere.
    lines.append("   9: 0100007F:18EB 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0   0 2")
    return "\n".join(lines) + "\n"


def trie(*addresses: str) -> str:
    lines = ["Main:", "  +-- 0.0.0.0/0 3 0 5"]
    for address in addresses:
        lines += [f"     |-- {address}", "        /32 host LOCAL"]
    lines += ["     |-- 5.9.0.255", "        /32 link BROADCAST"]
    return "\n".join(lines) + "\n"


@pytest.fixture
def box(tmp_path: Path) -> Root:
    root = Root(tmp_path)
    root.good_box()
    return root


def found(
    root: Root, settings: Settings | None = None, environ: Mapping[str, str] | None = None, **more: Any
) -> list[Finding]:
    more.setdefault("user", NOT_ROOT)
    more.setdefault("place", PLACE)
    environ = environ or {"HOME": "/home/me"}
    findings = box_findings(settings or Settings(), root=root.path, environ=environ, **more)
    # That of the tests, which grows old.
    return [finding for finding in findings if finding.check is not boxclock.OLD_PYTHON]


# --- silence ---


def test_nothing_is_said_of_a_good_box(box: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _what: (1024, 524_288))
    assert found(box, LITTLE) == []


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _what: (1024, 524_288))
    assert found(Root(tmp_path)) == []


def test_nothing_is_said_in_ci(box: Root) -> None:
    box.file("srv/app/hardserve.toml", "", 0o666)
    assert found(box, environ={"CI": "true"}) == []
    assert ids(found(box, environ={"CI": "false"})) != []


@pytest.mark.parametrize("mark", ["run/.containerenv", ".dockerenv"])
def test_a_container_hears_nothing_of_its_host(box: Root, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _what: (1024, 524_288))
    (box.path / "run/systemd/system").rmdir()
    box.file(mark)
    box.file("proc/1/comm", "gunicorn\n")
    box.file("proc/net/tcp", tcp(("0.0.0.0", 6379)))
    box.file("srv/app/hardserve.toml", "", 0o666)
    box.file("proc/meminfo", f"MemTotal: {900 * 1024} kB\nMemAvailable: 100000 kB\n")
    assert found(box, LITTLE, user=0) == []


@pytest.mark.parametrize(
    ("files", "environ", "expected"),
    [
        pytest.param((".dockerenv",), {}, True, id="docker"),
        pytest.param(("run/.containerenv",), {}, True, id="podman"),
        pytest.param((), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True, id="kubernetes"),
        pytest.param(("run/systemd/container",), {}, True, id="nspawn-without-systemd"),
        pytest.param(
            ("run/systemd/container", "run/systemd/system/x"), {}, False, id="nspawn-that-was-booted-is-a-box"
        ),
        pytest.param((), {}, False, id="a-box"),
    ],
)
def test_what_a_container_is(tmp_path: Path, files: tuple[str, ...], environ: dict[str, str], expected: bool) -> None:
    root = Root(tmp_path)
    for name in files:
        root.file(name)
    assert is_container(root.path, environ) is expected


def test_a_container_that_was_booted_has_the_clock_and_swap_of_its_host(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.directory("run/systemd/system")
    assert not shares_kernel(root.path, {})
    root.file("run/systemd/container", "systemd-nspawn\n")
    assert not is_container(root.path, {})
    assert shares_kernel(root.path, {})


def test_a_first_process_that_starts_no_box_is_that_of_a_container(tmp_path: Path) -> None:
    for name, expected in (("systemd", False), ("init", False), ("tini", True), ("python3", True)):
        Root(tmp_path).file("proc/1/comm", name + "\n")
        assert is_container(tmp_path, {}) is expected


def test_what_ci_is() -> None:
    assert is_ci({"CI": "1"})
    assert not is_ci({"CI": ""})
    assert not is_ci({})


def test_every_check_has_an_id_of_its_own() -> None:
    assert len({check.id for check in CHECKS}) == len(CHECKS)


# --- root ---


def test_who_is_root_would_serve_as_root(box: Root) -> None:
    assert "running-as-root" in ids(found(box, user=0))
    assert "running-as-root" not in ids(found(box, user=NOT_ROOT))


# --- room: memory, temporary files, descriptors, swap, the journal ---

GOOD = BoxFacts(memory=2 * GIB, available=GIB, max_descriptors=524_288, somaxconn=4096)
CARD = Disk(path="/", type="ext4", source="/dev/mmcblk0p2", is_sd_card=True, size=32 * GIB, free=20 * GIB)


def room(settings: Settings | None = None, **facts: Any) -> list[Finding]:
    return list(room_findings(settings or Settings(), replace(GOOD, **facts)))


def tmpfs(size: int) -> Disk:
    return Disk(path="/tmp", type="tmpfs", source="tmpfs", size=size, free=size)


def disk(free: int, size: int = 64 * GIB) -> Disk:
    return Disk(path="/tmp", type="ext4", source="/dev/sda1", size=size, free=free)


TLS = from_keywords(tls_certificate="./c.pem", tls_key="./k.pem")


@pytest.mark.parametrize(
    ("settings", "facts", "expected"),
    [
        pytest.param(Settings(), {}, False, id="defaults-on-2-gib"),
        pytest.param(Settings(), {"memory": 480 * MIB, "available": 400 * MIB}, False, id="defaults-on-512-mb"),
        pytest.param(TLS, {"memory": 480 * MIB, "available": 400 * MIB}, True, id="16384-tls-connections-on-512-mb"),
        pytest.param(TLS, {"memory": 960 * MIB, "available": 800 * MIB}, False, id="16384-tls-connections-on-1-gb"),
        pytest.param(Settings(), {"memory_limit": 128 * MIB}, True, id="a-control-group-of-128-mib"),
        pytest.param(Settings(), {"memory_limit": 512 * MIB}, False, id="a-control-group-of-512-mib"),
        pytest.param(Settings(), {"available": 100 * MIB}, True, id="others-have-the-memory"),
        pytest.param(Settings(), {"available": 100 * MIB, "ours": 200 * MIB}, False, id="it-runs-already"),
        pytest.param(
            Settings(),
            {"available": 100 * MIB, "swaps": (Swap("/swap", "disk", GIB),)},
            False,
            id="others-have-the-memory-and-there-is-swap",
        ),
        pytest.param(
            Settings(),
            {"available": 100 * MIB, "shares_kernel": True},
            False,
            id="of-a-container-only-its-group-counts",
        ),
        pytest.param(Settings(), {"tmp": tmpfs(2 * GIB)}, True, id="uploads-in-memory-as-large-as-the-box"),
        pytest.param(Settings(), {"memory": None}, False, id="nothing-known"),
    ],
)
def test_what_may_be_kept_fits_into_memory(settings: Settings, facts: dict[str, Any], expected: bool) -> None:
    assert ("memory-caps" in ids(room(settings, **facts))) is expected


def test_memory_is_told_in_numbers_with_a_setting_that_fits() -> None:
    (finding,) = room(TLS, memory=480 * MIB, available=400 * MIB, swaps=(Swap("z", "zram", 0),))
    assert finding.evidence.startswith("up to 656 MiB may be kept (limits.connections 432 MiB, limits.buffered_memory")
    assert finding.evidence.endswith("and this box has 480 MiB")
    assert finding.fix == "limits.connections = 9600"
    again = replace(TLS, limits=replace(TLS.limits, connections=9600))
    assert room(again, memory=480 * MIB, available=480 * MIB, swaps=(Swap("z", "zram", 0),)) == []


def test_where_no_single_setting_would_do_a_preset_is_named() -> None:
    (finding,) = room(memory_limit=64 * MIB)
    assert "config/raspberry-pi.toml" in finding.fix


@pytest.mark.parametrize(
    ("name", "memory", "tmp"),
    [
        pytest.param("raspberry-pi.toml", ZERO, None, id="pi-preset-on-a-zero-2-w"),
        pytest.param("raspberry-pi.toml", ZERO, tmpfs(ZERO // 2), id="pi-preset-on-a-zero-2-w-with-tmp-in-memory"),
        pytest.param("vps.toml", 960 * MIB, None, id="vps-preset-on-1-gb"),
        pytest.param("vps.toml", 960 * MIB, tmpfs(480 * MIB), id="vps-preset-on-1-gb-with-tmp-in-memory"),
        pytest.param("internal-tool.toml", 4 * GIB, disk(40 * GIB), id="internal-tool-preset"),
    ],
)
def test_presets_fit_into_the_boxes_they_are_for(name: str, memory: int, tmp: Disk | None) -> None:
    settings = preset(name)
    if name == "vps.toml":
        settings = replace(settings, tls=replace(settings.tls, domain=("example.org",)))
        assert settings.serves_tls
    swaps = (Swap("/dev/zram0", "zram", memory // 2, 100),)
    assert room(settings, memory=memory, available=memory * 3 // 4, tmp=tmp, swaps=swaps) == []
    # As with the shipped unit's MemoryMax=75%.
    assert room(settings, memory=memory, available=memory, memory_limit=memory * 3 // 4, tmp=tmp, swaps=swaps) == []


@pytest.mark.parametrize(
    ("tmp", "expected"),
    [
        pytest.param(disk(free=GIB), ["tmp-space"], id="a-full-disk"),
        pytest.param(disk(free=3 * GIB), [], id="a-disk-with-room"),
        pytest.param(tmpfs(GIB), ["tmp-in-memory"], id="half-the-memory"),
        pytest.param(None, [], id="nothing-known"),
    ],
)
def test_room_for_temporary_files(tmp: Disk | None, expected: list[str]) -> None:
    assert ids(room(memory=32 * GIB, available=32 * GIB, tmp=tmp)) == expected


def test_descriptors_are_judged_as_the_server_does() -> None:
    assert boxroom.SPARE_DESCRIPTORS == server.SPARE_DESCRIPTORS
    settings = from_keywords(limits_connections=1000)
    for maximum, expected in ((None, []), (2256, []), (1256, []), (1255, ["descriptors"]), (300, ["descriptors"])):
        assert ids(room(settings, max_descriptors=maximum)) == expected
    (finding,) = room(settings, max_descriptors=1024)
    assert "are enough for 768" in finding.evidence
    assert "LimitNOFILE=2256" in finding.fix


def test_a_backlog_that_the_kernel_caps() -> None:
    assert ids(room(from_keywords(backlog=4096), somaxconn=4096)) == []
    assert ids(room(from_keywords(backlog=4097), somaxconn=4096)) == ["backlog-capped"]


@pytest.mark.parametrize(
    ("memory", "swaps", "expected"),
    [
        pytest.param(ZERO, (), ["no-swap"], id="none-on-a-small-box"),
        pytest.param(960 * MIB, (), [], id="none-on-a-box-of-1-gb"),
        pytest.param(ZERO, (Swap("/dev/zram0", "zram", GIB, 100),), [], id="zram"),
        pytest.param(ZERO, (Swap("/var/swap", "sd-card", 100 * MIB, -2),), ["swap-on-sd-card"], id="on-the-card"),
        pytest.param(
            ZERO,
            (Swap("/var/swap", "sd-card", 100 * MIB, -2), Swap("/dev/zram0", "zram", GIB, 100)),
            [],
            id="on-the-card-after-zram",
        ),
        pytest.param(ZERO, (Swap("/dev/sda2", "disk", GIB, -2),), [], id="on-a-disk"),
    ],
)
def test_swap(memory: int, swaps: tuple[Swap, ...], expected: list[str]) -> None:
    assert ids(room(preset("raspberry-pi.toml"), memory=memory, available=memory, swaps=swaps)) == expected


@pytest.mark.parametrize(
    ("journal", "expected"),
    [
        pytest.param(None, [], id="no-journal"),
        pytest.param(Journal(disk=None), [], id="in-memory"),
        pytest.param(Journal(disk=CARD), ["journal-size"], id="on-the-card"),
        pytest.param(Journal(disk=CARD, max_use="64M"), [], id="on-the-card-and-bounded"),
        pytest.param(Journal(disk=disk(GIB, size=8 * GIB)), ["journal-size"], id="on-a-small-disk"),
        pytest.param(Journal(disk=disk(20 * GIB)), [], id="on-a-disk"),
    ],
)
def test_the_size_of_the_journal(journal: Journal | None, expected: list[str]) -> None:
    assert ids(room(journal=journal)) == expected
    assert ids(room_findings(Settings(), replace(GOOD, journal=journal), stdout_is_journal=False)) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param(from_keywords(log_access="access.log"), ["log-unbounded"], id="nobody-rotates-it"),
        pytest.param(from_keywords(log_access="access.log", log_max_size="1MiB"), [], id="the-server-does"),
        pytest.param(from_keywords(log_access="/var/log/app/access.log"), [], id="logrotate-does"),
        pytest.param(from_keywords(log_error="/var/log/other/e.log"), ["log-unbounded"], id="logrotate-does-not"),
        pytest.param(from_keywords(log_access="/dev/null"), [], id="a-device"),
        pytest.param(from_keywords(log_access="off"), [], id="none"),
    ],
)
def test_logs_that_grow(box: Root, settings: Settings, expected: list[str]) -> None:
    box.file("etc/logrotate.d/app", "# /var/log/other/*.log\n/var/log/app/*.log {\n  olddir /var/log/other/e.log\n}\n")
    rotated = box_facts(box.path, {}, shares_kernel=False).rotated
    assert rotated == ("/var/log/app/*.log",)
    assert ids(room_findings(settings, replace(GOOD, rotated=rotated), directory=Path("/srv/app"))) == expected


def test_sizes_for_people() -> None:
    assert [shown(size) for size in (0, 700, 1536, 10 * MIB, 2 * GIB, 2 * GIB + 300 * MIB)] == [
        "0 bytes", "700 bytes", "1.5 KiB", "10 MiB", "2 GiB", "2.3 GiB",
    ]  # fmt: skip


# --- where facts come from ---


def test_memory_of_a_box(box: Root) -> None:
    box.file("proc/77/cmdline", "/srv/app/.venv/bin/python3\0/srv/app/.venv/bin/hardserve\0app:app\0")
    box.file("proc/77/comm", "hardserve\n")
    box.file("proc/77/status", "Name:\thardserve\nVmRSS:\t   41000 kB\n")
    box.file("proc/78/cmdline", "less\0/etc/hardserve/x.toml\0")
    box.file("proc/78/status", "VmRSS:\t   500 kB\n")
    facts = box_facts(box.path, {}, shares_kernel=False)
    assert (facts.memory, facts.available) == (2_014_000 * KIB, 1_700_000 * KIB)
    assert facts.ours == 41_000 * KIB
    assert facts.tmp is not None
    assert (facts.tmp.type, facts.tmp.source, facts.tmp.is_sd_card) == ("ext4", "/dev/sda1", False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "1000000\n"}, 1_000_000, id="above"
        ),
        pytest.param({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, None, id="no-limit"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000000\n"}, 5_000_000, id="namespace"
        ),
        pytest.param(
            {"proc/self/cgroup": "4:memory:/x\n0::/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000000\n"},
            7_000_000,
            id="version-1",
        ),
        pytest.param(
            {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
            None,
            id="version-1-without-a-limit",
        ),
        pytest.param({}, None, id="nothing-known"),
    ],
)
def test_the_memory_of_a_control_group(box: Root, files: dict[str, str], expected: int | None) -> None:
    for path, text in files.items():
        box.file(path, text)
    assert box_facts(box.path, {}, shares_kernel=False).memory_limit == expected


def card(root: Root, kind: str = "SD") -> None:
    root.file("proc/self/mountinfo", MOUNTS_WITH_CARD)
    root.directory("sys/dev/block")
    os.symlink("../../devices/soc/mmc0:aaaa/block/mmcblk0/mmcblk0p2", root.path / "sys/dev/block/179:2")
    root.file("sys/block/mmcblk0/device/type", kind + "\n")


@pytest.mark.parametrize(("kind", "expected"), [("SD", True), ("MMC", False)])
def test_a_card_is_told_from_soldered_memory_although_both_are_dev_root(box: Root, kind: str, expected: bool) -> None:
    card(box, kind)
    box.file("proc/swaps", SWAPS_HEAD + "/var/swap                               file\t\t102396\t\t0\t\t-2\n")
    facts = box_facts(box.path, {}, shares_kernel=False)
    assert facts.tmp is not None
    assert facts.tmp.is_sd_card is expected
    assert facts.swaps == (Swap("/var/swap", "sd-card" if expected else "disk", 102_396 * KIB, -2),)


def test_zram_is_swap_of_its_own_kind(box: Root) -> None:
    box.file("proc/swaps", SWAPS_HEAD + "/dev/zram0                              partition\t437244\t\t0\t\t100\n")
    assert box_facts(box.path, {}, shares_kernel=False).swaps == (Swap("/dev/zram0", "zram", 437_244 * KIB, 100),)


@pytest.mark.parametrize(
    ("files", "kept", "max_use"),
    [
        pytest.param({}, True, "", id="auto-with-a-directory"),
        pytest.param({"etc/systemd/journald.conf": "[Journal]\n#Storage=volatile\n"}, True, "", id="a-comment"),
        pytest.param({"etc/systemd/journald.conf": "[Journal]\nStorage=volatile\n"}, False, "", id="volatile"),
        pytest.param(
            {"usr/lib/systemd/journald.conf.d/40-rpi-volatile-storage.conf": "[Journal]\nStorage=volatile\n"},
            False,
            "",
            id="volatile-as-raspberry-pi-os-has-it",
        ),
        pytest.param(
            {
                "usr/lib/systemd/journald.conf.d/40-x.conf": "[Journal]\nSystemMaxUse=1G\n",
                "etc/systemd/journald.conf.d/50-size.conf": "[Journal]\nSystemMaxUse=64M\n",
            },
            True,
            "64M",
            id="the-last-one-counts",
        ),
    ],
)
def test_what_journald_is_told(box: Root, files: dict[str, str], kept: bool, max_use: str) -> None:
    for path, text in files.items():
        box.file(path, text)
    journal = box_facts(box.path, {}, shares_kernel=False).journal
    assert journal is not None
    assert (journal.disk is not None, journal.max_use) == (kept, max_use)


def test_without_systemd_there_is_no_journal(box: Root) -> None:
    (box.path / "run/systemd/system").rmdir()
    assert box_facts(box.path, {}, shares_kernel=False).journal is None


def test_the_mount_of_a_path_is_the_one_with_the_longest_way_in_common(tmp_path: Path) -> None:
    Root(tmp_path).file(
        "proc/self/mountinfo",
        MOUNTS + "30 22 0:40 / /tmp rw - tmpfs tmpfs rw\n31 22 8:2 / /my\\040disk rw - ext4 /dev/sdb1 rw\nbroken\n",
    )
    mounted = mounts(tmp_path)
    for path, expected in (
        ("/tmp", "/tmp"),
        ("/tmp/a", "/tmp"),
        ("/tmpfile", "/"),
        ("/my disk/a", "/my disk"),
        ("/", "/"),
    ):
        mount = mount_of(path, mounted)
        assert mount is not None
        assert mount.point == expected


# --- the clock, and Python ---

NOW = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
RIGHT = ClockFacts(now=NOW, kernel_unsynchronised=False, uptime_s=90_000)


def clock(*, shares_kernel: bool = False, **facts: Any) -> list[Finding]:
    return list(clock_findings(replace(RIGHT, **facts), shares_kernel=shares_kernel))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param({}, [], id="right"),
        pytest.param({"kernel_unsynchronised": None}, [], id="nothing-known"),
        pytest.param({"kernel_unsynchronised": True}, ["clock-unsynchronised"], id="nobody-sets-it"),
        pytest.param({"kernel_unsynchronised": True, "has_been_set": True}, [], id="timesyncd-has-set-it"),
        pytest.param({"kernel_unsynchronised": True, "setters": frozenset({"chronyd"})}, [], id="chrony-does-not-tell"),
        pytest.param(
            {"kernel_unsynchronised": True, "setters": frozenset({"systemd-timesyn"}), "uptime_s": 60.0},
            [],
            id="just-started",
        ),
        pytest.param(
            {"kernel_unsynchronised": True, "setters": frozenset({"systemd-timesyn"})},
            ["clock-unsynchronised"],
            id="timesyncd-reaches-nobody",
        ),
        pytest.param({"kernel_unsynchronised": True, "is_guest_of_windows": True}, [], id="windows-sets-it"),
        pytest.param({"kernel_unsynchronised": True, "shares_kernel": True}, [], id="a-container"),
        pytest.param({"now": 0.0, "kernel_unsynchronised": True}, ["clock-behind"], id="1970"),
        pytest.param({"now": 0.0, "shares_kernel": True}, ["clock-behind"], id="1970-in-a-container"),
        pytest.param({"python": (3, 11)}, [], id="python-that-is-supported"),
        pytest.param(
            {"python": (3, 11), "now": NOW + 3 * 365 * 86400}, ["python-unsupported"], id="python-that-is-not"
        ),
        pytest.param(
            {"python": (3, 11), "now": NOW + 3 * 365 * 86400, "python_of_distribution": True}, [], id="python-of-debian"
        ),
        pytest.param({"python": (3, 99)}, [], id="python-of-the-future"),
    ],
)
def test_the_clock(facts: dict[str, Any], expected: list[str]) -> None:
    assert ids(clock(**facts)) == expected


def test_the_fix_for_a_clock_is_what_is_there() -> None:
    (finding,) = clock(kernel_unsynchronised=True, has_timesyncd=True)
    assert finding.fix == "timedatectl set-ntp true"
    (finding,) = clock(kernel_unsynchronised=True)
    assert finding.fix == "apt install systemd-timesyncd"


def test_the_clock_of_this_machine() -> None:
    facts = clock_facts(Path("/"))
    assert abs(facts.now - time.time()) < 60
    assert facts.kernel_unsynchronised in (True, False, None)
    assert facts.python == sys.version_info[:2]
    assert date(2025, 1, 1) < boxclock.MADE <= datetime.now(UTC).date()


def test_who_sets_a_clock_is_among_the_processes(box: Root) -> None:
    box.file("proc/500/comm", "systemd-timesyn\n")
    box.file("proc/501/comm", "bash\n")
    box.file("proc/uptime", "12345.67 1000.00\n")
    box.file("proc/version", "Linux version 6.6.87.2-microsoft-standard-WSL2\n")
    facts = clock_facts(box.path)
    assert (facts.setters, facts.uptime_s) == (frozenset({"systemd-timesyn"}), 12345.67)
    assert facts.is_guest_of_windows
    assert facts.kernel_unsynchronised is None  # the kernel is not that of a made-up box


def test_every_python_that_is_taken_has_an_end() -> None:
    assert (3, 11) in boxclock.SUPPORT_ENDS
    assert sys.version_info[:2] in boxclock.SUPPORT_ENDS


# --- what strangers reach ---

PUBLIC = ReachFacts(public=("5.9.0.1",), first_free_port=1024)


def reach(
    settings: Settings | None = None, *, bound: list[str] | None = None, has_unit: bool = False, **facts: Any
) -> list[str]:
    return ids(reach_findings(settings or Settings(), replace(PUBLIC, **facts), bound=bound, has_unit=has_unit))


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        pytest.param("0.0.0.0", 6379, True, id="redis-everywhere"),
        pytest.param("5.9.0.1", 27017, True, id="mongodb-on-the-public-address"),
        pytest.param("::", 11211, True, id="memcached-everywhere"),
        pytest.param("::ffff:5.9.0.1", 5432, True, id="postgresql-on-a-mapped-address"),
        pytest.param("127.0.0.1", 6379, False, id="redis-here"),
        pytest.param("::1", 3306, False, id="mysql-here"),
        pytest.param("10.0.0.5", 6379, False, id="redis-in-a-private-network"),
        pytest.param("0.0.0.0", 22, False, id="ssh"),
    ],
)
def test_services_that_need_no_password(host: str, port: int, expected: bool) -> None:
    assert (reach(listening=(Listening(host, port),)) == ["open-without-password"]) is expected
    assert reach(listening=(Listening(host, port),), public=()) == []  # at home, or behind a gateway


def test_a_service_is_named_once() -> None:
    assert reach(listening=(Listening("0.0.0.0", 6379), Listening("::", 6379))) == ["open-without-password"]


def test_the_servers_own_port_is_none_of_them() -> None:
    listening = (Listening("0.0.0.0", 5000),)
    assert reach(from_keywords(bind="0.0.0.0:5000"), listening=listening) == []
    assert reach(bound=["0.0.0.0:5000"], has_unit=True, listening=listening, public=("5.9.0.1",)) == [
        "socket-plain-in-public"
    ]
    assert reach(listening=listening) == ["open-without-password"]


@pytest.mark.parametrize(
    ("settings", "bound", "expected"),
    [
        pytest.param(Settings(), ["[::]:80"], ["socket-plain-in-public"], id="plain-on-port-80"),
        pytest.param(Settings(), ["127.0.0.1:8000"], [], id="for-this-machine"),
        pytest.param(Settings(), ["unix:/run/x.sock"], [], id="a-unix-socket"),
        pytest.param(TLS, ["[::]:443"], [], id="https"),
        pytest.param(from_keywords(proxy_trusted=["173.245.48.0/20"]), ["[::]:80"], [], id="behind-a-cdn"),
        pytest.param(from_keywords(access_allow=["private", "10.1.0.0/16"]), ["[::]:80"], [], id="for-some-networks"),
        pytest.param(from_keywords(bind="0.0.0.0:80"), None, [], id="of-server-bind-the-settings-speak"),
    ],
)
def test_a_socket_unit_that_speaks_plain_http(settings: Settings, bound: list[str] | None, expected: list[str]) -> None:
    assert reach(settings, bound=bound, has_unit=True) == expected


@pytest.mark.parametrize(
    ("settings", "facts", "expected"),
    [
        pytest.param(from_keywords(bind="127.0.0.1:80"), {"may_open_low": False}, ["low-port"], id="port-80"),
        pytest.param(from_keywords(bind="127.0.0.1:80"), {}, [], id="port-80-as-root"),
        pytest.param(from_keywords(bind="127.0.0.1:8000"), {"may_open_low": False}, [], id="port-8000"),
        pytest.param(
            from_keywords(bind="127.0.0.1:80"), {"may_open_low": False, "first_free_port": 80}, [], id="port-80-is-free"
        ),
        pytest.param(
            from_keywords(bind="127.0.0.1:80"), {"may_open_low": False, "first_free_port": None}, [], id="nothing-known"
        ),
        pytest.param(from_keywords(bind="127.0.0.1:0"), {"may_open_low": False}, [], id="any-port"),
    ],
)
def test_ports_that_are_roots(settings: Settings, facts: dict[str, Any], expected: list[str]) -> None:
    assert reach(settings, **facts) == expected
    assert reach(settings, has_unit=True, **facts) == []  # that is the unit's affair


def test_who_listens_is_read_from_proc(box: Root) -> None:
    facts = reach_facts(box.path, is_root=False)
    assert facts.public == ("5.9.0.1",)
    assert set(facts.listening) == {
        Listening("127.0.0.1", 6379), Listening("0.0.0.0", 22), Listening("::", 22), Listening("::1", 5432),
    }  # fmt: skip
    assert facts.first_free_port == 1024
    assert not facts.may_open_low
    box.file("proc/self/status", "CapEff:\t0000000000000400\n")
    assert reach_facts(box.path, is_root=False).may_open_low


def test_a_stranger_in_all_of_a_box_is_found(box: Root) -> None:
    box.file("proc/net/tcp", tcp(("0.0.0.0", 6379)))
    (finding,) = [each for each in found(box) if each.check.id == "open-without-password"]
    assert finding.evidence == "port 6379 (Redis or Valkey) is open on 0.0.0.0, and so on 5.9.0.1"


# --- file modes ---


def modes(root: Root, settings: Settings | None = None, place: Place = PLACE) -> list[tuple[str, str]]:
    findings = mode_findings(guarded_files(settings or Settings(), place, root.path))
    return [(finding.check.id, finding.evidence.partition(" has mode ")[0].partition(": ")[2]) for finding in findings]


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        pytest.param("/srv/app/hardserve.toml", 0o666, id="settings"),
        pytest.param("/srv/app/.env", 0o602, id="dotenv"),
        pytest.param("/srv/app/app.py", 0o646, id="source"),
    ],
)
def test_what_everybody_can_change(box: Root, path: str, mode: int) -> None:
    assert modes(box) == []
    (box.path / path.lstrip("/")).chmod(mode)
    assert modes(box) == [("writable-by-everybody", path)]


def test_a_directory_that_everybody_can_change(box: Root) -> None:
    directory = box.path / "srv/app"
    directory.chmod(0o777)
    assert modes(box) == [("writable-by-everybody", "/srv/app")]
    directory.chmod(0o1777)
    assert modes(box) == []


def test_what_nobody_gets_to_is_no_matter(box: Root) -> None:
    (box.path / "srv/app/app.py").chmod(0o666)
    (box.path / "srv/app").chmod(0o750)
    assert modes(box) == []


def test_modes_mean_nothing_on_a_windows_disk(box: Root) -> None:
    (box.path / "srv/app/app.py").chmod(0o666)
    box.file("proc/self/mountinfo", MOUNTS + "40 22 0:50 / /srv rw - 9p C: rw\n")
    assert modes(box) == []


def test_a_password_in_the_settings_is_for_nobody_else(box: Root) -> None:
    settings = from_keywords(rate_limiting_storage="redis://:hunter2@127.0.0.1:6379/0")
    assert modes(box, settings) == []  # it is in .env
    box.file("srv/app/hardserve.toml", '[rate_limiting]\nstorage = "redis://:hunter2@127.0.0.1:6379/0"\n')
    assert modes(box, settings) == [("password-file-open", "/srv/app/hardserve.toml")]
    (box.path / "srv/app/hardserve.toml").chmod(0o640)
    assert modes(box, settings) == []


def test_the_passphrase_of_a_key_is_for_nobody_else(box: Root) -> None:
    settings = replace(TLS, tls=replace(TLS.tls, passphrase_file="phrase.txt"))
    box.file("srv/app/phrase.txt", "x\n", 0o604)
    assert modes(box, settings) == [("password-file-open", "/srv/app/phrase.txt")]


# --- this machine ---


def test_this_machine_is_looked_at_without_a_hitch(tmp_path: Path) -> None:
    for finding in box_findings(Settings(), place=Place(tmp_path), environ={}):
        assert finding.evidence
        assert finding.fix
        assert "\n" not in finding.evidence + finding.fix
