"""Whether a key can be guessed: by who knows the usual ones, or by trying.

Pure, any thread. It judges what is certainly bad and leaves the rest: a key that is random is never called weak here,
a bad one may be missed. No sentence of it says anything that is in the key.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable

# What fewer characters have, and fewer bits, can be tried out; a cookie is all that somebody needs for that.
MIN_LENGTH = 16
MIN_BITS = 72.0
# Of a text of many characters and few different ones: what `secrets.token_hex(16)` has is twice that.
MIN_SPREAD_BITS = 48.0
# More digits than these are not a year or a counter behind a word.
_MAX_DIGITS = 10

# Of documentation, tutorials and books: with a key that is in a book, anybody signs cookies.
_WELL_KNOWN = frozenset(
    {
        '_5#y2l"f4q8z\n\xec]/',
        "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
        "a0zr98j/3yx r~xhh!jmn]lwx/,?rt",
        '\xfd{h\xe5<\x95\xf9\xe3\x96.5\xd1\x01o<!\xd5\xa2\xa0\x9fr"\xa1\xa8',
        "5791628bb0b13ce0c676dfde280ba245",
        "9olwxnd4o83j4k4iuopo",
        "f3cfe9ed8fae309f02079dbf",
        "you-will-never-guess",
        "hard to guess string",
    }
)
_LISTED = """
    a abc admin an and any api app application apps as asdf asdfgh asdfghjkl auth backend bar baz be before bla blah
    blog cannot change changed changeit changeme changethis company config cookie cookies crypto csrf customer
    database db debug default demo deploy deploying deployment dev devel developer development do don dont dummy
    edit encryption enter env environment ever example extremely fake fallback fixme flask foo for generate go goes
    guess guessed hard has hash hello here hidden in insecure insert internal into ipsum is it its jwt keep key keys
    know knows lab later letmein local localhost login long lorem main master me must my mysecret never new no
    nobody none not null of one only or our out override overwrite pass passphrase passwd password placeholder
    please private prod production project put python qwerty qwertyuiop qwertz random really replace replaced
    replaceme root safe salt sample secret secretkey secrets secure security server session set shh should sign
    signed signing site some something special string strong super supersecret t tbd temp temporary test testing
    tests text that the thing this to todo token top tutorial undefined unknown unsafe use used user value very via
    we web website werkzeug who will with wont word world wow xxx xxxx yes yet you your yours zxcvbn zxcvbnm
"""
_WORDS = frozenset(_LISTED.split())
_LEET = str.maketrans({"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "$": "s", "@": "a", "!": "i"})
_LETTERS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def why_weak(key: str | bytes, words: Iterable[str] = ()) -> str:
    """Return why `key` is no secret, as the end of a sentence; "" if nothing speaks against it.

    `words` are those that are near at hand, such as the name of the app.
    """
    text = key.decode("latin-1") if isinstance(key, bytes) else key
    known = _WORDS | {word.lower() for name in words for word in re.findall(r"[^\W\d_]+", name)}
    if text.casefold() in _WELL_KNOWN:
        return "is one that is in books and tutorials"
    if _is_made_of(text, known) or _is_made_of(text.translate(_LEET), known):
        return "is made of words that everybody tries first"
    if _is_monotonous(text):
        return "repeats itself, or counts"
    return ""


def why_short(key: str | bytes) -> str:
    """Return that `key` can be tried out, as the end of a sentence; "" if it is long enough."""
    if len(key) >= MIN_LENGTH or len(key) * math.log2(_alphabet(key)) >= MIN_BITS:
        return ""
    unit = "byte" if isinstance(key, bytes) else "character"
    return f"has {len(key)} {unit}{'s' * (len(key) != 1)}"


def _alphabet(key: str | bytes) -> int:
    text = key.decode("latin-1") if isinstance(key, bytes) else key
    if not text.isascii() or not text.isprintable():
        return 256
    return 16 if re.fullmatch(r"[0-9a-f]*|[0-9A-F]*", text) else 62 if text.isalnum() else 94


def _is_made_of(text: str, words: frozenset[str]) -> bool:
    """Return whether nothing is left of `text` without known words and some digits."""
    if sum(character.isdigit() for character in text) > _MAX_DIGITS or not text.isascii():
        return False
    runs = [run.lower() for run in re.findall(r"[A-Za-z]+", text)]
    split = [part.lower() for part in _LETTERS.findall(text)]
    return all(_is_sentence(run, words) for run in runs) or all(part in words for part in split)


def _is_sentence(run: str, words: frozenset[str]) -> bool:
    """Return whether a run of letters is nothing but words, one after another."""
    ends = {0}
    for end in range(1, len(run) + 1):
        # Of single letters anything could be made.
        if any(start in ends and run[start:end] in words for start in range(max(0, end - 24), end)):
            ends.add(end)
    return len(run) in ends


def _is_monotonous(text: str) -> bool:
    if len(text) < MIN_LENGTH:
        return False
    unit = next(size for size in range(1, len(text) + 1) if text[size:] == text[:-size])
    steps = Counter(ord(after) - ord(before) for before, after in itertools.pairwise(text))
    counts = steps[0] + steps[1] + steps[-1] > 0.7 * len(text)
    shares = [count / unit for count in Counter(text[:unit]).values()]
    return counts or -sum(share * math.log2(share) for share in shares) * unit < MIN_SPREAD_BITS
