"""What TLS costs a server, and what the ways of using it differ in: `python -m tests.bench.tls_handshakes`.

    steps     processor time of each step that the server computes in a full handshake, by key and version
    small     one request of 70 bytes and a response of 200, without the client: plain, SSLSocket, memory buffers
    large     100 MiB of a file, read, encrypted and sent to a client that only takes it from the socket
    memory    of a connection that is idle after a small response, and after 200 kB
    at once   500 ClientHellos at the same moment: what a step of something else has to wait, with each step computed
              on the I/O thread and by a helper

Both ends are in this process or a child of it, all on the loopback interface. Figures are of this machine and moment.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from hardserve.edge.handshaker import Handshaker
from hardserve.edge.tls import TlsTransport
from hardserve.edge.transport import HeldCalls, PlainTransport
from hardserve.pool import Pool
from tests.certs import Authority, client_context

KEYS = ("p256", "rsa2048", "rsa4096")
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\n" + b"X-Field: something\r\n" * 9 + b"\r\n"
REQUESTS = 10_000
LARGE_BYTES = 100 << 20
IDLE = 200
AT_ONCE = 500


def main() -> None:
    # First, in children that have not used any memory yet which they could use again.
    with tempfile.TemporaryDirectory() as directory:
        context = server_context(Path(directory) / "p256", "p256")
        for name, make in WAYS.items():
            idle, used = (in_a_child(make, context, size) for size in (200, 200_000))
            print(f"memory   {name:10} {idle:.1f} KiB, after a large response {used:.1f} KiB")
    with tempfile.TemporaryDirectory() as directory:
        contexts = {key: server_context(Path(directory) / key, key) for key in KEYS}
        for key, context in contexts.items():
            for version in ("1.2", "1.3"):
                print(f"steps    {key:8} TLS {version}: " + ", ".join(f"{us:.0f} µs" for us in steps(context, version)))
        context = contexts["p256"]
        for name, make in WAYS.items():
            print(f"small    {name:10} {small(make, context):.1f} µs")
        for name, make in WAYS.items():
            print(f"large    {name:10} {large(make, context) / 1e6:.0f} MB in a second")
        for key in ("p256", "rsa4096"):
            for helper in (False, True):
                waits = at_once(contexts[key], helper=helper)
                where = "a helper" if helper else "the I/O thread"
                print(f"at once  {key:8} {where:15} median {waits[0]:.2f} ms, longest {waits[1]:.1f} ms")


def server_context(directory: Path, key: str) -> ssl.SSLContext:
    pair = Authority().leaf("localhost", kind=key).write(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


# --- the server's ends of a connection ---


class SocketEnd:
    """SSLSocket, used as a transport would be."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        connected.setblocking(True)
        self.socket = context.wrap_socket(connected, server_side=True)
        self.socket.setblocking(False)

    def fileno(self) -> int:
        return self.socket.fileno()

    def receive(self, max_bytes: int) -> bytes | None:
        try:
            return self.socket.recv(min(max_bytes, 16384))
        except ssl.SSLWantReadError:
            return None

    def send(self, data: bytes | memoryview) -> int:
        try:
            return self.socket.send(data)
        except ssl.SSLWantWriteError:
            return 0

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        data = memoryview(os.pread(descriptor, min(count, 262144), offset))
        sent = 0
        while sent < len(data):
            taken = self.send(data[sent:])
            if not taken:
                return sent or None
            sent += taken
        return sent

    def close(self) -> None:
        self.socket.close()


def plain_end(connected: socket.socket, _context: ssl.SSLContext) -> PlainTransport:
    return PlainTransport(connected, HELD)


def buffered_end(connected: socket.socket, context: ssl.SSLContext) -> TlsTransport:
    transport = TlsTransport(PlainTransport(connected, HELD), context)
    while (need := transport.handshake()) != "done":
        wait(transport, need)
    return transport


HELD = HeldCalls()
End = PlainTransport | SocketEnd | TlsTransport
WAYS: dict[str, Callable[[socket.socket, ssl.SSLContext], End]] = {
    "plain": plain_end,
    "SSLSocket": SocketEnd,
    "buffers": buffered_end,
}


def wait(end: End, what: str) -> None:
    select.select([end] if what == "read" else [], [end] if what == "write" else [], [], 10)


def connected_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    for each in (ours, theirs):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours.setblocking(False)
    return ours, theirs


@contextlib.contextmanager
def established(
    make: Callable[[socket.socket, ssl.SSLContext], End], context: ssl.SSLContext
) -> Iterator[tuple[End, socket.socket]]:
    ours, theirs = connected_pair()
    clients: list[socket.socket] = [theirs]
    thread = None
    if make is not plain_end:
        thread = threading.Thread(target=lambda: clients.append(client_context().wrap_socket(theirs)))
        thread.start()
    end = make(ours, context)
    if thread is not None:
        thread.join()
    try:
        yield end, clients[-1]
    finally:
        end.close()
        clients[-1].close()


# --- what is measured ---


def steps(context: ssl.SSLContext, version: str, rounds: int = 50) -> list[float]:
    """Return the median of each step of the server, in microseconds."""
    measured = [one_handshake(context, version) for _ in range(rounds)]
    return [statistics.median(times) * 1e6 for times in zip(*measured, strict=True)]


