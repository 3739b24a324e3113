"""Where settings come from, which source counts, and what is said about mistakes."""

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve import refusals
from hardserve.configfiles import _toml_lines
from hardserve.options import (
    OPTIONS,
    SECTIONS,
    TABLES,
    DotEnv,
    Resolved,
    SettingsError,
    example_toml,
    from_keywords,
    resolve,
)
from hardserve.settings import (
    GIB,
    MIB,
    Choice,
    Duration,
    ErrorPageSettings,
    FieldValue,
    FilePath,
    HostList,
    Int,
    Kind,
    MountList,
    NetworkList,
    Output,
    Rate,
    RateLimitSettings,
    RouteSettings,
    Settings,
    Size,
    StaticSettings,
    StorageUrl,
    Text,
)
from hardserve.values import format_size, plain, write

REPOSITORY = Path(__file__).parent.parent


def problems_of(directory: Path, **sources: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        resolve(**{"environ": {}, "directory": directory, **sources})
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


# Names


@pytest.mark.parametrize(
    ("key", "keyword", "flag", "variable"),
    [
        ("server.bind", "bind", "--bind", "HARDSERVE_BIND"),
        ("timeouts.keep_alive", "timeouts_keep_alive", "--timeouts-keep-alive", "HARDSERVE_TIMEOUTS_KEEP_ALIVE"),
        ("log.level", "log_level", "--log-level", "HARDSERVE_LOG_LEVEL"),
    ],
)
def test_every_name_follows_from_section_and_name(key: str, keyword: str, flag: str, variable: str) -> None:
    (option,) = (option for option in OPTIONS if option.key == key)
    assert (option.keyword, option.flag, option.variable) == (keyword, flag, variable)


def test_no_two_settings_share_a_name() -> None:
    for name_of in ("key", "keyword", "flag", "variable"):
        assert len({getattr(option, name_of) for option in OPTIONS}) == len(OPTIONS)


# Precedence and provenance


def test_without_any_source_every_value_is_the_default(tmp_path: Path) -> None:
    resolved = resolve(environ={"PATH": "/bin"}, directory=tmp_path)
    assert resolved.settings == Settings()
    assert set(resolved.origins) == {option.key for option in OPTIONS}
    assert set(resolved.origins.values()) == {"default"}
    assert resolved.config_path is None
    assert resolved.dotenv_path is None


def test_each_value_says_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text('[server]\nthreads = 2\n\n[timeouts]\nbody = "1m"\n')
    (tmp_path / ".env").write_text("# app\nSECRET=x\nHARDSERVE_QUEUE=7\n")
    resolved = resolve(
        flags={"bind": ("fd:3",)},
        environ={"HARDSERVE_DRAIN": "1s"},
        dotenv=DotEnv.find(tmp_path, {}),
        directory=tmp_path,
    )
    given = {key: origin for key, origin in resolved.origins.items() if origin != "default"}
    assert given == {
        "server.bind": "flag --bind",
        "server.threads": "hardserve.toml:2",
        "server.queue": ".env:3",
        "server.drain": "environment HARDSERVE_DRAIN",
        "timeouts.body": "hardserve.toml:5",
    }
    assert resolved.config_path == tmp_path / "hardserve.toml"
    assert resolved.dotenv_path == tmp_path / ".env"
    assert resolved.settings.timeouts.body == 60.0
    assert resolved.settings.server.drain == 1.0


def values_of(kind: Kind) -> st.SearchStrategy[Any]:  # noqa: C901, PLR0911  # one for each kind
    match kind:
        case Choice():
            return st.sampled_from(kind.values)
        case Duration():
            return st.integers(math.ceil(kind.min * 10), int(kind.max * 10)).map(lambda tenths: tenths / 10)
        case Int() | Size():
            return st.integers(kind.min, kind.max)
        case Output() | FilePath():
            return st.sampled_from([*kind.words, "/var/log/a", "./b"])
        case NetworkList():
            return st.lists(st.integers(0, 99).map("192.0.2.{}".format), max_size=3, unique=True).map(tuple)
        case HostList():
            return st.lists(st.integers(0, 99).map("h{}.example".format), max_size=3, unique=True).map(tuple)
        case Rate():
            return st.integers(1, 99).map("{}/minute".format)
        case StorageUrl():
            return st.sampled_from(["memory", "redis://127.0.0.1:6379/0"])
        case Text():
            return st.sampled_from(["hardserve", "the shop"])
        case FieldValue():
            return st.sampled_from([*kind.words, "DENY", "geolocation=(), camera=()"])
        case MountList():
            return st.lists(st.integers(0, 99).map("/m{}=.".format), max_size=3, unique=True).map(tuple)
        case _:
            return st.lists(st.integers(3, 99).map("fd:{}".format), min_size=1, max_size=3, unique=True).map(tuple)


# Those of which any combination is allowed.
BOUND = ("acme.", "limits.", "log.", "auth.", "ban.", "tls.", "files.memory", "files.in_")
BOUND += ("server.threads", "server.max_client_workers", "server.tls", "server.redirect")
FREE = [option for option in OPTIONS if not option.key.startswith(BOUND)]
SOURCES = st.fixed_dictionaries({}, optional={option.key: values_of(option.kind) for option in FREE})


@settings(deadline=None)  # a busy machine is no failure
@given(toml=SOURCES, dotenv=SOURCES, environ=SOURCES, flags=SOURCES, applied=st.booleans())
def test_of_any_mix_of_sources_the_strongest_that_has_a_value_counts(
    tmp_path_factory: pytest.TempPathFactory,
    toml: dict[str, Any],
    dotenv: dict[str, Any],
    environ: dict[str, Any],
    flags: dict[str, Any],
    applied: bool,
) -> None:
    directory = tmp_path_factory.mktemp("mix")
    by_key = {option.key: option for option in OPTIONS}

    def variables(values: dict[str, Any]) -> dict[str, str]:
        return {by_key[key].variable: plain(by_key[key].kind, value) for key, value in values.items()}

    lines = [f"{key} = {write(by_key[key].kind, value)}\n" for key, value in toml.items()]
    (directory / "hardserve.toml").write_text("".join(lines))
    (directory / ".env").write_text("".join(f"{name}='{value}'\n" for name, value in variables(dotenv).items()))
    loaded = DotEnv.load(directory / ".env", directory=directory)
    environment = variables(environ)
    if applied:
        loaded.apply(environment)

    resolved = resolve(
        flags={by_key[key].keyword: value for key, value in flags.items()},
        environ=environment,
        dotenv=loaded,
        directory=directory,
    )

    for option in OPTIONS:
        value = getattr(getattr(resolved.settings, option.section), option.attribute)
        sources = (flags, environ, dotenv, toml, {option.key: option.default})
        assert value == next(source[option.key] for source in sources if option.key in source)
        origin = resolved.origins[option.key]
        if option.key in flags:
            assert origin == f"flag {option.flag}"
        elif option.key in environ and environ[option.key] != dotenv.get(option.key):
            assert origin == f"environment {option.variable}"
        elif option.key in dotenv:
            assert origin == f".env:{list(dotenv).index(option.key) + 1}"
        elif option.key in toml:
            assert origin == f"hardserve.toml:{list(toml).index(option.key) + 1}"
        else:
            assert origin == "default"


def test_a_variable_has_several_addresses_between_commas(tmp_path: Path) -> None:
    resolved = resolve(environ={"HARDSERVE_BIND": "0.0.0.0:80, [::]:80"}, directory=tmp_path)
    assert resolved.settings.server.bind == ("0.0.0.0:80", "[::]:80")


# The TOML file


@pytest.mark.parametrize("name", ["hardserve.toml", "config/hardserve.toml"])
def test_a_file_in_its_place_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / name).write_text("[server]\nthreads = 3")
    resolved = resolve(environ={}, directory=tmp_path)
    assert resolved.settings.server.threads == 3
    assert resolved.origins["server.threads"] == f"{name}:2"


