"""What the socket takes of a file, and what it says when it takes none."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from typing import IO

import pytest

from hardserve.edge.transport import HeldCalls, PlainTransport

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def file() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as opened:
        opened.write(CONTENT)
        opened.flush()
        yield opened


@pytest.fixture
def pair() -> Iterator[tuple[PlainTransport, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport = PlainTransport(ours, HeldCalls())
    with theirs:
        yield transport, theirs
        transport.close()


def test_a_file_is_sent_from_where_it_is_asked_for(pair: tuple[PlainTransport, socket.socket], file: IO[bytes]) -> None:
    transport, theirs = pair
    assert transport.send_file(file.fileno(), 1000, 300) == 300
    assert theirs.recv(1000) == CONTENT[1000:1300]
    assert file.tell() == len(CONTENT), "others read from it at the same time"


def test_a_socket_that_is_full_is_not_the_end_of_the_file(
    pair: tuple[PlainTransport, socket.socket], file: IO[bytes]
) -> None:
    transport, theirs = pair
    sent = 0
    while (taken := transport.send_file(file.fileno(), sent, len(CONTENT) - sent)) is not None:
        assert taken, "the file does not end here"
        sent += taken
    assert 0 < sent < len(CONTENT)
    received = b""
    while len(received) < sent:
        received += theirs.recv(65536)
    assert received == CONTENT[:sent]
    assert transport.send_file(file.fileno(), len(CONTENT), 1) == 0


def test_a_client_that_has_gone_is_an_error(pair: tuple[PlainTransport, socket.socket], file: IO[bytes]) -> None:
    transport, theirs = pair
    theirs.close()
    with pytest.raises(ConnectionError):
        transport.send_file(file.fileno(), 0, 1)


def test_what_is_no_regular_file_is_another_error(pair: tuple[PlainTransport, socket.socket]) -> None:
    transport, _ = pair
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="Errno") as raised:
            transport.send_file(reading, 0, 1)
        assert not isinstance(raised.value, ConnectionError)
    finally:
        os.close(reading)
        os.close(writing)
