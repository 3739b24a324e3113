"""Who serves the files, each as its manual says: hardserve with mounts, nginx with sendfile, WhiteNoise on waitress.

`python -m tests.bench.files_servers HOST:PORT URL=DIRECTORY` is the last of them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

from .peers import OURS, SERVERS, Run, Server, nginx_command, nginx_frame

NGINX, WHITENOISE = "nginx", "whitenoise"

Mounts = Mapping[str, Path]
"""URL prefix ("/media") → directory"""


def ours(mounts: Mounts) -> Server:
    """Return hardserve with these mounts; the flags of a run come after them."""
    flags = tuple(f"--static={url}={directory}" for url, directory in mounts.items())
    return dataclasses.replace(
        SERVERS[OURS],
        commands=lambda run: SERVERS[OURS].commands(dataclasses.replace(run, options=(*flags, *run.options))),
    )


def nginx(mounts: Mounts) -> Server:
    """Return an nginx of one worker that serves these, and answers `/` itself."""
    note = "1 worker, sendfile, access log, no gzip"
    return Server(NGINX, note, ("nginx",), "access", lambda run: [nginx_command(run, nginx_config(run, mounts))])


def nginx_config(run: Run, mounts: Mounts) -> str:
    locations = "".join(f"        location {url}/ {{ alias {directory}/; }}\n" for url, directory in mounts.items())
    return nginx_frame(
        run,
        f"""\
    sendfile on;
    tcp_nopush on;
    gzip off;
    default_type application/octet-stream;
    server {{
        listen {run.address} backlog=1024;
        location = / {{ return 200 "Hello, World!"; }}
{locations}    }}
""",
    )


def whitenoise(mounts: Mounts) -> Server:
    """Return WhiteNoise around Flask's hello on waitress; it has one mount and no access log."""
    ((url, directory),) = mounts.items()

    def commands(run: Run) -> list[list[str]]:
        return [[sys.executable, "-m", __name__, run.address, f"{url}={directory}"]]

    return Server(WHITENOISE, "on waitress, 4 threads; no access log", ("whitenoise", "waitress"), "", commands)


def main(address: str, mount: str) -> None:
    import waitress
    from whitenoise import WhiteNoise  # type: ignore[import-untyped]

    from .app.hello import app

    url, _, directory = mount.partition("=")
    waitress.serve(WhiteNoise(app.wsgi_app, root=directory, prefix=url.strip("/") + "/"), listen=address, threads=4)


if __name__ == "__main__":
    main(*sys.argv[1:])