def test_with_a_file_in_both_places_nothing_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "hardserve.toml").touch()
    (tmp_path / "config/hardserve.toml").touch()
    assert problems_of(tmp_path) == [
        "hardserve.toml and config/hardserve.toml: expected one of them, or --config with the one to use"
    ]
    assert resolve(environ={}, directory=tmp_path, config=Path("hardserve.toml")).settings == Settings()


def test_a_named_file_is_read_in_place_of_the_one_that_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text("[server]\nthreads = 3")
    (tmp_path / "other.toml").write_text("[server]\nqueue = 3")
    settings = resolve(environ={}, directory=tmp_path, config=Path("other.toml")).settings
    assert (settings.server.threads, settings.server.queue) == (8, 3)


def test_a_file_that_is_named_and_missing_stops_the_start(tmp_path: Path) -> None:
    assert problems_of(tmp_path, config=Path("nowhere.toml")) == ["nowhere.toml: No such file or directory"]


def test_a_link_to_nowhere_is_not_taken_for_no_file(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").symlink_to("gone.toml")
    assert problems_of(tmp_path) == ["hardserve.toml: No such file or directory"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(
            b'\n[timeouts]\nheader = "10x"\n',
            'hardserve.toml:3: timeouts.header = "10x": expected a duration from 0.1s to 300s, such as "10s"',
            id="a value that cannot be read",
        ),
        pytest.param(
            b"[server]\nthreads = true",
            "hardserve.toml:2: server.threads = true: expected a whole number from 1 to 256, such as 8",
            id="true where a number is wanted",
        ),
        pytest.param(
            b'[server]\nbind = [\n  "127.0.0.1:8000",\n  "localhost:99999",\n]',
            'hardserve.toml:2: server.bind = ["127.0.0.1:8000", "localhost:99999"]: "localhost:99999": '
            "expected a port from 0 to 65535",
            id="one of several addresses",
        ),
        pytest.param(
            b"[log]\nlevel = {a = 1}",
            'hardserve.toml:2: log.level = a table: expected "debug", "info", "warning" or "error"',
            id="a table where a word is wanted",
        ),
        pytest.param(
            b"[log]\nbackups = 1979-05-27",
            "hardserve.toml:2: log.backups = 1979-05-27: expected a whole number from 1 to 100, such as 3",
            id="a date where a number is wanted",
        ),
        pytest.param(
            b"[timeouts]\nheder = 1",
            "hardserve.toml:2: timeouts.heder: unknown setting; did you mean timeouts.header?",
            id="a misspelt name",
        ),
        pytest.param(
            b"[limits]\nthreads = 1",
            "hardserve.toml:2: limits.threads: unknown setting; did you mean server.threads?",
            id="a name in another section",
        ),
        pytest.param(
            b"[server]\nkeep-alive = 1",
            "hardserve.toml:2: server.keep-alive: unknown setting; did you mean timeouts.keep_alive?",
            id="a name as a flag has it",
        ),
        pytest.param(
            b"[compression]\nlevel = 3",
            "hardserve.toml:2: compression.level: unknown setting; `hardserve config --example` lists them all",
            id="a name in another section, where it means something else",
        ),
        pytest.param(
            b"[compression]\nlevel = 'error'",
            "hardserve.toml:2: compression.level: unknown setting; did you mean log.level?",
            id="a name in another section that takes the value",
        ),
        pytest.param(
            b"[compression]\nlevels = 'error'",
            "hardserve.toml:2: compression.levels: unknown setting; `hardserve config --example` lists them all",
            id="a misspelt name of another section",
        ),
        pytest.param(
            b"[timeouts]\nconnections = 5",
            "hardserve.toml:2: timeouts.connections: unknown setting; did you mean timeouts.connection?",
            id="a misspelt name that another section has",
        ),
        pytest.param(
            b"[compression]\nsize = 5",
            "hardserve.toml:2: compression.size: unknown setting; did you mean compression.min_size?",
            id="a name without its first word",
        ),
        pytest.param(
            b"[[route]]\npath = '/'\nbody = 5",
            "hardserve.toml:3: route[0].body: unknown setting; did you mean max_body?",
            id="a name without its first word in a table, which two sections have",
        ),
        pytest.param(
            b"[headers]\nserver = true",
            "hardserve.toml:2: headers.server = true: expected the value of a header field of at most 256 printable"
            ' ASCII characters, such as "hardserve", or "off"',
            id="true where a header field is wanted",
        ),
        pytest.param(
            b"threads = 1",
            "hardserve.toml:1: threads: unknown setting; did you mean server.threads?",
            id="a name in no section",
        ),
        pytest.param(
            b"body = 1",
            "hardserve.toml:1: body: unknown setting; did you mean timeouts.body or limits.body?",
            id="a name of two sections",
        ),
        pytest.param(
            b"[server]\nworkers = 1",
            "hardserve.toml:2: server.workers: unknown setting; `hardserve config --example` lists them all",
            id="a name like no other",
        ),
        pytest.param(
            b"\n\n[timeout]\nheader = 1",
            "hardserve.toml:3: [timeout]: unknown section; did you mean [timeouts]?",
            id="a misspelt section",
        ),
        pytest.param(
            b"[[server]]\nthreads = 1",
            "hardserve.toml:1: [[server]]: expected a section, [server]",
            id="a section in double brackets",
        ),
        pytest.param(
            b"[[thing]]\n[[thing]]",
            "hardserve.toml:1: [[thing]]: unknown section; `hardserve config --example` lists them all",
            id="an array of tables like no other",
        ),
        pytest.param(
            b"\n[[routes]]\npath = '/'",
            "hardserve.toml:2: [[routes]]: unknown section; did you mean [[route]]?",
            id="a misspelt array of tables",
        ),
        pytest.param(
            b"[error-page]\nstatus = 413",
            "hardserve.toml:1: [error-page]: unknown section; did you mean [[error_page]]?",
            id="a misspelt array of tables in single brackets",
        ),
        pytest.param(
            b"routes = 3",
            "hardserve.toml:1: routes: unknown setting; did you mean [[route]]?",
            id="a misspelt array of tables with a value",
        ),
        pytest.param(
            b"[route]\npath = '/upload'",
            "hardserve.toml:1: [route]: expected [[route]], with two brackets, for each",
            id="an array of tables in single brackets",
        ),
        pytest.param(
            b"\nroute = 3",
            "hardserve.toml:2: route = 3: expected tables, each begun by [[route]]",
            id="a value in place of an array of tables",
        ),
        pytest.param(
            b"route = [{path = '/'}, 3]",
            "hardserve.toml:1: route = [a table, 3]: expected tables, each begun by [[route]]",
            id="a value in an array of tables",
        ),
        pytest.param(
            b"[[route]]\npath = '/'\nmax_bdy = 1",
            "hardserve.toml:3: route[0].max_bdy: unknown setting; did you mean max_body?",
            id="a misspelt name in a table",
        ),
        pytest.param(
            b"[[route]]\npath = '/'\nMax-Body = 1",
            "hardserve.toml:3: route[0].Max-Body: unknown setting; did you mean max_body?",
            id="a name in a table spelt as nobody spells it here",
        ),
        pytest.param(
            b"[[route]]\npath = '/'\n\nthreads = 4",
            "hardserve.toml:4: route[0].threads: unknown setting; did you mean server.threads?",
            id="what belongs to a section, but follows a table",
        ),
        pytest.param(
            b"[[route]]\npath = '/'\n[route.max_body]\nsize = 1",
            'hardserve.toml:3: route[0].max_body = a table: expected a size from 0 to 1TiB, such as "1GiB"',
            id="a table in a table",
        ),
        pytest.param(
            b"[[route]]\npath = '/a'\n[[route]]\npath = '/b'\nmax_body = '2TiB'",
            'hardserve.toml:5: route[1].max_body = "2TiB": expected a size from 0 to 1TiB, such as "1GiB"',
            id="a value out of bounds in the second table",
        ),
        pytest.param(
            b"[[route]]\npath = '/a'\n\n[[route]]\nmethods = ['POST']",
            'hardserve.toml:4: route[1]: expected also path, such as path = "/upload"',
            id="a name that a table must have",
        ),
        pytest.param(
            b"[[route]]",
            'hardserve.toml:1: route[0]: expected also path, such as path = "/upload"',
            id="an empty table",
        ),
        pytest.param(
            b"[[route]]\npath = '/a'\npath = '/b'",
            "hardserve.toml:3: cannot be read as TOML: Cannot overwrite a value",
            id="a name twice in one table",
        ),
        pytest.param(
            b"[[route]]\npath = 'upload'",
            'hardserve.toml:2: route[0].path = "upload": expected a path such as "/upload", "/upload/*" or "*.iso"',
            id="a path without its slash",
        ),
        pytest.param(
            b"[[route]]\npath = '/users/<id>'",
            'hardserve.toml:2: route[0].path = "/users/<id>": expected * in place of a variable part, as in "/users/*"',
            id="a path as Flask writes it",
        ),
        pytest.param(
            b"[[route]]\npath = '/a'\nmethods = ['POST', 'PSOT']",
            'hardserve.toml:3: route[0].methods = ["POST", "PSOT"]: did you mean "POST"?',
            id="a misspelt method",
        ),
        pytest.param(
            b"[[route]]\npath = '/a'\nmethods = 3",
            'hardserve.toml:3: route[0].methods = 3: expected some methods, such as ["POST"]',
            id="a number where methods are wanted",
        ),
        pytest.param(
            b"[[error_page]]\nstatus = 413\nfile = 'p.php'",
            'hardserve.toml:3: error_page[0].file = "p.php": expected a path of a file in .html, .json or .txt of at'
            ' most 64KiB in UTF-8, such as "413.html"',
            id="a page of another kind",
        ),
        pytest.param(
            b"\n" + b"[[route]]\n" * 1001,
            "hardserve.toml:2: route: expected at most 1000 of [[route]]",
            id="more tables than anybody writes",
        ),
        pytest.param(
            b"server = 1",
            "hardserve.toml:1: server = 1: expected a section, [server]",
            id="a value in place of a section",
        ),
        pytest.param(
            b"[server]\nthreads = = 1",
            "hardserve.toml:2: cannot be read as TOML: Invalid value; words, paths, durations and sizes need quotes,"
            ' such as "on" or "10s"',
            id="not TOML",
        ),
        pytest.param(
            b"[[static]]\nurl = '/m'\nlisting = on",
            "hardserve.toml:3: cannot be read as TOML: Invalid value; words, paths, durations and sizes need quotes,"
            ' such as "on" or "10s"',
            id="a word without quotes",
        ),
        pytest.param(
            b"[timeouts]\nheader = 10s",
            "hardserve.toml:2: cannot be read as TOML: Expected newline or end of document after a statement;"
            ' words, paths, durations and sizes need quotes, such as "on" or "10s"',
            id="a duration without quotes",
        ),
        pytest.param(
            b'[server]\nbind = [\n"fd:3"\n',
            "hardserve.toml:3: cannot be read as TOML: Unclosed array",
            id="not TOML at its end",
        ),
        pytest.param(
            b"[server]\nthreads = 1\nthreads = 2\n",
            "hardserve.toml:3: cannot be read as TOML: Cannot overwrite a value",
            id="a setting given twice",
        ),
        pytest.param(
            b'a = 1\nb = "\xff"\n',
            "hardserve.toml:2: expected UTF-8",
            id="not UTF-8",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "hardserve.toml").write_bytes(content)
    assert problems_of(tmp_path) == [problem]


def test_everything_wrong_with_a_table_is_said_at_once_and_the_other_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text(
        """[[route]]
path = "upload"
max_body = "9TiB"
metods = ["POST"]

[[error_page]]
file = "413.html"

[[route]]
path = "/ok"
max_body = "3GiB"

[[route]]
path = "/"
methods = []
max_body = "x"
"""
    )
    assert [problem.partition(" = ")[0] for problem in problems_of(tmp_path)] == [
        "hardserve.toml:2: route[0].path",
        "hardserve.toml:3: route[0].max_body",
        "hardserve.toml:4: route[0].metods: unknown setting; did you mean methods?",
        "hardserve.toml:16: route[2].max_body",
        "hardserve.toml:6: error_page[0]: expected also status, such as status",
        "hardserve.toml:11: route[1].max_body",  # more than limits.buffered_files
        "hardserve.toml:7: error_page[0].file",  # not there
    ]


def test_tables_count_in_the_order_of_the_file_and_say_where_they_came_from(tmp_path: Path) -> None:
    (tmp_path / "413.html").write_text("<h1>Too large</h1>")
    (tmp_path / "hardserve.toml").write_text(
        """[[route]]
path = "/upload"
methods = ["post", "PUT"]
max_body = "1GiB"

[server]
threads = 3
[[error_page]]
status = 413
file = "413.html"
[[route]] # another
path = "*.iso"
[log]
level = "error"
"""
    )
    resolved = resolve(environ={}, directory=tmp_path)
    assert resolved.settings.route == (
        RouteSettings(path="/upload", methods=("POST", "PUT"), max_body=GIB),
        RouteSettings(path="*.iso", methods=(), max_body=None),
    )
    assert resolved.settings.error_page == (ErrorPageSettings(status=413, file="413.html"),)
    assert (resolved.settings.server.threads, resolved.settings.log.level) == (3, "error")
    origins = {key: origin for key, origin in resolved.origins.items() if "[" in key}
    assert {origins.pop(key) for key in ("route[0].allow", "route[1].methods", "route[1].max_body")} == {"default"}
    assert {key: origin for key, origin in origins.items() if origin != "default"} == {
        "route[0].path": "hardserve.toml:2",
        "route[0].methods": "hardserve.toml:3",
        "route[0].max_body": "hardserve.toml:4",
        "route[1].path": "hardserve.toml:12",
        "error_page[0].status": "hardserve.toml:9",
        "error_page[0].file": "hardserve.toml:10",
    }


def test_tables_may_be_written_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text("\nroute = [\n  {path = '/a'},\n  {path = '/b', methods = 'POST'},\n]\n")
    resolved = resolve(environ={}, directory=tmp_path)
    assert [route.path for route in resolved.settings.route] == ["/a", "/b"]
    assert resolved.settings.route[1].methods == ("POST",)
    assert resolved.origins["route[1].path"] == "hardserve.toml:2"


def test_an_array_without_tables_is_none(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text("route = []\n")
    assert resolve(environ={}, directory=tmp_path).settings == Settings()


@pytest.mark.parametrize("content", ["a = " + "9" * 5000, "a = " + "[" * 100_000], ids=["digits", "nesting"])
def test_an_absurd_file_is_a_problem_and_no_traceback(tmp_path: Path, content: str) -> None:
    (tmp_path / "hardserve.toml").write_text(content)
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("hardserve.toml")
    assert "cannot be read as TOML" in problem


def test_a_file_from_another_system_may_have_a_mark_and_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_bytes(b"\xef\xbb\xbf[server]\r\n\r\nthreads = 3\r\n")
    assert resolve(environ={}, directory=tmp_path).origins["server.threads"] == "hardserve.toml:3"


NASTY = [
    "1",
    '"""\nx = 1 # [y]\n"""',
    "'''\n[a]\n''''",
    '"""a\\"""b""""',
    '"#[{\\""',
    "'\"#['",
    "[\n 1, # ] \n [2,\n 3]]",
    "[[1, 2], ['\\', \"]\"]] # [",
    '{ a = "}", b.c = [1,\n2] }',
    "1979-05-27T07:32:00Z # = [",
    '""',
    "''",
    '[\n"""\n]\n"""\n]',
]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from([*NASTY, "", "# x = [", " \t", "[t]", "[[u]]", "['q\"']", "[ t . x ]"]), max_size=12))
def test_the_line_of_a_name_is_found_whatever_is_around_it(pieces: list[str]) -> None:
    text, expected = "", {}
    for number, piece in enumerate(pieces):
        if piece in NASTY:
            names = [f"k{number}", f'"\\u006b{number}"', f"'k{number}'", f"k{number} . 'a=b'"]
            expected[f"k{number}"] = text.count("\n") + 1
            text += f"{names[number % 4]} = {piece}\n"
        elif f"{piece}\n" not in text or not piece.startswith("[") or piece == "[[u]]":  # a table is opened once
            text += f"{piece}\n"
    tomllib.loads(text)

    found = {path[-1]: line for path, line in _toml_lines(text).items() if re.fullmatch("k[0-9]+", str(path[-1]))}

    assert found == expected


def paths_in(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        found |= paths_in(member, (*path, name))
    return found


HEADERS = [
    "[[a]]",
    "[[a]]",
    "[[a.b]]",
    "[[ a . 'b' ]]",
    "[a.c]",
    "[d]",
    "[[d.e]]",
    "k = 1",
    "m.n = 1",
    "o = {p = 1}",
    "",
]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from(HEADERS), max_size=14))
def test_the_names_of_a_table_are_known_by_its_place_in_its_array(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a table opened twice, a name given twice
    found = _toml_lines(text)
    assert set(found) == {path for path in paths_in(document) if path[-2:] != ("o", "p")}
    for path, line in found.items():
        if path[-1] in ("k", "m", "o"):
            assert lines[line - 1].startswith(str(path[-1]))
        elif isinstance(path[-1], int):
            assert lines[line - 1].startswith("[")


def test_in_an_inline_table_the_line_is_that_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text("\nserver = {threads = 0}\ntimeouts.body = 0\n")
    assert [problem.split(" = ")[0] for problem in problems_of(tmp_path)] == [
        "hardserve.toml:2: server.threads",
        "hardserve.toml:3: timeouts.body",
    ]


# Variables


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        pytest.param(
            {"HARDSERVE_THREADS": "ture"},
            'environment HARDSERVE_THREADS = "ture": expected a whole number from 1 to 256, such as 8',
            id="a value that cannot be read",
        ),
        pytest.param(
            {"HARDSERVE_THREADS": ""},
            'environment HARDSERVE_THREADS = "": expected a whole number from 1 to 256, such as 8',
            id="an empty value",
        ),
        pytest.param(
            {"HARDSERVE_THREAD": "4"},
            "environment HARDSERVE_THREAD: unknown setting; did you mean HARDSERVE_THREADS?",
            id="a misspelt name",
        ),
        pytest.param(
            {"HARDSERVE_SERVER_BIND": "fd:3"},
            "environment HARDSERVE_SERVER_BIND: unknown setting; did you mean HARDSERVE_BIND?",
            id="a section that goes without saying",
        ),
        pytest.param(
            {"HARDSERVE_KEEP_ALIVE": "4"},
            "environment HARDSERVE_KEEP_ALIVE: unknown setting; did you mean HARDSERVE_TIMEOUTS_KEEP_ALIVE?",
            id="a section that does not",
        ),
        pytest.param(
            {"HARDSERVE_ROUTE": "/upload"},
            "environment HARDSERVE_ROUTE: [[route]] cannot be set by a variable; expected it in the TOML file",
            id="an array of tables",
        ),
        pytest.param(
            {"HARDSERVE_ERROR_PAGE_0_FILE": "413.html"},
            "environment HARDSERVE_ERROR_PAGE_0_FILE: [[error_page]] cannot be set by a variable; expected it in the"
            " TOML file",
            id="a name in an array of tables",
        ),
        pytest.param(
            {"HARDSERVE_XYZ": "4"},
            "environment HARDSERVE_XYZ: unknown setting; `hardserve config --example` lists them all",
            id="a name like no other",
        ),
        pytest.param(
            {"HARDSERVE_LOG_ACCESS": "a\x1b[31m"},
            'environment HARDSERVE_LOG_ACCESS = "a\\U0000001b[31m": expected "stdout", "stderr", "off" or the path'
            " of a file (with a slash or a dot in it)",
            id="control characters are not sent to the terminal",
        ),
    ],
)
def test_a_mistake_in_a_variable_is_named(tmp_path: Path, environ: Mapping[str, str], problem: str) -> None:
    assert problems_of(tmp_path, environ=environ) == [problem]


