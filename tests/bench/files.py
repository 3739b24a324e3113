"""One command that holds the serving of files to its bars: `python -m tests.bench.files`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.slowfs import Unavailable, slow_filesystem

from .command import Sampled, from_1_to, has_programs, parser, run
from .files_clients import ADDRESSES, download, downloaders
from .files_servers import NGINX, WHITENOISE, Mounts, nginx, ours, whitenoise
from .hostile_normal import NormalClient
from .limits import of_felt, of_loads
from .limits_load import Load, Watch, drive
from .peers import OURS, REPOSITORY, Run, Server
from .process import Running, free_port, running
from .report import MIB, compare, spread

PARTS = {
    "small": "a file of 10 KiB, against WhiteNoise on waitress and nginx",
    "unmodified": "304s for it",
    "large": "a file of 100 MiB on one connection, against nginx with sendfile",
    "slow": "Flask hello while {slow} clients load 100 MiB slowly",
    "hello": "what compression and headers cost a page of 200 bytes",
    "start": "what {files:,} files in a mount cost at start",
    "cold": "Flask hello and a file in memory while others load from a slow disk, and nginx's default beside it",
}
SLOW_CLIENTS, SLOW_RATE = 200, 64 * 1024
COLD_CLIENTS, COLD_RATE, COLD_READ_S = 8, 64 * MIB, 0.050
FILES = 100_000
KIB = 1024
SMALL_BYTES, LARGE_BYTES = 10 * KIB, 100 * MIB
PROBE_RATE = 100

_EPILOG = """\
Parts:
{parts}

Rounds are interleaved: each starts every server afresh, the first one by turns; ratios are taken within
a round, printed are medians. Before anything is measured, status and body of the answer are compared.
hardserve has default settings but for its rate limit, and `--static /media=DIR`. Every server keeps an
access log but waitress, which has none.

small, unmodified: wrk, {connections} kept connections. CPU us is the server's processor time for a request.
large: curl, one connection, {downloads} downloads one after the other. "cores" is the server's processor
time in a second; the client is the same for both and has the other core to itself.
slow: {slow} clients from {addresses} addresses read 64 KiB a second each with small buffers. Requests a second
with them against the mean of before and after.
hello: two servers, one with and one without, loaded in turns (A B B A, then B A A B) with the
Accept-Encoding of a browser. The bar is smaller than the noise of one round: do many.
start: hello's first answer from exec, and RSS half a second later, with the mount and without.
cold: the disk is a FUSE file system of ours that takes {read_ms:g} ms for a READ, every open is cold; {cold}
clients load a file each while normal clients ask for `/` and for a small file of another mount, {rate}
times a second each, sent when due. Needs root and /dev/fuse.

