"""One command that holds HTTPS to its bars: `python -m tests.bench.tls`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hardserve.tls.policy import PairFiles
from tests.certs import Authority, Made, client_context

from .command import Sampled, from_1_to, has_programs, parser, run
from .files_clients import download
from .files_servers import NGINX, nginx, ours
from .hostile_normal import PATIENCE_S, Felt, Outcome
from .limits import of_felt, of_loads
from .limits_load import Load, Watch, drive
from .peers import OURS, Run, Server
from .process import Running, free_port, running
from .report import MIB, Spread, compare, spread
from .tls_clients import ADDRESSES, Client, client
from .tls_servers import GUNICORN, TlsRunning, behind_tls, gunicorn_behind_nginx

PARTS = {
    "alive": "Flask hello on kept connections, against the same without TLS",
    "proxied": "the same against nginx with TLS in front of gunicorn",
    "handshakes": "full handshakes on one core, against nginx",
    "large": "a file of 100 MiB on one connection, against nginx",
    "dripped": "normal clients while {dripped} others drip their handshakes",
    "memory": "of {idle:,} idle connections, above that of plain ones",
    "replaced": "clients while certificate and key are replaced",
}
DRIPPED, DRIPPED_OVER_S = 500, 60.0
IDLE = 1000
RATE = 50
KEPT, FRESH = 16, 8
SHAKERS = 4
KIB = 1024
TINY_BYTES, PAGE_BYTES, LARGE_BYTES = 100, 200 * KIB, 100 * MIB
REPLACED_LIMIT_S = 30.0

_DOWNLOADS_A_SECOND = 5
_WARM_UP_S = 1.0
_SETTLE_S = 0.5
_S_TIME = re.compile(r"^(\d+) connections in [\d.]+s;", re.MULTILINE)

_EPILOG = """\
Parts:
{parts}

Rounds are interleaved: each starts every server afresh, the first one by turns; ratios are taken within
a round, printed are medians. hardserve has default settings but for its rate limit and what is said here.
nginx has one worker, TLS 1.2 and 1.3, a session cache and its own defaults for the rest; both have the
same certificate, and TLS 1.3 with AES-256-GCM is what is looked for.

alive: two servers, loaded in turns (A B B A, then B A A B); wrk, {connections} kept connections. The server has one
core and wrk the other, whose own TLS is not the server's; then once more without that, and without a bar: OpenSSL lets
go of the interpreter lock, and threads on two cores pass it on more dearly than on one.
proxied: gunicorn as `python -m tests.bench` has it, with 4 threads; then with 8, as ours, and with two workers.
handshakes: server on one core, clients on another: {shakers} openssl s_time, which never resume (wrk does). The
clients compute more than the server. Where its core is not busy ("cores"), the rate is theirs; what a core
of the server is good for is "a core second". "bare" is a handshake and no request, else it is for a file
of {tiny} bytes. No limits of connections and handshakes a second.
large: curl, one connection, {downloads} downloads one after the other.
dripped: {dripped} clients from {addresses} addresses send a ClientHello byte by byte in {over:g} seconds, and come
again when they are cut. Normal clients are two: {rate} requests a second each, one on kept connections and one with
a new handshake for each, sent when due, answered or not. nginx stands beside it to show what the machine does.
memory: what the server grows by, from {addresses} addresses, each connection after one request; a small page,
200 KiB of an app, and 200 KiB of a file.
replaced: {kept} clients on kept connections and {fresh} with a new one for each request, and wrk, which does all
it can, while the files are renamed, written in place with pauses, and written with rubbish in between.

