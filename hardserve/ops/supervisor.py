"""Who started this process, and will start it again when it ends. Pure; called once, by the thread that starts."""

from __future__ import annotations

from collections.abc import Mapping


def is_supervised(environ: Mapping[str, str], pid: int) -> bool:
    """Return whether something is there that restarts a service which has failed.

    systemd tells the process that it has started itself (SYSTEMD_EXEC_PID, of version 248), so that a shell on a
    desktop, which inherits the rest of a unit's environment, is not taken for a service; supervisord marks its
    children. A container's first process has its runtime.
    """
    return pid == 1 or environ.get("SYSTEMD_EXEC_PID") == str(pid) or environ.get("SUPERVISOR_ENABLED") == "1"
