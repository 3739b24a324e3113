"""What people write for a value is read, and written so that it can be read again."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.addresses import FdAddress, TcpAddress, UnixAddress, parse_address
from hardserve.describe import describe, expected
from hardserve.settings import (
    GIB,
    KIB,
    MIB,
    TIB,
    AddressList,
    Choice,
    Duration,
    FieldValue,
    FileName,
    FilePath,
    HostList,
    Int,
    Kind,
    MethodList,
    MountList,
    NetworkList,
    Output,
    PageFile,
    PathGlob,
    Rate,
    RateKey,
    RefusalStatus,
    Size,
    StatusList,
    StorageUrl,
    Text,
    UrlPath,
)
from hardserve.values import (
    format_duration,
    format_size,
    parse,
    parse_duration,
    parse_mount,
    parse_path_glob,
    parse_size,
    plain,
    refusal_statuses,
    show,
    without_password,
    write,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("500ms", 0.5),
        ("1m30s", 90.0),
        ("1h1m1s1ms", 3661.001),
        ("1.5h", 5400.0),
        ("0.1s", 0.1),
        ("10", 10.0),
        ("0.25", 0.25),
        ("0", 0.0),
        ("10S", 10.0),
    ],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "10x",
        "10 s",
        "-1s",
        "+1s",
        "1s1m",
        "1s1s",
        "1m30",
        "1e3",
        "nan",
        "inf",
        ".5s",
        "1.s",
        "\uff11s",
        "9" * 5000,
    ],
)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        parse_duration(text)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 10_000_000).map(lambda ms: ms / 1000) | st.floats(0.001, 1e6))
def test_a_duration_survives_being_written_and_read(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10MiB", 10 * MIB),
        ("10m", 10 * MIB),
        ("10MB", 10_000_000),
        ("10 MiB", 10 * MIB),
        ("1g", GIB),
        ("512k", 512 * KIB),
        ("512K", 512 * KIB),
        ("1TiB", TIB),
        ("1kB", 1000),
        ("1.5g", GIB + GIB // 2),
        ("100", 100),
        ("100b", 100),
        ("0", 0),
    ],
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "k", "10x", "10kibi", "-1k", "0.1k", "1.5", "1e3", "1_000", "\uff11k", "10  k", "9" * 5000]
)
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        parse_size(text)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 2**40) | st.integers(0, 1024).map(lambda count: count * MIB))
def test_a_size_survives_being_written_and_read(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", TcpAddress("127.0.0.1", 8000)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("my-host.example.com:65535", TcpAddress("my-host.example.com", 65535)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("[::]:80", TcpAddress("::", 80)),
        ("[fe80::1%eth0]:80", TcpAddress("fe80::1%eth0", 80)),
        ("unix:/run/web.sock", UnixAddress("/run/web.sock")),
        ("unix:/run/web.sock?mode=660", UnixAddress("/run/web.sock", 0o660)),
        ("unix:/w?mode=0600&owner=www-data:www", UnixAddress("/w", 0o600, "www-data", "www")),
        ("unix:/w?owner=1000", UnixAddress("/w", None, "1000", None)),
        ("unix:/w?owner=:www-data", UnixAddress("/w", None, None, "www-data")),
        ("fd:3", FdAddress(3)),
    ],
)
def test_an_address_is_read(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected host:port, "),
        ("8000", "expected host:port, "),
        (":8000", "expected host:port, "),
        ("localhost", "expected host:port, "),
        ("http://localhost:80", "expected brackets"),
        ("local host:80", "expected host:port, "),
        ("-host:80", "expected host:port, "),
        ("a..b:80", "expected host:port, "),
        ("localhost:", "expected a port from 0 to 65535"),
        ("localhost:65536", "expected a port from 0 to 65535"),
        ("localhost:-1", "expected a port from 0 to 65535"),
        ("localhost:\uff18\uff10", "expected a port from 0 to 65535"),
        ("::1:8000", "expected brackets"),
        ("[::1]", "expected brackets"),
        ("[::1:8000", "expected brackets"),
        ("[::g]:80", "expected an IP address"),
        ("300.1.1.1:80", "expected an IP address"),
        ("127.1:80", "expected an IP address"),
        ("unix:", "expected the absolute path"),
        ("unix:web.sock", "expected the absolute path"),
        ("unix:/run/", "expected the absolute path"),
        ("unix:/run/a\0b", "expected the absolute path"),
        ("unix:/" + "x" * 107, "expected a path of at most"),
        ("unix:/w?mode=rw", "expected a mode of three octal digits"),
        ("unix:/w?mode=7777", "expected a mode of three octal digits"),
        ("unix:/w?mode=660&mode=600", "expected nothing after the question mark but"),
        ("unix:/w?group=www", "expected nothing after the question mark but"),
        ("unix:/w?owner=", "expected owner=user"),
        ("unix:/w?owner=a:b:c", "expected owner=user"),
        ("fd:", "expected the number of an open socket"),
        ("fd:-1", "expected the number of an open socket"),
        ("fd:0x3", "expected the number of an open socket"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("[", "\\[")):
        parse_address(text)


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=40) | st.from_regex(r"(unix:/|fd:|\[)[a-z0-9:.?=&%\]]*"))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address, problem = parse_address(text), ""
    except ValueError as error:
        address, problem = None, str(error)
    assert (address is None) == problem.startswith("expected ")


SECONDS, BYTES, COUNT = Duration(0.1, 300.0), Size(256, MIB), Int(1, 256)
SWITCH, MAYBE = Choice(("on", "off")), Choice(("auto", "on", "off"))
WORDS, OUTPUT, ADDRESSES = Choice(("info", "error")), Output(("stdout", "off")), AddressList()
OTHER_METHODS = ["ACL", "COPY", "LOCK", "MERGE", "MOVE", "PROPFIND", "PROPPATCH", "PURGE", "QUERY", "REPORT", "SEARCH"]
PATHS, METHODS, STATUS, PAGE = PathGlob(), MethodList(), RefusalStatus(), PageFile((".html", ".json", ".txt"), 64 * KIB)


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        pytest.param(SECONDS, 10, 10.0, id="a whole number is seconds"),
        pytest.param(SECONDS, 0.1, 0.1, id="the smallest duration is allowed"),
        pytest.param(SECONDS, "300s", 300.0, id="the greatest duration is allowed"),
        pytest.param(BYTES, 256, 256, id="a number is bytes"),
        pytest.param(BYTES, "1m", MIB, id="the greatest size is allowed"),
        pytest.param(COUNT, 1, 1, id="the smallest count is allowed"),
        pytest.param(COUNT, "256", 256, id="a count may be text, for a variable is"),
        pytest.param(WORDS, "INFO", "info", id="a word may be in capitals"),
        pytest.param(SWITCH, True, "on", id="true is on"),
        pytest.param(SWITCH, False, "off", id="false is off"),
        pytest.param(SWITCH, "TRUE", "on", id="true may be text, for a variable is"),
        pytest.param(MAYBE, "false", "off", id="false where there is a third word, too"),
        pytest.param(OUTPUT, "off", "off", id="a word of an output"),
        pytest.param(OUTPUT, "/var/log/a", "/var/log/a", id="a path with a slash"),
        pytest.param(OUTPUT, "access.log", "access.log", id="a path with a dot"),
        pytest.param(ADDRESSES, "fd:3", ("fd:3",), id="one address need not be in a list"),
        pytest.param(ADDRESSES, ["fd:3", "fd:4"], ("fd:3", "fd:4"), id="addresses keep their order"),
        pytest.param(ADDRESSES, ["a:0", "a:0"], ("a:0", "a:0"), id="any free port can be asked for twice"),
        pytest.param(PATHS, "/upload/*", "/upload/*", id="a path with a star"),
        pytest.param(METHODS, ["post", "PROPFIND"], ("POST", "PROPFIND"), id="methods, in capitals or not"),
        pytest.param(METHODS, "POST", ("POST",), id="one method need not be in a list"),
        pytest.param(METHODS, OTHER_METHODS, tuple(OTHER_METHODS), id="methods of other standards"),
        pytest.param(METHODS, [], (), id="no methods"),
        pytest.param(STATUS, 413, 413, id="a status"),
        pytest.param(STATUS, "413", 413, id="a status may be text"),
        pytest.param(PAGE, "413.html", "413.html", id="a page"),
        pytest.param(PAGE, "/srv/pages/413.JSON", "/srv/pages/413.JSON", id="a page with its suffix in capitals"),
    ],
)
def test_a_value_is_read_according_to_its_kind(kind: Kind, raw: object, value: object) -> None:
    assert parse(kind, raw) == value
    assert type(parse(kind, raw)) is type(value)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        pytest.param(SECONDS, True, id="true is not one second"),
        pytest.param(BYTES, True, id="true is not one byte"),
        pytest.param(COUNT, True, id="true is not one thread"),
        pytest.param(COUNT, False, id="false is not none"),
        pytest.param(COUNT, "ture", id="a misspelt word is not a number"),
        pytest.param(COUNT, 8.0, id="a count has no decimal point"),
        pytest.param(COUNT, "8.0", id="nor has it as text"),
        pytest.param(COUNT, 0, id="below the bound"),
        pytest.param(COUNT, 257, id="above the bound"),
        pytest.param(COUNT, "9" * 5000, id="more digits than Python cares to read"),
        pytest.param(COUNT, None, id="nothing is not a number"),
        pytest.param(SECONDS, float("nan"), id="not a number"),
        pytest.param(SECONDS, float("inf"), id="no end"),
        pytest.param(SECONDS, 0.09, id="too short"),
        pytest.param(SECONDS, "5m1s", id="too long"),
        pytest.param(SECONDS, [10], id="a list is no duration"),
        pytest.param(BYTES, 256.0, id="a size has no decimal point"),
        pytest.param(BYTES, "255", id="too small"),
        pytest.param(WORDS, "warn", id="none of the words"),
        pytest.param(WORDS, ["info"], id="a list is no word"),
        pytest.param(WORDS, True, id="true is none of the words"),
        pytest.param(Choice(("forwarded", "off")), False, id="false is not off where nothing is on"),
        pytest.param(SWITCH, 1, id="a number is not on"),
        pytest.param(SWITCH, "1", id="nor is it as text"),
        pytest.param(SWITCH, "yes", id="yes is not on"),
        pytest.param(OUTPUT, "stdot", id="a misspelt word is not the name of a file"),
        pytest.param(OUTPUT, "", id="no path"),
        pytest.param(OUTPUT, "logs/", id="a directory"),
        pytest.param(OUTPUT, "a\n/b", id="a newline in a path"),
        pytest.param(ADDRESSES, [], id="an empty list"),
        pytest.param(ADDRESSES, [8000], id="a port alone"),
        pytest.param(ADDRESSES, {"host": "a"}, id="a table is no list"),
        pytest.param(PATHS, ["/a"], id="a list is no path"),
        pytest.param(METHODS, ["*"], id="a star is no method"),
        pytest.param(METHODS, [""], id="no method"),
        pytest.param(METHODS, ["GET POST"], id="two methods in one"),
        pytest.param(METHODS, [1], id="a number is no method"),
        pytest.param(METHODS, {"POST": 1}, id="a table is no list of methods"),
        pytest.param(STATUS, 200, id="nobody is refused with a 200"),
        pytest.param(STATUS, 413.0, id="a status has no decimal point"),
        pytest.param(STATUS, True, id="true is no status"),
        pytest.param(PAGE, "413", id="a page without a suffix"),
        pytest.param(PAGE, "413.html.bak", id="a page with another suffix"),
        pytest.param(PAGE, ".html/", id="a directory is no page"),
    ],
)
def test_what_is_not_of_the_kind_is_refused(kind: Kind, raw: object) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        parse(kind, raw)


def test_of_several_addresses_the_wrong_one_is_named() -> None:
    with pytest.raises(ValueError, match=r'^"b": expected host:port, '):
        parse(ADDRESSES, ["a:1", "b"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [(["GET", "get"], "expected each method once"), (["PSOT"], 'did you mean "POST"?'), ("GTE", 'did you mean "GET"?')],
)
def test_what_is_wrong_with_methods_is_said(raw: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(METHODS, raw)


def test_an_address_cannot_be_listed_twice() -> None:
    with pytest.raises(ValueError, match=r'^expected each address once, but "\[0:0::1\]:1" is repeated$'):
        parse(ADDRESSES, ["[::1]:1", "[0:0::1]:1"])


@pytest.mark.parametrize(
    "text",
    ["/", "/upload", "/upload/", "/upload/*", "*", "*.iso", "/files/*/raw", "/a/**", "/ü b", "/.well-known/*", "/100%"],
)
def test_the_path_of_some_requests_is_read(text: str) -> None:
    assert parse_path_glob(text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ""),
        ("upload", ""),
        ("http://localhost/upload", ""),
        (" /upload", ""),
        ("/upload ", ""),
        ("/up\nload", ""),
        ("/\ud800", ""),
        ("/upload?draft=1", "expected a path alone, without a query"),
        ("/upload#top", "expected a path alone, without a query"),
        ("/a%20b", "expected the path as it is when decoded, without escapes such as %20"),
        ("/users/<int:id>", 'expected * in place of a variable part, as in "/users/*"'),
        ("/a//b", "expected a path without //, /./ and /../, as those of requests are compared"),
        ("/./a", "expected a path without //, /./ and /../, as those of requests are compared"),
        ("/a/../b", "expected a path without //, /./ and /../, as those of requests are compared"),
        ("/a/..", "expected a path without //, /./ and /../, as those of requests are compared"),
        ("/a/.", "expected a path without //, /./ and /../, as those of requests are compared"),
        ("/" + "a" * 1024, "expected at most 1024 characters"),
    ],
)
def test_what_can_be_no_path_of_a_request_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_path_glob(text)


def test_every_status_of_a_refusal_can_have_a_page() -> None:
    statuses = refusal_statuses()
    assert set(statuses) >= {400, 413, 503}
    assert list(statuses) == sorted(set(statuses))
    assert [parse(STATUS, status) for status in statuses] == list(statuses)


@pytest.mark.parametrize(
    ("kind", "default", "message"),
    [
        (SECONDS, 10.0, 'expected a duration from 0.1s to 300s, such as "10s"'),
        (BYTES, 8 * KIB, 'expected a size from 256 to 1MiB, such as "8KiB"'),
        (COUNT, 8, "expected a whole number from 1 to 256, such as 8"),
        (WORDS, "info", 'expected "info" or "error"'),
        (MAYBE, "on", 'expected "auto", "on" or "off"'),
        (
            UrlPath(),
            "/media",
            'expected a path on the site without escapes, such as "/media"; everything below it is meant, too',
        ),
        (METHODS, (), 'expected some methods, such as ["POST"]'),
        (STATUS, 413, "expected one of " + ", ".join(map(str, refusal_statuses()))),
        (
            PAGE,
            "413.html",
            'expected a path of a file in .html, .json or .txt of at most 64KiB in UTF-8, such as "413.html"',
        ),
        (OUTPUT, "off", 'expected "stdout", "off" or the path of a file (with a slash or a dot in it)'),
    ],
)
def test_the_message_says_what_is_allowed(kind: Kind, default: object, message: str) -> None:
    assert expected(kind, default) == message
    assert describe(kind) in message


@pytest.mark.parametrize(
    ("kind", "example", "message"),
    [
        (
            FieldValue(64, ("off",)),
            "DENY",
            'expected the value of a header field of at most 64 printable ASCII characters, such as "DENY", or "off"',
        ),
        (
            FileName(("off",)),
            "home.html",
            'expected the name of a file, without a slash, such as "home.html", or "off"',
        ),
    ],
)
def test_a_word_that_stands_for_nothing_is_no_example(kind: Kind, example: str, message: str) -> None:
    assert expected(kind, example) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("media=d", '"media=d": expected URL=PATH with a URL that begins with a slash, such as "/media=uploads"'),
        ("=d", '"=d": expected URL=PATH with a URL that begins with a slash, such as "/media=uploads"'),
        ("/media", '"/media": expected URL=PATH, such as "/media=uploads"'),
        ("/media= ", '"/media= ": expected URL=PATH, such as "/media=uploads"'),
        ("/media/*=d", '"/media/*=d": expected a path without *: everything below it is meant as well'),
    ],
)
def test_what_is_wrong_with_a_mount_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_mount(text)
    with pytest.raises(ValueError, match=r": expected "):
        parse(MountList(), [text])


@pytest.mark.parametrize(
    ("kind", "value", "in_toml", "typed"),
    [
        (SECONDS, 90.0, '"90s"', "90s"),
        (SECONDS, 0.5, '"0.5s"', "0.5s"),
        (BYTES, 64 * KIB, '"64KiB"', "64KiB"),
        (BYTES, 0, "0", "0"),
        (COUNT, 8, "8", "8"),
        (WORDS, "info", '"info"', "info"),
        (ADDRESSES, ("a:1", "b:2"), '["a:1", "b:2"]', "a:1,b:2"),
        (PATHS, "/upload/*", '"/upload/*"', "/upload/*"),
        (METHODS, ("PUT", "POST"), '["PUT", "POST"]', "PUT,POST"),
        (STATUS, 413, "413", "413"),
        (PAGE, "413.html", '"413.html"', "413.html"),
    ],
)
def test_a_value_is_written_for_a_file_and_for_a_variable(kind: Kind, value: object, in_toml: str, typed: str) -> None:
    assert (write(kind, value), plain(kind, value)) == (in_toml, typed)


@settings(deadline=None)  # a busy machine is no failure
@given(st.text())
def test_whatever_is_shown_is_on_one_line_and_prints(text: str) -> None:
    assert show(text).isprintable()
    assert show([text, {text: 1}]).isprintable()


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_is_shown_as_toml_reads_it(text: str) -> None:
    import tomllib

    assert tomllib.loads(f"a = {show(text)}") == {"a": text}


# --- who may come in, and how often ---


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        pytest.param(NetworkList(), ["192.0.2.0/24", "unix"], ("192.0.2.0/24", "unix"), id="a network and a word"),
        pytest.param(NetworkList(), "2001:DB8::1", ("2001:db8::1",), id="one address, alone"),
        pytest.param(NetworkList(), [], (), id="no network"),
        pytest.param(HostList(), ["Example.com.", ".b.example"], ("example.com", ".b.example"), id="names"),
        pytest.param(HostList(), ["::1", "192.0.2.1", "*"], ("[::1]", "192.0.2.1", "*"), id="addresses, and any"),
        pytest.param(StatusList(), [401, "404"], (401, 404), id="statuses"),
        pytest.param(Rate(), "300/minute", "300/minute", id="a rate"),
        pytest.param(Rate(off=True), "OFF", "off", id="no rate"),
        pytest.param(Rate(several=True), "20/second; 300 per 5 minutes", "20/second; 300 per 5 minutes", id="windows"),
        pytest.param(RateKey(), "header:X-Api-Key", "header:X-Api-Key", id="a key"),
        pytest.param(StorageUrl(), "redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0", id="a store"),
        pytest.param(FilePath(("none",)), "none", "none", id="a word in the place of a file"),
        pytest.param(Text(9), "the shop", "the shop", id="text"),
    ],
)
def test_a_rule_is_read(kind: Kind, raw: object, value: object) -> None:
    assert parse(kind, raw) == value


@pytest.mark.parametrize(
    ("kind", "raw", "message"),
    [
        pytest.param(NetworkList(), ["192.0.2.7/24"], "probably meant is 192.0.2.0/24", id="host bits"),
        pytest.param(NetworkList(), ["localnet"], "or one of unix, loopback, private", id="no network"),
        pytest.param(NetworkList(), ["unix", "unix"], "expected each once", id="a network twice"),
        pytest.param(HostList(), ["example.com:80"], "without a port", id="a host with a port"),
        pytest.param(HostList(), ["a b"], 'expected a name such as "example.com"', id="no host"),
        pytest.param(Rate(), "300", 'expected a rate such as "300/minute"', id="no time"),
        pytest.param(Rate(), "0/minute", "expected from 1 to", id="nothing at all"),
        pytest.param(Rate(), "1/second; 9/minute", 'expected one rate, such as "300/minute"', id="several for one"),
        pytest.param(Rate(several=True), "1/minute; 2/minute", "one rate for each length", id="a time twice"),
        pytest.param(Rate(several=True), "9/second; 9/minute", "never counts beside", id="a window without effect"),
        pytest.param(Rate(), "off", "expected a rate", id="off where there must be one"),
    ],
)
def test_what_can_be_no_rule_is_explained(kind: Kind, raw: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(kind, raw)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        pytest.param(StatusList(), [99], id="no status"),
        pytest.param(StatusList(), [404, 404], id="a status twice"),
        pytest.param(RateKey(), "address", id="no key"),
        pytest.param(RateKey(), "header:", id="no header"),
        pytest.param(StorageUrl(), "mysql://a", id="a store that nobody knows"),
        pytest.param(FilePath(), "users", id="a word that is no file"),
        pytest.param(Text(9), 'a "quote"', id="a quote"),
        pytest.param(Text(9), "a\r\nb", id="a line break"),
        pytest.param(Text(3), "four", id="too long"),
    ],
)
def test_what_is_allowed_says_enough(kind: Kind, raw: object) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        parse(kind, raw)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@h:1/0", "redis://user:***@h:1/0"),
        ("redis://:se:cret@h", "redis://:***@h"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("memory", "memory"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
