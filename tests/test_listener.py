"""Addresses are opened as they are written, or the error says which, why and what to do."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hardserve.edge.listener import Listener, ListenError, open_listeners
from tests.support import can_bind_ipv6

PATIENCE_S = 10.0
BACKLOG = 16


@contextlib.contextmanager
def listening(address: str) -> Iterator[list[Listener]]:
    listeners = open_listeners(address, BACKLOG)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


needs_ipv6 = pytest.mark.skipif(not can_bind_ipv6(), reason="this machine has no ::1")


# --- TCP ---


def test_port_0_becomes_a_port_that_is_told() -> None:
    with listening("127.0.0.1:0") as (listener,):
        host, port = listener.socket.getsockname()
        assert (listener.name, listener.port) == (host, str(port))
        assert listener.url == f"http://127.0.0.1:{port}"
        assert not listener.socket.getblocking()
        assert str(port) in repr(listener)


@needs_ipv6
def test_ipv6_is_alone_and_in_brackets() -> None:
    with listening("[::1]:0") as (listener,):
        assert listener.url == f"http://[::1]:{listener.port}"
        assert listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@needs_ipv6
def test_the_same_port_on_both_families() -> None:
    with listening("0.0.0.0:0") as (four,), listening(f"[::]:{four.port}") as (six,):
        assert four.port == six.port


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with listening("127.0.0.1:0") as (first,), pytest.raises(ListenError) as caught:
        open_listeners(f"127.0.0.1:{first.port}", BACKLOG)
    text = str(caught.value)
    assert f"port {first.port} is in use" in text
    assert "--bind" in text


def test_an_address_of_no_interface_says_so() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:0.*no interface"):
        open_listeners("192.0.2.1:0", BACKLOG)


def test_a_failure_leaves_nothing_open() -> None:
    with listening("127.0.0.1:0") as (first,):
        before = open_descriptors()
        for _ in range(3):
            with pytest.raises(ListenError):
                open_listeners(f"127.0.0.1:{first.port}", BACKLOG)
        assert open_descriptors() == before


def test_a_port_can_be_bound_again_at_once_after_it_served() -> None:
    with listening("127.0.0.1:0") as (listener,):
        client = socket.create_connection(("127.0.0.1", int(listener.port)), PATIENCE_S)
        listener.socket.setblocking(True)
        accepted, _ = listener.socket.accept()
        accepted.close()  # first: this side is the one that waits in TIME_WAIT
        client.close()
        port = listener.port
    with listening(f"127.0.0.1:{port}"):
        pass


# --- quiesce ---


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_a_quiet_listener_takes_no_new_connection_and_keeps_those_that_wait() -> None:
    with listening("127.0.0.1:0") as (listener,):
        address = ("127.0.0.1", int(listener.port))
        waiting = socket.create_connection(address, PATIENCE_S)
        waiting.sendall(b"hello")
        listener.quiesce()
        late = socket.socket()
        late.setblocking(False)
        assert late.connect_ex(address) == errno.EINPROGRESS
        accepted, _ = listener.socket.accept()
        accepted.setblocking(True)
        assert accepted.recv(5) == b"hello"
        with pytest.raises(BlockingIOError):
            listener.socket.accept()
        accepted.sendall(b"still there")
        assert waiting.recv(100) == b"still there"
        for each in (accepted, waiting, late):
            each.close()


def test_a_quiet_unix_listener_has_no_name_any_more(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(f"unix:{path}") as (listener,), socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        listener.quiesce()
        assert not path.exists()
        accepted, _ = listener.socket.accept()
        accepted.close()


def test_an_inherited_socket_is_left_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs, listening(f"fd:{theirs.fileno()}") as (listener,):
        listener.quiesce()
        listener.close()
        theirs.setblocking(True)
        with socket.create_connection(theirs.getsockname(), PATIENCE_S):
            accepted, _ = theirs.accept()
            accepted.close()


# --- Unix sockets ---


def test_a_unix_socket_is_named_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(f"unix:{path}") as (listener,):
        assert listener.url == f"unix:{path}"
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()


@pytest.mark.parametrize("mode", ["600", "660", "666", "000"])
def test_a_unix_socket_has_the_mode_that_was_asked_for(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "socket"
    mask = os.umask(0o022)
    try:
        with listening(f"unix:{path}?mode={mode}"):
            assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
        assert os.umask(0o022) == 0o022, "the process's mask is as it was"
    finally:
        os.umask(mask)


def test_a_unix_socket_has_the_owner_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    with listening(f"unix:{path}?owner={user}:{group}"):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a socket away")
def test_a_unix_socket_can_be_given_to_another_user(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(f"unix:{path}?owner=65534:65533"):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


def test_an_unknown_owner_is_named_and_no_socket_stays_behind(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with pytest.raises(ListenError, match="nobody-has-this-name"):
        open_listeners(f"unix:{path}?owner=nobody-has-this-name", BACKLOG)
    assert not path.exists()


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(f"unix:{path}"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(f"unix:{path}"):
        with pytest.raises(ListenError, match=f"{path}.*in use"):
            open_listeners(f"unix:{path}", BACKLOG)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_unix_socket_whose_server_is_too_busy_to_accept_is_in_use(tmp_path: Path) -> None:
    """Connecting to it would wait until that server accepts."""
    path = tmp_path / "socket"
    errors: list[ListenError] = []

    def open_it() -> None:
        try:
            for listener in open_listeners(f"unix:{path}", BACKLOG):
                listener.close()
        except ListenError as error:
            errors.append(error)

    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        opener = threading.Thread(target=open_it, daemon=True)
        opener.start()
        opener.join(1.0)
        hangs = opener.is_alive()
    opener.join(PATIENCE_S)
    assert not hangs
    assert "in use" in str(errors[0])


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match=str(path)):
        open_listeners(f"unix:{path}", BACKLOG)
    assert path.read_text() == "data"


def test_a_unix_socket_in_no_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="No such file or directory"):
        open_listeners(f"unix:{tmp_path}/missing/socket", BACKLOG)


def test_a_name_that_another_server_has_taken_over_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(f"unix:{path}"):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
    assert path.exists()


# --- inherited ---


def test_an_inherited_socket_is_served_and_its_port_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs, listening(f"fd:{theirs.fileno()}") as (listener,):
        assert listener.port == str(theirs.getsockname()[1])
        assert listener.url == f"http://127.0.0.1:{listener.port}"


def test_an_inherited_socket_that_does_not_listen_yet_is_made_to() -> None:
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        with listening(f"fd:{theirs.fileno()}") as (listener,):
            assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def bad_descriptors() -> Iterator[tuple[str, socket.socket | None, int]]:
    datagram = socket.socket(type=socket.SOCK_DGRAM)
    yield "stream socket", datagram, datagram.fileno()
    one, other = socket.socketpair()
    with other:
        yield "listening", one, one.fileno()
    read_end, write_end = os.pipe()
    try:
        yield "not a socket", None, read_end
    finally:
        os.close(read_end)
        os.close(write_end)
    yield "listening", None, 987654


@pytest.mark.parametrize("number", range(4), ids=["a datagram socket", "a connected one", "a pipe", "none at all"])
def test_a_descriptor_that_cannot_be_served_says_so_and_stays_open(number: int) -> None:
    for index, (said, theirs, descriptor) in enumerate(bad_descriptors()):
        if index == number:
            before = open_descriptors()
            with pytest.raises(ListenError, match=f"fd:{descriptor}.*{said}"):
                open_listeners(f"fd:{descriptor}", BACKLOG)
            assert open_descriptors() == before
        if theirs is not None:
            theirs.close()


# --- handed on from one process to another ---


def test_what_came_with_a_number_is_handed_on_with_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs, listening(f"fd:{theirs.fileno()}") as (listener,):
        assert listener.fd == theirs.fileno() != listener.socket.fileno()
        listener.close()
        assert listener.fd == -1
    with listening("127.0.0.1:0") as (listener,):
        assert listener.fd == listener.socket.fileno()


@pytest.mark.parametrize("goes_on", [True, False], ids=["that goes on with it", "that does not want it"])
def test_a_shared_unix_socket_keeps_its_name_with_a_process(goes_on: bool, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    [listener] = open_listeners(f"unix:{path}", BACKLOG)
    with listener.socket.dup() as another:
        listener.shared = True
        if not goes_on:
            another.close()
        listener.close()
        assert path.exists() == goes_on


def test_a_unix_socket_that_has_lost_its_name_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(path))
        former.listen()
        path.unlink()
        [listener] = open_listeners(f"unix:{path}", BACKLOG, handed=[former.detach()])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()
