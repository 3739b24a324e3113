"""The WSGI environ of a request (PEP 3333). Pure; worker threads."""

from __future__ import annotations

import io
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

from hardserve.protocol import CURRENT_REQUEST

if TYPE_CHECKING:
    from hardserve.wsgi.context import Channel, Identified, Received

FILE_BLOCK_BYTES = 65536

# For which request this thread has made a wrapper for a file. One for HEAD never gets as far as the response.
FILE_FOR: ContextVar[str] = ContextVar("hardserve_file_for", default="")

Environ = dict[str, Any]


def base_environ(*, multithread: bool) -> Environ:
    """Return what the environs of all requests have in common: copying a dict costs less than building one."""
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": file_wrapper,
        "wsgi.input_terminated": True,
        "SCRIPT_NAME": "",
        "SERVER_SOFTWARE": "hardserve",
    }


def file_wrapper(file: Any, block_size: int = FILE_BLOCK_BYTES) -> FileWrapper:
    """Return the `wsgi.file_wrapper` of PEP 3333: blocks of `file` until it ends."""
    FILE_FOR.set(CURRENT_REQUEST.get())
    return FileWrapper(file, max(block_size, FILE_BLOCK_BYTES))


def environ_of(base: Environ, channel: Channel, request: Received) -> Environ:
    """Return the environ of a request; `base` is that of all. Worker threads."""
    listener = channel.listener
    environ = base.copy()
    environ["REQUEST_METHOD"] = request.command
    environ["PATH_INFO"] = request.path
    environ["QUERY_STRING"] = request.query
    environ["REQUEST_URI"] = request.request_uri
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if request.version == "1.1" else "HTTP/1.0"
    environ["SERVER_NAME"] = listener.name
    environ["SERVER_PORT"] = listener.port
    environ["REMOTE_ADDR"], port = request.address, channel.peer[1]
    environ["REMOTE_PORT"] = str(port) if port else ""
    environ["wsgi.input"] = io.BytesIO() if request.body_rcv is None else request.get_body_stream()
    environ["hardserve.client_disconnected"] = channel.client_gone
    environ["hardserve.max_body"] = request.max_body
    environ.update(request.headers)
    environ["HTTP_X_REQUEST_ID"] = request.request_id
    if request.identity is not None or channel.secure:
        _apply_scheme(environ, channel, request.identity)
    if request.user:
        # A character for each byte of UTF-8, as everything in an environ (PEP 3333).
        environ["REMOTE_USER"], environ["AUTH_TYPE"] = request.user.encode().decode("latin-1"), "Basic"
    return environ


def _apply_scheme(environ: Environ, channel: Channel, identity: Identified | None) -> None:
    """Have `environ` say how the client asked: with TLS here, or as the proxy in front says."""
    tls = channel.tls
    if tls is None:
        _apply_identity(environ, identity, secure=channel.secure)
        return
    environ["wsgi.url_scheme"] = "https"
    environ.update(tls.environ)
    if identity is not None:
        _apply_identity(environ, identity, secure=False)
    if environ["wsgi.url_scheme"] == "https":
        environ["HTTPS"] = "on"


def _apply_identity(environ: Environ, identity: Identified | None, *, secure: bool) -> None:
    """Have `environ` say what the client asked of the proxy in front, where the proxy says so."""
    scheme = "https" if secure else ""
    if identity is not None:
        scheme = identity.scheme or scheme
        environ["REMOTE_PORT"] = str(identity.port) if identity.port else ""
        environ["SCRIPT_NAME"] = identity.prefix
        if identity.host:
            environ["HTTP_HOST"] = identity.host
            name, _, port = identity.host.rpartition(":")
            environ["SERVER_NAME"] = name if name and port.isdigit() else identity.host
    if scheme:
        environ["wsgi.url_scheme"] = scheme
    if scheme or (identity is not None and (identity.host or identity.server_port)):
        default = "443" if environ["wsgi.url_scheme"] == "https" else "80"
        port = "" if identity is None else identity.server_port
        host = environ.get("HTTP_HOST", "")
        colon, host_port = host.rpartition(":")[1:]
        if colon and host_port.isdigit():
            port = port or host_port
        elif host and port not in ("", default):
            environ["HTTP_HOST"] = f"{host}:{port}"  # where an app takes the port of its own URLs from
        environ["SERVER_PORT"] = port or default