# .env


def test_env_files_are_found_as_flask_finds_them(tmp_path: Path) -> None:
    below = tmp_path / "project" / "app"
    below.mkdir(parents=True)
    (tmp_path / ".env").write_text("A=far\n")
    (tmp_path / "project" / ".env").write_text("A=near\nB=near\n")
    (below / ".flaskenv").write_text("B=weak\nC=weak\n")
    found = DotEnv.find(below, {})
    assert found.values == {"A": "near", "B": "near", "C": "weak"}
    assert found.origins == {
        "A": f"{tmp_path}/project/.env:1",
        "B": f"{tmp_path}/project/.env:2",
        "C": ".flaskenv:2",
    }
    assert found.path == tmp_path / "project" / ".env"


@pytest.mark.parametrize(("value", "found"), [("1", False), ("true", False), ("0", True), ("no", True), ("", True)])
def test_flask_skip_dotenv_is_obeyed(tmp_path: Path, value: str, found: bool) -> None:
    (tmp_path / ".env").write_text("A=1\n")
    assert bool(DotEnv.find(tmp_path, {"FLASK_SKIP_DOTENV": value}).values) is found


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("A=1\nexport B=2\n'C'='3'\n", id="plain, exported and quoted"),
        pytest.param('A="x\\ny # no" # yes\nB=a b # c\nC=#d\n', id="escapes and comments"),
        pytest.param("A=1\nB=${A}2${NOT_SET:-3}\nC='${A}'\n", id="expansion"),
        pytest.param('\n\nA="two\nlines"\n\n\nB=1', id="more than one line"),
        pytest.param("A\nB=\nA=2\nA=3\nD\nE=${D:-x}\n", id="without a value, and given again"),
        pytest.param("A=1\r\n\r\nB=2\r\n", id="carriage returns"),
        pytest.param("\ufeffA=ä\n", id="a byte order mark"),
        pytest.param("", id="nothing"),
    ],
)
def test_a_file_means_what_it_means_to_flask_run(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flask.cli import load_dotenv

    (tmp_path / ".env").write_bytes(content.encode())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {"B": "kept"})
    load_dotenv()
    ours = {"B": "kept"}
    DotEnv.find(tmp_path, {}).apply(ours)
    assert ours == os.environ


