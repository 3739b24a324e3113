"""The command as people run it: what it prints, where, and its exit code. Each test is a process of its own."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from hardserve import __version__
from hardserve.options import OPTIONS, SECTIONS, TABLES, example_toml

HELLO = """\
import os
from flask import Flask
app = Flask(__name__)

@app.get("/")
def greet():
    return os.environ.get("GREETING", "no greeting")
"""

PACKAGE = Path(__file__).parent.parent


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HARDSERVE_", "FLASK_"))}
    path = os.pathsep.join(filter(None, [str(PACKAGE), kept.get("PYTHONPATH")]))
    return {**kept, "COLUMNS": "80", "PYTHONPATH": path, **variables}


def hardserve(*arguments: str, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hardserve", *arguments],
        cwd=directory,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


# Help


def test_help_fits_a_screen_and_is_grouped(tmp_path: Path) -> None:
    done = hardserve("--help", directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Usage: hardserve [APP | COMMAND] [--SETTING VALUE]..."
    assert [line for line in lines if re.match(r"\w.*:$", line)] == [
        "Commands:",
        "Common settings (defaults in brackets):",
        "Other flags:",
    ]
    assert "[none]" in done.stdout  # server.static
    assert "[]" not in done.stdout
    for word in ("demo", "config --example", "--bind ADDRESS", "--config FILE", "--env-file FILE", "--no-env-file"):
        assert f"\n  {word} " in done.stdout
    assert "--help-all" in done.stdout
    assert "--version" in done.stdout


def test_help_all_has_every_flag_and_variable_with_its_default(tmp_path: Path) -> None:
    done = hardserve("--help-all", directory=tmp_path, COLUMNS="100")
    assert (done.returncode, done.stderr) == (0, "")
    for option in OPTIONS:
        assert re.search(rf"\n  {option.flag} [A-Z=]+  \[{option.variable}\]\n", done.stdout), option
    assert re.findall(r"(?m)^\[(\w+)\] .*:$", done.stdout) == [section.name for section in SECTIONS]
    assert "default 127.0.0.1:8000)" in done.stdout
    defaults = re.findall(r"default\s([^)]*)\)", done.stdout)
    assert defaults.count("none") >= sum(option.default == () for option in OPTIONS) > 3
    assert "" not in defaults
    for table in TABLES:
        (about,) = re.findall(rf"(?m)^\[\[{table.name}\]\] .*:\n((?:  .*\n)+)", done.stdout)
        assert re.findall(r"(?m)^  (\w+)$", about) == [key.name for key in table.keys]


def test_the_version_is_printed_without_reading_flask_or_the_server(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom hardserve.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit as exit:\n    assert exit.code == 0\n"
        "heavy = {'flask', 'werkzeug', 'waitress', 'hardserve.server', 'dotenv', 'tomllib', 'socket', 'logging'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"hardserve {__version__}", "[]"]


# Usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--log-acess", "off"], "--log-access", id="a misspelt flag, with the one that was meant"),
        pytest.param(["--threads"], "--threads", id="a flag without its value"),
        pytest.param(["a:app", "b:app"], "b:app", id="two apps"),
        pytest.param(["--example"], "--example goes with config: hardserve config --example", id="a stray --example"),
    ],
)
def test_wrong_usage_is_exit_2_and_says_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = hardserve(*arguments, directory=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr.partition("Error: ")[2]
    assert done.stdout == ""


# config


def test_config_prints_every_setting_with_its_value_and_origin_in_columns(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "hardserve.toml").write_text("[limits]\nbody = 1048576\n")
    (tmp_path / ".env").write_text("\nHARDSERVE_TIMEOUTS_BODY=1m30s\nHARDSERVE_THREADS=3\n")
    (tmp_path / "more.env").write_text("HARDSERVE_THREADS=5\n")
    done = hardserve(
        "--bind", "127.0.0.1:0", "config", "--bind=[::1]:0", "--env-file", "more.env",
        directory=tmp_path, HARDSERVE_DRAIN="5",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert list(rows) == [option.key for option in OPTIONS] + [table.name for table in TABLES]
    assert rows["route"] == ["none", "default"]
    assert rows["server.bind"] == ["127.0.0.1:0,[::1]:0", "flag --bind"]
    assert rows["server.threads"] == ["5", "more.env:1"]
    assert rows["server.drain"] == ["5s", "environment HARDSERVE_DRAIN"]
    assert rows["timeouts.body"] == ["90s", ".env:2"]
    assert rows["limits.body"] == ["1MiB", "config/hardserve.toml:2"]
    assert rows["log.level"] == ["info", "default"]
    starts = {line.index(rows[line.split()[0]][1], len(line.split()[0])) for line in done.stdout.splitlines()}
    assert len(starts) == 1


def test_config_prints_every_table_in_force_with_the_origin_of_each_value(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text(
        '[[route]]\npath = "/a b"\nmethods = ["PUT", "POST"]\nmax_body = "1g"\n\n[[route]]\npath = "*"\n'
    )
    done = hardserve("config", directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [re.split(" {2,}", line) for line in done.stdout.splitlines()]
    routes = [row for row in rows if row[0].startswith("route[")]
    assert [row for row in routes if row[2] != "default"] == [
        ["route[0].path", "/a b", "hardserve.toml:2"],
        ["route[0].methods", "PUT,POST", "hardserve.toml:3"],
        ["route[0].max_body", "1GiB", "hardserve.toml:4"],
        ["route[1].path", "*", "hardserve.toml:7"],
    ]
    assert [row for row in routes if row[0] in ("route[1].methods", "route[1].max_body")] == [
        ["route[1].methods", "all", "default"],
        ["route[1].max_body", "limits.body", "default"],
    ]


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [
        pytest.param([], "3", id="the .env file is read"),
        pytest.param(["--no-env-file"], "8", id="unless it is not wanted"),
        pytest.param(["--no-env-file", "--env-file", "more.env"], "5", id="and another is read in its place"),
        pytest.param(["--threads", "7", "--threads", "9"], "9", id="of a flag given twice the last counts"),
    ],
)
def test_env_files_are_chosen_by_flags(tmp_path: Path, arguments: list[str], threads: str) -> None:
    (tmp_path / ".env").write_text("HARDSERVE_THREADS=3\n")
    (tmp_path / "more.env").write_text("HARDSERVE_THREADS=5\n")
    done = hardserve("config", *arguments, directory=tmp_path)
    assert re.search(rf"(?m)^server.threads +{threads} ", done.stdout), done


def test_config_example_is_the_annotated_file_whatever_else_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "hardserve.toml").write_text("[")
    done = hardserve("config", "--example", directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, example_toml(), "")


@pytest.mark.parametrize("command", [["config"], ["demo"], ["hello:app"]], ids=["config", "demo", "serve"])
def test_every_problem_with_the_settings_is_printed_and_nothing_started(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "hello.py").write_text("open('imported', 'w').close()\n" + HELLO)
    (tmp_path / "hardserve.toml").write_text('\n[timeouts]\nheader = "10x"\n')
    (tmp_path / ".env").write_text("GREETING='hi\n")
    done = hardserve(*command, "--threads", "0", directory=tmp_path, HARDSERVE_BIN="x")
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "hardserve: 4 problems with the settings:",
        'hardserve.toml:3: timeouts.header = "10x": expected a duration from 0.1s to 300s, such as "10s"',
        ".env:1: cannot be parsed: expected NAME=value, and an end to every quote",
        "environment HARDSERVE_BIN: unknown setting; did you mean HARDSERVE_BIND?",
        'flag --threads = "0": expected a whole number from 1 to 256, such as 8',
    ]
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        pytest.param([], 'hardserve.toml:5: static[0].directory = "media": ', id="in a table"),
        pytest.param(["--config", "list.toml"], 'list.toml:2: server.static = "/media=media": ', id="in a list"),
        pytest.param(["--config", "/dev/null", "--static", "/media=media"], "flag --static = ", id="in a flag"),
    ],
)
def test_what_is_wrong_with_a_mount_when_it_is_looked_into_has_its_place(
    tmp_path: Path, arguments: list[str], where: str
) -> None:
    (tmp_path / "hello.py").write_text(HELLO)
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / ".env").write_text("SECRET=x\n")
    (tmp_path / "hardserve.toml").write_text('\n[[static]]\nurl = "/media"\n\ndirectory = "media"\n')
    (tmp_path / "list.toml").write_text('[server]\nstatic = ["/media=media"]\n')
    done = hardserve("hello:app", "--bind=127.0.0.1:0", *arguments, directory=tmp_path)
    assert done.returncode == 78
    assert done.stderr.splitlines()
    assert all(line.startswith(f"hardserve: {where}") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize("flag", ["--config", "--env-file"])
def test_a_file_that_is_named_and_missing_is_exit_78(tmp_path: Path, flag: str) -> None:
    done = hardserve("config", flag, "nowhere", directory=tmp_path)
    assert done.returncode == 78
    assert done.stderr == "hardserve: 1 problem with the settings:\nnowhere: No such file or directory\n"


# Serving


def test_an_app_is_served_with_its_env_file_until_it_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(HELLO)
    (tmp_path / ".env").write_text("GREETING=hello\nHARDSERVE_BIND=127.0.0.1:0\n")
    with subprocess.Popen(
        [sys.executable, "-m", "hardserve"], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if "http://" in line)
            url = re.search(r"http://127\.0\.0\.1:\d+", said)
            assert url is not None
            with urllib.request.urlopen(url[0], timeout=10) as answer:
                assert answer.read() == b"hello"
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        pytest.param(["nowhere"], 1, "nowhere", id="an app that is not there"),
        pytest.param([], 2, "APP", id="no app at all"),
        pytest.param(["hello:app:app"], 2, "APP", id="an app that cannot be read"),
        pytest.param(["broken:app"], 1, "ZeroDivisionError", id="an app that fails to import"),
        pytest.param(["hello:app", "--bind", "192.0.2.1:0"], 1, "192.0.2.1:0", id="an address of another machine"),
        pytest.param(["hello:app", "--log-error", "./no/x.log"], 78, "log.error", id="a log that cannot be opened"),
    ],
)
def test_what_cannot_be_served_is_explained_without_our_traceback(
    tmp_path: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    (tmp_path / "hello.py").write_text(HELLO)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    done = hardserve(*arguments, directory=tmp_path, HARDSERVE_BIND="127.0.0.1:0")
    assert done.returncode == exit_code, done
    assert message in done.stderr
    assert str(PACKAGE / "hardserve") not in done.stderr
