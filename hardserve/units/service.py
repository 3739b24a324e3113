"""The unit of a service, and those of its sockets: what they say, and why. The sandbox is in sandbox.py.

Pure, in the command only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hardserve.units.plan import NOTIFY_RELOAD, RESTART_STEPS, Plan, Socket
from hardserve.units.sandbox import sandbox
from hardserve.units.text import Line, Section, literal, render, word

# How long the last words of the server take after the drain, generously.
AFTER_DRAIN_S = 10
# Threads besides those that run the app, and what the app itself starts: programs, threads of libraries.
OTHER_TASKS = 240
DATABASES = ("postgresql", "mariadb", "mysql", "redis-server", "valkey-server", "memcached")
# Descriptors that are not connections and the files sent on them.
OTHER_DESCRIPTORS = 2232


def units_of(plan: Plan) -> dict[str, str]:
    """Return the plan's units by file name, the service last."""
    return {
        **{f"{one.name}.socket": socket(plan, one) for one in plan.sockets},
        f"{plan.name}.service": service(plan),
    }


def service(plan: Plan) -> str:
    """Return the service's unit."""
    return render(
        plan.head,
        [
            Section("Unit", list(_unit(plan))),
            Section("Service", [*_running(plan), *_files(plan), *_caps(plan), *sandbox(plan)]),
            Section("Install", [Line("WantedBy", "default.target" if plan.of_user else "multi-user.target")]),
        ],
    )


def socket(plan: Plan, one: Socket) -> str:
    """Return the unit of one of the plan's sockets."""
    lines = [Line("ListenStream", literal(stream)) for stream in one.streams]
    if any(stream.startswith("[") for stream in one.streams):
        lines.append(Line("BindIPv6Only", "ipv6-only", "As with server.bind, so that 0.0.0.0 can stand beside it."))
    elif any(stream.isdecimal() for stream in one.streams):
        lines.append(Line("BindIPv6Only", "both", "A port alone is that of IPv4, too, whatever the system's default."))
    if one.free_bind:
        lines.append(Line("FreeBind", "yes", "The address may come later than this socket: DHCP, Wi-Fi."))
    lines += one.modes
    lines.append(
        Line(
            "FileDescriptorName",
            "redirect" if one.redirects else "bind",
            "It takes the place of server.redirect." if one.redirects else "It takes the place of server.bind.",
        )
    )
    service_name = f"{plan.name}{'%i' * plan.name.endswith('@')}.service"
    if one.name != plan.name:
        lines.append(Line("Service", service_name))
    lines += [
        Line(
            "TriggerLimitIntervalSec",
            "10s",
            "Whoever connects has the service started if it is down. A crash loop has its own limit, and stays below.",
        ),
        Line("TriggerLimitBurst", "20"),
    ]
    what = "redirect to HTTPS" if one.redirects else "socket"
    unit = [Line("Description", f"hardserve: {plan.title} ({what})")]
    return render(
        _socket_head(plan, one),
        [
            Section("Unit", unit),
            Section("Socket", lines),
            Section(
                "Install",
                [
                    Line("WantedBy", "sockets.target"),
                    Line(
                        "RequiredBy", service_name, "Without its sockets, the service would open ports that it may not."
                    ),
                ],
            ),
        ],
    )


def _socket_head(plan: Plan, one: Socket) -> Sequence[str]:
    if not plan.examples:
        return plan.head[:1]
    if one.redirects:
        return (
            plan.head[0],
            "",
            "Port 80 of a site that has its HTTPS on port 443: see hardserve@.socket.",
        )
    return (
        plan.head[0],
        "",
        "Opens the port of an app as root and hands it to hardserve@.service, which has no privilege: while that is",
        "restarted, clients wait. The port is 80; for others, `systemctl edit hardserve@NAME.socket`:",
        "    [Socket]",
        "    ListenStream=",
        "    ListenStream=443",
        "Leave server.bind out of /etc/hardserve/NAME.toml, or let it say the same. For a site with HTTPS on port 443,",
        "hardserve-redirect@NAME.socket has port 80.",
        "    systemctl enable --now hardserve@NAME.socket hardserve@NAME.service",
    )


def _unit(plan: Plan) -> Iterator[Line]:
    yield Line("Description", f"hardserve: {plan.title}")
    if not plan.of_user:
        yield Line(
            "After",
            " ".join(["network.target", *(f"{each}.service" for each in DATABASES)]),
            "None of these has to be there: a database that is starts before the app, and stops after it.",
        )
    yield Line(
        "StartLimitIntervalSec",
        "1h",
        "A crash loop ends after so many starts, within minutes; restarts by hand stay far below. The default, five in "
        "ten seconds, ends for ever what a database brings down that is away for a minute. To begin anew: systemctl "
        f"{'--user ' * plan.of_user}reset-failed.",
    )
    yield Line("StartLimitBurst", "100")