def test_a_value_is_placed_on_the_line_where_its_name_stands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('# x\n\nA="1\n2"\n\n \n# y\nB=1\nC=2\nA=3\n')
    found = DotEnv.load(tmp_path / ".env", directory=tmp_path)
    assert found.origins == {"A": ".env:10", "B": ".env:8", "C": ".env:9"}


def test_every_line_that_cannot_be_parsed_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('A=1\n\nB="2\nthis is no setting\nHARDSERVE_THREADS\nHARDSERVE_QUEUE=x\n')
    found = DotEnv.find(tmp_path, {})
    assert problems_of(tmp_path, dotenv=found) == [
        ".env:3: cannot be parsed: expected NAME=value, and an end to every quote",
        ".env:4: cannot be parsed: expected NAME=value, and an end to every quote",
        ".env:5: HARDSERVE_THREADS: expected a value, as in HARDSERVE_THREADS=value",
        '.env:6: HARDSERVE_QUEUE = "x": expected a whole number from 1 to 100000, such as 1024',
    ]
    environ: dict[str, str] = {}
    with pytest.raises(SettingsError):
        found.apply(environ)
    assert environ == {}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"A=1\n\xff=1", "x.env:2: expected UTF-8", id="not UTF-8"),
        pytest.param(b"A=1\0", "x.env:1: expected a name without = in it, and no zero byte", id="a zero byte"),
        pytest.param(b"'A=B'=1", "x.env:1: expected a name without = in it, and no zero byte", id="= in a name"),
        pytest.param(
            b"HARDSERVE_THREAD=1",
            "x.env:1: HARDSERVE_THREAD: unknown setting; did you mean HARDSERVE_THREADS?",
            id="an unknown setting",
        ),
    ],
)
def test_a_mistake_in_an_env_file_is_named_with_its_line(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "x.env").write_bytes(content)
    assert problems_of(tmp_path, dotenv=DotEnv.load(Path("x.env"), directory=tmp_path)) == [problem]


