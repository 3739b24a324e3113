"""A server that ends because it hangs must know whether somebody starts it again."""

from __future__ import annotations

import pytest

from hardserve.ops.supervisor import is_supervised

CASES = {
    "a shell": ({}, 4711, False),
    "the first process of a container": ({}, 1, True),
    "started by systemd": ({"SYSTEMD_EXEC_PID": "4711", "INVOCATION_ID": "x"}, 4711, True),
    "a child of what systemd started": ({"SYSTEMD_EXEC_PID": "4700", "INVOCATION_ID": "x"}, 4711, False),
    "a shell on a desktop that systemd started": ({"INVOCATION_ID": "x", "JOURNAL_STREAM": "8:1"}, 4711, False),
    "started by supervisord": ({"SUPERVISOR_ENABLED": "1", "SUPERVISOR_PROCESS_NAME": "web"}, 4711, True),
    "a variable that is empty": ({"SYSTEMD_EXEC_PID": "", "SUPERVISOR_ENABLED": ""}, 4711, False),
    "a variable that somebody else uses": ({"SUPERVISOR_ENABLED": "0", "SYSTEMD_EXEC_PID": "yes"}, 4711, False),
}


@pytest.mark.parametrize("case", CASES)
def test_who_is_started_again(case: str) -> None:
    environ, pid, supervised = CASES[case]
    assert is_supervised(environ, pid) is supervised
