"""hardserve: one process on one port that serves a Flask app safely.

The life of a request:

    I/O thread (edge)          a connection is accepted (admission), with TLS its handshake is done (tls, and a helper
                               thread that computes), its bytes become a request (parsing),
                               and the request passes the gate or is refused (pages); a file is answered at once
                               (files.static), from memory, or with what a file thread has looked up
    queue                      complete requests wait for a worker (wsgi.workers), no client's for all of them
    worker thread (wsgi)       the app is called (task), its response checked and framed (response), and sent through
                               the connection, in one send when it fits
    I/O thread                 sends files, and what the client was too slow to take (outbox), reads the next request,
                               ends who is late (deadlines) or takes too much (readers, budget), and answers for a
                               worker that does not come back (wsgi.watch)

`hardserve.server` wires these together; `hardserve.ops` is what surrounds the process: logs and the banner.
Importing this package starts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from hardserve.server import Server

__all__ = ["__version__", "serve"]

__version__ = "0.1.0"


def serve(app: Any, *, ready: Callable[[Server], None] | None = None, **settings: object) -> int:
    """Serve the WSGI callable `app` until stopped, as the command does; return the exit code.

    `settings` are the command's flags with underscores, such as `bind="0.0.0.0:8000"` or `timeouts_header="5s"`; no
    file and no environment variable is read. `ready` is called once connections are accepted, on the calling thread,
    with the `Server`: its `urls` say where, and its `stop`, from any thread, ends this call.

    Signals are handled if this is the main thread, and what handled them before does again at the end. Python's root
    logger is given a handler. Raises `hardserve.options.SettingsError` for settings, `hardserve.loader.LoadError` for
    an app in debug mode and `hardserve.edge.listener.ListenError` for an address in use.
    """
    from hardserve.inherited import with_passed  # noqa: PLC0415  # importing hardserve must cost nothing
    from hardserve.loader import check_app  # noqa: PLC0415
    from hardserve.ops.logs import configure  # noqa: PLC0415
    from hardserve.options import from_keywords  # noqa: PLC0415
    from hardserve.service import run  # noqa: PLC0415
    from hardserve.successor import Started  # noqa: PLC0415

    started = Started.now()
    chosen = from_keywords(**settings)
    chosen = with_passed(chosen, started.passed, lambda key: key.removeprefix("server.") in settings)
    check_app(app)
    name = getattr(app, "name", None) or type(app).__name__
    return run(app, name, chosen, configure(chosen.log), ready, started=started)
