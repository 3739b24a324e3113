"""Files on a disk that answers when it likes: whoever asks for them waits, and nobody else.

The disk is tests.slowfs: a request that it holds is one that a thread of the server waits for, without end and without
a way to interrupt it.
"""

from __future__ import annotations

import errno
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from hardserve.edge.parsing import Request
from tests.slowfs import SLOW, SlowFilesystem, Unavailable, slow_filesystem
from tests.support import Client, serving

READERS = 3
HOT = b"hot\n"
PLENTY = b"".join(b"%015d\n" % number for number in range(1 << 16))  # 1 MiB
# More than the buffers of two sockets take.
LONG = PLENTY * 24

app = Flask(__name__, static_folder=None)


@app.get("/")
def hello() -> str:
    return "Hello, World!"


@dataclass
class Disk:
    """A mount at /slow on a disk that is slow, and one at /fast on one that is not."""

    fs: SlowFilesystem
    settings: dict[str, Any]

    def serving(self, **settings: Any) -> Any:
        return serving(app, **(self.settings | settings))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    source, mounted, fast = tmp_path / "source", tmp_path / "mounted", tmp_path / "fast"
    for directory in (source, mounted, fast):
        directory.mkdir()
    for number in range(20):
        (source / f"{number}.txt").write_bytes(b"file %d\n" % number)
    (source / "plenty.bin").write_bytes(PLENTY)
    (source / "long.bin").write_bytes(LONG)
    (fast / "hot.txt").write_bytes(HOT)
    (fast / "cold.txt").write_bytes(HOT)
    try:
        with slow_filesystem(source, mounted) as fs:
            static = [f"/slow={mounted}", f"/fast={fast}"]
            yield Disk(fs, {"static": static, "files_readers": READERS, "files_compress": "off"})
    except Unavailable as reason:
        pytest.skip(str(reason))


def ask(client: Client, target: str) -> None:
    client.send(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())


def receive(client: Client, count: int) -> bytes:
    """Return up to `count` bytes, fewer if the connection is cut."""
    data = bytearray()
    try:
        while len(data) < count and (more := client.socket.recv(1 << 20)):
            data += more
    except ConnectionError:
        pass
    return bytes(data)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- who waits, and who does not ---


@pytest.mark.parametrize("operation", SLOW)
def test_only_who_asks_for_what_is_there_waits_for_a_disk(disk: Disk, operation: str) -> None:
    with disk.serving() as running, running.connect() as other, running.connect() as waiting:
        assert other.get("/fast/hot.txt").body == HOT
        disk.fs.hold(operation)
        ask(waiting, "/slow/1.txt")
        disk.fs.wait_until_held()
        assert other.get("/").body == b"Hello, World!"
        assert other.get("/fast/hot.txt").body == HOT
        assert other.get("/fast/cold.txt").body == HOT
        assert disk.fs.waiting() == 1
        disk.fs.release()
        assert waiting.response().body == b"file 1\n"


@pytest.mark.parametrize("operation", SLOW)
def test_more_requests_than_file_threads_wait_for_a_disk_and_all_are_answered(disk: Disk, operation: str) -> None:
    with disk.serving(files_check=60) as running, running.connect() as other:
        assert other.get("/fast/hot.txt").body == HOT
        disk.fs.hold(operation)
        clients = [running.connect() for _ in range(4 * READERS)]
        try:
            for number, client in enumerate(clients):
                ask(client, f"/slow/{number}.txt")
            disk.fs.wait_until_held()
            assert other.get("/").body == b"Hello, World!"
            assert other.get("/fast/hot.txt").body == HOT
            disk.fs.release()
            assert [client.response().body for client in clients] == [b"file %d\n" % n for n in range(len(clients))]
        finally:
            for client in clients:
                client.socket.close()


def test_a_disk_that_hangs_for_as_many_requests_as_there_are_file_threads_does_not_hold_up_another_one(
    disk: Disk,
) -> None:
    with disk.serving(files_check=0, timeouts_app=2) as running, running.connect() as other:
        assert other.get("/fast/hot.txt").body == HOT
        disk.fs.hold("read")
        clients = [running.connect() for _ in range(READERS + 1)]
        try:
            for number, client in enumerate(clients):
                ask(client, f"/slow/{number}.txt")
            disk.fs.wait_until_held(2)
            assert other.get("/fast/hot.txt").body == HOT
            assert other.get("/fast/cold.txt").body == HOT
            disk.fs.release()
        finally:
            for client in clients:
                client.socket.close()


