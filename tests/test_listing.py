"""A directory as a page: every name shows as what it is, leads where it is, and is nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes, urljoin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.files.listing import CONTENT_SECURITY_POLICY, CONTENT_TYPE, listing
from hardserve.files.tree import MAX_ENTRIES, Entry, may_be_served

MTIME = 1_700_000_000.0  # 2023-11-14T22:13:20Z


def entry(name: bytes, *, directory: bool = False, size: int = 10, mtime: float = MTIME) -> Entry:
    return Entry(name, directory, size, mtime)


class Page(HTMLParser):
    """What a browser makes of a page: its tags, where its links lead, and the text of its cells."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert all(name in ("lang", "charset", "name", "content", "href") for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self._open:
            self.rows[-1][-1] += data
        elif self._open:
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data


ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "a",
    "bdi",
}


def names(page: Page) -> list[str]:
    return [row[0] for row in page.rows if row]


def test_directories_come_first_and_then_by_name() -> None:
    entries = [entry(b"b.txt"), entry(b"Z", directory=True), entry(b"A.txt"), entry(b"a", directory=True)]
    page = Page(listing("/media/", entries, at_root=True))
    assert names(page) == ["a/", "Z/", "A.txt", "b.txt"]
    assert page.links == ["./a/", "./Z/", "./A.txt", "./b.txt"]
    assert page.texts["title"] == page.texts["h1"] == "Index of /media/"


def test_below_a_mounts_own_directory_there_is_a_way_up() -> None:
    assert Page(listing("/media/a/", [], at_root=False)).links == ["../"]
    assert Page(listing("/media/", [], at_root=True)).links == []


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024, "10 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (1024 * 1024, "1.0 MiB"),
        (700 * 1024**2, "700 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3 * 1024**5, "3072 TiB"),
    ],
)
def test_sizes_are_for_people(size: int, shown: str) -> None:
    assert Page(listing("/", [entry(b"a", size=size)], at_root=True)).rows[1][1] == shown


@pytest.mark.parametrize(
    ("mtime", "shown"),
    [(MTIME, "2023-11-14 22:13"), (0, "1970-01-01 00:00"), (-1, "1969-12-31 23:59"), (1e18, ""), (float("nan"), "")],
)
def test_times_are_utc(india: None, mtime: float, shown: str) -> None:
    assert Page(listing("/", [entry(b"a", mtime=mtime)], at_root=True)).rows[1][2] == shown


def test_a_directory_has_no_size() -> None:
    assert Page(listing("/", [entry(b"a", directory=True, size=4096)], at_root=True)).rows[1][1] == ""


HOSTILE = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    '"onmouseover="alert(1)',
    "'onmouseover='alert(1)",
    "&lt;b&gt;&amp;",
    "javascript:alert(1)",
    "data:text/html,x",
    "//evil.example",
    "a?b#c",
    "100%",
    "%2e%2e%2f",
    "a b",
    "{title}{0}",
    "né\u202e.txt",
    "<!--",
    "]]>",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_and_a_link_to_itself(name: str) -> None:
    page = Page(listing("/media/", [entry(name.encode())], at_root=True))
    assert set(page.tags) <= ALLOWED - {"p"}
    assert names(page) == [name]
    (link,) = page.links
    assert unquote_to_bytes(link.removeprefix("./")) == name.encode()
    assert urljoin("http://host/media/", link).startswith("http://host/media/")
    assert re.fullmatch(r"\./[A-Za-z0-9_.~%-]+", link)


@pytest.mark.parametrize("path", [*(f"/{name}/" for name in HOSTILE), "/\udcff/"])
def test_a_path_is_text(path: str) -> None:
    page = Page(listing(path, [], at_root=True))
    assert set(page.tags) <= ALLOWED
    assert page.texts["h1"] == f"Index of {path}".replace("\udcff", "?")


@settings(deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=12).filter(lambda name: may_be_served(name, first=False)), st.booleans()
    )
)
def test_every_name_comes_back_from_its_link(drawn: dict[bytes, bool]) -> None:
    page = Page(listing("/", [entry(name, directory=directory) for name, directory in drawn.items()], at_root=True))
    assert set(page.tags) <= ALLOWED
    back = {unquote_to_bytes(link.removeprefix("./").removesuffix("/")): link.endswith("/") for link in page.links}
    assert back == drawn


def test_what_is_not_utf8_is_left_out() -> None:
    page = Page(listing("/", [entry(b"\xff"), entry(b"a"), entry(b"\xc0\xae")], at_root=True))
    assert names(page) == ["a"]


def test_of_too_many_the_first_are_shown_and_it_says_so() -> None:
    entries = [entry(b"%05d" % number) for number in range(MAX_ENTRIES + 1)]
    page = Page(listing("/", entries, at_root=True))
    assert names(page) == [f"{number:05}" for number in range(MAX_ENTRIES)]
    assert page.texts["p"] == "There is more: only 5,000 entries are shown."
    assert "p" not in Page(listing("/", entries[:-1], at_root=True)).tags


def test_the_policy_allows_the_pages_own_style_and_nothing_else() -> None:
    style = Page(listing("/", [], at_root=True)).texts["style"]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; ")
    assert "color-scheme:light dark" in style
    assert CONTENT_TYPE == "text/html; charset=utf-8"
