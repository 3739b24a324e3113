"""A real nginx for tests, of one process, that writes nowhere but in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support import PATIENCE_S
from tests.test_http import eventually

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

# Without a master process there is one process, the user is whoever started it, and ending it ends all of it.
CONFIG = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {http}
    server {{
        listen 127.0.0.1:{port};
        {server}
    }}
}}
"""


def has_module(name: str) -> bool:
    """Return whether nginx was built with a module such as "gzip_static"."""
    if NGINX is None:
        return False
    told = subprocess.run([NGINX, "-V"], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return f"--with-http_{name}_module" in told.stderr


@contextlib.contextmanager
def serving_with_nginx(directory: Path, server: str, *, http: str = "") -> Iterator[int]:
    """Run nginx with `server` in its server block and `http` around it; yield its port on 127.0.0.1.

    What it writes is in `directory`. It is ended by its process id when the block ends.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config = directory / "nginx.conf"
    config.write_text(CONFIG.format(directory=directory, port=port, server=server, http=http))
    error_log = directory / "error.log"
    process = subprocess.Popen(
        [str(NGINX), "-p", str(directory), "-c", str(config), "-e", str(error_log)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def listens() -> bool:
            assert process.poll() is None, error_log.read_text()
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        eventually(listens)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE_S)
