"""With the preset for a Raspberry Pi nothing is written to the card, and little memory is taken.

The bars themselves are measured by `python -m tests.bench.pi`; here is what keeps them from being missed unnoticed.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.peers import APP_DIRECTORY
from tests.bench.pi import BODY_BYTES, IN_MEMORY, PRESET, form
from tests.conftest import PATIENCE_S, REPOSITORY, Command

MIB = 1 << 20
# More than Flask alone takes: 9 MiB where this was written.
MORE_THAN_FLASK_BYTES = 11 * MIB

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this kernel counts nothing that is written"),
    pytest.mark.skipif(not Path(IN_MEMORY).is_dir(), reason=f"no {IN_MEMORY}"),
]


def environment(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return kept | {"PYTHONPATH": str(REPOSITORY), "HOME": str(home), "TMPDIR": IN_MEMORY}


@pytest.fixture
def household(tmp_path: Path) -> Iterator[Command]:
    """Return an app with pages, static files and uploads, whose logs are read from a pipe as the journal reads them."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "hardserve", "household:app", "--config", str(PRESET)),
            *("--bind", "127.0.0.1:0", "--rate-limiting-default", "off"),
        ],
        cwd=APP_DIRECTORY,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    command = Command(process, tmp_path, tmp_path)
    listener = threading.Thread(target=command.listen_to, args=(process.stdout,), daemon=True)
    listener.start()
    try:
        command.await_url()
        yield command
        assert command.stop() == 0, command.output
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE_S)
        listener.join(PATIENCE_S)
        process.stdout.close()


def use(port: int) -> None:
    """Do once all that a household does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    requests: list[tuple[str, str, bytes, dict[str, str]]] = [("GET", "/", b"", {})] * 50
    requests += [("GET", f"/static/demo.{kind}", b"", {"Accept-Encoding": "gzip"}) for kind in ("css", "js")] * 10
    requests += [("POST", "/body", bytes(BODY_BYTES), {"Content-Type": "application/octet-stream"})]
    requests += [("POST", "/body", bytes(BODY_BYTES + 1), {})]  # refused
    kind, photo = form(BODY_BYTES - 1024)
    requests += [("POST", "/photo", photo, {"Content-Type": kind})]
    try:
        for method, path, body, headers in requests:
            try:
                connection.request(method, path, body, headers)
            except ConnectionError:
                assert len(body) > BODY_BYTES  # it is not read to its end
            answer = connection.getresponse()
            answer.read()
            assert answer.status == (413 if len(body) > BODY_BYTES else 200)
    finally:
        connection.close()


def written_bytes(process: int) -> int:
    text = Path(f"/proc/{process}/io").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("write_bytes"))


def rss_bytes(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS"))


def test_nothing_is_written_to_a_disk(household: Command) -> None:
    use(household.port)  # what is imported for the first time may be compiled, and that is kept
    before = written_bytes(household.process.pid)
    for _ in range(3):
        use(household.port)
    assert written_bytes(household.process.pid) == before


def test_it_takes_little_more_memory_than_flask(household: Command, tmp_path: Path) -> None:
    flask = subprocess.run(
        [sys.executable, "-c", "import household; print(open('/proc/self/status').read())"],
        cwd=APP_DIRECTORY,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    alone = next(int(line.split()[1]) * 1024 for line in flask.stdout.splitlines() if line.startswith("VmRSS"))
    more = rss_bytes(household.process.pid) - alone
    assert 0 < more <= MORE_THAN_FLASK_BYTES, f"{more / MIB:.1f} MiB more than {alone / MIB:.1f} MiB"
