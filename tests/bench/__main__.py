"""One command that measures hardserve against its peers on this machine: `python -m tests.bench`."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from . import report, wrk
from .command import has_programs
from .idle import idle_clients
from .peers import ABLATIONS, APP_DIRECTORY, OURS, REPOSITORY, SERVERS, Run, Server, program
from .process import Running, StartError, environment, free_port, machine_busy_s, running
from .report import SLEEP_S, SLEEP_THREADS, Results, Sample

_EPILOG = """\
Servers: {servers}.

Rounds are interleaved (every server once, then again), each with a freshly started server whose
warm-up is thrown away; printed are medians with the lowest and the highest. Ratios are taken within
a round. wrk runs beside the server (-t1 -c32), so on two cores it takes part of one.

RSS is the sum over a server's processes; PSS counts what they share once. "-import s" is the time
from exec to the first answer less the time that `import hello` takes in the same interpreter.
"Logged" is how many of the requests are in the access log. "Others" is the share of the machine that
went neither to the server nor to wrk: when it is not near zero, figures come out too low or, for
threaded servers, too high: measure again.

wrk is one client with 32 connections that it keeps, which is within hardserve's default limits, but
for one: no client may have all threads at once. The sleep part measures threads, so there it may.

Idle connections come from 250 addresses and make one request each; requests a second without
them are measured before they come and after they leave. For that part waitress gets a higher
connection limit and poll(), nginx more worker_connections, hardserve its defaults.

