"""How each server is started: the same app, the same interpreter, an access log to a file.

Every peer gets the thread count that the bars name, its own defaults for the rest, and where it has
several ways to be run, the fastest that is correct. Only the commands live here; what is measured
is no concern of this module.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
APP_DIRECTORY = Path(__file__).resolve().parent / "app"

_PIP = "pip install -e '.[bench]'"
_APT = "apt-get install {}"


@dataclass(frozen=True, slots=True)
class Run:
    """What one start of a server is told.

    `directory` is its own and empty; `threads` None means its usual number; `idle` is how many
    connections will be held open beside the busy ones. `app` is in the directory of apps, and
    `options` are further flags, of hardserve alone.
    """

    port: int
    directory: Path
    threads: int | None = None
    idle: int = 0
    app: str = "hello:app"
    options: tuple[str, ...] = ()

    @property
    def access_log(self) -> Path:
        return self.directory / "access.log"

    @property
    def output(self) -> Path:
        return self.directory / "output.log"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Server:
    """`logs_to` names the file that gets a line for each request: "access", "output", or "" for none."""

    name: str
    note: str
    needs: tuple[str, ...]
    logs_to: str
    commands: Callable[[Run], list[list[str]]]

    def missing(self) -> str:
        """Why it cannot be started here and what to do about it; "" when it can."""
        for need in self.needs:
            if need == "nginx" and not program("nginx"):
                return f"no nginx program: {_APT.format('nginx-light')}"
            if need == "uwsgi" and not program("uwsgi"):
                return f"no uwsgi program: {_PIP} (needs a C compiler)"
            if need not in {"nginx", "uwsgi"} and importlib.util.find_spec(need) is None:
                return f"{sys.executable} has no package {need}: {_PIP}"
        return ""


def program(name: str) -> str:
    """The path of a program: this interpreter's own environment first; "" when there is none."""
    own = Path(sys.executable).parent
    path = os.pathsep.join([str(own), os.environ.get("PATH", ""), "/usr/sbin"])
    return shutil.which(name, path=path) or ""


def _hardserve(run: Run) -> list[list[str]]:
    command = [sys.executable, "-m", "hardserve", run.app, "--bind", run.address]
    # wrk is one client, and more than that lets in.
    command += ["--rate-limiting-default", "1000000/second", "--rate-limiting-default-burst", "1000000"]
    command += ["--log-access", str(run.access_log), *run.options]
    return [command + (["--threads", str(run.threads)] if run.threads else [])]


def _without(optimisation: str) -> Callable[[Run], list[list[str]]]:
    def commands(run: Run) -> list[list[str]]:
        ((python, _, _, *options),) = _hardserve(run)
        return [[python, "-m", "tests.bench.without", optimisation, *options]]

    return commands


def _waitress(run: Run) -> list[list[str]]:
    command = [sys.executable, "-m", "waitress", f"--listen={run.address}", f"--threads={run.threads or 4}"]
    if run.idle:
        command += [f"--connection-limit={run.idle + 1000}", "--asyncore-use-poll"]
    return [[*command, run.app]]


def _gunicorn_command(run: Run, bind: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "gunicorn", "--bind", bind, *options, run.app]


def _gunicorn(run: Run) -> list[list[str]]:
    options = ["--workers", "1", "--threads", str(run.threads or 4), "--access-logfile", str(run.access_log)]
    return [_gunicorn_command(run, run.address, *options)]


def _uwsgi_command(run: Run, *options: str) -> list[str]:
    command = [program("uwsgi"), "--master", "--processes", "1", "--threads", str(run.threads or 4)]
    command += ["--enable-threads", "--die-on-term", "--need-app", "--module", run.app]
    command += ["--logto", str(run.access_log), *options]
    return command + (["--virtualenv", sys.prefix] if sys.prefix != sys.base_prefix else [])


def _uwsgi(run: Run) -> list[list[str]]:
    return [_uwsgi_command(run, "--http", run.address, "--http-keepalive")]


