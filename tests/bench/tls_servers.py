"""Servers with TLS: nginx as the other benchmarks have it, alone and in front of gunicorn. hardserve has flags."""

from __future__ import annotations

import socket
from dataclasses import replace

from hardserve.tls.policy import PairFiles
from tests.certs import client_context

from .peers import SERVERS, Run, Server
from .process import Running

# Workers and threads; the first is what `python -m tests.bench` has.
GUNICORN = {(1, 4): "nginx, gunicorn 1 x 4", (1, 8): "nginx, gunicorn 1 x 8", (2, 8): "nginx, gunicorn 2 x 8"}


class TlsRunning(Running):
    __slots__ = ()

    def url(self, path: str = "/") -> str:
        return f"https://{self.run.address}{path}"

    def secured(self, connected: socket.socket) -> socket.socket:
        return client_context().wrap_socket(connected)


def behind_tls(server: Server, pair: PairFiles) -> Server:
    """Return a server whose nginx has TLS where it listens, and is as it was in all else."""

    def commands(run: Run) -> list[list[str]]:
        found = server.commands(run)
        path = run.directory / "nginx.conf"
        path.write_text(with_tls(path.read_text(), run, pair))
        return found

    return replace(server, commands=commands)


def with_tls(config: str, run: Run, pair: PairFiles) -> str:
    """Return a configuration of nginx with TLS. Raises ValueError if it listens in no place that is known."""
    before, listen, after = config.partition(f"listen {run.address} backlog=1024;")
    if not listen:
        raise ValueError(f"nginx: nothing listens at {run.address}")
    return f"""{before}listen {run.address} ssl backlog=1024;
        ssl_certificate {pair.certificate};
        ssl_certificate_key {pair.key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:10m;{after}"""


def gunicorn_behind_nginx(size: tuple[int, int], pair: PairFiles) -> Server:
    """Return nginx with TLS in front of gunicorn as the other benchmarks have it, with so many workers and threads."""
    plain = SERVERS["nginx-gunicorn"]
    workers, threads = map(str, size)

    def commands(run: Run) -> list[list[str]]:
        app, front = plain.commands(run)
        return [[*app[:-1], "--workers", workers, "--threads", threads, app[-1]], front]

    return behind_tls(replace(plain, name=GUNICORN[size], note="", commands=commands), pair)