Exit code 1 when a bar is missed. On two cores, do nothing else meanwhile: "others" is the share of
the machine that went elsewhere.
"""

# Clients that come from one address, as fast as they can.
UNLIMITED = ("--limits-client-connection-rate=0", "--tls-handshake-rate=0", "--limits-connection-requests=1000000000")
_LARGE_APP = f'def app(_, start):\n    start("200 OK", [("Content-Length", "{PAGE_BYTES}")])\n    return [BODY]\n'


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if not has_programs({"wrk": "wrk", "curl": "curl", "nginx": "nginx-light", "openssl": "openssl"}):
        return 1
    with tempfile.TemporaryDirectory(prefix="hardserve-tls-") as directory:
        return run(Bench(options, Path(directory)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    epilog = _EPILOG.format(
        parts="{parts}",
        connections=32,
        shakers=SHAKERS,
        tiny=TINY_BYTES,
        downloads=f"{_DOWNLOADS_A_SECOND} times --seconds",
        dripped=DRIPPED,
        addresses=ADDRESSES,
        over=DRIPPED_OVER_S,
        rate=RATE,
        kept=KEPT,
        fresh=FRESH,
    )
    parts = {name: what.format(dripped=DRIPPED, idle=IDLE) for name, what in PARTS.items()}
    found = parser("tls", parts, description=__doc__, epilog=epilog)
    option = found.add_argument
    option("--rounds", type=from_1_to(100), help="of each part (default 8 of alive, 2 of replaced, else 3)")
    option(
        "--seconds", type=from_1_to(60), default=3, help="of load in one sample, four times that in dripped (default 3)"
    )
    option("--connections", type=from_1_to(256), default=32, help="of wrk (default 32)")
    option("--key", choices=("p256", "rsa2048"), default="p256", help="of the certificate (default p256)")
    return found.parse_args(arguments)


class Bench(Sampled):
    """The parts, the bars they were held to, and what else they found. All they make is in `directory`."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        super().__init__(options)
        self._directory = directory
        self._authority = Authority()
        self._pair = self._leaf().write(directory / "pair")
        self._more_said: list[str] = []
        self._root = directory / "root.pem"
        self._root.write_text(self._authority.pem)

    def remarks(self) -> list[str]:
        return [*super().remarks(), *self._more_said]

    # --- parts ---

    def alive(self) -> None:
        with _on_two_cores() as servers_core:
            self._alive("alive", _on_core(ours({}), servers_core), 8)
        self._bar_against("alive", "TLS", "plain", "kept alive, req/s of plain, a core each", 0.8)
        self._alive("alive, cores shared", ours({}), 4)
        if found := self.against("alive, cores shared", "TLS", "plain", "rps"):
            self._more_said.append(
                "no bar: kept alive, req/s of plain, server and wrk on both cores as they come: "
                f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f}) times"
            )

    def _alive(self, part: str, server: Server, rounds: int) -> None:
        for number in range(self.rounds(rounds)):
            with self._serving(server, tls=False) as plain, self._serving(server) as tls:
                by_name = {"plain": plain, "TLS": tls}
                for it in by_name.values():
                    self._expect(it, "/", b"Hello, World!")
                    drive(it, 1, self.options.connections)
                loads: dict[str, list[Load]] = {name: [] for name in by_name}
                for name in ("TLS", "plain", "plain", "TLS") if number % 2 == 0 else ("plain", "TLS", "TLS", "plain"):
                    loads[name].append(self._drive(by_name[name]))
            for name, pair in loads.items():
                self.add(part, name, of_loads(pair))

    def proxied(self) -> None:
        def measure(it: Running) -> Mapping[str, float]:
            self._expect(it, "/", b"Hello, World!")
            drive(it, 1, self.options.connections)
            return of_loads([self._drive(it)])

        servers = [ours({}), *(gunicorn_behind_nginx(size, self._pair) for size in GUNICORN)]
        self._compare("proxied", servers, measure)
        for number, ((workers, threads), peer) in enumerate(GUNICORN.items()):
            what = f"req/s against nginx with TLS, gunicorn {workers} x {threads}"
            if number == 0:
                self._bar_against("proxied", OURS, peer, what, 2.5)
            elif found := self.against("proxied", OURS, peer, "rps"):
                self._more_said.append(
                    f"no bar: {what}: {found.median:.2f} ({found.low:.2f} to {found.high:.2f}) times"
                )

    def handshakes(self) -> None:
        media = self._directory / "tiny"
        content = _fill(media / "tiny.txt", TINY_BYTES)
        mounts = {"/media": media}
        with _on_two_cores() as servers_core:
            for number in range(self.rounds(3)):
                for server in self.in_turn([ours(mounts), behind_tls(nginx(mounts), self._pair)], number):
                    with self._serving(_on_core(server, servers_core), *UNLIMITED) as it:
                        self._expect(it, "/media/tiny.txt", content)
                        _shake(it, 1, "/media/tiny.txt")
                        self.add("handshakes", server.name, _shake(it, self.options.seconds, "/media/tiny.txt"))
                        self.add("handshakes", f"{server.name}, bare", _shake(it, self.options.seconds))
        for what, kind in (("full handshakes", ", bare"), ("full handshakes, a small file each", "")):
            for figure, unit in (("a core second", "a core second"), ("a second", "a second")):
                says = f"{what} {unit}, against nginx"
                self._bar_against("handshakes", f"{OURS}{kind}", f"{NGINX}{kind}", says, 0.5, figure=figure)

    def large(self) -> None:
        media = self._directory / "large"
        content = _fill(media / "video.mp4", LARGE_BYTES)
        mounts = {"/media": media}

        def measure(it: Running) -> Mapping[str, float]:
            self._expect(it, "/media/video.mp4", content)
            times = _DOWNLOADS_A_SECOND * self.options.seconds
            watch = Watch(it)
            done = download(it.url("/media/video.mp4"), times, len(content))
            used = watch.used()
            return {
                "MB/s": done.bytes / done.took_s / 1e6,
                "cores": used.server_s / done.took_s,
                "CPU ms/GiB": used.server_s * 1000 / (done.bytes / (1 << 30)),
                "others": used.others,
            }

        os.environ["CURL_CA_BUNDLE"] = str(self._root)
        self._compare("large", [ours(mounts), behind_tls(nginx(mounts), self._pair)], measure)
        self._bar_against("large", OURS, NGINX, "100 MiB, throughput against nginx", 0.6, figure="MB/s")

    def dripped(self) -> None:
        servers = [ours({}), behind_tls(nginx({}), self._pair)]
        for number in range(self.rounds(3)):
            for server in self.in_turn(servers, number):
                with self._serving(server) as it:
                    self._expect(it, "/", b"Hello, World!")
                    drive(it, 1, self.options.connections)
                    self._phase(it, "quiet")
                    with client("drip", it.run.port, DRIPPED, DRIPPED_OVER_S) as drippers:
                        self._phase(it, "dripped", drippers)
                        self.add("dripped", f"{server.name}, drippers", drippers.close())
        found = self.results.get("dripped", {})
        for kind, what in (("kept", "a client on kept connections"), ("fresh", "a client with new handshakes")):
            quiet, loaded = (found.get(f"{OURS}, {kind}, {phase}", []) for phase in ("quiet", "dripped"))
            lost = spread(loaded, "unanswered")
            self.bar(f"dripped, {what}: not answered", 0, "", lost and Spread(lost.high, lost.low, lost.high))
            self.bar(f"dripped, {what}: median of quiet", 1.25, "times", compare(loaded, quiet, "p50 ms"))
            self.bar(f"dripped, {what}: 99th percentile of quiet", 2.0, "times", compare(loaded, quiet, "p99 ms"))
        for one in found.get(f"{OURS}, drippers", []):
            if one and (one["open"] < 0.95 * DRIPPED or one["of its bytes"] < 0.95):
                self.problems.append(f"dripped: {one['open']:.0f} of {DRIPPED} with {one['of its bytes']:.0%} of bytes")

    def memory(self) -> None:
        media = self._directory / "page"
        _fill(media / "page.bin", PAGE_BYTES)
        app = self._directory / "large_app.py"
        app.write_text(f"BODY = bytes({PAGE_BYTES})\n\n\n{_LARGE_APP}")
        cases = {
            "small": ("hello:app", "/"),
            "200 KiB": (f"{app}:app", "/"),
            "200 KiB of a file": ("hello:app", "/media/page.bin"),
        }
        ways = {"plain": False, "TLS": True}
        for number in range(self.rounds(3)):
            for case, (target, path) in cases.items():
                for name in ways if number % 2 == 0 else reversed(ways):
                    with self._serving(ours({"/media": media}), app=target, tls=ways[name]) as it:
                        self.add("memory", f"{case}, {name}", self._hold_idle(it, path))
        found = self.results.get("memory", {})
        for case in cases:
            more = compare(
                found.get(f"{case}, TLS", []), found.get(f"{case}, plain", []), "KiB each", lambda a, b: a - b
            )
            self.bar(f"idle connection after {case}, above plain", 30.0, "KiB", more)

    def replaced(self) -> None:
        for number in range(self.rounds(2)):
            pair = self._leaf().write(self._directory / f"replaced-{number}")
            with self._serving(ours({}), *UNLIMITED, pair=pair) as it:
                drive(it, 1, self.options.connections)
                with client("hammer", it.run.port, KEPT, FRESH) as hammer, self._driven(it) as driven:
                    waits = []
                    for way in WAYS_TO_REPLACE:
                        made = self._leaf()
                        way(pair, made)
                        waits.append(_await_certificate(it.run.port, made))
                    told = hammer.close()
            failed = {name.removeprefix("failed: "): n for name, n in told.items() if name.startswith("failed: ")}
            sample = {name: told[name] for name in ("kept", "fresh", "certificates")}
            sample |= {"failed": sum(failed.values()), "wrk's requests": driven.requests, "wrk's failed": driven.failed}
            self.add("replaced", OURS, {**sample, "longest s": max(waits)})
            if failed:
                self.problems.append(f"replaced: {failed}")
            if told["certificates"] < 1 + len(WAYS_TO_REPLACE):
                self.problems.append(f"replaced: clients met {told['certificates']:.0f} certificates")
        found = self.results.get("replaced", {}).get(OURS, [])
        for figure, who in (("failed", "kept and new connections"), ("wrk's failed", "wrk")):
            lost = spread(found, figure)
            self.bar(f"certificate replaced, {who}: failed", 0, "", lost and Spread(lost.high, lost.low, lost.high))

    # --- what they have in common ---

    def _leaf(self) -> Made:
        return self._authority.leaf("127.0.0.1", "localhost", kind=self.options.key)

    def _compare(self, part: str, servers: Sequence[Server], measure: Callable[[Running], Mapping[str, float]]) -> None:
        """In each round, start each server and add what `measure` finds of it."""
        for number in range(self.rounds(3)):
            for server in self.in_turn(servers, number):
                if reason := server.missing():
                    self.problems.append(f"{part}: {server.name}: {reason}")
                    continue
                with self._serving(server) as it:
                    self.add(part, server.name, measure(it))

    def _bar_against(self, part: str, who: str, peer: str, what: str, limit: float, *, figure: str = "rps") -> None:
        self.bar(what, limit, "times", self.against(part, who, peer, figure), least=True)

    @contextlib.contextmanager
    def _serving(
        self, server: Server, *flags: str, app: str = "hello:app", tls: bool = True, pair: PairFiles | None = None
    ) -> Iterator[Running]:
        """Run a server; of hardserve the flags."""
        if tls:
            files = pair or self._pair
            flags = (*flags, f"--tls-certificate={files.certificate}", f"--tls-key={files.key}")
        with tempfile.TemporaryDirectory(prefix="run-", dir=self._directory) as directory:
            run = Run(free_port(), Path(directory), app=app, options=flags)
            with running(server, run, TlsRunning if tls else Running) as it:
                yield it
                if "Traceback" in it.run.output.read_text(errors="replace"):
                    self.problems.append(f"{server.name}: a traceback: {it.last_words()}")

    def _drive(self, it: Running) -> Load:
        load = drive(it, self.options.seconds, self.options.connections)
        if wrong := load.refused + load.broken:
            self.problems.append(f"{it.server.name}: {wrong} errors in wrk")
        return load

    @contextlib.contextmanager
    def _driven(self, it: Running) -> Iterator[Driven]:
        """Have wrk load the server, again and again, while the block runs."""
        driven = Driven()
        over = threading.Event()

        def load() -> None:
            try:
                while not over.is_set():
                    driven.add(drive(it, 2, self.options.connections))
            except (RuntimeError, ValueError, subprocess.SubprocessError) as error:
                self.problems.append(f"wrk: {error}")

        thread = threading.Thread(target=load, name="wrk")
        thread.start()
        try:
            yield driven
        finally:
            over.set()
            thread.join()

    def _phase(self, it: Running, phase: str, *beside: Client) -> None:
        with client("normal", it.run.port, RATE) as normal:
            time.sleep(_WARM_UP_S)
            clients = (normal, *beside)
            own_s, watch, began = sum(each.cpu_s() for each in clients), Watch(it), time.monotonic()
            time.sleep(4 * self.options.seconds)
            used, ended = watch.used(), time.monotonic()
            own_s = sum(each.cpu_s() for each in clients) - own_s
            told = normal.close()
        used = replace(used, others=max(0.0, used.others - own_s / used.took_s / (os.cpu_count() or 1)))
        for kind in ("kept", "fresh"):
            felt = Felt.of([outcome for each in told[kind] if began <= (outcome := Outcome(*each)).issued < ended])
            self.add("dripped", f"{it.server.name}, {kind}, {phase}", of_felt(felt, used))
            if felt.problems:
                self.problems.append(f"dripped: {it.server.name}, {kind}, {phase}: not answered: {felt.problems}")

    def _hold_idle(self, it: Running, path: str) -> Mapping[str, float]:
        drive(it, 1, self.options.connections, path)  # what grows by then is not the connections'
        time.sleep(_SETTLE_S)
        before = it.memory().rss_bytes
        with client("idle", it.run.port, IDLE, path, "tls" if isinstance(it, TlsRunning) else "plain") as idle:
            time.sleep(_SETTLE_S)
            grown = it.memory().rss_bytes - before
            left = idle.close()["open"]
        if left != IDLE:
            self.problems.append(f"memory: {left:.0f} of {IDLE} connections were open at the end")
        return {"KiB each": grown / KIB / IDLE, "RSS MB before": before / 1e6}

    def _expect(self, it: Running, path: str, content: bytes) -> None:
        """Raises RuntimeError unless one GET is answered so, with the same TLS by whatever server."""
        context = client_context(self._authority)
        connection = (
            http.client.HTTPSConnection("127.0.0.1", it.run.port, timeout=20, context=context)
            if isinstance(it, TlsRunning)
            else http.client.HTTPConnection("127.0.0.1", it.run.port, timeout=20)
        )
        with contextlib.closing(connection):
            connection.request("GET", path)
            secured = connection.sock.cipher() if isinstance(connection.sock, ssl.SSLSocket) else None
            answer = connection.getresponse()
            digest = hashlib.sha256()
            while block := answer.read(MIB):
                digest.update(block)
        if answer.status != 200 or digest.digest() != hashlib.sha256(content).digest():
            raise RuntimeError(f"{it.server.name}: GET {path}: {answer.status}, or not what it should be")
        if isinstance(it, TlsRunning) and (secured is None or secured[:2] != ("TLS_AES_256_GCM_SHA384", "TLSv1.3")):
            raise RuntimeError(f"{it.server.name}: {secured}")


