"""Request targets that try to leave a directory, made by rule from a seed, and a directory with bait to try them on.

The rules: a way in, some steps up, and a file to reach. Each dot, slash, backslash and NUL of it is written in one of
the ways that some server somewhere has taken for that character: plain, percent-encoded up to three times in either
case, as overlong UTF-8, as a character that looks like it, or as "%u".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

PUBLIC = b"public: for everybody\n"
BAIT = b"bait: for nobody\n"
MOUNT = "mount"

# What there is to reach, from where the mount is; the last few are the system's, and no bait of ours.
OUTSIDE = (
    "bait.txt",
    "outside/bait.txt",
    "outside/deep/bait.txt",
    "mount-private/bait.txt",  # a sibling whose name begins with the mount's
    "mount/.env",
    "etc/passwd",
    "proc/self/environ",
    "windows/win.ini",
)
HIDDEN = (".env", ".git/config", "css/.hidden", ".well-known/.hidden", "leaving/bait.txt", "bait-link", "css/to-hidden")
SERVED = (
    "index.html",
    "css/site.css",
    "css/deep/page.html",
    ".well-known/security.txt",
    "inner-link",
    "inner/site.css",
)

# And how deep in the mount each leads, if anywhere.
_WAYS_IN = (
    *(("/", 0), ("/", 0), ("/", 0), ("//", 0), ("///", 0), ("/./", 0), ("/css/", 1), ("/css/deep/", 2)),
    *(("/css/site.css/", 1), ("/inner/", 1), ("/leaving/", 1), ("/.well-known/", 1), ("/nothing/", 0), ("/C:/", 0)),
    *(("/c:\\", 0), ("/\\", 0), ("/\\\\?\\", 0), ("/\\\\localhost\\c$\\", 0), ("/file:///", 0), ("/~root/", 0)),
)
_STEPS = (
    *("../",) * 6,
    *("..\\", "....//", "....\\\\", "..././", "...\\.\\", "..;/", "..;a=b/", ".../", "..//", "..\0/", ".\0./"),
    *("./../", ".//..//", "css/../../", "..:/", "..%/", "..+/", "~/../"),
)
_ENDS = (
    "",
    "",
    "",
    "",
    "\0",
    "\0.css",
    "/",
    "/.",
    "?",
    "?a=../../",
    "#",
    ";.css",
    "::$DATA",
    ".",
    "%20",
    "%0d%0a",
    "\\",
)

_LOOKALIKES = {
    ".": ("\uff0e", "\u2024", "\u3002", "\uff61", "\u00b7"),
    "/": ("\uff0f", "\u2215", "\u2044", "\u29f8"),
    "\\": ("\uff3c", "\u2216", "\u29f5", "\u29f9"),
    "\0": ("\u2400",),
}
# How a character is written: as which bytes, and how many times those are percent-encoded.
_STYLES = tuple(
    (form, times)
    for form in (*["itself"] * 6, "overlong", "overlong", "lookalike", "%u")
    for times in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3)
)
# The first byte of a UTF-8 sequence of so many bytes; those of five and six are no UTF-8 any more.
_LEADS = {2: 0xC0, 3: 0xE0, 4: 0xF0, 5: 0xF8, 6: 0xFC}


def plant(base: Path) -> Path:
    """Make a directory to serve below `base`, with bait around it and in it, and return it."""
    mount = base / MOUNT
    for name in OUTSIDE:
        _write(base / name, BAIT)
    for name in (".env", ".git/config", "css/.hidden", ".well-known/.hidden"):
        _write(mount / name, BAIT)
    for name in ("index.html", "css/site.css", "css/deep/page.html", ".well-known/security.txt"):
        _write(mount / name, PUBLIC)
    (mount / "leaving").symlink_to("../outside")
    (mount / "bait-link").symlink_to(base / "bait.txt")
    (mount / "css/to-hidden").symlink_to(".hidden")
    (mount / "inner").symlink_to("css")
    (mount / "inner-link").symlink_to("css/../index.html")
    return mount


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def attempts(count: int, seed: int) -> Iterator[bytes]:
    """Yield request targets, each beginning with a slash, without the prefix that a mount is reached by.

    No byte of them is a space or a control character, so that each is one target on a request line; there are raw
    backslashes and raw bytes past ASCII, which a server may refuse at once.
    """
    random = Random(seed)
    for _ in range(count):
        yield _attempt(random)


def _attempt(random: Random) -> bytes:
    way_in, depth = random.choice(_WAYS_IN)
    kind = random.random()
    if kind < 0.15:
        path = way_in + random.choice(HIDDEN)
    elif kind < 0.25:
        path = way_in + "/" + random.choice(OUTSIDE)  # absolute
    else:
        up = depth + 1 if kind < 0.7 or kind > 0.9 else random.randint(1, 12)
        path = way_in + random.choice(_STEPS) * up + random.choice(OUTSIDE)
    path += random.choice(_ENDS)
    if kind > 0.9:  # as it is
        return path.encode().replace(b"\0", b"%00")
    written = _written(random)
    # Parts of a path that are written in two ways: what separates for the server does not for who looked before it.
    other = _written(random) if random.random() < 0.2 else written
    rest = [
        (written if random.random() < 0.5 else other).get(character) or character.encode() for character in path[1:]
    ]
    return b"/" + b"".join(rest)


def _written(random: Random) -> dict[str, bytes]:
    return {character: _write_as(random, character, *random.choice(_STYLES)) for character in "./\\\0"}


def _write_as(random: Random, character: str, form: str, times: int) -> bytes:
    if form == "%u":
        shown = random.choice((character, *_LOOKALIKES[character]))
        return _in_some_case(random, b"%%u%04x" % ord(shown))
    raw = character.encode()
    if form == "overlong":
        raw = _overlong(ord(character), random.choice((2, 2, 2, 3, 4, 5, 6)))
    elif form == "lookalike":
        raw = random.choice(_LOOKALIKES[character]).encode()
    if raw == b"\0":
        times = max(1, times)  # it would end the request
    return _percent_encoded(random, raw, times)


def _overlong(code: int, length: int) -> bytes:
    """Return the code point of a character as UTF-8 of more bytes than it takes."""
    continued = []
    for _ in range(length - 1):
        continued.append(0x80 | code & 0x3F)
        code >>= 6
    return bytes([_LEADS[length] | code, *reversed(continued)])


def _percent_encoded(random: Random, raw: bytes, times: int) -> bytes:
    for nth in range(times):
        if nth == 0 or random.random() < 0.2:
            raw = _in_some_case(random, b"".join(b"%%%02x" % byte for byte in raw))
        else:
            raw = raw.replace(b"%", b"%25")
    return raw


def _in_some_case(random: Random, written: bytes) -> bytes:
    """Return hexadecimal digits in lower case, upper case or both; the "u" of "%u" stays as it is."""
    case = random.randrange(3)
    if case == 0:
        return written
    upper = written.upper().replace(b"%U", b"%u")
    if case == 1:
        return upper
    return bytes(random.choice(pair) for pair in zip(written, upper, strict=True))
