"""Which rule a request meets: no spelling of a path gets past the rule for it, and no path takes long to judge."""

from __future__ import annotations

import re
from time import thread_time
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.edge.routes import Routes
from hardserve.http.paths import PathPattern, normalized, spellings
from hardserve.settings import LimitSettings, RouteSettings

LIMITS = LimitSettings(body=100)


def as_wsgi(path: str) -> str:
    """Decode a path as it stands in a request to what is in PATH_INFO."""
    return unquote_to_bytes(path).decode("latin-1")


# Paths


@pytest.mark.parametrize(
    ("path", "same"),
    [
        pytest.param("/upload", "/upload", id="a plain path is itself"),
        pytest.param("/upload/", "/upload/", id="a slash at the end stays"),
        pytest.param("/", "/", id="the root"),
        pytest.param("", "/", id="no path is the root"),
        pytest.param("//upload", "/upload", id="two slashes are one"),
        pytest.param("/a///b//", "/a/b/", id="any number of slashes is one"),
        pytest.param("/./upload", "/upload", id="a dot is where it stands"),
        pytest.param("/upload/.", "/upload/", id="a dot at the end is the directory"),
        pytest.param("/a/../upload", "/upload", id="two dots go up"),
        pytest.param("/a/b/..", "/a/", id="two dots at the end are the directory above"),
        pytest.param("/../../upload", "/upload", id="nothing is above the root"),
        pytest.param("/..", "/", id="not even for a path of nothing else"),
        pytest.param("/.", "/", id="a dot alone"),
        pytest.param("/a//../b", "/b", id="slashes are merged before two dots go up"),
        pytest.param("/a/b/c/./../../g", "/a/g", id="the example of RFC 3986 5.2.4"),
        pytest.param("/.hidden/..a/b../...", "/.hidden/..a/b../...", id="names with dots are names"),
    ],
)
def test_spellings_of_a_path_become_one(path: str, same: str) -> None:
    assert normalized(path) == same


@settings(deadline=None)  # a busy machine is no failure
@given(st.text("/.ab", max_size=30).map("/{}".format))
def test_a_normal_path_has_nothing_left_to_take_out(path: str) -> None:
    normal = normalized(path)
    assert normal.startswith("/")
    assert "//" not in normal
    assert not {".", ".."} & set(normal.split("/"))
    assert normalized(normal) == normal


# Patterns


@pytest.mark.parametrize(
    ("pattern", "meant", "others"),
    [
        pytest.param("/upload", "/upload /upload/", "/ /uploads /upload/a /Upload /a/upload", id="one path"),
        pytest.param("/upload/", "/upload /upload/", "/uploads /upload/a", id="one path with a slash at its end"),
        pytest.param("/", "/", "/a /a/", id="the root alone"),
        pytest.param("/upload/*", "/upload /upload/ /upload/a /upload/a/b/", "/ /uploads /a/upload/b", id="below"),
        pytest.param("/upload*", "/upload /uploads /upload/a", "/uploa /a/upload", id="a beginning"),
        pytest.param("*", "/ /a /a/b/", "", id="everything"),
        pytest.param("/*", "/ /a /a/b/", "", id="everything, with a slash"),
        pytest.param("*.iso", "/a.iso /b/c.iso /.iso /a.iso/", "/ /a.iso.gz /aiso /a.iso/b", id="an ending"),
        pytest.param("/files/*/raw", "/files/a/raw /files/a/b/raw/", "/files/raw /files/a/raw/b /raw", id="a middle"),
        pytest.param("/a*a", "/aa /aba /a/a", "/a /ab", id="two ends that must not overlap"),
        pytest.param("*a*b*", "/ab /xaxbx /b/a/b", "/ba /a /b", id="pieces in their order"),
        pytest.param("/a**b", "/ab /a/b /axb", "/a /b", id="two stars are one"),
        pytest.param("/a.c", "/a.c", "/abc", id="a dot is a dot"),
        pytest.param("/[ab]", "/[ab]", "/a /b", id="brackets are brackets"),
        pytest.param("/übung", "/%C3%BCbung /%c3%BCbung/", "/%FCbung /ubung", id="letters are UTF-8"),
        pytest.param("/100%", "/100%25", "/100", id="a percent sign is one"),
        pytest.param("/a b", "/a%20b", "/a+b", id="a blank is a blank"),
    ],
)
def test_a_pattern_means_these_paths_and_not_others(pattern: str, meant: str, others: str) -> None:
    compiled = PathPattern(pattern)
    assert [path for path in meant.split() if not compiled.matches(normalized(as_wsgi(path)))] == []
    assert [path for path in others.split() if compiled.matches(normalized(as_wsgi(path)))] == []


