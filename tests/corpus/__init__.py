"""Reads the corpus: what a client sends, and what has to come of it. The format is described in README.md beside this.

Nothing here knows the server: how the cases are delivered is the affair of the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY = Path(__file__).parent

_REPEATED = re.compile(r"\{([^{}]+)\*(\d+)\}")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.)|$)")
_PLAIN_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}
_REFUSED = re.compile(r"(\d{3}) ([a-z_]+)")
_ACCEPTED = re.compile(r"200 ([!-~]+)(?: ([!->@-~]*)(?:\?([!-~]*))?)?")
NGINX_VERDICTS = ("refuses", "accepts and goes on", "accepts and closes", "reads it otherwise")


@dataclass
class Case:
    """One thing that a client sends, and its outcome.

    `status` is 0 where nothing is answered, because something is missing; `reason` is the name of a refusal, "" where
    the request is served. The rest is what the app has to see then. `closes` is whether the connection ends.
    """

    file: str
    title: str
    line: int
    why: str = ""
    sent: bytes = b""
    status: int = -1
    reason: str = ""
    method: str = ""
    path: str = ""
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    body: bytes = b""
    closes: bool = False
    nginx: str = ""  # one of NGINX_VERDICTS, where nginx does otherwise
    nginx_because: str = ""

    @property
    def name(self) -> str:
        return f"{self.file}: {self.title}"

    @property
    def served(self) -> bool:
        return self.status == 200


class CorpusError(ValueError):
    """Something in a file is not of the format."""


def read_text(text: str) -> str:
    """Return what a line stands for, one character for each byte."""
    if not text.isascii() or not text.isprintable():
        raise CorpusError("only printable ASCII may stand in a line; write other bytes as escapes")
    text = _REPEATED.sub(lambda found: found[1] * int(found[2]), text)
    if "{" in text or "}" in text:
        raise CorpusError("a brace that repeats nothing is written \\x7b or \\x7d")
    return _ESCAPE.sub(_read_escape, text)


def _read_escape(found: re.Match[str]) -> str:
    if found[1]:
        return chr(int(found[1], 16))
    if found[2] not in _PLAIN_ESCAPES:
        raise CorpusError(f"{found[0]!r} is no escape")
    return _PLAIN_ESCAPES[found[2]]


def read_file(path: Path) -> list[Case]:
    """Return the cases of one file. Raises CorpusError, which says where."""
    cases: list[Case] = []
    for number, line in enumerate(path.read_text().split("\n"), 1):
        try:
            if line.startswith("# "):
                cases.append(Case(path.stem, line[2:].strip(), number))
            elif cases and line.strip():
                _read_line(cases[-1], line)
        except CorpusError as error:
            raise CorpusError(f"{path.name}:{number}: {error}") from None
    for case in cases:
        missing = [name for name in ("why", "sent") if not getattr(case, name)]
        if missing or case.status < 0:
            raise CorpusError(f"{path.name}:{case.line}: no {', '.join(missing) or 'outcome'}")
    return cases


def _read_line(case: Case, line: str) -> None:
    mark, _, rest = line.partition(" ")
    if mark == ">":
        if case.status >= 0:
            raise CorpusError("what is sent stands before its outcome")
        case.sent += read_text(rest).encode("latin-1")
    elif mark == "for:":
        case.why = rest
    elif mark == "nginx:":
        _read_nginx(case, rest)
    elif mark == "=":
        _read_outcome(case, rest)
    elif line.startswith("  ") and case.status >= 0:
        _read_detail(case, line.strip())
    elif line.startswith("  ") and case.nginx and not case.sent:
        case.nginx_because += " " + line.strip()
    elif line.startswith("  ") and case.why and not case.sent:
        case.why += " " + line.strip()
    else:
        raise CorpusError("expected a line that begins with 'for:', 'nginx:', '>', '=' or two spaces")


def _read_nginx(case: Case, text: str) -> None:
    case.nginx, because, case.nginx_because = text.partition(" because ")
    if case.nginx not in NGINX_VERDICTS or not because or not case.nginx_because:
        raise CorpusError(f"expected one of {', '.join(NGINX_VERDICTS)}, then 'because' and why ours is right")


def _read_outcome(case: Case, text: str) -> None:
    if text == "nothing":
        case.status = 0
    elif found := _ACCEPTED.fullmatch(text):
        case.status, case.method = 200, found[1]
        case.path, case.query = read_text(found[2] or ""), read_text(found[3] or "")
    elif found := _REFUSED.fullmatch(text):
        case.status, case.reason, case.closes = int(found[1]), found[2], True
    else:
        raise CorpusError(
            "expected 'nothing', '200 METHOD', '200 METHOD path?query' or a status and the name of a refusal"
        )


def _read_detail(case: Case, text: str) -> None:
    kind, _, rest = text.partition(" ")
    if kind == "body":
        case.body += read_text(rest).encode("latin-1")
    elif kind == "header":
        name, colon, value = rest.partition(":")
        if not colon:
            raise CorpusError("expected 'header Name: value'")
        case.headers[name] = read_text(value.removeprefix(" "))
    elif text.startswith("no header "):
        case.absent.append(text.removeprefix("no header "))
    elif text == "closes":
        case.closes = True
    else:
        raise CorpusError("expected 'body', 'header', 'no header' or 'closes'")


def cases() -> Iterator[Case]:
    """Yield every case of every file."""
    for path in sorted(DIRECTORY.glob("*.txt")):
        yield from read_file(path)


CASES = list(cases())
