"""On the processors of a Raspberry Pi: installed from wheels, with no compiler anywhere, and served with its preset.

With 64 bits, all of httpbin's requests of test_real_httpbin.py are sent to it once more. With 32 bits, what such a
machine counts otherwise: files of more than 2 GiB, and the offsets of C functions that are called through ctypes.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.system.foreign import ARM64, ARMHF, Architecture, Board, missing

# The tests of that module are collected here, too, and get the httpbin of this one.
from tests.test_real_httpbin import *  # noqa: F403
from tests.wheels import REPOSITORY, build_wheel, cannot_build

# It looks into the log of a server of its own.
del test_every_request_is_one_line_of_the_access_log  # noqa: F821

PRESET = REPOSITORY / "config" / "raspberry-pi.toml"
# An emulated pip takes ten seconds on one core.
INSTALL_LIMIT_S = 180.0
GIB = 1 << 30

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(bool(cannot_build()), reason=cannot_build()),
    pytest.mark.skipif(bool(missing(ARM64)), reason=missing(ARM64)),
    pytest.mark.skipif(bool(missing(ARMHF)), reason=missing(ARMHF)),
]


def run(command: list[str], environ: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environ,
        timeout=INSTALL_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-4000:]}"


def host_pip(*arguments: str) -> None:
    """Run the pip of this machine, which knows where packages are to be had, for another machine."""
    run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], dict(os.environ))


@contextlib.contextmanager
def running(board: Board, *arguments: str) -> Iterator[Command]:
    """Serve `arguments` with the preset on the board while the block runs; it must end by itself when told to."""
    (board.scratch / PRESET.name).write_bytes(PRESET.read_bytes())
    process = subprocess.Popen(
        board.command(
            *("-m", "hardserve", *arguments, "--config", f"/srv/{PRESET.name}"),
            *("--bind", "127.0.0.1:0", "--log-access", "/tmp/access.log"),
        ),
        env=board.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    command = Command(process, board.scratch, board.scratch / "tmp" / "access.log")
    assert process.stderr is not None
    listener = threading.Thread(target=command.listen_to, args=(process.stderr,), daemon=True)
    listener.start()
    try:
        command.await_url()
        yield command
        assert command.stop() == 0, command.output
        listener.join(INSTALL_LIMIT_S)
        assert "Traceback" not in command.output, command.output
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(INSTALL_LIMIT_S)
        process.stderr.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def board_of(architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Board:
    return Board(architecture, tmp_path_factory.mktemp(architecture.name))


# --- 64 bits ---


@pytest.fixture(scope="module")
def httpbin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Return httpbin on an arm64 board, whose own pip has installed it."""
    board = board_of(ARM64, tmp_path_factory)
    wheels = board.scratch / "wheels"
    host_pip("download", *board.wheel_options(), "--dest", str(wheels), str(wheel), "httpbin")
    arguments = ["-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--no-compile", "--no-index"]
    arguments += ["--find-links=/srv/wheels", "--only-binary=:all:", "--target=/srv/site", "hardserve", "httpbin"]
    run(board.command(*arguments), board.environment)
    with running(board, "httpbin:app") as command:
        yield command


# --- 32 bits ---


@pytest.fixture(scope="module")
def small(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Return the demo on an armv7 board, with a directory of large files."""
    board = board_of(ARMHF, tmp_path_factory)
    host_pip("install", *board.wheel_options(), "--target", str(board.scratch / "site"), "--no-compile", str(wheel))
    files = board.scratch / "files"
    files.mkdir()
    with (files / "large.bin").open("wb") as large:
        large.truncate(5 * GIB)  # of which nothing is on the disk
        large.seek(3 * GIB)
        large.write(b"0123456789")
    with running(board, "demo", "--static", "/files=/srv/files") as command:
        yield command


def test_32_bits_serve_an_app_and_a_static_file(small: Command) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=20)
    with contextlib.closing(connection):
        for path, said in (("/", b"hardserve"), ("/static/demo.css", b"{")):
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200
            assert said in response.read()


@pytest.mark.parametrize(
    ("asked", "status", "length"),
    [
        pytest.param("", 200, 5 * GIB, id="the whole file"),
        pytest.param(f"bytes=1-{4 * GIB}", 206, 4 * GIB, id="a part of 4 GiB"),
        pytest.param(f"bytes=-{5 * GIB - 1}", 206, 5 * GIB - 1, id="all but the first byte"),
        pytest.param(f"bytes={3 * GIB}-{3 * GIB + 9}", 206, 10, id="ten bytes after 3 GiB"),
    ],
)
def test_32_bits_count_beyond_2_gib(small: Command, asked: str, status: int, length: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/files/large.bin", headers={"Range": asked} if asked else {})
        response = connection.getresponse()
        assert (response.status, response.length) == (status, length)
        assert response.read(10) == (b"0123456789" if length == 10 else bytes(10))