@settings(deadline=None)  # a busy machine is no failure
@given(st.text("*/ab", max_size=10).map("/{}".format), st.text("/ab", max_size=12).map("/{}".format))
def test_a_pattern_agrees_with_a_regular_expression(pattern: str, path: str) -> None:
    path = normalized(path)
    expression = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
    bare = path.removesuffix("/")
    by_expression = bool(expression.fullmatch(bare) or expression.fullmatch(bare + "/"))
    assert PathPattern(pattern).matches(path) == by_expression


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        pytest.param("/" + "*a" * 500 + "*b", "/" + "a" * 8000, id="pieces that nearly fit"),
        pytest.param("*" + "a" * 500 + "b*", "/" + "a" * 8000, id="one long piece that nearly fits everywhere"),
        pytest.param("/*x", "/a" * 4000, id="many segments"),
        pytest.param("/*x", "/.." * 2600, id="many ways up"),
        pytest.param("/*x", "/" * 8000, id="slashes"),
    ],
)
def test_no_path_takes_long(pattern: str, path: str) -> None:
    # As long as a request line may be. Whatever goes back and tries again takes for ever here.
    compiled = PathPattern(pattern)
    began = thread_time()
    assert not compiled.matches(normalized(path))
    assert thread_time() - began < 2


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(lambda s: "*" not in s))
def test_a_path_as_people_write_it_is_the_path_that_browsers_send(name: str) -> None:
    path = normalized(f"/{name}")
    sent = as_wsgi(quote(path))
    assert PathPattern(path).matches(normalized(sent))


# Routes


@pytest.mark.parametrize(
    ("method", "path", "max_body"),
    [
        pytest.param("POST", "/upload", 1000, id="a route's path and method"),
        pytest.param("PUT", "/upload", 100, id="its path and another method"),
        pytest.param("POST", "/other", 100, id="its method and another path"),
        pytest.param("POST", "/upload/a", 2000, id="the next route that fits"),
        pytest.param("PUT", "/first/a.iso", 3000, id="of two that fit the first"),
        pytest.param("PUT", "/second/a.iso", 4000, id="which need not be the more exact one"),
        pytest.param("POST", "/unset/a.iso", 100, id="a first that says nothing of bodies counts too"),
        pytest.param("POST", "/closed", 0, id="no body at all"),
    ],
)
def test_the_first_route_that_fits_counts(method: str, path: str, max_body: int) -> None:
    routes = Routes(
        [
            RouteSettings(path="/upload", methods=("POST",), max_body=1000),
            RouteSettings(path="/upload/*", methods=("POST", "PATCH"), max_body=2000),
            RouteSettings(path="/unset/*"),
            RouteSettings(path="/first/*", max_body=3000),
            RouteSettings(path="*.iso", max_body=4000),
            RouteSettings(path="/second/a.iso", max_body=5000),
            RouteSettings(path="/closed", max_body=0),
        ],
        LIMITS,
    )
    assert routes.max_body(routes.find(method, path), "text/plain") == max_body


def test_without_routes_the_limit_of_all_counts() -> None:
    routes = Routes((), LIMITS)
    assert routes.max_body(routes.find("POST", "//x"), "") == 100


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/a/b", ("/a/b",), id="a path as everybody writes it"),
        pytest.param("/a/", ("/a/",), id="a slash at the end"),
        pytest.param("/.well-known/x", ("/.well-known/x",), id="a dot that is part of a name"),
        pytest.param("/item/..", ("/", "/item/.."), id="dots that an app may take for a name"),
        pytest.param("/a//./b", ("/a/b", "/a/./b", "/a//./b"), id="slashes that an app may merge"),
        pytest.param("", ("/", ""), id="no path at all"),
    ],
)
def test_spellings(path: str, expected: tuple[str, ...]) -> None:
    assert spellings(path) == expected


def test_a_path_that_can_be_read_in_two_ways_is_held_to_the_strictest_of_its_routes() -> None:
    routes = Routes([RouteSettings(path="/open/*", max_body=1000), RouteSettings(path="/admin/*", max_body=5)], LIMITS)
    found = routes.find("POST", "/admin/../open/x")
    assert [route and route.settings.path for route in found] == ["/open/*", "/admin/*"]
    assert routes.max_body(found, "text/plain") == 5


def test_routes_show_themselves() -> None:
    assert repr(Routes([RouteSettings(path="/a")], LIMITS)) == "<Routes 1>"
    assert repr(PathPattern("/a/*")) == "<PathPattern /a/*>"