def _uwsgi_close(run: Run) -> list[list[str]]:
    return [_uwsgi_command(run, "--http-socket", run.address, "--add-header", "Connection: close")]


def _granian(threads: int) -> Callable[[Run], list[list[str]]]:
    def commands(run: Run) -> list[list[str]]:
        command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--workers", "1"]
        command += ["--blocking-threads", str(run.threads or threads), "--access-log"]
        return [[*command, "--host", "127.0.0.1", "--port", str(run.port), run.app]]

    return commands


def _behind_nginx(*gunicorn_options: str, keepalive: bool) -> Callable[[Run], list[list[str]]]:
    def commands(run: Run) -> list[list[str]]:
        app = _gunicorn_command(run, f"unix:{run.directory}/app.sock", *gunicorn_options)
        return [app, nginx_command(run, nginx_config(run, keepalive=keepalive))]

    return commands


def nginx_command(run: Run, config: str) -> list[str]:
    """Write the configuration where the run's files are, and return what starts an nginx with it."""
    path = run.directory / "nginx.conf"
    path.write_text(config)
    return [program("nginx"), "-p", f"{run.directory}", "-c", f"{path}", "-e", f"{run.directory}/nginx-error.log"]


def nginx_config(run: Run, *, keepalive: bool) -> str:
    """An nginx of one worker in front of `app.sock`."""
    return nginx_frame(
        run,
        f"""\
    upstream app {{
        server unix:{run.directory}/app.sock;
        {"keepalive 32;" if keepalive else ""}
    }}
    server {{
        listen {run.address} backlog=1024;
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
""",
    )


def nginx_frame(run: Run, http: str) -> str:
    """An nginx of one worker, everything it writes inside the run's directory; `http` is what it serves."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    temporary = "".join(
        f"    {kind}_temp_path {run.directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
{f"user {user};" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
worker_rlimit_nofile {run.idle + 4096};
pid {run.directory}/nginx.pid;
events {{ worker_connections {run.idle + 2048}; }}
http {{
    access_log {run.access_log} combined;
    keepalive_requests 1000000000;
{temporary}
{http}}}
"""


OURS = "hardserve"
# Measured only when named: they are no peers.
ABLATIONS = {
    f"without-{optimisation}": Server(f"without-{optimisation}", note, ("hardserve",), "access", _without(optimisation))
    for optimisation, note in (("held-calls", "recv and send let go of the interpreter lock"),)
}

SERVERS = {
    server.name: server
    for server in (
        Server(OURS, "default settings (8 threads)", ("hardserve",), "access", _hardserve),
        Server("waitress", "4 threads; it has no access log", ("waitress",), "", _waitress),
        Server("gunicorn", "1 worker, 4 threads", ("gunicorn",), "access", _gunicorn),
        Server(
            "uwsgi",
            "1 process, 4 threads, its HTTP router in front: the one of its setups in which 32 keep-alive "
            "connections are all served and stay open (--http11-socket binds a thread to a connection)",
            ("uwsgi",),
            "access",
            _uwsgi,
        ),
        Server(
            "uwsgi-close",
            "1 process, 4 threads, --http-socket: no router, a new connection for each request",
            ("uwsgi",),
            "access",
            _uwsgi_close,
        ),
        Server("granian-4", "1 worker, 4 blocking threads", ("granian",), "output", _granian(4)),
        Server("granian-1", "1 worker, 1 blocking thread", ("granian",), "output", _granian(1)),
        Server(
            "nginx-gunicorn",
            "nginx (1 worker, the access log is its own), gunicorn 1 worker 4 threads on a Unix socket, "
            "connections between the two kept",
            ("nginx", "gunicorn"),
            "access",
            _behind_nginx("--workers", "1", "--threads", "4", "--keep-alive", "75", keepalive=True),
        ),
        Server(
            "nginx-sync3",
            "nginx (as above), gunicorn 3 sync workers on a Unix socket (sync workers keep no connection)",
            ("nginx", "gunicorn"),
            "access",
            _behind_nginx("--workers", "3", keepalive=False),
        ),
    )
} | ABLATIONS