def one_handshake(context: ssl.SSLContext, version: str) -> list[float]:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(version=version).wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    times: list[float] = []
    while True:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        began = time.thread_time()
        try:
            server.do_handshake()
        except ssl.SSLWantReadError:
            continue
        finally:
            times.append(time.thread_time() - began)
        return times


def small(make: Callable[[socket.socket, ssl.SSLContext], End], context: ssl.SSLContext) -> float:
    """Return what a request and its response take the server, in microseconds."""
    spent = 0.0
    with established(make, context) as (end, client):
        for _ in range(REQUESTS):
            client.sendall(REQUEST)
            wait(end, "read")
            began = time.perf_counter()
            while end.receive(65536) is None:
                wait(end, "read")
            end.send(RESPONSE)
            spent += time.perf_counter() - began
            left = len(RESPONSE)
            while left:
                left -= len(client.recv(left))
    return spent / REQUESTS * 1e6


def large(make: Callable[[socket.socket, ssl.SSLContext], End], context: ssl.SSLContext) -> float:
    """Return at how many bytes a second a file leaves."""
    with established(make, context) as (end, client), tempfile.TemporaryFile() as file:
        for _ in range(100):
            file.write(os.urandom(LARGE_BYTES // 100))
        file.flush()

        def take() -> None:
            buffer, left = bytearray(1 << 18), LARGE_BYTES
            with socket.socket(fileno=os.dup(client.fileno())) as raw:  # decrypting is not what is measured
                while left > 0:
                    left -= raw.recv_into(buffer)

        thread = threading.Thread(target=take)
        thread.start()
        began = time.perf_counter()
        at = 0
        while at < LARGE_BYTES:
            sent = end.send_file(file.fileno(), at, min(1 << 20, LARGE_BYTES - at))
            at += sent or 0
            if sent is None:
                wait(end, "write")
        thread.join()
        return LARGE_BYTES / (time.perf_counter() - began)


def in_a_child(make: Callable[[socket.socket, ssl.SSLContext], End], context: ssl.SSLContext, response: int) -> float:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"%.1f" % memory(make, context, response))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        figure = float(told.read())
    os.waitpid(child, 0)
    return figure


def memory(make: Callable[[socket.socket, ssl.SSLContext], End], context: ssl.SSLContext, response: int) -> float:
    """Return the KiB of memory that one idle connection keeps at the server. The clients are another process."""
    with socket.create_server(("127.0.0.1", 0), backlog=IDLE) as listening:
        child = os.fork()
        if not child:
            hold_open(listening.getsockname()[1], response, plain=make is plain_end)
        kept: list[End] = []
        before = 0
        try:
            for number in range(IDLE):
                if number == IDLE // 10:
                    before = private_kib()
                accepted, _ = listening.accept()
                accepted.setblocking(False)
                end = make(accepted, context)
                while end.receive(65536) is None:
                    wait(end, "read")
                view = memoryview(bytes(response))
                while view:
                    sent = end.send(view)
                    view = view[sent:]
                    if not sent:
                        wait(end, "write")
                kept.append(end)
            return (private_kib() - before) / (IDLE - IDLE // 10)
        finally:
            for end in kept:
                end.close()
            os.kill(child, 9)
            os.waitpid(child, 0)


def hold_open(port: int, response: int, *, plain: bool) -> None:
    kept = []
    for _ in range(IDLE):
        client: socket.socket = socket.create_connection(("127.0.0.1", port))
        if not plain:
            client = client_context().wrap_socket(client)
        client.sendall(REQUEST)
        left = response
        while left:
            left -= len(client.recv(left))
        kept.append(client)
    time.sleep(60)
    os._exit(0)


def private_kib() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError("smaps_rollup has no Pss")


def at_once(context: ssl.SSLContext, *, helper: bool) -> tuple[float, float]:
    """Return the median and the longest time between two turns of a loop that has 500 handshakes to begin, in ms."""
    to_client, hello = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client_context(version="1.3").wrap_bio(to_client, hello).do_handshake()
    said = hello.read()
    begun: list[TlsTransport] = []
    for _ in range(AT_ONCE):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.sendall(said)
        begun.append(TlsTransport(PlainTransport(ours, HELD), context, first=b""))
        theirs.detach()
    posted: deque[Callable[[float], None]] = deque()
    pool = Pool("handshake", 1, AT_ONCE)
    shaker = Handshaker(pool, 1, posted.append, lambda _at, _action: None, max_client=AT_ONCE)
    left = AT_ONCE

    def done(_now: float) -> None:
        nonlocal left
        left -= 1

    waits: list[float] = []
    ready = deque(begun)
    last = time.perf_counter()
    while left:
        # A turn, with up to 64 of them ready: the time to the next is what everybody else waits.
        for _ in range(min(64, len(ready))):
            transport = ready.popleft()
            assert transport.advance() == "compute"
            if helper:
                shaker.submit("", transport.compute, done, lambda: True, last)
            else:
                transport.compute()
                left -= 1
        while posted:
            posted.popleft()(last)
        time.sleep(0.0002)  # as long as a selector waits
        now = time.perf_counter()
        waits.append(now - last)
        last = now
    pool.stop(time.monotonic() + 5)
    for transport in begun:
        transport.close(reset=True)
    return statistics.median(waits) * 1e3, max(waits) * 1e3


if __name__ == "__main__":
    main()