@dataclass
class Driven:
    requests: int = 0
    failed: int = 0

    def add(self, load: Load) -> None:
        self.requests += load.requests
        self.failed += load.refused + load.broken


def _fill(path: Path, size: int) -> bytes:
    path.parent.mkdir(exist_ok=True)
    block = os.urandom(min(size, MIB))
    content = block * (size // len(block))
    path.write_bytes(content)
    return content


# --- handshakes on a core ---


@contextlib.contextmanager
def _on_two_cores() -> Iterator[int]:
    """Have this process and its children keep to one core while the block runs, and yield another."""
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        raise RuntimeError("server and clients need a core each")
    servers, clients, *_ = sorted(usable)
    os.sched_setaffinity(0, {clients})
    try:
        yield servers
    finally:
        os.sched_setaffinity(0, usable)


def _on_core(server: Server, core: int) -> Server:
    def commands(run: Run) -> list[list[str]]:
        return [["taskset", "-c", str(core), *command] for command in server.commands(run)]

    return replace(server, commands=commands)


def _shake(it: Running, seconds: int, path: str = "") -> Mapping[str, float]:
    """Have clients do nothing but full handshakes, and ask for `path` on each, if it is given."""
    command = ["openssl", "s_time", "-connect", it.run.address, "-new", "-time", str(seconds)]
    command += ["-www", path] if path else []
    logged = it.logged() or 0
    watch = Watch(it)
    clients: list[subprocess.Popen[str]] = []
    try:
        for _ in range(SHAKERS):
            started = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            clients.append(started)
        said = [each.communicate(timeout=seconds + 20)[0] for each in clients]
    finally:
        for each in clients:
            each.kill()
            each.wait()
    used = watch.used()
    found = [_S_TIME.search(text) for text in said]
    if not all(found):
        raise RuntimeError(f"openssl s_time: {said[0][-300:]}")
    count = sum(int(each[1]) for each in found if each)
    limit = time.monotonic() + PATIENCE_S
    while path and (it.logged() or 0) - logged < count:
        if time.monotonic() > limit:
            raise RuntimeError(f"{it.server.name} has logged fewer requests than the {count} of s_time")
        time.sleep(0.1)
    return {
        "a second": count / used.took_s,
        "a core second": count / used.server_s,
        "CPU us": used.server_s / count * 1e6,
        "cores": used.server_s / used.took_s,
        "others": used.others,
    }


# --- ways to replace a certificate ---


def _rename_both(pair: PairFiles, made: Made) -> None:
    _rename(pair.key, made.key_pem())
    _rename(pair.certificate, made.chain_pem)


def _rename_one_after_the_other(pair: PairFiles, made: Made) -> None:
    _rename(pair.certificate, made.chain_pem)
    time.sleep(4.0)  # longer than between two looks
    _rename(pair.key, made.key_pem())


def _write_in_place(pair: PairFiles, made: Made) -> None:
    for path, text in ((pair.certificate, made.chain_pem), (pair.key, made.key_pem())):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
            file.flush()
            time.sleep(2.0)
            file.write(text[len(text) // 2 :])


def _write_rubbish_first(pair: PairFiles, made: Made) -> None:
    pair.certificate.write_text("rubbish")
    time.sleep(4.0)
    pair.certificate.unlink()
    time.sleep(4.0)
    _rename_both(pair, made)


WAYS_TO_REPLACE = (_rename_both, _write_in_place, _rename_one_after_the_other, _write_rubbish_first)


def _rename(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_text(text)
    new.replace(path)


def _await_certificate(port: int, made: Made) -> float:
    """Return after how many seconds it is served. Raises RuntimeError if it is not."""
    began = time.monotonic()
    while time.monotonic() - began < REPLACED_LIMIT_S:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection,
            client_context().wrap_socket(connection) as secured,
        ):
            if secured.getpeercert(True) == made.der:
                return time.monotonic() - began
        time.sleep(0.1)
    raise RuntimeError(f"what was replaced is not served after {REPLACED_LIMIT_S:g} s")


if __name__ == "__main__":
    sys.exit(main())