def test_an_env_file_that_is_missing_is_a_problem(tmp_path: Path) -> None:
    missing = DotEnv.load(Path("x.env"), directory=tmp_path)
    assert problems_of(tmp_path, dotenv=missing) == ["x.env: No such file or directory"]


# Together


def test_all_problems_of_all_sources_are_said_at_once_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text("[server]\nthreads = 0\nque = 1\n[tsl]\n[log]\nbackups = 0\n")
    (tmp_path / ".env").write_text("HARDSERVE_DRAIN=2h\n")
    found = problems_of(
        tmp_path,
        dotenv=DotEnv.find(tmp_path, {}),
        environ={"HARDSERVE_BIN": "x"},
        flags={"bind": ("x",), "threads": "4"},
    )
    assert [problem.partition(" = ")[0].partition(": unknown")[0] for problem in found] == [
        "hardserve.toml:2: server.threads",
        "hardserve.toml:3: server.que",
        "hardserve.toml:4: [tsl]",
        "hardserve.toml:6: log.backups",
        ".env:1: HARDSERVE_DRAIN",
        "environment HARDSERVE_BIN",
        "flag --bind",
    ]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        pytest.param(
            {"limits_header_line": "128k"},
            'flag --limits-header-line = "128KiB": expected at most limits.header = "64KiB"',
            id="a part greater than the whole",
        ),
        pytest.param(
            {"limits_request_line": "4k", "limits_header": "8k"},
            'flag --limits-header = "8KiB": expected at least limits.header_line = "16KiB", the default',
            id="a whole smaller than a default part",
        ),
        pytest.param(
            {"limits_request_line": "32k", "limits_header": "20k"},
            'flag --limits-request-line = "32KiB": expected at most flag --limits-header = "20KiB"',
            id="a part greater than the whole, both given",
        ),
        pytest.param(
            {"limits_body": "1025MiB"},
            'flag --limits-body = "1025MiB": expected at most half of limits.buffered_files = "2GiB"',
            id="a body that is more than a client may have in files",
        ),
        pytest.param(
            {"limits_buffered_files": "0"},
            'flag --limits-buffered-files = "0": expected at least twice limits.body = "16MiB", the default',
            id="no files, and a body that memory does not take",
        ),
        pytest.param(
            {"limits_body": "1MiB", "limits_body_memory": "4MiB", "limits_buffered_memory": "1MiB"}
            | {"limits_buffered_files": "1MiB"},
            'flag --limits-body = "1MiB": expected at most half of flag --limits-buffered-files = "1MiB"',
            id="a body that may be in memory, where there is no room for it",
        ),
        pytest.param(
            {"limits_response_file": "3GiB"},
            'flag --limits-response-file = "3GiB": expected at most limits.buffered_files = "2GiB"',
            id="a response that all files together cannot hold",
        ),
        pytest.param(
            {"log_access": "./a.log", "log_error": "a.log", "log_max_size": "1m"},
            'flag --log-access and flag --log-error = "a.log": expected two files where log.max_size rotates them',
            id="two logs rotating one file",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_a_problem(tmp_path: Path, flags: dict[str, str], problem: str) -> None:
    assert problems_of(tmp_path, flags=flags) == [problem]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({"limits_body": "1GiB"}, id="as much as a client may have in files"),
        pytest.param({"limits_body": "512KiB", "limits_buffered_files": "0"}, id="a body that stays in memory"),
        pytest.param(
            {"limits_body": "512KiB", "limits_buffered_files": "0", "limits_buffered_memory": "1MiB"},
            id="a body that stays in memory, and is as much as a client may have there",
        ),
        pytest.param({"limits_body": "0", "limits_buffered_files": "0"}, id="no bodies at all"),
    ],
)
def test_bodies_that_find_room_contradict_nothing(tmp_path: Path, flags: dict[str, str]) -> None:
    resolve(flags=flags, environ={}, directory=tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(
            "[[route]]\npath = '/a'\nmax_body = '3GiB'",
            'hardserve.toml:3: route[0].max_body = "3GiB": expected at most half of limits.buffered_files = "2GiB"',
            id="a body that is more than a client may have in files",
        ),
        pytest.param(
            "[limits]\nbuffered_files = '1GiB'\n[[route]]\npath = '/a'\nmax_body = '1GiB'",
            'hardserve.toml:5: route[0].max_body = "1GiB": expected at most half of hardserve.toml:2:'
            ' limits.buffered_files = "1GiB"',
            id="a body that is more than a client may have in files, both given",
        ),
        pytest.param(
            "[[route]]\npath = '/a'\nmax_body = 1\n[[route]]\npath = '/a/'\nmax_body = 2",
            'hardserve.toml:5: route[1].path = "/a/": never counts, after hardserve.toml:2: route[0].path',
            id="a path twice",
        ),
        pytest.param(
            "[[route]]\npath = '*'\nmethods = ['GET']\n[[route]]\npath = '*'\nmethods = ['PUT', 'POST']\n"
            "[[route]]\npath = '*'\nmethods = 'PUT'",
            'hardserve.toml:8: route[2].path = "*": never counts, after hardserve.toml:5: route[1].path',
            id="a path twice for one method",
        ),
    ],
)
def test_tables_that_cannot_count_are_a_problem(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "hardserve.toml").write_text(content)
    assert problems_of(tmp_path) == [problem]


