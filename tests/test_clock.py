"""A small box wakes up in 1970 and learns the date later, while it serves: nothing is late for it, and nothing early.

The clock is libfaketime's, for the real command. What an hour does to deadlines is in test_faults.py.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from hardserve.tls.acme.settings import Pace
from tests.pebble import NAMES, PEBBLE, answering_http, running_pebble
from tests.support import Client
from tests.test_acme_pebble import managing, until
from tests.test_faults import GET, REPOSITORY, Process, eventually

PATIENCE_S = 20.0
# What a machine that is busy with something else may add to a deadline.
BUSY_MACHINE_S = 5.0
YEAR_S = 365 * 86_400
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

pytestmark = pytest.mark.peer
needs_faketime = pytest.mark.skipif(LIBRARY is None, reason="no libfaketime: apt-get install faketime")

CONFIG = """\
[rate_limiting]
default = "off"
[[rate_limit]]
limit = "2/minute"
path = "/fixed"
strategy = "fixed-window"
[[rate_limit]]
limit = "2/minute"
path = "/moving"
strategy = "moving-window"
[[rate_limit]]
limit = "2/minute"
path = "/sliding"
strategy = "sliding-window-counter"
[ban]
after = 4
for = "6s"
exempt = []
"""
# libfaketime takes the clock that nobody sets for the one that it fakes when a program sleeps until a moment (0.9.10).
# Python does: it would sleep for years, which no kernel has it do.
SITECUSTOMIZE = """\
import select, time

time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""
LIMITED = ("/fixed", "/moving", "/sliding")


class Clock:
    """The clock of a process: a file in which stands how far it is off."""

    def __init__(self, directory: Path) -> None:
        self._offset = directory / "offset"
        self._next = directory / "offset.next"
        self._modules = directory / "modules"
        self._modules.mkdir()
        (self._modules / "sitecustomize.py").write_text(SITECUSTOMIZE)

    def off_by(self, seconds: float) -> None:
        self._next.write_text(f"{seconds:+.0f}")
        self._next.rename(self._offset)

    def is_1970(self) -> None:
        """Have it be half a minute after the machine was switched on."""
        self.off_by(30 - time.time())

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # its name before version 0.9.9
            "HOME": str(self._offset.parent),
            "PYTHONPATH": f"{self._modules}:{REPOSITORY}",
        }


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    clock = Clock(tmp_path)
    clock.is_1970()
    return clock


@contextlib.contextmanager
def started(directory: Path, clock: Clock, *arguments: str) -> Iterator[Process]:
    process = Process(directory, *arguments, environ=clock.environment)
    try:
        yield process
        assert process.stop() == 0, process.said
        assert "Traceback" not in process.said
    finally:
        process.close()


def date(client: Client) -> float:
    return email.utils.parsedate_to_datetime(str(client.get("/").header("Date"))).timestamp()


def is_let_in(process: Process, source: str) -> bool:
    with contextlib.suppress(ConnectionError, EOFError), process.connect(source) as client:
        return client.get("/", "Connection: close").status == 200
    return False


