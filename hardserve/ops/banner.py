"""What the server says when it is ready: where it listens and what protects it, in at most ten lines.

Main thread, once. It formats settings and addresses it is given and knows nothing of what they do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TextIO

from hardserve.ops.logfile import Destination, destination
from hardserve.settings import Settings

# More addresses than this are counted instead: the tenth line is not far.
URLS_SHOWN = 4

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def banner(
    settings: Settings,
    *,
    app: str,
    urls: Sequence[str],
    version: str,
    files: Sequence[str] = (),
    certificate: str = "",
    stream: TextIO,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Write the banner to `stream`, in colour if it is a terminal. A stream that cannot be written to is no error."""
    try:
        there = destination(stream.fileno(), os.environ if environ is None else environ)
    except (OSError, ValueError):  # a stream without a descriptor, or closed
        there = Destination.PLAIN
    colour = there is Destination.COLOUR_TERMINAL
    lines = banner_lines(
        settings,
        app=app,
        urls=urls,
        version=version,
        files=files,
        certificate=certificate,
        colour=colour,
    )
    try:
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()
    except (OSError, ValueError):
        return


def banner_lines(
    settings: Settings,
    *,
    app: str,
    urls: Sequence[str],
    version: str,
    files: Sequence[str] = (),
    certificate: str = "",
    colour: bool = False,
) -> list[str]:
    """Return the banner's lines.

    `urls` are the addresses in use, `app` is the app as the operator named it, `files` are the URLs whose files are
    served without it, `certificate` is what is said of that.
    """
    server, timeouts, limits, log = settings.server, settings.timeouts, settings.limits, settings.log
    bold, dim, plain = (_BOLD, _DIM, _PLAIN) if colour else ("", "", "")
    sizes = f"request line {_size(limits.request_line)}, head {_size(limits.header)}, body {_size(limits.body)}"
    deadlines = (
        f"head {_duration(timeouts.header)}, body {_duration(timeouts.body)}, "
        f"response {_duration(timeouts.response)}, keep-alive {_duration(timeouts.keep_alive)}"
    )
    rows = {
        "listening": "  ".join(_some(urls)),
        "certificate": certificate,
        "workers": f"{server.threads} thread{'s' * (server.threads != 1)}, queue {server.queue:,}",
        "sizes": sizes,
        "deadlines": deadlines,
        "limits": f"{limits.connections:,} connections, {limits.header_count} header fields",
        "logs": _logs(log.access, log.error, log.level, log.max_size),
        "stop": f"SIGTERM or Ctrl-C, requests in progress get {_duration(server.drain)}",
    }
    if files:
        rows["files"] = f"{', '.join(_some(files))} without a worker"
    lines = [f"{bold}hardserve {version}{plain} serving {bold}{_printable(app)}{plain}"]
    lines += [f"  {dim}{name:<11}{plain} {_printable(text)}" for name, text in rows.items() if text]
    return lines


def _some(urls: Sequence[str]) -> list[str]:
    shown = list(urls[:URLS_SHOWN])
    if len(urls) > URLS_SHOWN:
        shown.append(f"and {len(urls) - URLS_SHOWN} more")
    return shown


def _logs(access: str, error: str, level: str, max_size: int) -> str:
    rotated = f", rotated at {_size(max_size)}" if max_size else ""
    return f"access {access}, errors {error} from {level}{rotated}"


def _printable(text: str) -> str:
    """Escape what does not print, such as a newline in the path of a socket."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def _size(size_bytes: int) -> str:
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit and size_bytes % unit == 0:
            return f"{size_bytes // unit:,} {name}"
    return f"{size_bytes:,} B"


def _duration(seconds: float) -> str:
    if seconds >= 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:g}h"
    # A minute reads best as the 60s it was set as.
    if seconds >= 120 and seconds % 60 == 0:
        return f"{seconds / 60:g}m"
    return f"{seconds:g}s"