# Mounts


def table(url: str, directory: str, *more: str) -> str:
    return "\n".join(("[[static]]", f"url = '{url}'", f"directory = '{directory}'", *more, ""))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory to start in, with something to serve."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "app.html").touch()
    (tmp_path / "d" / "sub.d").mkdir()
    (tmp_path / "e").mkdir()
    (tmp_path / "one.txt").touch()
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(
            table("/a", "d") + table("/b", "d") + table("/a/", "e"),
            'hardserve.toml:8: static[2].url = "/a": expected each URL once, but it is that of hardserve.toml:2:'
            " static[0].url as well",
            id="a URL twice",
        ),
        pytest.param(
            "[server]\nstatic = ['/a=d']\n" + table("/a", "e"),
            'hardserve.toml:4: static[0].url = "/a": expected each URL once, but it is that of hardserve.toml:2:'
            ' server.static = "/a=d" as well',
            id="a URL that the list has",
        ),
        pytest.param(
            table("/a", "fifo"),
            'hardserve.toml:3: static[0].directory = "fifo": expected a directory or a file, and this is neither',
            id="neither a directory nor a file",
        ),
        pytest.param(
            table("/a", "d", "fallback = 'index.html'"),
            'hardserve.toml:4: static[0].fallback = "index.html": expected a file in "d", and none of that name is'
            " there",
            id="a fallback that is not there",
        ),
        pytest.param(
            table("/a", "d", "fallback = 'sub.d'"),
            'hardserve.toml:4: static[0].fallback = "sub.d": expected a file in "d", and none of that name is there',
            id="a fallback that is a directory",
        ),
        pytest.param(
            table("/a", "d", "fallback = 'app.html'", "miss = 'app'"),
            'hardserve.toml:4: static[0].fallback = "app.html": never counts, because of hardserve.toml:5:'
            ' static[0].miss = "app"',
            id="a fallback where a miss is the app's",
        ),
        pytest.param(
            table("/a", "d", "internal = true", "fallback = 'app.html'"),
            'hardserve.toml:5: static[0].fallback = "app.html": never counts, because of hardserve.toml:4:'
            ' static[0].internal = "on"',
            id="a fallback that nobody can come to",
        ),
        pytest.param(
            table("/a", "d", "internal = 'on'", "listing = true"),
            'hardserve.toml:5: static[0].listing = "on": never counts, because of hardserve.toml:4:'
            ' static[0].internal = "on"',
            id="a listing that nobody can come to",
        ),
        *(
            pytest.param(
                table("/a", "one.txt", f"{name} = '{value}'"),
                f'hardserve.toml:4: static[0].{name} = "{value}": never counts, because hardserve.toml:3:'
                " static[0].directory is one file",
                id=f"{name} of one file",
            )
            for name, value in (("listing", "on"), ("index", "index.html"), ("fallback", "app.html"))
        ),
        pytest.param(
            "[files]\nin_memory = '1MiB'\nmemory = '512KiB'",
            'hardserve.toml:2: files.in_memory = "1MiB": expected at most hardserve.toml:3: files.memory = "512KiB"',
            id="a file in memory that all files together must not fill",
        ),
        pytest.param(
            "[files]\nmemory = '32KiB'",
            'hardserve.toml:2: files.memory = "32KiB": expected at least files.in_memory = "64KiB", the default',
            id="less memory than for one file",
        ),
        pytest.param(
            "[files]\nmemory = 0\nin_memory = '1KiB'",
            'hardserve.toml:3: files.in_memory = "1KiB": expected at most hardserve.toml:2: files.memory = "0"',
            id="a file in memory, and no memory",
        ),
    ],
)
def test_a_mount_that_cannot_be_meant_is_a_problem(site: Path, content: str, problem: str) -> None:
    (site / "hardserve.toml").write_text(content)
    assert problems_of(site) == [problem]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(table("/a", "d", "fallback = 'app.html'", "listing = true", "index = 'x'"), id="a directory"),
        pytest.param(table("/a", "one.txt", "listing = false", "index = 'off'", "fallback = 'off'"), id="one file"),
        pytest.param(table("/a", "d", "internal = true", "listing = 'off'", "index = 'x'"), id="an internal directory"),
        pytest.param(table("/a", "d", "miss = 'app'", "listing = true"), id="misses for the app, beside a listing"),
        pytest.param("[files]\nmemory = 0", id="nothing is kept"),
        pytest.param("[files]\nmemory = '64KiB'", id="one file is kept"),
    ],
)
def test_a_mount_that_can_be_meant_is_none(site: Path, content: str) -> None:
    (site / "hardserve.toml").write_text(content)
    resolve(environ={}, directory=site)


@pytest.mark.parametrize(
    ("path", "tried"),
    [
        pytest.param("nope", '"{}/nope", from where hardserve was started', id="below it"),
        pytest.param("../nope", '"{}/../nope", from where hardserve was started', id="beside it"),
        pytest.param("/nope/x", '"/nope/x"', id="an absolute path"),
        pytest.param("one.txt/x", '"{}/one.txt/x", from where hardserve was started', id="below a file"),
        pytest.param("~/d", '"{}/~/d", from where hardserve was started; ~ is not expanded', id="a tilde"),
    ],
)
def test_where_nothing_is_it_is_said_where_that_is(site: Path, path: str, tried: str) -> None:
    said = f"expected a directory or a file, and nothing is there: tried {tried.format(site)}"
    assert problems_of(site, flags={"static": [f"/x={path}"]}) == [f'flag --static = "/x={path}": {said}']
    (site / "hardserve.toml").write_text(table("/x", path))
    assert problems_of(site) == [f'hardserve.toml:3: static[0].directory = "{path}": {said}']


