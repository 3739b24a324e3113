"""Load for the bars of rate limiting: wrk whose answers may be refusals, and what else used the machine meanwhile.

Must not know which limit a server has.
"""

from __future__ import annotations

import http.client
import os
import re
import resource
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from . import wrk
from .hostile import cpu_s
from .process import Running, machine_busy_s

_REFUSED = re.compile(r"Non-2xx or 3xx responses: (\d+)")


@dataclass(frozen=True, slots=True)
class Used:
    """What a stretch of time cost: the server's processor time, and the share of the machine that others took."""

    took_s: float
    server_s: float
    others: float


class Watch:
    """Measures from when it is made to `used`. Processes of the benchmark that end in between are not others."""

    def __init__(self, it: Running) -> None:
        self._it = it
        self._began = time.monotonic()
        self._server_s = cpu_s(it)
        self._own_s = _own_s()
        self._busy_s = machine_busy_s()

    def used(self) -> Used:
        took_s = time.monotonic() - self._began
        server_s = cpu_s(self._it) - self._server_s
        others_s = machine_busy_s() - self._busy_s - server_s - (_own_s() - self._own_s)
        return Used(took_s, server_s, max(0.0, others_s) / took_s / (os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk. `refused` counts answers that were neither 2xx nor 3xx, `broken` connections that failed."""

    requests: int
    rps: float
    p50_ms: float
    refused: int
    broken: int
    server_us: float
    used: Used


def drive(it: Running, seconds: int, connections: int, path: str = "/", headers: Mapping[str, str] = {}) -> Load:
    """Keep `connections` from 127.0.0.1 busy for `seconds`. Raises RuntimeError when wrk fails."""
    watch = Watch(it)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += [argument for name, value in headers.items() for argument in ("-H", f"{name}: {value}")]
    command.append(it.url(path))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + 20, start_new_session=True, check=False
    )
    used = watch.used()
    if done.returncode != 0:
        raise RuntimeError(f"wrk: {(done.stderr or done.stdout).strip()}")
    load = wrk.parse(done.stdout)
    refused = sum(int(count) for count in _REFUSED.findall(done.stdout))
    server_us = used.server_s / max(1, load.requests) * 1e6
    return Load(load.requests, load.rps, load.p50_ms, refused, load.errors - refused, server_us, used)


def ask(it: Running, path: str, source: str) -> str:
    """Return what the server says to one GET from the address `source`. Raises RuntimeError unless that is 200."""
    connection = http.client.HTTPConnection("127.0.0.1", it.run.port, timeout=10, source_address=(source, 0))
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        said = answer.read().decode("latin-1")
        if answer.status != 200:
            raise RuntimeError(f"GET {path} from {source}: {answer.status} {said.strip()}")
        return said
    finally:
        connection.close()


def _own_s() -> float:
    """Processor time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
