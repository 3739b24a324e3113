"""What the tests with real peers share: the command in a process of its own, and no skipping in CI."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser import Browser

REPOSITORY = Path(__file__).parent.parent
# Everything here ends by itself; what takes longer than this has failed.
PATIENCE_S = 20.0
CI = os.environ.get("CI") == "true"

_URL = re.compile(r"https?://127\.0\.0\.1:[1-9][0-9]*")


# --- no skipping in CI ---


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn the skip of a test marked `peer` into a failure in CI, where every peer is installed."""
    report = yield
    expected_failure = hasattr(report, "wasxfail")
    if CI and report.skipped and not expected_failure and item.get_closest_marker("peer"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Turn the skip of a whole module into a failure in CI: something that it imports is missing."""
    report = yield
    if CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped in CI: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


# --- plain and over TLS ---


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have what uses the fixture `transport` done over both, or over plain TCP if it says why."""
    if "transport" in metafunc.fixturenames:
        plain = metafunc.definition.get_closest_marker("plain_only")
        assert plain is None or plain.args, f"{metafunc.definition.nodeid}: why?"
        metafunc.parametrize("transport", ["plain"] if plain else ["plain", "tls"], indirect=True, scope="module")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Function) -> Iterator[object]:
    """Have `tests.support.serving` speak what the test is to be done over.

    Not left to the fixture: that ends with its module, and there may be tests without it.
    """
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if "transport" not in params:
        return (yield)
    from tests.support import over  # which is not needed to see that a peer is missing

    with over(params["transport"]):
        return (yield)


@pytest.fixture(scope="module")
def transport(request: pytest.FixtureRequest) -> str:
    """Return "plain", then "tls", and have `tests.support.serving` and `spoken` do that.

    A module has `pytestmark = pytest.mark.usefixtures("transport")`, or uses it where something crosses the wire. What
    is set up once for a module and serves has to ask for it, or its first server is that of both.
    """
    return str(request.param)


# --- a browser ---


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a browser that knows no site yet but those of other tests."""
    from tests.browser import running_browser  # it starts slowly, and few need it

    with running_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


# --- no waiting for the garbage of others ---


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """Keep what is there before a module, imports and reports, out of its collections of garbage: many tests make one.

    Ten thousand tests leave as many reports, and what takes a millisecond in a module that runs alone takes fifty.
    """
    gc.collect()
    gc.freeze()


# --- no reading of all authorities for each certificate ---


@pytest.fixture(scope="session", autouse=True)
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have this process trust one authority that has signed nothing, not the hundred and more of the machine.

    Whether they know the chain of a certificate is asked for each server that is given one, and to read them takes
    longer than all else that such a server does to start. A command, in its own process, has those of the machine.
    """
    from tests.certs import Authority  # which is not needed to see that a peer is missing

    directory = tmp_path_factory.mktemp("authorities")
    (directory / "roots.pem").write_text(Authority("Nobody").pem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(directory / "roots.pem"))
        patch.setenv("SSL_CERT_DIR", str(directory / "none"))
        yield


# --- the command ---


@dataclass
class Command:
    """`python -m hardserve` as an operator runs it: its own process, its own directory, steered by signals."""

    process: subprocess.Popen[str]
    directory: Path
    access_log: Path
    url: str = ""
    said: list[str] = field(default_factory=list)  # lines of standard error
    _told: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def listen_to(self, stderr: IO[str]) -> None:
        """Keep what it says, so that its pipe never fills, and note where the banner says that it listens."""
        for line in stderr:
            self.said.append(line)
            if not self.url and (found := _URL.search(line)):
                self.url = found[0]
                self._told.set()
        self._told.set()

    def await_url(self) -> None:
        assert self._told.wait(PATIENCE_S), f"no address within {PATIENCE_S:g} s: {self.output}"
        assert self.url, f"ended while starting, exit code {self.process.wait(PATIENCE_S)}: {self.output}"

    def stop(self) -> int:
        """Have it drain, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    @property
    def output(self) -> str:
        return "".join(self.said)


StartCommand = Callable[..., contextlib.AbstractContextManager[Command]]


@pytest.fixture(scope="session")
def start_command(tmp_path_factory: pytest.TempPathFactory) -> StartCommand:
    """Return what serves `arguments` with the real command on a free port while a block runs.

    The process ends with the block, and must then have exited with 0 and not have said "Traceback".
    """

    @contextlib.contextmanager
    def start(*arguments: str, directory: Path | None = None) -> Iterator[Command]:
        directory = directory or tmp_path_factory.mktemp("served")
        access_log = directory / "access.log"
        # Only what a server needs: the settings of the person who tests must not leak in.
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hardserve", *arguments),
                *("--bind", "127.0.0.1:0", "--log-access", str(access_log)),
            ],
            cwd=directory,
            env=kept | {"PYTHONPATH": str(REPOSITORY), "HOME": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        command = Command(process, directory, access_log)
        assert process.stderr is not None
        listener = threading.Thread(target=command.listen_to, args=(process.stderr,), daemon=True)
        listener.start()
        try:
            command.await_url()
            yield command
            code = command.stop() if process.poll() is None else process.returncode
            listener.join(PATIENCE_S)
            assert code == 0, command.output
            assert "Traceback" not in command.output, command.output
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(PATIENCE_S)
            listener.join(PATIENCE_S)
            process.stderr.close()

    return start


@pytest.fixture
def india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have local time be half an hour off every other."""
    monkeypatch.setenv("TZ", "IST-5:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
