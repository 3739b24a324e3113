"""A directory as a page of links, for mounts that are set to show them.

Pure functions, any thread; they know no file system. Names in a directory may be anybody's (uploads), so each is
escaped twice: as part of a URL, and as text of the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from urllib.parse import quote

from hardserve.files.tree import MAX_ENTRIES, Entry

CONTENT_TYPE = "text/html; charset=utf-8"

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{margin:2rem auto;max-width:60rem;padding:0 1.25rem;font:1rem/1.5 system-ui,sans-serif}"
    "h1{font-size:1.3rem;overflow-wrap:anywhere}"
    "table{width:100%;border-collapse:collapse}"
    "th{text-align:left}"
    "td:first-child{overflow-wrap:anywhere}"
    "td+td{padding-left:1rem;white-space:nowrap;opacity:.75;font-variant-numeric:tabular-nums}"
)
# The page needs nothing but its own style. Should a name ever come through as markup, it can do nothing.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)
_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<table>
<thead><tr><th>Name</th><th>Size</th><th>Changed (UTC)</th></tr></thead>
<tbody>
"""
_UP = '<tr><td><a href="../">../</a></td><td></td><td></td></tr>\n'
# A name may be written from right to left: <bdi> keeps it from turning around what stands beside it.
_ROW = '<tr><td><a href="{url}"><bdi>{name}</bdi></a></td><td>{size}</td><td>{changed}</td></tr>\n'
_END = """\
</tbody>
</table>
{note}</body>
</html>
"""
_NOTE = f"<p>There is more: only {MAX_ENTRIES:,} entries are shown.</p>\n"


def listing(path: str, entries: Sequence[Entry], *, at_root: bool) -> bytes:
    """Return the page for the directory at `path`, the decoded path of its URL, which ends with a slash.

    Directories come first, then by name; names that are not UTF-8 are left out, since no URL reaches them. Of more
    than `MAX_ENTRIES`, the first are shown and a line says so. `at_root` is for a mount's own directory, which has no
    way up. To be sent as `CONTENT_TYPE`, with `CONTENT_SECURITY_POLICY`.
    """
    named = [(entry, text) for entry in entries if (text := _text(entry.name)) is not None]
    named.sort(key=lambda pair: (not pair[0].is_directory, pair[1].casefold(), pair[1]))
    page = [_HEAD.format(title=escape(f"Index of {path}"), style=_STYLE)]
    if not at_root:
        page.append(_UP)
    page += [_row(entry, text) for entry, text in named[:MAX_ENTRIES]]
    page.append(_END.format(note=_NOTE if len(named) > MAX_ENTRIES else ""))
    return "".join(page).encode("utf-8", "replace")  # a path may have bytes that are no UTF-8


def _text(name: bytes) -> str | None:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def _row(entry: Entry, text: str) -> str:
    slash = "/" if entry.is_directory else ""
    # With "./", a name such as "javascript:x" could not be taken for a scheme even if its colon were left as it is.
    return _ROW.format(
        url=f"./{quote(text, safe='')}{slash}",
        name=escape(text) + slash,
        size="" if entry.is_directory else _size(entry.size),
        changed=_changed(entry.mtime),
    )


def _size(size: int) -> str:
    """Return bytes in the largest unit of which there is at least one: "0 B", "1.5 KiB", "23 MiB"."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1023.5 or unit == "TiB":
            break
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def _changed(mtime: float) -> str:
    try:
        return datetime.fromtimestamp(mtime, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):  # a file system may have any time
        return ""