On a quiet machine, about eleven minutes: python -m tests.bench --json bench.json
"""

_SLEEP_SERVERS = [OURS, "waitress"]
_IDLE_SERVERS = [OURS, "nginx-gunicorn", "waitress"]
_IDLE_SERVERS_QUICK = [OURS]
_SETTLE_S = 0.3


def main() -> int:
    options = _arguments()
    if not has_programs({"wrk": "wrk"}):
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that `finally` runs and the servers end
    _raise_file_limit(options.idle + 1000)

    missing = {name: reason for name in options.servers if (reason := SERVERS[name].missing())}
    for name, reason in missing.items():
        print(f"missing: {name}: {reason}")
    bench = Bench(options, [name for name in options.servers if name not in missing])
    try:
        for part in options.parts:
            {"hello": bench.hello, "sleep": bench.sleep, "idle": bench.idle}[part]()
    except KeyboardInterrupt:
        print("\ninterrupted; this is what was measured until then:", file=sys.stderr)
    bars = report.bars(bench.results)
    print("\n" + _as_text(bench.results, bars, options.idle))
    for disturbance in report.disturbed(bench.results):
        print(f"disturbed: {disturbance}")
    for problem in bench.problems:
        print(f"problem: {problem}")
    if options.json:
        document = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": _machine(),
            "versions": _versions(),
            "options": {"rounds": options.rounds, "seconds": options.seconds, "idle": options.idle},
            "servers": {name: SERVERS[name].note for name in options.servers},
            "commands": bench.commands,
            "missing": missing,
            "problems": bench.problems,
            "samples": bench.results,
            "bars": [bar.as_dict() for bar in bars],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if options.require_all and (missing or bench.problems) else 0


class Bench:
    """The parts of the benchmark, their samples, and what went wrong on the way."""

    def __init__(self, options: argparse.Namespace, names: Sequence[str]) -> None:
        self.results: dict[str, dict[str, list[Sample | None]]] = {}
        self.problems: list[str] = []
        self.commands: dict[str, list[list[str]]] = {}
        self._options = options
        self._names = names

    def hello(self) -> None:
        """Requests a second, latency, memory and start-up time, for every server."""
        self._rounds("hello", self._names, self._options.rounds, self._hello)

    def sleep(self) -> None:
        """How much of what eight sleeping threads can do at best is left."""
        names = [name for name in _SLEEP_SERVERS if name in self._names]
        self._rounds("sleep", names, min(3, self._options.rounds), self._sleep)

    def idle(self) -> None:
        """What ten thousand connections that do nothing cost."""
        wanted = _IDLE_SERVERS_QUICK if self._options.quick else _IDLE_SERVERS
        names = [name for name in wanted if name in self._names]
        self._rounds("idle", names, min(3, self._options.rounds), self._idle)

    def _hello(self, server: Server) -> Sample:
        import_s = _import_time()
        with self._start(server) as it:
            time.sleep(_SETTLE_S)
            fresh = it.memory()
            self._warm_up(it)
            logged = it.logged()
            cpu_s, known_s, busy_s, began = it.cpu_s(), _children_s(), machine_busy_s(), time.monotonic()
            load = wrk.drive(it.url(), self._options.seconds)
            cpu_s, busy_s, took_s = it.cpu_s() - cpu_s, machine_busy_s() - busy_s, time.monotonic() - began
            known_s = _children_s() - known_s + cpu_s
            loaded = it.memory()
            sample = {
                "rps": load.rps,
                "p50_ms": load.p50_ms,
                "p99_ms": load.p99_ms,
                "errors": load.errors,
                "rss_bytes": fresh.rss_bytes,
                "pss_bytes": fresh.pss_bytes,
                "processes": fresh.processes,
                "rss_loaded_bytes": loaded.rss_bytes,
                "listening_s": it.listening_s,
                "answer_s": it.answer_s,
                "import_s": import_s,
                "beyond_import_s": it.answer_s - import_s,
                "cpu_us": cpu_s / load.requests * 1e6,
                "others": max(0.0, busy_s - known_s) / took_s / (os.cpu_count() or 1),
            }
            time.sleep(_SETTLE_S)  # an access log may be written a little later
            lines = it.logged()
            if lines is not None and logged is not None:
                sample["logged"] = (lines - logged) / load.requests
            return sample

    def _sleep(self, server: Server) -> Sample:
        ceiling = _python("-m", f"{__package__}.ceiling", directory=REPOSITORY)
        # Ours has eight threads by default: that it needs no flag is part of the promise.
        # But wrk is one client, and by default one thread is kept for others.
        options = (f"--max-client-workers={SLEEP_THREADS}",)
        with self._start(server, threads=None if server.name == OURS else SLEEP_THREADS, options=options) as it:
            self._warm_up(it, "/sleep")
            load = wrk.drive(it.url("/sleep"), max(2.0, self._options.seconds))
            return {
                "rps": load.rps,
                "share": load.rps / (SLEEP_THREADS / SLEEP_S),
                "ceiling_share": ceiling / (SLEEP_THREADS / SLEEP_S),
                "p99_ms": load.p99_ms,
                "errors": load.errors,
            }

    def _idle(self, server: Server) -> Sample:
        count = self._options.idle
        seconds = min(10.0, self._options.seconds)
        with self._start(server, idle=count) as it:
            self._warm_up(it)
            before = wrk.drive(it.url(), seconds)
            time.sleep(_SETTLE_S)
            empty = it.memory()
            with idle_clients(it.run.port, count, REPOSITORY) as clients:
                time.sleep(_SETTLE_S)
                full = it.memory()
                during = wrk.drive(it.url(), seconds)
                still_open = clients.close()
            time.sleep(1.0)  # ten thousand goodbyes are not what is measured
            after = wrk.drive(it.url(), seconds)
            rps_without = (before.rps + after.rps) / 2
            return {
                "kib_each": (full.rss_bytes - empty.rss_bytes) / count / 1024,
                "rps_without": rps_without,
                "rps_with": during.rps,
                "kept": during.rps / rps_without,
                "p99_with_ms": during.p99_ms,
                "open_at_end": still_open,
                "errors": during.errors,
            }

    def _rounds(self, part: str, names: Sequence[str], rounds: int, measure: Callable[[Server], Sample]) -> None:
        samples = self.results[part] = {name: [] for name in names}
        for number in range(1, rounds + 1):
            for name in names:
                try:
                    sample: Sample | None = measure(SERVERS[name])
                except (StartError, RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
                    sample = None
                    self.problems.append(f"{name}, {part}, round {number}: {error}")
                samples[name].append(sample)
                if sample and sample["errors"]:
                    self.problems.append(f"{name}, {part}, round {number}: {sample['errors']:.0f} errors in wrk")
                if sample and sample.get("open_at_end", self._options.idle) != self._options.idle:
                    self.problems.append(f"{name}, {part}, round {number}: idle connections were closed")
                print(f"{part} {number}/{rounds} {name}: {_glance(sample)}", file=sys.stderr, flush=True)

    def _warm_up(self, it: Running, path: str = "/") -> None:
        wrk.drive(it.url(path), 1.0 if self._options.quick else 2.0)

    @contextmanager
    def _start(
        self, server: Server, *, threads: int | None = None, idle: int = 0, options: tuple[str, ...] = ()
    ) -> Iterator[Running]:
        with tempfile.TemporaryDirectory(prefix="hardserve-bench-") as directory:
            run = Run(free_port(), Path(directory), threads, idle, options=options)
            with running(server, run) as it:
                self.commands.setdefault(server.name, [leader.args for leader in it.leaders])  # type: ignore[misc]
                yield it


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog=_EPILOG.format(servers=", ".join(SERVERS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    servers, parts = list(SERVERS), ["hello", "sleep", "idle"]
    option = parser.add_argument
    usual = [name for name in servers if name not in ABLATIONS]
    option("--servers", "--only", type=_names(servers), default=usual, metavar="A,B", help="only these")
    option("--parts", type=_names(parts), default=parts, metavar="A,B", help=f"of {','.join(parts)}")
    option("--seconds", type=int, help="of load in one sample (default 4)")
    option("--rounds", type=int, help="how often all is repeated (default 5; sleep and idle at most 3)")
    option("--idle", type=int, default=10_000, metavar="N", help="idle connections (default 10000)")
    option("--quick", action="store_true", help="one round of a second: a look, not a measurement")
    option("--json", type=Path, metavar="FILE", help="write every sample, versions and machine there")
    option("--require-all", action="store_true", help="fail when a server is missing or does not run")
    options = parser.parse_args()
    options.seconds = options.seconds or (1 if options.quick else 4)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def _as_text(results: Results, bars: Sequence[report.Bar], idle: int) -> str:
    tables = [report.bar_table(bars)]
    if "idle" in results:
        tables.insert(0, report.idle_table(results["idle"], idle))
    if "sleep" in results:
        tables.insert(0, report.sleep_table(results["sleep"]))
    if "hello" in results:
        tables.insert(0, report.hello_table(results["hello"]))
    return "\n\n".join(tables)


def _glance(sample: Sample | None) -> str:
    if sample is None:
        return "failed"
    figures = ("rps", "p99_ms", "kept", "kib_each")
    return ", ".join(f"{name} {sample[name]:,.2f}" for name in figures if name in sample)


def _import_time() -> float:
    """Seconds that importing the app takes in this interpreter: the middle one of three."""
    code = "import time; t = time.perf_counter(); import hello; print(time.perf_counter() - t)"
    return median(_python("-c", code, directory=APP_DIRECTORY) for _ in range(3))


def _python(*arguments: str, directory: Path) -> float:
    """The number that this interpreter prints when it is run as the servers are."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=directory,
            env=environment(Path(home)),
            capture_output=True,
            timeout=30,
            check=True,
            start_new_session=True,
        )
    return float(done.stdout)


def _children_s() -> float:
    """Processor time of the children that have ended: between two calls, that of wrk."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else hard
    if limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < wanted:
        print(f"only {limit} files may be open at once here: the idle part will fail; ulimit -n {wanted}")


def _machine() -> Mapping[str, object]:
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "Model"))
    ]
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_at_end": os.getloadavg()[0],
    }


def _versions() -> Mapping[str, str]:
    # hardserve need not be installed to be measured: it runs from the repository.
    ours = getattr(importlib.import_module("hardserve"), "__version__", "unknown")
    versions = {"python": platform.python_version(), "hardserve": ours}
    for name in ("flask", "werkzeug", "waitress", "gunicorn", "granian", "uwsgi"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    for name in ("nginx", "wrk"):
        if path := program(name):
            said = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=10, check=False)
            versions[name] = (said.stderr + said.stdout).splitlines()[0]
    return versions


if __name__ == "__main__":
    sys.exit(main())