Exit code 1 when a bar is missed. On two cores, do nothing else meanwhile: "others" is the share of
the machine that went elsewhere.
"""

DEFAULTS_OFF = (
    *("--compression-responses=off", "--headers-content-type-options=off", "--headers-frame-options=off"),
    *("--headers-referrer-policy=off", "--headers-permissions-policy=off"),
    "--headers-content-security-policy=off",
)
BROWSER = {"Accept-Encoding": "gzip, deflate, br, zstd"}
_DOWNLOADS_A_SECOND = 5
_SETTLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    digest: str


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if not has_programs({"wrk": "wrk", "curl": "curl", "nginx": "nginx-light"}):
        return 1
    with tempfile.TemporaryDirectory(prefix="hardserve-files-") as directory:
        return run(Bench(options, Path(directory)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    epilog = _EPILOG.format(
        parts="{parts}",
        connections=32,
        downloads=f"{_DOWNLOADS_A_SECOND} times --seconds",
        slow=SLOW_CLIENTS,
        addresses=ADDRESSES,
        read_ms=COLD_READ_S * 1000,
        cold=COLD_CLIENTS,
        rate=PROBE_RATE,
    )
    parts = {name: what.format(slow=SLOW_CLIENTS, files=FILES) for name, what in PARTS.items()}
    found = parser("files", parts, description=__doc__, epilog=epilog)
    option = found.add_argument
    option("--rounds", type=from_1_to(100), help="of each part (default 12 of hello, else 3)")
    option("--seconds", type=from_1_to(60), default=3, help="of load in one sample (default 3)")
    option("--connections", type=from_1_to(256), default=32, help="of wrk (default 32)")
    option("--without", action="store_true", help="only the others: nothing of hardserve is measured")
    return found.parse_args(arguments)


class Bench(Sampled):
    """The parts, the bars they were held to, and what else they found. All they make is in `directory`."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        super().__init__(options)
        self._directory = directory

    # --- parts ---

    def small(self) -> None:
        media = self._directory / "small"
        content = _fill(media / "photo.jpg", SMALL_BYTES)

        def measure(it: Running) -> Mapping[str, float]:
            self._expect(it, "/media/photo.jpg", 200, content)
            return self._load(it, "/media/photo.jpg")

        self._compare("small", [ours, whitenoise, nginx], {"/media": media}, measure)
        self._bar_against("small", WHITENOISE, "10 KiB, req/s against WhiteNoise on waitress", 5.0)
        self._bar_against("small", NGINX, "10 KiB, req/s against nginx", 0.3)

    def unmodified(self) -> None:
        media = self._directory / "unmodified"
        content = _fill(media / "photo.jpg", SMALL_BYTES)

        def measure(it: Running) -> Mapping[str, float]:
            whole = self._expect(it, "/media/photo.jpg", 200, content)
            asked = {"If-None-Match": whole.headers["etag"]}
            self._expect(it, "/media/photo.jpg", 304, b"", asked)
            return self._load(it, "/media/photo.jpg", asked)

        self._compare("unmodified", [ours, whitenoise, nginx], {"/media": media}, measure)
        self._bar_against("unmodified", NGINX, "304, req/s against nginx", 0.3)

    def large(self) -> None:
        media = self._directory / "large"
        content = _fill(media / "video.mp4", LARGE_BYTES)

        def measure(it: Running) -> Mapping[str, float]:
            self._expect(it, "/media/video.mp4", 200, content)
            watch = Watch(it)
            times = _DOWNLOADS_A_SECOND * self.options.seconds
            done = download(it.url("/media/video.mp4"), times, len(content))
            used = watch.used()
            return {
                "MB/s": done.bytes / done.took_s / 1e6,
                "cores": used.server_s / done.took_s,
                "CPU ms/GiB": used.server_s * 1000 / (done.bytes / (1 << 30)),
                "others": used.others,
            }

        self._compare("large", [ours, nginx], {"/media": media}, measure)
        self._bar_against("large", NGINX, "100 MiB, throughput against nginx", 0.9, figure="MB/s")
        # At the rate of nginx: whoever sends the same in half the time is as busy for half as long.
        rates = [figures["MB/s"] * 1e6 / (1 << 30) for figures in self.results["large"].get(NGINX, []) if figures]
        rate = median(rates) if rates else 0.0
        more = self.against("large", OURS, NGINX, "CPU ms/GiB", lambda a, b: (a - b) / 1000 * rate)
        self.bar("100 MiB, CPU more than nginx, at its rate", 0.10, "cores", more)

    def slow(self) -> None:
        media = self._directory / "slow"
        content = _fill(media / "video.mp4", LARGE_BYTES)
        for _ in range(self._own_rounds(3)):
            with self._serving(ours({"/media": media})) as it:
                self._expect(it, "/media/video.mp4", 200, content)
                self._warm_up(it)
                before = self._drive(it)
                time.sleep(_SETTLE_S)
                empty = it.memory().rss_bytes
                with downloaders(it.run.port, SLOW_CLIENTS, SLOW_RATE, "/media/video.mp4", REPOSITORY) as clients:
                    time.sleep(2.0)  # each has read a piece or two, so all buffers are as full as they get
                    during = self._drive(it)
                    full = it.memory().rss_bytes
                    fates = clients.close()
                time.sleep(2 * _SETTLE_S)
                after = self._drive(it)
            without = (before.rps + after.rps) / 2
            sample = {"rps without": without, "rps with": during.rps, "kept": during.rps / without}
            sample |= {"grown MB": (full - empty) / 1e6, "others": during.used.others}
            sample |= {"MB/s read": fates.bytes / fates.took_s / 1e6, "clients' CPU": fates.cpu_share}
            self.add("slow", OURS, sample)
            if fates.open != SLOW_CLIENTS or fates.slowest < SLOW_RATE:
                self.problems.append(f"slow: {fates.open} of {SLOW_CLIENTS} were left, the slowest got {fates.slowest}")
        found = self.results.get("slow", {}).get(OURS, [])
        what = f"{SLOW_CLIENTS} slow downloads"
        self.bar(f"{what}: Flask hello's req/s, of without", 0.9, "of it", spread(found, "kept"), least=True)
        self.bar(f"{what}: RSS", 20.0, "MB", spread(found, "grown MB"))

    def hello(self) -> None:
        for number in range(self._own_rounds(12)):
            with (
                self._serving(ours({}), app="page:app") as on,
                self._serving(ours({}), *DEFAULTS_OFF, app="page:app") as off,
            ):
                self._expect_headers(on, off)
                for it in (on, off):
                    self._warm_up(it)
                loads: dict[str, list[Load]] = {"on": [], "off": []}
                for name in ("on", "off", "off", "on") if number % 2 == 0 else ("off", "on", "on", "off"):
                    loads[name].append(self._drive(on if name == "on" else off, "/", BROWSER))
            for name, pair in loads.items():
                self.add("hello", name, of_loads(pair))
        found = self.results.get("hello", {})
        on_, off_ = found.get("on", []), found.get("off", [])
        what = "200 bytes of hello, compression and headers on"
        self.bar(f"{what}: req/s of off", 0.98, "times", compare(on_, off_, "rps"), least=True)
        self.bar(f"{what}: CPU of off", 1.02, "times", compare(on_, off_, "CPU us"))

    def start(self) -> None:
        media = self._directory / "many"
        if not self.options.without:
            self._fill_with_many(media)
        for number in range(self._own_rounds(3)):
            for name in ("with", "without") if number % 2 == 0 else ("without", "with"):
                with self._serving(ours({"/media": media} if name == "with" else {})) as it:
                    time.sleep(_SETTLE_S)
                    memory = it.memory().rss_bytes
                    self.add("start", name, {"answer s": it.answer_s, "RSS MB": memory / 1e6})
                    path = f"/media/file-{FILES - 1:06}.txt"
                    self._expect(it, path, 200 if name == "with" else 404, str(FILES - 1).encode() * (name == "with"))
        found = self.results.get("start", {})
        with_, without = found.get("with", []), found.get("without", [])
        for figure, limit, unit in (("answer s", 0.2, "s"), ("RSS MB", 5.0, "MB")):
            more = compare(with_, without, figure, lambda a, b: a - b)
            self.bar(f"{FILES:,} files, more {figure.rpartition(' ')[0]} at start", limit, unit, more)

    def cold(self) -> None:
        source, mountpoint, media = (self._directory / name for name in ("cold", "disk", "hot"))
        mountpoint.mkdir()
        content = _fill(media / "photo.jpg", SMALL_BYTES)
        for number in range(COLD_CLIENTS):
            _fill(source / f"video-{number}.mp4", 0)
            os.truncate(source / f"video-{number}.mp4", LARGE_BYTES)
        try:
            with slow_filesystem(source, mountpoint) as disk:
                disk.delay(read_s=COLD_READ_S)
                mounts = {"/media": media, "/disk": mountpoint}
                for number in range(self.rounds(3)):
                    for make in self._asked([ours, nginx], number):
                        with self._serving(make(mounts)) as it:
                            self._expect(it, "/media/photo.jpg", 200, content)
                            self._probe(it)
        except Unavailable as reason:
            self.problems.append(f"cold: {reason}")
        found = self.results.get("cold", {})
        for what in ("hello", "hot file"):
            p99 = spread(found.get(f"{OURS}, {what}, loaded", []), "p99 ms")
            self.bar(f"cold disk, {what}: 99th percentile, within a read", COLD_READ_S * 1000, "ms", p99)

    # --- what they have in common ---

    def _compare(
        self,
        part: str,
        makers: Sequence[Callable[[Mounts], Server]],
        mounts: Mounts,
        measure: Callable[[Running], Mapping[str, float]],
    ) -> None:
        """In each round, start each server with the mounts and add what `measure` finds of it."""
        for number in range(self.rounds(3)):
            for make in self._asked(makers, number):
                server = make(mounts)
                if reason := server.missing():
                    self.problems.append(f"{part}: {server.name}: {reason}")
                    continue
                with self._serving(server) as it:
                    self.add(part, server.name, measure(it))

    def _asked(self, makers: Sequence[Callable[[Mounts], Server]], number: int) -> Sequence[Callable[[Mounts], Server]]:
        return self.in_turn([make for make in makers if not (self.options.without and make is ours)], number)

    def _own_rounds(self, usual: int) -> int:
        return 0 if self.options.without else self.rounds(usual)

    def _bar_against(self, part: str, peer: str, what: str, limit: float, *, figure: str = "rps") -> None:
        self.bar(what, limit, "times", self.against(part, OURS, peer, figure), least=True)

    @contextlib.contextmanager
    def _serving(self, server: Server, *flags: str, app: str = "hello:app") -> Iterator[Running]:
        with (
            tempfile.TemporaryDirectory(prefix="run-", dir=self._directory) as directory,
            running(server, Run(free_port(), Path(directory), app=app, options=flags)) as it,
        ):
            yield it
            if "Traceback" in it.run.output.read_text(errors="replace"):
                self.problems.append(f"{server.name}: a traceback: {it.last_words()}")

    def _warm_up(self, it: Running) -> None:
        drive(it, 1, self.options.connections)

    def _drive(self, it: Running, path: str = "/", headers: Mapping[str, str] | None = None) -> Load:
        load = drive(it, self.options.seconds, self.options.connections, path, headers or {})
        if wrong := load.refused + load.broken:
            self.problems.append(f"{it.server.name} {path}: {wrong} errors in wrk")
        return load

    def _load(self, it: Running, path: str, headers: Mapping[str, str] | None = None) -> Mapping[str, float]:
        drive(it, 1, self.options.connections, path, headers or {})
        return of_loads([self._drive(it, path, headers)])

    def _probe(self, it: Running) -> None:
        """What normal clients feel when it is quiet, and while others load from the slow disk."""
        probes = {"hello": NormalClient(it.run.port, rate=PROBE_RATE)}
        probes["hot file"] = NormalClient(it.run.port, rate=PROBE_RATE, path="/media/photo.jpg")
        with contextlib.ExitStack() as stack:
            for client in probes.values():
                stack.enter_context(client)
            time.sleep(2 * _SETTLE_S)  # warm up
            self._phase(it, probes, "quiet")
            path = "/disk/video-{}.mp4"
            with downloaders(it.run.port, COLD_CLIENTS, COLD_RATE, path, REPOSITORY) as clients:
                self._phase(it, probes, "loaded")
                fates = clients.close()
        read = {"MB/s read": fates.bytes / fates.took_s / 1e6, "slowest MB": fates.slowest / 1e6}
        self.add("cold", f"{it.server.name}, downloads", read)
        if fates.open != COLD_CLIENTS or not fates.slowest:
            self.problems.append(f"cold: {it.server.name}: {fates.open} of {COLD_CLIENTS} downloads went on")

    def _phase(self, it: Running, probes: Mapping[str, NormalClient], phase: str) -> None:
        watch, began = Watch(it), time.monotonic()
        time.sleep(self.options.seconds)
        used, ended = watch.used(), time.monotonic()
        for name, client in probes.items():
            felt = client.felt(began, ended)
            self.add("cold", f"{it.server.name}, {name}, {phase}", of_felt(felt, used))
            if felt.problems and (phase == "quiet" or it.server.name == OURS):
                self.problems.append(f"cold: {it.server.name}, {name}, {phase}: not answered: {felt.problems}")

    def _fill_with_many(self, directory: Path) -> None:
        self.note(f"start: making {FILES:,} files")
        directory.mkdir()
        for number in range(FILES):
            (directory / f"file-{number:06}.txt").write_bytes(str(number).encode())

    # --- is it right at all? ---

    def _expect(
        self, it: Running, path: str, status: int, content: bytes, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Raises RuntimeError unless one GET is answered so; the content of an error does not matter."""
        answer = get(it.run.port, path, headers or {})
        if answer.status != status or (status < 400 and answer.digest != hashlib.sha256(content).hexdigest()):
            raise RuntimeError(f"{it.server.name}: GET {path}: {answer.status}, not {status} and the file's bytes")
        return answer

    def _expect_headers(self, on: Running, off: Running) -> None:
        names = ("x-content-type-options", "x-frame-options", "referrer-policy")
        for it, wanted in ((on, True), (off, False)):
            answer = get(it.run.port, "/", BROWSER)
            if answer.status != 200 or any((name in answer.headers) is not wanted for name in names):
                raise RuntimeError(f"hello: {'on' if wanted else 'off'} is answered with {dict(answer.headers)}")


def get(port: int, path: str, headers: Mapping[str, str]) -> Answer:
    """Ask once, on a connection of its own; header names of the answer in small letters."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=dict(headers) | {"Connection": "close"})
        answer = connection.getresponse()
        digest = hashlib.sha256()
        while block := answer.read(MIB):
            digest.update(block)
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, digest.hexdigest())
    finally:
        connection.close()


def _fill(path: Path, size: int) -> bytes:
    """Make a file, and its directory, of random bytes; returns them."""
    path.parent.mkdir(exist_ok=True)
    block = os.urandom(min(size, MIB))
    content = block * (size // len(block)) if block else b""
    path.write_bytes(content)
    return content


if __name__ == "__main__":
    sys.exit(main())
