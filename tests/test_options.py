"""Where settings come from, which source counts, and what is said about mistakes."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.options import (
    OPTIONS,
    SECTIONS,
    DotEnv,
    Resolved,
    SettingsError,
    _toml_lines,
    example_toml,
    from_keywords,
    resolve,
)
from hardserve.settings import Choice, Duration, Int, Kind, Output, Settings, Size
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


def values_of(kind: Kind) -> st.SearchStrategy[Any]:
    match kind:
        case Choice():
            return st.sampled_from(kind.values)
        case Duration():
            return st.integers(int(kind.min * 10), int(kind.max * 10)).map(lambda tenths: tenths / 10)
        case Int() | Size():
            return st.integers(kind.min, kind.max)
        case Output():
            return st.sampled_from([*kind.words, "/var/log/a", "./b"])
        case _:
            return st.lists(st.integers(3, 99).map("fd:{}".format), min_size=1, max_size=3, unique=True).map(tuple)


# Those of which any combination is allowed.
FREE = [option for option in OPTIONS if not option.key.startswith(("limits.", "log."))]
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
        value = getattr(getattr(resolved.settings, option.section), option.name)
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
            "hardserve.toml:2: log.level = a table: expected one of debug, info, warning, error",
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
            "hardserve.toml:2: server.workers: unknown setting; `hardserve config` lists them all",
            id="a name like no other",
        ),
        pytest.param(
            b"\n\n[timeout]\nheader = 1",
            "hardserve.toml:3: [timeout]: unknown section; did you mean [timeouts]?",
            id="a misspelt section",
        ),
        pytest.param(
            b"[[route]]\n[[route]]",
            "hardserve.toml:1: route: unknown setting; `hardserve config` lists them all",
            id="an array of tables",
        ),
        pytest.param(
            b"server = 1",
            "hardserve.toml:1: server = 1: expected a section, [server]",
            id="a value in place of a section",
        ),
        pytest.param(
            b"[server]\nthreads = = 1",
            "hardserve.toml:2: cannot be read as TOML: Invalid value",
            id="not TOML",
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
        elif f"{piece}\n" not in text or not piece.startswith("["):  # a table cannot be opened twice
            text += f"{piece}\n"
    tomllib.loads(text)

    found = {path[-1]: line for path, line in _toml_lines(text).items() if re.fullmatch("k[0-9]+", path[-1])}

    assert found == expected


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
            {"HARDSERVE_XYZ": "4"},
            "environment HARDSERVE_XYZ: unknown setting; `hardserve config` lists them all",
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
    (tmp_path / "hardserve.toml").write_text("[server]\nthreads = 0\nque = 1\n[tls]\n[log]\nbackups = 0\n")
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
        "hardserve.toml:4: [tls]",
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
            {"log_access": "./a.log", "log_error": "a.log", "log_max_size": "1m"},
            'flag --log-access and flag --log-error = "a.log": expected two files where log.max_size rotates them',
            id="two logs rotating one file",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_a_problem(tmp_path: Path, flags: dict[str, str], problem: str) -> None:
    assert problems_of(tmp_path, flags=flags) == [problem]


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


def test_the_example_has_every_setting_at_its_default_behind_a_hash(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^#(\w+ = )", r"\1", example_toml())
    (tmp_path / "hardserve.toml").write_text(text)
    resolved = resolve(environ={}, directory=tmp_path)
    assert resolved.settings == Settings()
    assert "default" not in resolved.origins.values()
    for option in OPTIONS:
        assert option.help[:40] in text
        assert f"{option.flag}, {option.variable}: " in text
    assert all(f"\n[{section.name}]\n" in text for section in SECTIONS)
    assert max(map(len, text.splitlines())) <= 110


def test_the_committed_reference_is_not_stale() -> None:
    committed = (REPOSITORY / "config" / "hardserve.toml").read_text()
    assert committed == example_toml(), "run: hardserve config --example > config/hardserve.toml"


def test_resolved_settings_show_themselves() -> None:
    assert "ServerSettings" in repr(Resolved(Settings(), {}, None, None))