def test_a_file_that_is_missing_beside_another_problem_is_said_once(site: Path) -> None:
    (site / "hardserve.toml").write_text(table("/x", "nope", "fallback = 'app.html'"))
    (problem,) = problems_of(site)
    assert problem.startswith('hardserve.toml:3: static[0].directory = "nope": ')


@pytest.mark.parametrize(
    ("mode", "path", "what"),
    [
        pytest.param(0o444, "d", "expected a directory that the user", id="a directory that cannot be searched"),
        pytest.param(0o311, "d", "expected a directory that the user", id="a directory that cannot be read"),
        pytest.param(0o000, "d/a", "cannot be reached by the user", id="a directory in one that cannot be searched"),
        pytest.param(0o222, "f", "expected a file that the user", id="a file that cannot be read"),
    ],
)
def test_what_this_user_may_not_read_cannot_be_served(mode: int, path: str, what: str) -> None:
    with TemporaryDirectory() as name:  # not below that of pytest, in which only its user may search
        start = Path(name)
        start.chmod(0o755)
        (start / "d" / "a").mkdir(parents=True)
        (start / "f").touch()
        target = start / path[0]
        target.chmod(mode)
        root = os.geteuid() == 0
        if root:
            os.seteuid(12345)
        try:
            found = problems_of(start, flags={"static": [f"/x={path}"]})
        finally:
            if root:
                os.seteuid(0)
            target.chmod(0o755)
    assert len(found) == 1
    assert found[0].startswith(f'flag --static = "/x={path}": {what} whom hardserve runs as')


def test_true_and_false_are_on_and_off_in_every_source(site: Path) -> None:
    (site / "hardserve.toml").write_text("[files]\nauto = false\n" + table("/a", "d", "listing = true"))
    (site / ".env").write_text("HARDSERVE_COMPRESSION_RESPONSES=false\n")
    resolved = resolve(
        flags={"rate_limiting_legacy_headers": "true"},
        environ={"HARDSERVE_FILES_COMPRESS": "False"},
        dotenv=DotEnv.find(site, {}),
        directory=site,
    )
    settings = resolved.settings
    assert (settings.files.auto, settings.static[0].listing) == ("off", "on")
    assert (settings.compression.responses, settings.files.compress) == ("off", "off")
    assert settings.rate_limiting.legacy_headers == "on"
    assert from_keywords(files_auto=True, auth_required=False).files.auto == "on"


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ('static[0].directory = "d": a', 'hardserve.toml:4: static[0].directory = "d": a'),
        ('static = "/b=e": a = b', 'flag --static = "/b=e": a = b'),
        ("files.check = 1: a", "files.check = 1: a"),
        ("something else = d", "something else = d"),
    ],
)
def test_what_is_found_later_is_put_where_it_was_given(site: Path, found: str, problem: str) -> None:
    (site / "hardserve.toml").write_text("\n" + table("/a", "d"))
    assert resolve(flags={"static": ["/b=e"]}, environ={}, directory=site).placed(found) == problem


def test_one_path_may_have_routes_for_different_methods(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text(
        "[[route]]\npath = '/a'\nmethods = ['PUT']\n[[route]]\npath = '/a'\nmethods = ['PUT', 'POST']\n"
        "[[route]]\npath = '/a'\n[[route]]\npath = '/a*'\n"
    )
    assert len(resolve(environ={}, directory=tmp_path).settings.route) == 4


# Error pages

PAGE = "[[error_page]]\nstatus = 413\nfile = '{}'\n"


def test_a_page_is_for_a_status_that_somebody_can_be_refused_with(tmp_path: Path) -> None:
    (tmp_path / "p.html").touch()
    declared = {value.status for value in vars(refusals).values() if isinstance(value, refusals.Refusal)}
    for status in declared - {301, 308}:
        (tmp_path / "hardserve.toml").write_text(f"[[error_page]]\nstatus = {status}\nfile = 'p.html'\n")
        assert resolve(environ={}, directory=tmp_path).settings.error_page[0].status == status
    (tmp_path / "hardserve.toml").write_text("[[error_page]]\nstatus = 418\nfile = 'p.html'\n")
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("hardserve.toml:2: error_page[0].status = 418: expected one of 400, ")
    assert problem.endswith(", 503, 504, 505")


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        pytest.param("413.html", None, "cannot be read: No such file or directory", id="is missing"),
        pytest.param("dir.html", None, "expected a file, and this is none", id="is a directory"),
        pytest.param("fifo.txt", None, "expected a file, and this is none", id="would block"),
        pytest.param("413.txt", b"x" * 65537, "expected a file of at most 64KiB", id="is too large"),
        pytest.param("413.json", b'{\n"a": "\xff"', "expected UTF-8, but line 2 of it is not", id="is not UTF-8"),
    ],
)
def test_a_page_that_cannot_be_sent_stops_the_start(
    tmp_path: Path, file: str, content: bytes | None, problem: str
) -> None:
    (tmp_path / "dir.html").mkdir()
    os.mkfifo(tmp_path / "fifo.txt")
    if content is not None:
        (tmp_path / file).write_bytes(content)
    (tmp_path / "hardserve.toml").write_text(PAGE.format(file))
    assert problems_of(tmp_path) == [f'hardserve.toml:3: error_page[0].file = "{file}": {problem}']


def test_a_status_may_have_a_page_of_each_kind_and_of_each_kind_one(tmp_path: Path) -> None:
    for name in ("413.html", "413.JSON", "413.txt", "other.HTML"):
        (tmp_path / name).write_bytes(b"x" * 65536)
    pages = "".join(map(PAGE.format, ("413.html", "413.JSON", "413.txt")))
    (tmp_path / "hardserve.toml").write_text(pages)
    assert len(resolve(environ={}, directory=tmp_path).settings.error_page) == 3
    (tmp_path / "hardserve.toml").write_text(pages + PAGE.format("other.HTML"))
    assert problems_of(tmp_path) == [
        'hardserve.toml:12: error_page[3].file = "other.HTML": never counts, after hardserve.toml:3: error_page[0].file'
    ]


def test_pages_are_looked_for_where_the_command_is_run_and_not_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "413.html").write_text("x")
    (tmp_path / "config" / "hardserve.toml").write_text(PAGE.format("413.html"))
    assert resolve(environ={}, directory=tmp_path).settings.error_page[0].file == "413.html"


def test_a_value_that_cannot_be_read_contradicts_nothing(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, flags={"limits_header": "x", "limits_header_line": "1m"})
    assert problem.startswith("flag --limits-header = ")


# Keywords


