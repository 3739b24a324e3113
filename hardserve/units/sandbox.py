"""What the process of a service may do and see: the strictest under which Flask apps with SQLite and uploads run.

Pure, in the command only. `systemd-analyze security` judges it; the bars are in tests/test_units.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from hardserve.units.plan import Plan
from hardserve.units.text import Line, path_word, word


def sandbox(plan: Plan) -> Iterator[Line]:
    """What the process may do. A user's systemd has no privilege to take anything away that takes one."""
    yield Line(
        "NoNewPrivileges", "yes", "Below: what no Flask app needs. A refused call fails with EPERM or EACCES; see log."
    )
    if not plan.of_user:
        yield from _capabilities(plan)
        yield from _seen(plan)
    yield Line(
        "RestrictAddressFamilies",
        "AF_INET AF_INET6 AF_NETLINK AF_UNIX",
        "AF_NETLINK is how a process learns the machine's addresses: for a self-signed certificate, and by libraries.",
    )
    yield Line(
        "MemoryDenyWriteExecute",
        "yes",
        "No machine code that is made at run time. ctypes, cffi and C extensions do without; numba, PyPy and Node.js "
        "do not: for them, MemoryDenyWriteExecute=no.",
    )
    for key in ("LockPersonality", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"):
        yield Line(key, "yes")
    yield Line("SystemCallArchitectures", "native")
    yield Line("SystemCallFilter", "@system-service")
    yield Line(
        "SystemCallFilter",
        "~@privileged @resources @keyring @aio",
        "io_uring is in @aio, and has been a way into many a kernel.",
    )
    yield Line("SystemCallErrorNumber", "EPERM", "An exception in the app, which can be found; the default kills it.")
    yield Line("KeyringMode", "private")
    yield Line("UMask", "0077")


def _capabilities(plan: Plan) -> Iterator[Line]:
    why = "To bind ports below 1024 without a socket unit, all three; each restart then refuses clients."
    to_bind = [
        ("AmbientCapabilities", "CAP_NET_BIND_SERVICE", why),
        ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE", ""),
        ("PrivateUsers", "no", ""),
    ]
    if not plan.own_ports:
        yield Line("CapabilityBoundingSet", "")
        yield Line("PrivateUsers", "yes", "No other user exists in here, so that nothing is to be had from being one.")
    if plan.own_ports or plan.examples:
        yield from (Line(*each, example=not plan.own_ports) for each in to_bind)


def _seen(plan: Plan) -> Iterator[Line]:
    yield Line(
        "ProtectSystem",
        "strict",
        "Nothing is written but for the four directories above and /tmp. For an app that writes elsewhere, "
        "ReadWritePaths= names it.",
    )
    yield Line("ReadOnlyPaths", "/run", "Which systemd 252 leaves out of that.")
    if plan.writable:
        yield Line("ReadWritePaths", " ".join(map(word, plan.writable)))
    if plan.shown:
        yield Line("ProtectHome", "tmpfs", "Of /home, only this is there.")
        yield Line("BindReadOnlyPaths", " ".join(map(path_word, plan.shown)))
        if plan.kept:
            yield Line("BindPaths", " ".join(map(path_word, plan.kept)))
    else:
        yield Line("ProtectHome", "yes")
    if plan.empty:
        yield Line(
            "BindReadOnlyPaths",
            " ".join(f"/dev/null:{path_word(path)}" for path in plan.empty),
            "An app that calls load_dotenv() itself finds no file, instead of one that it may not read: it has all of "
            "it in its environment already.",
        )
    yield Line("PrivateTmp", "yes", "Uploads that do not fit in memory are files in /tmp for a while.")
    own = [f"%{base}/{plan.data}" for base in "SCLt"]
    yield Line(
        "NoExecPaths",
        " ".join(["/dev/shm", "/tmp", "/var/tmp", *own]),  # noqa: S108 - no file is made there
        "What can be written cannot be run: an upload is no program.",
    )
    yield Line(
        "PrivateDevices",
        "yes",
        "For the pins of a Raspberry Pi: PrivateDevices=no, DeviceAllow=/dev/gpiochip0 rw, SupplementaryGroups=gpio."
        if plan.examples
        else "",
    )
    yield Line("DevicePolicy", "closed")
    yield Line("PrivateIPC", "yes")
    yield Line("PrivateMounts", "yes")
    yield Line(
        "ProcSubset", "pid", "Of /proc, its own processes. An app that shows the machine's load: ProcSubset=all."
    )
    yield Line("ProtectProc", "invisible")
    for what in ("Clock", "ControlGroups", "Hostname", "KernelLogs", "KernelModules", "KernelTunables"):
        yield Line(f"Protect{what}", "yes")
    yield Line("RemoveIPC", "yes")
