"""What of waitress edge/parsing.py and edge/chunks.py lean on: an upgrade that moves any of it fails here."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from waitress.buffers import OverflowableBuffer
from waitress.parser import HTTPRequestParser
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver

import hardserve
from hardserve.edge import chunks, parsing
from hardserve.edge.chunks import StrictChunkedReceiver
from hardserve.edge.parsing import ParserRules, Request
from hardserve.settings import LimitSettings


def test_the_version_is_one_that_this_file_was_written_for() -> None:
    assert version("waitress").startswith("3.0.")


def test_these_are_all_the_names_that_are_imported() -> None:
    imported = {
        f"{node.module}.{alias.name}"
        for module in (parsing, chunks)
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("waitress")
        for alias in node.names
    }
    classes = (OverflowableBuffer, HTTPRequestParser, ChunkedReceiver, FixedStreamReceiver)
    assert imported == {f"{cls.__module__}.{cls.__name__}" for cls in classes}
    assert Path(parsing.__file__).is_relative_to(Path(hardserve.__file__).parent)


# --- HTTPRequestParser ---


def test_a_parser_starts_with_these_defaults() -> None:
    adjustments = object()
    parser = HTTPRequestParser(adjustments)  # type: ignore[arg-type]  # it only keeps it
    assert parser.adj is adjustments
    assert parser.headers == {}
    defaults: dict[str, Any] = {
        "completed": False,
        "headers_finished": False,
        "expect_continue": False,
        "chunked": False,
        "content_length": 0,
        "body_rcv": None,
        "version": "1.0",
    }
    assert {name: getattr(parser, name) for name in defaults} == defaults


def test_what_a_parser_sets_at_first_is_only_what_is_known_here() -> None:
    # An attribute that a later version adds in __init__ might have to be kept right by us.
    assert set(vars(HTTPRequestParser(object()))) == {"headers", "adj"}  # type: ignore[arg-type]


def test_a_parser_has_the_methods_that_are_overridden_or_inherited() -> None:
    assert list(inspect.signature(HTTPRequestParser.__init__).parameters) == ["self", "adj"]
    assert list(inspect.signature(HTTPRequestParser.parse_header).parameters) == ["self", "header_plus"]
    assert list(inspect.signature(HTTPRequestParser.close).parameters) == ["self"]
    assert Request.get_body_stream is HTTPRequestParser.get_body_stream
    assert list(inspect.signature(HTTPRequestParser.get_body_stream).parameters) == ["self"]


def test_nothing_of_ours_hides_a_method_of_waitress_by_accident() -> None:
    theirs = {name for name, value in vars(HTTPRequestParser).items() if inspect.isfunction(value)}
    ours = {name for name, value in vars(Request).items() if inspect.isfunction(value)}
    assert theirs & ours == {"__init__", "close", "parse_header"}


def test_the_body_stream_is_what_the_receiver_collected_and_close_closes_it() -> None:
    request = Request(ParserRules(LimitSettings(body_memory=0)), 0.0)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n"
    assert request.feed(head) == len(head)
    assert request.feed(b"x" * 9000) == 9000
    stream = request.get_body_stream()
    assert stream is request.body_rcv.getfile()
    assert stream.read() == b"x" * 9000
    request.close()
    assert stream.closed


def test_close_without_a_body_does_nothing() -> None:
    Request(ParserRules(LimitSettings()), 0.0).close()


# --- FixedStreamReceiver ---


def test_a_fixed_receiver_takes_its_length_and_no_more() -> None:
    receiver = FixedStreamReceiver(5, OverflowableBuffer(100))
    assert (receiver.completed, receiver.error, len(receiver)) == (False, None, 0)
    assert receiver.received(b"123") == 3
    assert (receiver.completed, len(receiver)) == (False, 3)
    assert receiver.received(b"45next") == 2
    assert (receiver.completed, len(receiver)) == (True, 5)
    assert receiver.getfile().read() == b"12345"
    assert isinstance(receiver.getbuf(), OverflowableBuffer)


# --- ChunkedReceiver ---


def test_a_chunked_receiver_starts_with_these_attributes() -> None:
    buffer = OverflowableBuffer(100)
    receiver = ChunkedReceiver(buffer)
    assert set(vars(receiver)) == {"buf"}
    assert receiver.buf is buffer
    defaults: dict[str, Any] = {
        "chunk_remainder": 0,
        "validate_chunk_end": False,
        "all_chunks_received": False,
        "completed": False,
    }
    assert {name: getattr(receiver, name) for name in defaults} == defaults


def test_a_chunked_receiver_is_overridden_where_it_decodes_and_inherited_elsewhere() -> None:
    assert list(inspect.signature(ChunkedReceiver.received).parameters) == ["self", "s"]
    assert StrictChunkedReceiver.received is not ChunkedReceiver.received
    assert list(inspect.signature(ChunkedReceiver.__init__).parameters) == ["self", "buf"]
    for inherited in ("__len__", "getfile", "getbuf"):
        assert getattr(StrictChunkedReceiver, inherited) is getattr(ChunkedReceiver, inherited)
    theirs = {name for name, value in vars(ChunkedReceiver).items() if inspect.isfunction(value)}
    assert theirs == {"__init__", "__len__", "received", "getfile", "getbuf"}


def test_the_length_of_a_receiver_is_that_of_its_buffer() -> None:
    receiver = StrictChunkedReceiver(OverflowableBuffer(100), LimitSettings())
    assert receiver.received(b"3\r\nabc\r\n") == 8
    assert len(receiver) == len(receiver.getbuf()) == 3


# --- OverflowableBuffer ---


@pytest.mark.parametrize("pieces", [[9000], [1] * 9000, [8191, 809], [8192, 808], [0, 9000]], ids=str)
def test_a_buffer_overflows_when_it_reaches_its_size(pieces: list[int]) -> None:
    for overflow, overflowed in ((9000, True), (9001, False)):
        buffer = OverflowableBuffer(overflow)
        for piece in pieces:
            buffer.append(b"x" * piece)
        file = buffer.getfile()
        assert (len(buffer), buffer.overflowed) == (9000, overflowed)
        assert file.tell() == 0
        assert file.read() == b"x" * 9000
        buffer.close()
        assert file.closed


def test_a_small_buffer_is_read_and_closed_too() -> None:
    buffer = OverflowableBuffer(1)
    buffer.append(b"ab")
    assert len(buffer) == 2
    file = buffer.getfile()
    assert file.read() == b"ab"
    assert buffer.overflowed
    buffer.close()
    assert file.closed
    OverflowableBuffer(1).close()  # one that never held anything


def test_the_file_of_a_buffer_has_no_name() -> None:
    buffer = OverflowableBuffer(1)
    buffer.append(b"x" * 10_000)
    assert isinstance(buffer.getfile().name, int)
    buffer.close()


@pytest.mark.parametrize("held", [0, 1, 8191, 8192, 9000])
def test_a_buffer_is_moved_to_a_file_by_asking_for_it(held: int) -> None:
    """Which `Request.to_file` does."""
    buffer = OverflowableBuffer(100_000)
    buffer.append(b"x" * held)
    buffer.overflow = 0
    buffer.getfile()
    buffer.append(b"")
    assert (buffer.overflowed, len(buffer)) == (True, held)
    file = buffer.getfile()
    assert isinstance(file.name, int)
    buffer.append(b"y")
    assert buffer.getfile() is file
    assert file.read() == b"x" * held + b"y"
    buffer.close()
