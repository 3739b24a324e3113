"""Sockets that systemd passes on: which are taken, for what, and what is said when the settings mean others."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hardserve.configfiles import SettingsError
from hardserve.inherited import Passed, passed_sockets, place_of, with_passed
from hardserve.options import from_keywords
from tests.support import PATIENCE_S

REPOSITORY = Path(__file__).parent.parent
PID = os.getpid()


def chosen(passed: Sequence[Passed], **settings: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is listened on, where `settings` are set and no others."""
    taken = with_passed(from_keywords(**settings), passed, lambda key: key.removeprefix("server.") in settings)
    return taken.server.bind, taken.server.redirect


HTTP, HTTPS = Passed(3, "http", "0.0.0.0:80"), Passed(4, "https", "[::]:443")
REDIRECT = Passed(5, "redirect", "[::]:80")
UNIX = Passed(6, "unknown", "unix:/run/app.sock")

TAKEN = {
    "none: the settings count": ([], {"bind": "127.0.0.1:0"}, ("127.0.0.1:0",), ()),
    "one, and nothing is set": ([HTTP], {}, ("fd:3",), ()),
    "one for the redirect, by its name": ([HTTPS, REDIRECT], {}, ("fd:4",), ("fd:5",)),
    "a path": ([UNIX], {}, ("fd:6",), ()),
    "one for the redirect that is not passed": (
        [HTTPS],
        {"tls": "self-signed"},
        ("fd:4",),
        (),
    ),
    "the same address is set": ([HTTP], {"bind": "0.0.0.0:80"}, ("fd:3",), ()),
    "a port alone in the socket unit is both families": ([HTTPS], {"bind": "0.0.0.0:443"}, ("fd:4",), ()),
    "the same path": ([UNIX], {"bind": "unix:/run/app.sock?mode=660"}, ("fd:6",), ()),
    "its number": ([HTTP], {"bind": "fd:3"}, ("fd:3",), ()),
    "what is said of it counts": (
        [HTTP],
        {"bind": "0.0.0.0:80?proxy_protocol", "proxy_trusted": "10.0.0.1"},
        ("fd:3?proxy_protocol",),
        (),
    ),
    "one for both families, which are two in the settings": (
        [HTTPS],
        {"bind": "0.0.0.0:443,[::]:443"},
        ("fd:4",),
        (),
    ),
    "several, in the order of the settings": (
        [HTTP, UNIX],
        {"bind": "unix:/run/app.sock,0.0.0.0:80"},
        ("fd:6", "fd:3"),
        (),
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_which_sockets_are_taken(case: str) -> None:
    passed, settings, bind, redirect = TAKEN[case]
    if isinstance(settings.get("bind"), str):
        settings = {**settings, "bind": settings["bind"].split(",")}
    assert chosen(passed, **settings) == (bind, redirect)


REFUSED = {
    "another port": (
        [HTTP],
        {"bind": "0.0.0.0:8000"},
        ['server.bind = "0.0.0.0:8000": systemd passes no such socket', 'named "http", which is not listed'],
    ),
    "another host": ([HTTP], {"bind": "127.0.0.1:80"}, ["no such socket (there are: 0.0.0.0:80)", "not listed"]),
    "one too many": ([HTTP, HTTPS], {"bind": "0.0.0.0:80"}, ['a socket at [::]:443, named "https"']),
    "one too few": (
        [HTTP],
        {"bind": ["0.0.0.0:80", "0.0.0.0:81"]},
        ['"0.0.0.0:81": systemd passes no such socket'],
    ),
    "a redirect that is not passed": (
        [HTTPS],
        {"redirect": "0.0.0.0:80", "tls": "self-signed"},
        ['server.redirect = "0.0.0.0:80": systemd passes no such socket (there are: none)'],
    ),
    "only a redirect": ([REDIRECT], {}, ['all sockets of the socket unit are named "redirect"']),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_agree_is_named(case: str) -> None:
    passed, settings, said = REFUSED[case]
    with pytest.raises(SettingsError) as caught:
        chosen(passed, **settings)
    assert len(caught.value.problems) == len(said)
    problems = "\n".join(caught.value.problems)
    assert [each for each in said if each not in problems] == []


# --- what is taken from the environment ---


@contextlib.contextmanager
def listening(family: socket.AddressFamily, address: object) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen()
        yield listener


def test_where_a_socket_listens(tmp_path: Path) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        assert place_of(listener.fileno()) == f"127.0.0.1:{listener.getsockname()[1]}"
    with listening(socket.AF_INET6, ("::1", 0)) as listener:
        assert place_of(listener.fileno()) == f"[::1]:{listener.getsockname()[1]}"
    with listening(socket.AF_UNIX, str(tmp_path / "s")) as listener:
        assert place_of(listener.fileno()) == f"unix:{tmp_path / 's'}"


def test_what_cannot_be_served_is_said(tmp_path: Path) -> None:
    with socket.socket() as idle, pytest.raises(ValueError, match="it does not listen: Accept=no"):
        place_of(idle.fileno())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, pytest.raises(ValueError, match="ListenStream="):
        place_of(other.fileno())


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"},
        {"LISTEN_PID": str(PID), "LISTEN_FDS": "0"},
        {"LISTEN_PID": str(PID), "LISTEN_FDS": "many"},
    ],
    ids=["none", "those of the process that started this one", "no number of them", "nonsense"],
)
def test_sockets_that_are_not_there_are_not_taken_and_the_variables_are_gone(environ: dict[str, str]) -> None:
    assert passed_sockets(environ, PID) == []
    assert environ == {}


# What systemd does before it runs a program: the sockets are 3, 4 ..., and the process knows its own number.
EXEC = """
import os, sys
names, fds, command = sys.argv[1], [int(fd) for fd in sys.argv[2].split(",")], sys.argv[3:]
for place, fd in enumerate(fds):
    os.dup2(fd, 3 + place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


def serve_passed(names: str, sockets: Sequence[socket.socket], directory: Path, *flags: str) -> subprocess.Popen[str]:
    """Start the command with sockets as systemd passes them."""
    fds = [os.dup(each.fileno()) for each in sockets]
    high = [os.dup(fd) for fd in fds]  # none of them is where the others are to be
    try:
        return subprocess.Popen(
            [sys.executable, "-c", EXEC, names, ",".join(map(str, high)), sys.executable, "-m", "hardserve", *flags],
            cwd=directory,
            env={"PATH": os.environ["PATH"], "HOME": str(directory), "PYTHONPATH": str(REPOSITORY)},
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        for fd in (*fds, *high):
            os.close(fd)


def test_the_command_serves_them_and_they_live_on(tmp_path: Path) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as http, listening(socket.AF_UNIX, str(tmp_path / "s")) as unix:
        process = serve_passed("web:other", [http, unix], tmp_path, "demo", "--log-access", "off")
        with process:
            for place in (http, unix):
                with socket.socket(place.family) as client:
                    client.settimeout(PATIENCE_S)
                    client.connect(place.getsockname())  # it waits in the queue until somebody accepts
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    assert client.recv(12) == b"HTTP/1.1 200"
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
            # Whoever comes between two processes waits.
            with socket.socket() as client:
                client.connect(http.getsockname())
            assert (tmp_path / "s").exists()


def test_the_command_says_where_the_settings_are_otherwise(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text('\n[server]\nbind = ["127.0.0.1:1"]\n')
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as http:
        process = serve_passed("web", [http], tmp_path, "demo")
        with process:
            said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 78
    assert 'hardserve.toml:3: server.bind = "127.0.0.1:1": systemd passes no such socket' in said
    assert "Traceback" not in said
