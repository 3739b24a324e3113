"""One machine for all tests of the package: it takes seconds to boot, and a minute more where none has been made."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.system.debian import scratch
from tests.system.machine import Machine, booted, missing

# What runs in there is Debian's Python, whichever runs the tests: .ci/run, which has them run by two, has this said to
# the second.
collect_ignore_glob = ["test_*.py"] if os.environ.get("TESTS_SYSTEM") == "done" else []

# Of the journal, beside a test that has failed.
SHOWN_LINES = 120


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """Return a booted Debian. Tests share it, and leave nothing running."""
    if reason := missing():
        pytest.skip(reason)
    with scratch() as directory, booted(directory) as machine:
        yield machine


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show what a machine has said lately when a test of it fails."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and machine is not None:
        lately = machine.run("journalctl", "--no-pager", "-o", "short-precise", f"-n{SHOWN_LINES}", check=False).stdout
        report.sections.append(("the machine's journal", lately))
    return report
