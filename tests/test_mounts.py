"""Which mount a path is in, and where in it; and what a mount is made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve.files.mounts import FOR_EVER, Mount, Mounts, Place, short_form
from hardserve.files.tree import Tree
from hardserve.http.paths import PathPattern
from hardserve.settings import StaticSettings

NOWHERE = Tree("/nonexistent", follow_symlinks=False)


def mount(url: str, **options: Any) -> Mount:
    return Mount(url, NOWHERE, **options)


MOUNTS = Mounts(
    [
        mount("/media"),
        mount("/media/private"),
        mount("/media/special/deep"),
        mount("/favicon.ico", name=b"icon.ico"),
        mount("/media/robots.txt", name=b"all.txt"),
        mount("/app", app_paths=[PathPattern("/app/api/*"), PathPattern("/app/*.json")]),
        mount("/caf\xc3\xa9"),
        mount("/internal", internal=True),
        mount("/internal/file", name=b"file", internal=True),
    ]
)


@pytest.mark.parametrize(
    ("path", "url", "parts", "is_directory", "servable"),
    [
        pytest.param("/media/a.txt", "/media", (b"a.txt",), False, True, id="a file"),
        pytest.param("/media/a/b.txt", "/media", (b"a", b"b.txt"), False, True, id="a file in a directory"),
        pytest.param("/media/a/", "/media", (b"a",), True, True, id="a directory"),
        pytest.param("/media/", "/media", (), True, True, id="the mount itself"),
        pytest.param("/media", "/media", (), False, True, id="the mount itself without its slash"),
        pytest.param("/media/private/a", "/media/private", (b"a",), False, True, id="the longest counts"),
        pytest.param("/media/private", "/media/private", (), False, True, id="for itself, too"),
        pytest.param("/media/privateer", "/media", (b"privateer",), False, True, id="by whole names"),
        pytest.param("/media/special/a", "/media", (b"special", b"a"), False, True, id="on the way to a longer one"),
        pytest.param("/favicon.ico", "/favicon.ico", (b"icon.ico",), False, True, id="a single file"),
        pytest.param("/media/robots.txt", "/media/robots.txt", (b"all.txt",), False, True, id="one within a mount"),
        pytest.param("/media/robots.txt/", "/media", (b"robots.txt",), True, True, id="but not with a slash"),
        pytest.param("/caf\xc3\xa9/\xc3\xbc", "/caf\xc3\xa9", (b"\xc3\xbc",), False, True, id="bytes as characters"),
        pytest.param("/app/a", "/app", (b"a",), False, True, id="what is not left to the app"),
        pytest.param("/media/.env", "/media", (b".env",), False, False, id="a dot file"),
        pytest.param("/media/a/.git/b", "/media", (b"a", b".git", b"b"), False, False, id="a dot directory"),
        pytest.param("/media/.well-known/a", "/media", (b".well-known", b"a"), False, True, id="what is well known"),
        pytest.param("/media/a/.well-known", "/media", (b"a", b".well-known"), False, False, id="at the top alone"),
        pytest.param("/media/../a", "/media", (b"..", b"a"), False, False, id="two dots"),
        pytest.param("/media/a/..", "/media", (b"a", b".."), False, False, id="two dots at the end"),
        pytest.param("/media/./a", "/media", (b".", b"a"), False, False, id="a dot"),
        pytest.param("/media/a\\b", "/media", (b"a\\b",), False, False, id="a backslash"),
        pytest.param("/media/a\x00b", "/media", (b"a\x00b",), False, False, id="a NUL"),
        pytest.param("/media/a\nb", "/media", (b"a\nb",), False, False, id="a line end"),
        pytest.param("/media/\xff", "/media", (b"\xff",), False, False, id="no UTF-8"),
        pytest.param("/media/\xc0\xae", "/media", (b"\xc0\xae",), False, False, id="overlong UTF-8"),
        pytest.param("/media//a", "/media", (b"", b"a"), False, True, id="an empty name is a miss, not a secret"),
        pytest.param("/media/a//", "/media", (b"a", b""), True, True, id="also at the end"),
        pytest.param("/media//", "/media", (b"",), True, True, id="also of the mount"),
    ],
)
def test_where_a_path_is(path: str, url: str, parts: tuple[bytes, ...], is_directory: bool, servable: bool) -> None:
    place = MOUNTS.find(path)
    assert place is not None
    assert place == Place(place.mount, parts, is_directory, servable)
    assert place.mount.url == url
    assert MOUNTS.may_have(path)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/", id="the top"),
        pytest.param("", id="the server as a whole"),
        pytest.param("/med", id="less than a mount's URL"),
        pytest.param("/mediaplayer", id="more than it"),
        pytest.param("/favicon.ico/", id="a slash behind a single file"),
        pytest.param("/favicon.ico/a", id="something behind a single file"),
        pytest.param("/Media/a", id="in another case"),
        pytest.param("/internal/a", id="an internal mount"),
        pytest.param("/internal/file", id="an internal file"),
        pytest.param("/app/api/users", id="what is left to the app"),
        pytest.param("/app/api", id="without what follows"),
        pytest.param("/app/x/data.json", id="by its ending"),
        pytest.param("/app/./api/users", id="in another spelling"),
        pytest.param("/app//api/users", id="with two slashes"),
        pytest.param("/app/x/../api/users", id="with two dots"),
    ],
)
def test_what_is_the_apps(path: str) -> None:
    assert MOUNTS.find(path) is None


def test_an_internal_mount_is_found_by_the_app_alone() -> None:
    place = MOUNTS.find_internal("/internal/a/b")
    assert place is not None
    assert (place.mount.url, place.parts) == ("/internal", (b"a", b"b"))
    assert MOUNTS.find_internal("/media/a") is None
    place = MOUNTS.find_internal("/internal/file")
    assert place is not None
    assert (place.mount.name, place.parts, place.is_directory) == (b"file", (b"file",), False)


def test_what_is_beside_an_internal_file_is_not_found_by_it() -> None:
    mounts = Mounts([mount("/one", name=b"file", internal=True)])
    assert mounts.find_internal("/one") is not None
    for path in ("/one/", "/one/file", "/one/other"):
        assert mounts.find_internal(path) is None


@pytest.mark.parametrize(
    ("url", "path", "expected"),
    [
        ("/", "/static/", True),
        ("/a", "/a/static/", True),
        ("/a/static", "/a/static/", True),
        ("/a", "/ab/static/", False),
        ("/a/static", "/a/", False),
        ("/caf\xc3\xa9", "/caf\u00e9/static/", True),
    ],
)
def test_what_is_below_a_mount(url: str, path: str, expected: bool) -> None:
    assert mount(url).has_below(path) == expected


@pytest.mark.parametrize(("path", "parts"), [("/", ()), ("/a", (b"a",)), ("/a/b/", (b"a", b"b"))])
def test_a_mount_at_the_top_has_every_path(path: str, parts: tuple[bytes, ...]) -> None:
    mounts = Mounts([mount("/"), mount("/media")])
    place = mounts.find(path)
    assert place is not None
    assert (place.mount.url, place.parts) == ("/", parts)
    assert mounts.may_have("/anything")
    media = mounts.find("/media/a")
    assert media is not None
    assert media.mount.url == "/media"


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_nothing_is_found_where_it_may_not_be(text: str) -> None:
    """`may_have` never hides what `find` would find, whatever the path, and what is found is put together again."""
    for path in (f"/media/{text}", f"/app{text}", text):
        place = MOUNTS.find(path)
        assert place is None or MOUNTS.may_have(path)
        if place is not None and not place.mount.name:
            names = b"/".join(place.parts).decode("latin-1")
            again = f"{place.mount.url}/{names}{'/' if place.is_directory and place.parts else ''}"
            assert path in (again, place.mount.url)
            assert not place.servable or not any(name in (b".", b"..") for name in place.parts)


def test_no_mounts_are_falsy_and_have_nothing() -> None:
    none = Mounts([])
    assert not none
    assert not none.may_have("/")
    assert none.find("/") is None
    assert not Mounts([mount("/internal", internal=True)])  # nothing that a client could ask for
    assert MOUNTS
    assert "/media" in repr(MOUNTS)


# --- what a mount is made of ---


def from_settings(**options: Any) -> Mount:
    return Mount.from_settings(StaticSettings(**options))


def test_a_directory(tmp_path: Path) -> None:
    made = from_settings(url="/caf\u00e9", directory=str(tmp_path), index="off", fallback="off", cache_control="off")
    assert (made.url, made.name, made.index, made.fallback, made.cache_control) == ("/caf\xc3\xa9", b"", "", "", "")
    assert not made.listing
    assert not made.misses_to_app
    assert not made.internal


def test_its_options(tmp_path: Path) -> None:
    made = from_settings(
        url="/m",
        directory=str(tmp_path),
        index="home.html",
        fallback="app.html",
        listing="on",
        miss="app",
        internal="on",
        app_paths=("/m/api/*",),
        cache_control="public",
        immutable="on",
    )
    assert (made.index, made.fallback, made.cache_control, made.immutable) == ("home.html", "app.html", "public", "on")
    assert made.listing
    assert made.misses_to_app
    assert made.internal
    assert made.app_paths[0].matches("/m/api/x")


def test_a_single_file_may_be_a_link_to_anywhere(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    made = from_settings(url="/f", directory=str(tmp_path / "in" / "link"))
    assert made.name == b"link"
    made.tree.open([made.name]).close()
    with pytest.raises(FileNotFoundError):  # while a directory's links stay within it
        from_settings(url="/f", directory=str(tmp_path / "in")).tree.open([b"link"])
    from_settings(url="/f", directory=str(tmp_path / "in"), follow_symlinks="on").tree.open([b"link"]).close()


def test_what_is_neither_a_file_nor_a_directory_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        from_settings(url="/m", directory=str(tmp_path / "nothing"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="expected a directory, or a file"):
        from_settings(url="/m", directory=str(tmp_path / "fifo"))
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        from_settings(url="/m", directory=str(tmp_path / "dangling"))


@pytest.mark.parametrize(("max_age", "expected"), [(None, "no-cache"), (0, "max-age=0"), (60, "max-age=60")])
def test_a_folder_of_the_app(tmp_path: Path, max_age: int | None, expected: str) -> None:
    made = Mount.of_app("/static", str(tmp_path), max_age)
    assert made.misses_to_app
    assert made.index == ""  # which Flask has none of
    assert made.cache_control_of("a.css") == expected


@pytest.mark.parametrize(
    ("text", "url", "directory"),
    [("/media=up", "/media", "up"), ("/=a=b", "/", "a=b"), ("/m=", "/m", ""), ("/m", "/m", "")],
)
def test_the_short_form(text: str, url: str, directory: str) -> None:
    assert short_form(text) == StaticSettings(url=url, directory=directory)


@pytest.mark.parametrize(
    ("name", "immutable"),
    [
        pytest.param("app.3f2a91c4.js", True, id="eight digits between dots"),
        pytest.param("app-3f2a91c4.min.css", True, id="after a dash"),
        pytest.param("app.3f2a91c4.js.map", True, id="a map of a script"),
        pytest.param("index-BxK3aD9f.js", True, id="base64"),
        pytest.param("index-B_K3-D9f.css", True, id="base64 for URLs"),
        pytest.param("chunk-KY2MZ4VJ.js", True, id="base32"),
        pytest.param("index-DiwrgTda.css", False, id="base64 that could be words"),
        pytest.param("bootstrap-carousel.js", False, id="a word of eight letters"),
        pytest.param("api-Version2.js", False, id="a word with a number"),
        pytest.param("app-DataGrid.js", False, id="two words"),
        pytest.param("app_3f2a91c4.css", False, id="after an underscore"),
        pytest.param("photo-3f2a91c4.jpg", False, id="a picture"),
        pytest.param("invoice-2024abcd.pdf", False, id="a document"),
        pytest.param(f"app.{'0123456789abcdef' * 4}.js", True, id="a whole SHA-256"),
        pytest.param("app.js", False, id="no hash"),
        pytest.param("app.3f2a91c.js", False, id="seven digits"),
        pytest.param("report-20240131.pdf", False, id="a date"),
        pytest.param("my-deadbeef.txt", False, id="a word of letters alone"),
        pytest.param("app.3f2a91c4", False, id="nothing after it"),
        pytest.param("3f2a91c4.js", False, id="nothing before it"),
        pytest.param("app.3f2a91cg.js", False, id="a letter that is no digit"),
        pytest.param(f"app.{'0123456789abcdef' * 4}0.js", False, id="longer than any hash"),
    ],
)
def test_which_names_are_for_ever(name: str, immutable: bool) -> None:
    made = mount("/m", cache_control="no-cache")
    assert made.cache_control_of(name) == (FOR_EVER if immutable else "no-cache")
    assert mount("/m", immutable="on").cache_control_of(name) == FOR_EVER
    assert mount("/m", immutable="off", cache_control="x").cache_control_of(name) == "x"