def _running(plan: Plan) -> Iterator[Line]:
    if plan.version >= NOTIFY_RELOAD:
        yield Line(
            "Type",
            "notify-reload",
            "Started is what has imported the app and listens; reloaded is what has read everything again.",
        )
    else:
        yield Line(
            "Type",
            "notify",
            "Started is what has imported the app and listens. From systemd 253 on, Type=notify-reload without "
            "ExecReload= also waits until a reload is done; older versions do not know it.",
        )
    yield Line("ExecStart", plan.command)
    if plan.version < NOTIFY_RELOAD:
        yield Line(
            "ExecReload", "/bin/sh -c 'kill -HUP $MAINPID'", "The program kill is not everywhere, the shell's is."
        )
    yield Line("WorkingDirectory", plan.directory, "It is / otherwise, and relative paths of the app would be there.")
    yield Line(
        "TimeoutStartSec",
        "5min",
        "Importing an app for the first time takes a Raspberry Pi Zero a minute.",
    )
    yield Line(
        "TimeoutStopSec",
        f"{math.ceil(plan.drain_s) + AFTER_DRAIN_S}s",
        f"More than server.drain, {plan.drain_s:g} s, in which requests are finished; where that is more, the server "
        "asks for more time.",
    )
    yield Line(
        "KillMode",
        "mixed",
        "A program that a request has started is not asked to end before the request is done.",
    )
    yield Line("Restart", "on-failure")
    yield Line("RestartPreventExitStatus", "78", "Settings that cannot be used now cannot be used in a second.")
    if plan.sockets or plan.examples:
        yield _closing(plan)
    if plan.version >= RESTART_STEPS:
        yield Line("RestartSec", "1s", "One second after the first failure, then ever longer: twelve starts an hour.")
        yield Line("RestartSteps", "10")
        yield Line("RestartMaxDelaySec", "5min")
    else:
        yield Line(
            "RestartSec",
            "1s",
            "From systemd 254 on, RestartSteps=10 and RestartMaxDelaySec=5min make the delay grow; older versions do "
            "not know them.",
        )
    yield Line(
        "WatchdogSec",
        "30s",
        "The server says this often, at least, that connections are served and requests are being finished; else it is "
        "killed, writes into the journal where every thread was, and is started again.",
    )
    yield Line("TimeoutAbortSec", "10s", "For those last words.")


def _closing(plan: Plan) -> Line:
    """Return what closes the sockets of a service that cannot start."""
    names = [f"{one.name}{'%i' * one.name.endswith('@')}.socket" for one in plan.sockets]
    if plan.examples:
        names = ["hardserve@%i.socket", "hardserve-redirect@%i.socket"]
    stop = f"systemctl {'--user ' * plan.of_user}--no-block --quiet stop"
    script = f'[ "$EXIT_STATUS" != 78 ] || exec {stop} "$@"'
    return Line(
        "ExecStopPost",
        f"-{'+' * (not plan.of_user)}/bin/sh -c '{script}' sh {' '.join(names)}",
        "Nor may whoever connects to a socket unit try them again: it is closed, and a start or restart of the service "
        "opens it. As root, which stopping a unit takes.",
    )


def _files(plan: Plan) -> Iterator[Line]:
    if not plan.of_user:
        if plan.user is None:
            yield Line(
                "DynamicUser",
                "yes",
                "A user that nothing else runs as. It owns its data, and can only read the code and settings: those "
                "must be readable by everybody, secrets are not (see LoadCredential= below).",
            )
            if plan.examples:
                yield Line(
                    "User",
                    "hardserve-%i",
                    "Else all instances were one user. A user's name is 31 letters, digits, - and _ at most: an "
                    "instance's, 21.",
                )
        else:
            yield Line("User", literal(plan.user))
    yield Line(
        "StateDirectory",
        plan.data,
        "For the app's database and uploads: $STATE_DIRECTORY, such as /var/lib/hardserve/NAME. Certificates that the "
        "server makes or has issued are there, too.",
    )
    yield Line("CacheDirectory", plan.data, "$CACHE_DIRECTORY, below /var/cache: what may be lost.")
    yield Line("LogsDirectory", plan.data, "$LOGS_DIRECTORY, below /var/log, for log.access and log.error if not here.")
    yield Line(
        "RuntimeDirectory",
        plan.data,
        "For the control socket: `hardserve unban ADDRESS --control /run/hardserve/NAME/control.sock`.",
    )
    for name in ("State", "Cache", "Logs", "Runtime"):
        yield Line(f"{name}DirectoryMode", "0700")
    if not plan.of_user:
        yield Line(
            "Environment",
            f"HOME=%S/{plan.data} XDG_CACHE_HOME=%C/{plan.data}",
            "Libraries that keep something at home can.",
        )
    for variable in plan.environment:
        yield Line("Environment", word(variable))
    yield from plan.credentials


def _caps(plan: Plan) -> Iterator[Line]:
    yield Line(
        "MemoryMax",
        "75%",
        "Of the machine's memory, temporary files there included: an app that leaks is ended and started again, and "
        "nothing else suffers. MemoryHigh= would have it crawl instead. Raspberry Pi OS counts memory only with "
        "cgroup_enable=memory in /boot/firmware/cmdline.txt.",
    )
    yield Line(
        "OOMPolicy",
        "continue",
        "Where a program that the app has started is what is killed for memory, the server goes on.",
    )
    yield Line(
        "TasksMax",
        str(2 * plan.threads + OTHER_TASKS),
        "Threads and processes: those of the server, as many again for threads that hang, and those of the app.",
    )
    yield Line(
        "LimitNOFILE",
        str(2 * plan.connections + OTHER_DESCRIPTORS),
        "Twice limits.connections, for each may be sent a file, and a reserve.",
    )
    yield Line(
        "Environment",
        "MALLOC_MMAP_THRESHOLD_=1048576",
        "What is larger is given back as soon as it is done with: after 60 uploads of 8 MB, 42 MB were in use, not 81.",
    )
    yield Line("LimitCORE", "0", "No image of the memory, secrets and all, on the disk where the watchdog has struck.")