def test_requests_for_the_same_file_take_one_thread_together(disk: Disk) -> None:
    with disk.serving() as running:
        disk.fs.hold("read")
        clients = [running.connect() for _ in range(4 * READERS)]
        try:
            for client in clients:
                ask(client, "/slow/1.txt")
            disk.fs.wait_until_held()
            with running.connect() as other:
                assert other.get("/fast/cold.txt").body == HOT
            assert disk.fs.waiting() == 1
            disk.fs.release()
            assert {client.response().body for client in clients} == {b"file 1\n"}
            assert disk.fs.count("read") == 1
        finally:
            for client in clients:
                client.socket.close()


def test_who_waits_too_long_is_told_so_and_may_ask_again(disk: Disk) -> None:
    with disk.serving(timeouts_app=0.5) as running, running.connect() as client:
        disk.fs.hold()
        ask(client, "/slow/1.txt")
        disk.fs.wait_until_held()
        assert client.response().status == 503
        (entry,) = running.log.wait_for(1)
        assert (entry.status, entry.refusal) == (503, "files_slow")
        disk.fs.release()
        with running.connect() as again:
            assert again.get("/slow/1.txt").body == b"file 1\n"


def test_past_a_number_of_requests_for_a_disk_that_hangs_further_ones_are_refused_at_once(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardserve.server.WAITING_FILES", 2)
    with disk.serving(files_readers=1) as running:
        disk.fs.hold()
        clients = [running.connect() for _ in range(3)]
        try:
            ask(clients[0], "/slow/0.txt")
            disk.fs.wait_until_held()
            for number in (1, 2):
                ask(clients[number], f"/slow/{number}.txt")
            with running.connect() as other:
                # Its own connection is read after theirs, or with them.
                refused = other.get("/slow/3.txt")
                while refused.status != 503:
                    refused = other.get("/slow/4.txt")
                assert other.get("/").body == b"Hello, World!"
            assert running.log.wait_for(1)[0].refusal == "files_busy"
            disk.fs.release()
            assert [client.response().body for client in clients] == [b"file 0\n", b"file 1\n", b"file 2\n"]
        finally:
            for client in clients:
                client.socket.close()


# --- who leaves ---


@pytest.mark.parametrize("operation", SLOW)
@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
def test_nothing_stays_open_for_a_client_that_leaves_while_its_file_is_waited_for(
    disk: Disk, is_large: bool, operation: str
) -> None:
    with disk.serving(files_readers=1) as running, running.connect() as other:
        assert other.get("/slow/0.txt").status == 200
        before = descriptors()
        for number in range(1, 4):
            disk.fs.hold(operation)
            with running.connect() as leaving:
                ask(leaving, "/slow/plenty.bin" if is_large else f"/slow/{number}.txt")
                disk.fs.wait_until_held()
                leaving.reset()
            assert other.get("/").status == 200
            disk.fs.release()
            # The one file thread takes them in turn, so that what was held is over when this is answered.
            assert other.get(f"/slow/{number + 10}.txt").status == 200
        assert other.get("/slow/plenty.bin").body == PLENTY
        assert other.get("/").status == 200  # the whole of the one before has left, and its file is closed
        assert descriptors() == before


def test_who_has_gone_is_not_remembered_until_the_disk_answers(disk: Disk) -> None:
    """A disk may be away for days, and what is asked for the most is asked for all the time."""

    def remembered() -> int:
        gc.collect()
        return sum(isinstance(thing, Request) for thing in gc.get_objects())

    before = remembered()  # those of other tests
    with disk.serving() as running, running.connect() as staying:
        disk.fs.hold()
        ask(staying, "/slow/1.txt")
        disk.fs.wait_until_held()
        with running.connect() as other:
            for _ in range(100):
                with running.connect() as leaving:
                    ask(leaving, "/slow/1.txt")
                    leaving.reset()
                assert other.get("/").status == 200  # so that it is seen, at the latest now
            # 64 are kept before anybody looks who has gone, with those that stay.
            assert remembered() - before < 80
        disk.fs.release()
        assert staying.response().body == b"file 1\n"


@pytest.mark.parametrize("operation", SLOW)
def test_a_drain_does_not_wait_for_a_disk_that_hangs(disk: Disk, operation: str) -> None:
    with disk.serving(drain=0.5) as running, running.connect() as client:
        disk.fs.hold(operation)
        ask(client, "/slow/plenty.bin")
        disk.fs.wait_until_held()
        began = time.monotonic()
        code = running.stop()
        assert time.monotonic() - began < 5
        assert code == 0
        assert len(receive(client, len(PLENTY))) < len(PLENTY)


# --- what comes ---


def test_a_large_file_on_a_slow_disk_arrives_whole(disk: Disk) -> None:
    disk.fs.delay(read_s=0.02, lookup_s=0.02, open_s=0.02)
    with disk.serving() as running, running.connect() as client:
        assert client.get("/slow/plenty.bin").body == PLENTY
        part = client.get("/slow/plenty.bin", "Range: bytes=500000-600000")
        assert (part.status, part.body) == (206, PLENTY[500000:600001])
        parts = client.get("/slow/plenty.bin", "Range: bytes=0-9,900000-900009")
        assert parts.status == 206
        assert PLENTY[:10] in parts.body
        assert PLENTY[900000:900010] in parts.body
        assert client.get("/slow/1.txt").body == b"file 1\n"


def test_the_time_that_a_disk_takes_is_not_held_against_the_client(disk: Disk) -> None:
    settings = {"timeouts_response": 1, "timeouts_rate_grace": 0.1, "limits_response_rate": 1 << 20}
    disk.fs.delay(read_s=0.6)
    with disk.serving(**settings) as running, running.connect() as client:
        began = time.monotonic()
        assert client.get("/slow/plenty.bin").body == PLENTY
        assert time.monotonic() - began > 1


def test_a_response_whose_disk_hangs_midway_is_cut(disk: Disk) -> None:
    with disk.serving(timeouts_app=0.5) as running, running.connect() as client:
        ask(client, "/slow/long.bin")
        assert receive(client, 1000).startswith(b"HTTP/1.1 200 OK\r\n")
        disk.fs.hold()
        assert len(receive(client, len(LONG))) < len(LONG)
        (entry,) = running.log.wait_for(1)
        assert (entry.status, entry.refusal) == (200, "file_unreadable")


def test_responses_whose_disk_fails_midway_are_cut_and_that_is_said_once(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    with disk.serving() as running, running.connect() as one, running.connect() as two:
        for client in (one, two):
            ask(client, "/slow/long.bin")
            assert receive(client, 1000).startswith(b"HTTP/1.1 200 OK\r\n")
        disk.fs.fail(errno.EIO)
        for client in (one, two):
            assert len(receive(client, len(LONG))) < len(LONG)
        assert {(entry.status, entry.refusal) for entry in running.log.wait_for(2)} == {(200, "file_unreadable")}
        disk.fs.fail(0)
        with running.connect() as other:
            assert other.get("/slow/plenty.bin").body == PLENTY
    said = [record.getMessage() for record in caplog.records if record.name == "hardserve.edge"]
    assert said == ["a response was cut: /slow/long.bin cannot be read: Input/output error"]


def test_files_that_cannot_be_read_are_a_500_and_that_is_said_once(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    with disk.serving() as running, running.connect() as client:
        disk.fs.fail(errno.EIO)
        assert [client.get(f"/slow/{number}.txt").status for number in range(3)] == [500, 500, 500]
        disk.fs.fail(0)
        assert client.get("/slow/1.txt").body == b"file 1\n"
    said = [record.getMessage() for record in caplog.records if record.name == "hardserve.files"]
    assert said == ["the file of /slow/0.txt cannot be read: [Errno 5] Input/output error"]


def test_a_disk_that_is_pulled_out_fails_requests_and_nothing_else(disk: Disk) -> None:
    with disk.serving() as running, running.connect() as waiting, running.connect() as other:
        disk.fs.hold()
        ask(waiting, "/slow/1.txt")
        disk.fs.wait_until_held()
        disk.fs.kill()
        assert waiting.response().status == 500
        assert other.get("/slow/2.txt").status in (404, 500)
        assert other.get("/fast/hot.txt").body == HOT
        assert other.get("/").body == b"Hello, World!"
