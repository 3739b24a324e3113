"""Drives a server with wrk and reads what it prints. Must not know which server it is."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

CONNECTIONS = 32

_UNIT_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk measured. `errors` counts broken connections, timeouts and non-2xx answers."""

    requests: int
    rps: float
    p50_ms: float
    p99_ms: float
    errors: int


def drive(url: str, seconds: float) -> Load:
    """Keep 32 connections busy for `seconds` (whole seconds, at least 1) and return the figures.

    Raises RuntimeError when wrk fails, and subprocess.TimeoutExpired when it hangs.
    """
    duration_s = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{duration_s}s", "--latency", url]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=duration_s + 20, start_new_session=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"wrk: {(done.stderr or done.stdout).strip()}")
    return parse(done.stdout)


def parse(output: str) -> Load:
    """Read wrk's text. Raises ValueError when a figure is not there."""
    errors = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", output))
    errors += sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    return Load(
        requests=int(_find(r"(\d+) requests in ", output)),
        rps=float(_find(r"Requests/sec:\s+([\d.]+)", output)),
        p50_ms=_milliseconds(_find(r"^\s+50%\s+(\S+)", output)),
        p99_ms=_milliseconds(_find(r"^\s+99%\s+(\S+)", output)),
        errors=errors,
    )


def _find(pattern: str, output: str) -> str:
    found = re.search(pattern, output, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk's output has no {pattern!r}")
    return found[1]


def _milliseconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text)
    if found is None:
        raise ValueError(f"wrk gave {text!r} where a time belongs")
    return float(found[1]) * _UNIT_MS[found[2]]