@needs_faketime
def test_the_clock_jumps_from_1970_to_now_under_open_connections(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "hardserve.toml").write_text(CONFIG)
    flags = ("--timeouts-keep-alive", "3s", "--timeouts-header", "3s", "--timeouts-app", "60s", "--drain", "60s")
    with started(tmp_path, clock, *flags) as process, contextlib.ExitStack() as stack:
        idle, head, busy, other = (stack.enter_context(process.connect()) for _ in range(4))
        assert date(other) < YEAR_S
        busy.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
        counted = stack.enter_context(process.connect("127.0.0.2"))
        for path in LIMITED:
            assert [counted.get(path).status for _ in range(2)] == [200, 200]
        offender = stack.enter_context(process.connect("127.0.0.3"))
        statuses = [offender.get("/fixed").status for _ in range(7)]
        assert statuses == [200, 200, 429, 429, 429, 429, 429]
        eventually(lambda: not is_let_in(process, "127.0.0.3"))
        banned = time.monotonic()

        assert idle.get("/").status == 200
        quiet_since = time.monotonic()
        head.send(GET[:20])
        clock.off_by(0)
        assert abs(date(other) - time.time()) < 5, "the Date follows the clock"
        if time.monotonic() - banned < 3:  # on a machine that is not too busy to tell
            assert not is_let_in(process, "127.0.0.3"), "a ban keeps its length"
        for path in LIMITED:
            refused = counted.get(path)
            assert refused.status == 429, "counts are kept"
            assert 0 < int(str(refused.header("Retry-After"))) <= 60
        assert head.response().status == 408
        assert 2.9 < time.monotonic() - quiet_since < 3 + BUSY_MACHINE_S, "a deadline keeps its length"
        assert idle.receive_all() == b""
        assert 2.9 < time.monotonic() - quiet_since < 4 + BUSY_MACHINE_S
        eventually(lambda: is_let_in(process, "127.0.0.3"))
        assert time.monotonic() - banned < 6 + BUSY_MACHINE_S + 3
        process.get("/release")
        assert busy.response().body == b"hello", "what began in 1970 is answered now"
    lines = (tmp_path / "access.log").read_text().splitlines()
    years = ["1970" in line.partition("[")[2].partition("]")[0] for line in lines]
    assert set(years) == {True, False}
    took = [float(line.partition(" took=")[2].split()[0]) for line in lines]
    assert all(0 <= seconds < PATIENCE_S for seconds in took), took


def served(process: Process) -> tuple[ssl.SSLSocket, x509.Certificate]:
    """Return a connection, and the certificate that it was shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connected = context.wrap_socket(socket.create_connection(("127.0.0.1", process.port), PATIENCE_S))
    shown = connected.getpeercert(binary_form=True)
    assert shown is not None
    return connected, x509.load_der_x509_certificate(shown)


def shown(process: Process) -> x509.Certificate:
    connected, certificate = served(process)
    connected.close()
    return certificate


def get(client: ssl.SSLSocket) -> int:
    client.sendall(GET)
    response = http.client.HTTPResponse(client)
    response.begin()
    response.read()
    return response.status


@needs_faketime
def test_a_self_signed_certificate_of_1970_is_made_anew_and_one_of_now_is_kept_in_1970(
    tmp_path: Path, clock: Clock
) -> None:
    flags = ("--tls", "self-signed", "--tls-state", str(tmp_path / "state"), "--timeouts-keep-alive", "60s")
    with started(tmp_path, clock, *flags) as process:
        kept, certificate = served(process)
        with kept:
            assert certificate.not_valid_before_utc.year == 1970
            assert get(kept) == 200
            clock.off_by(0)
            eventually(lambda: shown(process).not_valid_before_utc.year > 1971)
            lasts = shown(process)
            assert lasts.not_valid_before_utc.timestamp() <= time.time() + 1
            assert lasts.not_valid_after_utc.timestamp() > time.time() + YEAR_S
            assert get(kept) == 200, "whoever was connected stays connected"
    # People have told their browsers to trust this one.
    clock.is_1970()
    with started(tmp_path, clock, *flags) as process:
        assert shown(process) == lasts
        process.await_said("not valid before")
        clock.off_by(0)
        assert shown(process) == lasts


@pytest.mark.skipif(PEBBLE is None or NAMES is None, reason="pebble is not installed")
def test_a_certificate_that_could_not_be_accepted_in_1970_is_ordered_again_as_soon_as_the_date_is_known(
    tmp_path: Path,
) -> None:
    off_s = 30 - time.time()
    an_hour = Pace(unreachable=3600.0, refused=3600.0, misconfigured=3600.0, look=0.1)  # by a clock that will be set
    with (
        running_pebble(tmp_path) as pebble,
        managing(pebble, tmp_path / "state", pace=an_hour, clock=lambda: time.time() + off_s) as site,
        answering_http(site.challenges, pebble.http_port),
    ):
        (status,) = until(lambda: [each for each in site.manager.status() if each.failures])
        assert status.next_attempt < YEAR_S
        assert not site.installed
        off_s = 0.0
        certificate = site.await_installed()
        assert certificate.not_valid_after_utc.timestamp() > time.time()