def test_keywords_take_numbers_and_what_people_write() -> None:
    settings = from_keywords(bind="127.0.0.1:0", threads=2, timeouts_header="1m", drain=0, limits_body="1g")
    assert settings.server.bind == ("127.0.0.1:0",)
    assert (settings.timeouts.header, settings.server.drain) == (60.0, 0.0)
    assert format_size(settings.limits.body) == "1GiB"
    assert from_keywords() == Settings()


def test_keywords_take_tables_as_dicts_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "413.html").write_text("x")
    settings = from_keywords(
        route=[{"path": "/upload", "methods": ["POST"], "max_body": "1GiB"}, {"path": "/b", "max_body": 5}],
        error_page=({"status": 413, "file": "413.html"},),
    )
    assert settings.route == (
        RouteSettings(path="/upload", methods=("POST",), max_body=GIB),
        RouteSettings(path="/b", max_body=5),
    )
    assert settings.error_page == (ErrorPageSettings(status=413, file="413.html"),)


@pytest.mark.parametrize(
    ("keywords", "problem"),
    [
        pytest.param(
            {"route": {"path": "/a"}},
            'route = a table: expected a list of dicts, such as [{"path": "/upload"}]',
            id="a table that is in no list",
        ),
        pytest.param(
            {"route": [{"path": "/a"}, "/b"]},
            'route = [a table, "/b"]: expected a list of dicts, such as [{"path": "/upload"}]',
            id="a path in place of a dict",
        ),
        pytest.param(
            {"error_page": None},
            'error_page = None: expected a list of dicts, such as [{"status": 413, "file": "413.html"}]',
            id="nothing in place of a list",
        ),
        pytest.param(
            {"route": [{"path": "/a", "max_body": None}]},
            'route[0].max_body = None: expected a size from 0 to 1TiB, such as "1GiB"',
            id="nothing in place of a size",
        ),
        pytest.param(
            {"route": [{"path": "/a"}, {3: 1, "path": "/b"}]},
            "route[1].3: unknown setting; `hardserve config --example` lists them all",
            id="a name that is no text",
        ),
        pytest.param(
            {"routes": []},
            "routes: unknown setting; did you mean route?",
            id="a misspelt keyword",
        ),
    ],
)
def test_a_mistake_in_a_table_of_a_keyword_is_named(keywords: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_keywords(**keywords)
    assert caught.value.problems == (problem,)


def test_wrong_keywords_are_a_value_error_with_every_problem() -> None:
    with pytest.raises(ValueError, match="threads") as caught:
        from_keywords(threads=True, thread=4, timeout_header=3, keep_alive=None)
    assert str(caught.value).splitlines() == [
        "threads = true: expected a whole number from 1 to 256, such as 8",
        "thread: unknown setting; did you mean threads?",
        "timeout_header: unknown setting; did you mean timeouts_header?",
        "keep_alive: unknown setting; did you mean timeouts_keep_alive?",
    ]


# The generated reference


def test_the_example_is_read_as_every_default(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text(example_toml())
    assert resolve(environ={}, directory=tmp_path).settings == Settings()


# Of [[static]], each of these excludes the other.
NOT_TOGETHER = (("internal", "fallback"), ("internal", "miss"), ("listing", "fallback"))


def uncommented(without: tuple[str, ...]) -> str:
    """Return the reference with every setting in force, but for those."""
    return re.sub(rf"(?m)^#(?!(?:{'|'.join(without)}) = )(\w+ = |\[\[)", r"\1", example_toml())


def test_the_example_has_every_setting_at_its_default_behind_a_hash(tmp_path: Path) -> None:
    text = uncommented(NOT_TOGETHER[0])
    (tmp_path / "hardserve.toml").write_text(text)
    (tmp_path / "413.html").write_text("the page that it names for an example")
    (tmp_path / "uploads").mkdir()
    resolved = resolve(environ={}, directory=tmp_path)
    assert replace(resolved.settings, route=(), rate_limit=(), static=(), error_page=(), certificate=()) == Settings()
    left = {key for key, origin in resolved.origins.items() if origin == "default"}
    assert left == {f"static[0].{name}" for name in NOT_TOGETHER[0]}
    for option in OPTIONS:
        assert option.help[:40] in text
        assert f"{option.flag}, {option.variable}: " in text
    assert all(f"\n[{section.name}]\n" in text for section in SECTIONS)
    assert all(f"\n{table.header}\n" in text for table in TABLES)
    assert max(map(len, text.splitlines())) <= 110


def test_the_example_of_a_table_sets_everything_in_it(tmp_path: Path) -> None:
    (tmp_path / "413.html").touch()
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "index.html").touch()
    examples = {key.name: key.example for each in TABLES if each.name == "static" for key in each.keys}
    for without in NOT_TOGETHER:
        (tmp_path / "hardserve.toml").write_text(uncommented(without))
        settings = resolve(environ={}, directory=tmp_path).settings
        given = {name: value for name, value in examples.items() if name not in without}
        assert settings.static == (StaticSettings(**given),)
    assert settings.route == (
        RouteSettings(
            path="/upload",
            methods=("POST",),
            max_body=1024 * MIB,
            allow=("private",),
            deny=("192.0.2.0/24",),
            allowed_methods=("GET", "POST"),
            auth="off",
            client_certificate="optional",
        ),
    )
    assert settings.rate_limit == (
        RateLimitSettings(
            limit="300/minute",
            path="/login",
            methods=("POST",),
            key="client+path",
            strategy="moving-window",
            burst=20,
            cost=5,
            exempt=("loopback",),
            status=(401, 404),
            dry_run="on",
        ),
    )
    assert settings.error_page == (ErrorPageSettings(status=413, file="413.html"),)


def test_the_committed_reference_is_not_stale() -> None:
    committed = (REPOSITORY / "config" / "hardserve.toml").read_text()
    assert committed == example_toml(), "run: hardserve config --example > config/hardserve.toml"


def test_resolved_settings_show_themselves() -> None:
    assert "ServerSettings" in repr(Resolved(Settings(), {}, None, None))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        pytest.param({"bind": "127.0.0.1:0?proxy_protocol"}, "expected also proxy.trusted", id="a port for nobody"),
        pytest.param({"auth_required": "on"}, "expected also auth.users", id="passwords of nobody"),
        pytest.param({"route": [{"path": "/a", "auth": "on"}]}, "expected also auth.users", id="nor on a route"),
        pytest.param({"rate_limit": [{"limit": "9/minute", "key": "user"}]}, "expected also auth.users", id="no user"),
        pytest.param(
            {"rate_limit": [{"limit": "1/second; 9/minute", "burst": 2}]}, "expected one rate in limit", id="two rates"
        ),
        pytest.param(
            {"rate_limit": [{"limit": "9/minute", "cost": 10}]}, "expected at most 9", id="too dear a request"
        ),
        pytest.param({"rate_limit": [{"limit": "9/minute", "burst": 1, "cost": 3}]}, "at most 2", id="also at once"),
        pytest.param({"threads": 2, "max_client_workers": 3}, "expected at most threads = 2", id="more than all"),
        pytest.param({"ban_for": "2h", "ban_ceiling": "1h"}, "expected at most ban_ceiling", id="above the ceiling"),
    ],
)
def test_what_cannot_be_meant_together_is_said(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        from_keywords(**keywords)
