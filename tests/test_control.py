"""The control socket: who may use it, what it answers, and what it leaves alone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hardserve.ops import control
from hardserve.ops.control import (
    MAX_PATH_BYTES,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    CommandError,
    ControlError,
    ControlSocket,
    ask,
    control_path,
    default_path,
)
from hardserve.options import from_keywords

PATIENCE_S = 10.0
NOBODY = 65_534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Yield a directory of our own with a short path: that of a Unix socket has a limit."""
    path = Path(tempfile.mkdtemp(prefix="hs")).resolve()
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def controlling(path: Path, *, client_patience_s: float = PATIENCE_S, **commands: control.Command) -> Iterator[Path]:
    server = ControlSocket(path, commands, client_patience_s=client_patience_s)
    server.start()
    try:
        yield path
    finally:
        server.close()
        assert server._thread is not None
        assert not server._thread.is_alive()


def echo(arguments: Mapping[str, object]) -> object:
    return dict(arguments)


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(PATIENCE_S)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


def receive_all(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):  # what we sent was not all read
        while data := client.recv(65536):
            received += data
    return received


def exchange(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Send `data` on a connection of its own and return the responses."""
    with connect(path) as client:
        with contextlib.suppress(BrokenPipeError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        received = receive_all(client)
    assert received.endswith(b"\n") or not received
    return [json.loads(line) for line in received.splitlines()]


# --- asking and answering ---


def test_a_command_gets_its_arguments_and_its_result_comes_back(directory: Path) -> None:
    with controlling(directory / "s", echo=echo) as path:
        assert ask(path, "echo", clients=["2001:db8::/64"], path="€ \n", all=True) == {
            "clients": ["2001:db8::/64"],
            "path": "€ \n",
            "all": True,
        }
        assert ask(path, "echo") == {}


@pytest.mark.parametrize("result", [None, 0, "", [], "line\nline", {"a": [1.5, None]}], ids=repr)
def test_any_result_that_json_can_say(directory: Path, result: object) -> None:
    with controlling(directory / "s", get=lambda _: result) as path:
        assert ask(path, "get") == result


def test_a_command_is_called_on_the_control_thread(directory: Path) -> None:
    def where(_: Mapping[str, object]) -> object:
        thread = threading.current_thread()
        return [thread.name, thread.daemon]

    with controlling(directory / "s", where=where) as path:
        assert ask(path, "where") == ["hardserve-control", True]


def test_several_requests_on_a_connection_are_answered_in_order(directory: Path) -> None:
    requests = b"".join(b'{"command": "echo", "n": %d}\n' % number for number in range(5))
    with controlling(directory / "s", echo=echo) as path:
        expected = [{"ok": True, "result": {"n": number}} for number in range(5)]
        assert exchange(path, requests) == expected
        with connect(path) as client:
            for byte in requests:
                client.sendall(bytes([byte]))
            client.shutdown(socket.SHUT_WR)
            assert [json.loads(line) for line in receive_all(client).splitlines()] == expected


NOT_A_REQUEST = 'a request is one line of JSON, such as {"command": "bans"}'


@pytest.mark.parametrize(
    ("line", "error"),
    [
        pytest.param(b"", NOT_A_REQUEST, id="an empty line"),
        pytest.param(b"bans", NOT_A_REQUEST, id="no JSON"),
        pytest.param(b"\xff\xfe", NOT_A_REQUEST, id="no UTF-8"),
        pytest.param(b'["bans"]', NOT_A_REQUEST, id="no object"),
        pytest.param(b"{}", NOT_A_REQUEST, id="no command"),
        pytest.param(b'{"command": ["bans"]}', NOT_A_REQUEST, id="a command that is no text"),
        pytest.param(b"[" * 60_000, NOT_A_REQUEST, id="nested too deeply to be read"),
        pytest.param(b'{"command": %s}' % (b"9" * 6000), NOT_A_REQUEST, id="a number too long to be read"),
        pytest.param(b'{"command": "stop"}', "there is no such command; there are: echo, refuse", id="unknown"),
        pytest.param(b'{"command": "refuse"}', "no client has that address", id="a command that says no"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_connection_stays(directory: Path, line: bytes, error: str) -> None:
    def refuse(_: Mapping[str, object]) -> object:
        raise CommandError("no client has that address")

    with controlling(directory / "s", echo=echo, refuse=refuse) as path:
        assert exchange(path, line + b'\n{"command": "echo"}\n') == [
            {"ok": False, "error": error},
            {"ok": True, "result": {}},
        ]


@pytest.mark.parametrize(
    ("length", "answered"), [(MAX_REQUEST_BYTES, True), (MAX_REQUEST_BYTES + 1, False)], ids=["the longest", "longer"]
)
@pytest.mark.parametrize("end", [b"\n", b""], ids=["ended", "not ended"])
def test_a_line_has_a_limit(directory: Path, length: int, answered: bool, end: bytes) -> None:
    head = b'{"command": "echo", "a": "'
    line = head + b"x" * (length - len(head) - 2) + b'"}'
    with controlling(directory / "s", echo=echo) as path:
        responses = exchange(path, line + end)
    if not answered:
        assert responses == [{"ok": False, "error": "a request is a line of at most 65536 bytes"}]
    else:
        assert [response["ok"] for response in responses] == [True] * len(end)


def fail(_: Mapping[str, object]) -> object:
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        pytest.param(fail, "KeyError: 'a bug'", id="an exception"),
        pytest.param(lambda _: object(), "TypeError", id="a result that JSON cannot say"),
    ],
)
def test_a_bug_in_a_command_is_logged_and_not_told(
    directory: Path, command: control.Command, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), controlling(directory / "s", buggy=command, echo=echo) as path:
        with pytest.raises(ControlError, match=r"^internal error; the server's log has it$"):
            ask(path, "buggy")
        assert ask(path, "echo") == {}
    assert "the command buggy of the control socket failed" in caplog.text
    assert text in caplog.text


def test_a_response_has_a_limit(directory: Path) -> None:
    frame = len(b'{"ok": true, "result": ""}\n')
    with controlling(directory / "s", make=lambda arguments: "x" * int(str(arguments["length"]))) as path:
        assert len(ask(path, "make", length=MAX_RESPONSE_BYTES - frame)) == MAX_RESPONSE_BYTES - frame
        with pytest.raises(ControlError, match=r"^the answer is too long to be sent$"):
            ask(path, "make", length=MAX_RESPONSE_BYTES - frame + 1)


# --- clients that take their time ---


@pytest.mark.parametrize("said", [b"", b'{"command":', b'{"command": "echo"}\n', b'{"command": "large"}\n'], ids=repr)
def test_a_client_that_does_nothing_more_is_not_waited_for(directory: Path, said: bytes) -> None:
    large = "x" * (MAX_RESPONSE_BYTES // 2)  # more than the kernel takes for a client that does not read
    with (
        controlling(directory / "s", client_patience_s=0.1, echo=echo, large=lambda _: large) as path,
        connect(path) as slow,
    ):
        slow.sendall(said)
        assert ask(path, "echo") == {}
        assert len(receive_all(slow)) < len(large)


def test_a_client_that_goes_on_talking_has_an_end_too(directory: Path) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    with (
        controlling(directory / "s", client_patience_s=0.05, echo=echo) as path,
        connect(path) as talker,
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
    ):
        while talker.send(b'{"command": "echo"}\n') and talker.recv(65536):
            assert time.monotonic() < give_up_at


def test_the_time_that_a_command_takes_is_not_its_clients(directory: Path) -> None:
    large = "x" * (MAX_RESPONSE_BYTES // 2)  # the client has to be waited for

    def slow(_: Mapping[str, object]) -> object:
        threading.Event().wait(0.15)
        return large

    with controlling(directory / "s", client_patience_s=0.1, slow=slow) as path:
        assert ask(path, "slow") == large


# --- whose it is ---


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids="umask {:03o}".format)
def test_only_its_owner_may_connect(directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with controlling(directory / "s", echo=echo) as path:
            assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    finally:
        os.umask(before)


def test_there_is_no_moment_in_which_the_mode_is_another(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    chmod = os.chmod

    def look(path: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(os.lstat(path).st_mode))
        with pytest.raises(ConnectionRefusedError):  # and nobody can connect yet
            connect(path)
        chmod(path, mode)

    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "chmod", look)
        with controlling(directory / "s"):
            assert seen == [0o600]
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("peer", "expected"), [(1000, True), (0, True), (1001, False), (NOBODY, False), (None, True)], ids=str
)
def test_who_is_permitted(peer: int | None, expected: bool) -> None:
    assert control._is_permitted(peer, 1000) is expected


@contextlib.contextmanager
def being_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@as_root
def test_another_user_cannot_connect(directory: Path) -> None:
    directory.chmod(0o755)
    with controlling(directory / "s", echo=echo) as path:
        with being_nobody(), pytest.raises(ControlError, match="permission denied; only the user that the server"):
            ask(path, "echo")
        assert ask(path, "echo") == {}


@as_root
def test_another_user_who_does_connect_is_told_to_go(directory: Path) -> None:
    directory.chmod(0o755)
    with controlling(directory / "s", echo=echo) as path:
        path.chmod(0o666)
        with being_nobody(), pytest.raises(ControlError, match=r"^only the user that the server runs as may use it$"):
            ask(path, "echo")
        assert ask(path, "echo") == {}


@as_root
def test_root_may_use_the_socket_of_any_user(directory: Path) -> None:
    os.chown(directory, NOBODY, NOBODY)
    server = ControlSocket(directory / "s", {"echo": echo})
    with being_nobody():
        server.start()
    try:
        assert ask(directory / "s", "echo") == {}
    finally:
        server.close()


# --- where it is ---


def refusal_of(path: Path) -> str:
    """Return why there cannot be a control socket at `path`."""
    server = ControlSocket(path, {})
    with pytest.raises(ControlError) as caught:
        server.start()
    assert "closed" in repr(server)
    server.close()
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o703, 0o720], ids="{:04o}".format)
def test_a_directory_that_others_may_write_to_is_refused(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    assert refusal_of(directory / "s") == (
        f"control socket in {directory}: others may write to {directory} (mode {mode:04o}), who could replace it; "
        "choose a directory that only this user may write to"
    )
    assert os.listdir(directory) == []


@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o1777, False), (0o755, False)], ids=str)
def test_a_directory_above_may_be_sticky(directory: Path, mode: int, refused: bool) -> None:
    inner = directory / "inner"
    inner.mkdir(0o700)
    directory.chmod(mode)
    if refused:
        assert f"others may write to {directory} (mode 0777)" in refusal_of(inner / "s")
    else:
        with controlling(inner / "s", echo=echo) as path:
            assert ask(path, "echo") == {}


def test_a_link_is_looked_behind(directory: Path) -> None:
    real, link = directory / "real", directory / "link"
    real.mkdir()
    link.symlink_to(real)
    with controlling(link / "s", echo=echo) as path:
        assert ask(path, "echo") == {}
    real.chmod(0o777)
    assert f"others may write to {real}" in refusal_of(link / "s")


@as_root
def test_a_directory_of_another_user_is_refused(directory: Path) -> None:
    inner = directory / "inner"
    inner.mkdir()
    os.chown(inner, NOBODY, NOBODY)
    assert f"{inner} belongs to another user, who could replace it" in refusal_of(inner / "s")


def test_the_directory_is_made_if_it_is_missing(directory: Path) -> None:
    before = os.umask(0)
    try:
        with controlling(directory / "hardserve" / "s", echo=echo) as path:
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert ask(path, "echo") == {}
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        pytest.param(lambda there: None, "No such file or directory", id="no directory above"),
        pytest.param(lambda there: there.write_text("x"), "Not a directory", id="a file above"),
    ],
)
def test_a_directory_that_cannot_be_made(directory: Path, make: Callable[[Path], object], error: str) -> None:
    make(directory / "a")
    path = directory / "a" / "b" / "s"
    assert refusal_of(path) == f"control socket {path}: {error}"


def test_a_path_has_a_limit(directory: Path) -> None:
    longest = directory / ("x" * (MAX_PATH_BYTES - len(os.fsencode(directory)) - 1))
    with controlling(longest, echo=echo) as path:
        assert ask(path, "echo") == {}
    longer = longest.with_name(longest.name + "x")
    problem = f"the path has {MAX_PATH_BYTES + 1} bytes, a Unix socket's may have {MAX_PATH_BYTES}"
    assert problem in refusal_of(longer)
    with pytest.raises(ControlError, match=problem):
        ask(longer, "echo")


# --- what is there already ---


def listen_at(path: Path, backlog: int = 8) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.settimeout(PATIENCE_S)
    listening.bind(str(path))
    listening.listen(backlog)
    return listening


def test_the_socket_of_a_dead_server_is_replaced(directory: Path) -> None:
    listen_at(directory / "s").close()
    with controlling(directory / "s", echo=echo) as path:
        assert ask(path, "echo") == {}


def test_the_socket_of_a_live_server_is_not(directory: Path) -> None:
    with controlling(directory / "s", echo=echo) as path:
        assert refusal_of(path) == (
            f"control socket {path}: another server listens on it; stop it or choose another path"
        )
        assert ask(path, "echo") == {}


def test_one_that_is_too_busy_to_accept_is_alive(directory: Path) -> None:
    path = directory / "s"
    with listen_at(path, 0), contextlib.ExitStack() as waiting:
        fill_backlog(path, waiting)
        assert "another server listens on it" in refusal_of(path)


def fill_backlog(path: Path, waiting: contextlib.ExitStack) -> None:
    for _ in range(100):
        client = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.setblocking(False)
        if client.connect_ex(str(path)) == errno.EAGAIN:
            return
    raise AssertionError("there is room for any number")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.write_text("precious"), id="a file"),
        pytest.param(lambda path: path.mkdir(), id="a directory"),
        pytest.param(lambda path: path.symlink_to("elsewhere"), id="a link"),
        pytest.param(os.mkfifo, id="a pipe"),
    ],
)
def test_what_is_no_socket_is_left_alone(directory: Path, make: Callable[[Path], object]) -> None:
    path = directory / "s"
    make(path)
    before = os.lstat(path)
    assert refusal_of(path) == f"control socket {path}: there is a file that is no socket, which is left alone"
    assert os.lstat(path) == before


def test_servers_that_start_at_once_take_turns(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOCK_PATIENCE_S", 0.0)
    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "somebody holds a lock on its directory" in refusal_of(directory / "s")
        assert os.listdir(directory) == []
    finally:
        os.close(held)
    with controlling(directory / "s", echo=echo) as path:
        assert ask(path, "echo") == {}


# --- the end ---


def test_at_the_end_the_file_is_removed(directory: Path) -> None:
    server = ControlSocket(directory / "s", {})
    server.start()
    assert repr(server) == f"<ControlSocket {directory}/s listening>"
    for _ in range(2):
        server.close()
        assert os.listdir(directory) == []
        assert repr(server) == f"<ControlSocket {directory}/s closed>"


@pytest.mark.parametrize("replace", [lambda path: listen_at(path).close(), lambda path: path.write_text("x")])
def test_a_file_that_is_not_ours_any_more_is_not_removed(directory: Path, replace: Callable[[Path], object]) -> None:
    with controlling(directory / "s") as path:
        path.unlink()
        replace(path)
    assert os.listdir(directory) == ["s"]


def test_one_that_was_never_started_can_be_closed(directory: Path) -> None:
    ControlSocket(directory / "s", {}).close()
    assert os.listdir(directory) == []


def test_a_client_that_is_connected_does_not_hold_up_the_end(directory: Path) -> None:
    with contextlib.ExitStack() as clients:
        with controlling(directory / "s", echo=echo) as path:
            client = clients.enter_context(connect(path))
            client.sendall(b'{"command": "echo"}\n')
            assert client.recv(100) == b'{"ok": true, "result": {}}\n'  # it is being served
            clients.enter_context(connect(path))  # and this one waits
        assert client.recv(100) == b""


def test_a_process_that_was_forked_does_not_hold_up_the_end(directory: Path) -> None:
    server = ControlSocket(directory / "s", {})
    server.start()
    of_the_fork = os.dup(server._bell)
    try:
        server.close()
        assert server._thread is not None
        assert not server._thread.is_alive()
    finally:
        os.close(of_the_fork)


def test_a_command_that_does_not_return_does_not_hold_up_the_end(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_JOIN_S", 0.0)
    begun, may_return = threading.Event(), threading.Event()

    def hang(_: Mapping[str, object]) -> object:
        begun.set()
        return may_return.wait(PATIENCE_S)

    server = ControlSocket(directory / "s", {"hang": hang})
    server.start()
    assert server._thread is not None
    with connect(directory / "s") as client:
        client.sendall(b'{"command": "hang"}\n')
        assert begun.wait(PATIENCE_S)
        server.close()
        assert os.listdir(directory) == []
        assert server._thread.is_alive()
        may_return.set()
        server._thread.join(PATIENCE_S)
        assert not server._thread.is_alive()
        assert receive_all(client) == b""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists descriptors")
def test_a_server_leaves_no_descriptor_open(directory: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with controlling(directory / "s", echo=echo) as path:
            assert ask(path, "echo") == {}
            refusal_of(path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# --- asking in vain ---


def test_asking_where_nothing_is(directory: Path) -> None:
    path = directory / "s"
    for missing in (path, path / "further"):
        with pytest.raises(ControlError) as caught:
            ask(missing, "bans")
        assert str(caught.value) == (
            f"{missing}: there is no such socket; is hardserve running, as the same user and with the same settings?"
        )
        path.touch()


def test_asking_a_dead_server(directory: Path) -> None:
    path = directory / "s"
    listen_at(path).close()
    with pytest.raises(ControlError, match=r"nobody listens; the server that made it has ended$"):
        ask(path, "bans")


@pytest.mark.parametrize("backlog", [8, 0], ids=["a server that does not answer", "one that does not even accept"])
def test_asking_ends_in_time(directory: Path, backlog: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ASK_PATIENCE_S", 0.05)
    path = directory / "s"
    with listen_at(path, backlog), contextlib.ExitStack() as waiting:
        if not backlog:
            fill_backlog(path, waiting)
        with pytest.raises(ControlError, match=r"the server has not answered for 0\.05 s$"):
            ask(path, "bans")


WITHOUT_AN_ANSWER = "it has closed the connection without an answer, or the answer has no end"
NOT_HARDSERVE = "what answers there is not hardserve, or another version of it"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(b"", WITHOUT_AN_ANSWER, id="nothing"),
        pytest.param(b'{"ok": true, "result": 1}', WITHOUT_AN_ANSWER, id="half a line"),
        pytest.param(b"x" * (MAX_RESPONSE_BYTES + 100_000) + b"\n", WITHOUT_AN_ANSWER, id="a line that is too long"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", NOT_HARDSERVE, id="no JSON"),
        pytest.param(b"\xff\n", NOT_HARDSERVE, id="no UTF-8"),
        pytest.param(b"[1]\n", NOT_HARDSERVE, id="no object"),
        pytest.param(b'{"result": 1}\n', NOT_HARDSERVE, id="neither well nor ill"),
        pytest.param(b'{"ok": true}\n', NOT_HARDSERVE, id="no result"),
        pytest.param(b'{"ok": 1, "result": 1}\n', NOT_HARDSERVE, id="a number for a truth"),
        pytest.param(b'{"ok": false, "error": 1}\n', NOT_HARDSERVE, id="an error that is no text"),
        pytest.param(b"[" * 100_000 + b"\n", NOT_HARDSERVE, id="nested too deeply to be read"),
    ],
)
def test_an_answer_that_is_none(directory: Path, answer: bytes, error: str) -> None:
    path = directory / "s"

    def answer_once(listening: socket.socket) -> None:
        client, _ = listening.accept()
        with client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.recv(65536)
            client.sendall(answer)

    with listen_at(path) as listening:
        thread = threading.Thread(target=answer_once, args=(listening,))
        thread.start()
        with pytest.raises(ControlError) as caught:
            ask(path, "bans")
        thread.join(PATIENCE_S)
    assert str(caught.value) == f"{path}: {error}"


# --- where it is by itself ---

NAME = "127.0.0.1:8000"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, None, id="nowhere"),
        pytest.param({"RUNTIME_DIRECTORY": "/run/shop"}, "/run/shop/control.sock", id="in that of the service"),
        pytest.param({"RUNTIME_DIRECTORY": "/run/a:/run/b"}, "/run/a/control.sock", id="in the first of several"),
        pytest.param({"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": ""}, None, id="empty variables"),
        pytest.param({"RUNTIME_DIRECTORY": "run", "XDG_RUNTIME_DIR": "run"}, None, id="relative paths"),
        pytest.param({"XDG_RUNTIME_DIR": "{own}"}, "{own}/hardserve/127.0.0.1-8000.sock", id="in that of the user"),
        pytest.param({"XDG_RUNTIME_DIR": "{own}/missing"}, None, id="not in one that is not there"),
        pytest.param(
            {"RUNTIME_DIRECTORY": "/run/shop", "XDG_RUNTIME_DIR": "{own}"}, "/run/shop/control.sock", id="of both"
        ),
    ],
)
def test_where_the_socket_is(directory: Path, environ: dict[str, str], expected: str | None) -> None:
    environ = {name: value.format(own=directory) for name, value in environ.items()}
    path = default_path(environ, os.geteuid(), NAME)
    assert path == (None if expected is None else Path(expected.format(own=directory)))


def test_the_directory_of_another_user_is_not_taken(directory: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(directory)}
    assert default_path(environ, os.geteuid() + 1, NAME) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("[::1]:8000", "---1--8000.sock"),
        ("unix:/run/app.sock", "unix--run-app.sock.sock"),
        ("../../etc/x", "..-..-etc-x.sock"),
        ("fd:3", "fd-3.sock"),
        ("caf\u00e9.example:80", "caf-.example-80.sock"),
    ],
)
def test_any_name_becomes_a_file_name(directory: Path, name: str, expected: str) -> None:
    path = default_path({"XDG_RUNTIME_DIR": str(directory)}, os.geteuid(), name)
    assert path == directory / "hardserve" / expected


def test_long_names_stay_apart(directory: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(directory)}
    paths = [default_path(environ, os.geteuid(), "unix:/" + "x" * 90 + end) for end in ("1", "2")]
    assert None not in paths
    assert len(set(paths)) == 2
    assert {len(path.name) for path in paths if path} == {45}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("off", None), ("/run/shop.sock", "/run/shop.sock"), ("auto", "/run/shop/control.sock")],
    ids=["off", "a path", "by itself"],
)
def test_the_setting_says_where(setting: str, expected: str | None) -> None:
    server = from_keywords(control=setting).server
    path = control_path(server, {"RUNTIME_DIRECTORY": "/run/shop"}, os.geteuid())
    assert path == (None if expected is None else Path(expected))
