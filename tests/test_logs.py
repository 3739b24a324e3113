import contextlib
import logging
import logging.config
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import flask
import pytest

from hardserve.ops.logfile import Destination
from hardserve.ops.logs import FORMATTERS, RECORD_MAX, SERVER, Logs, configure
from hardserve.ops.logwriter import LogFileError
from hardserve.settings import LogSettings

TIMEOUT_S = 10.0
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "error.log"


@contextlib.contextmanager
def bare_root() -> Iterator[logging.Logger]:
    """Have the root logger as an interpreter starts with it: pytest puts handlers there for each phase of a test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def logging_to(path: Path, level: str = "info") -> Iterator[Logs]:
    with bare_root():
        logs = configure(LogSettings(error=str(path), level=level))
        try:
            yield logs
        finally:
            assert logs.close(TIMEOUT_S)


def logged(path: Path, logs: Logs) -> list[str]:
    assert logs.flush(TIMEOUT_S)
    return [re.sub(f"^{STAMP} ", "", line) for line in path.read_text().splitlines()]


def record(level: int, message: str) -> logging.LogRecord:
    record = logging.LogRecord("hardserve.edge", level, "", 0, message, None, None)
    record.created, record.msecs = 1_795_361_412.345, 345.0
    return record


# --- what a record looks like ---


@pytest.mark.usefixtures("india")
@pytest.mark.parametrize(
    ("there", "level", "expected"),
    [
        pytest.param(
            Destination.PLAIN,
            logging.WARNING,
            "2026-11-22 21:00:12.345 +0530 WARNING hardserve.edge: one\n  two",
            id="a file has the whole time",
        ),
        pytest.param(
            Destination.TERMINAL,
            logging.WARNING,
            "21:00:12 WARNING hardserve.edge: one\n  two",
            id="a terminal has the time of day",
        ),
        pytest.param(
            Destination.COLOUR_TERMINAL,
            logging.ERROR,
            "21:00:12 \x1b[31mERROR\x1b[0m hardserve.edge: one\n  two",
            id="a terminal has colour",
        ),
        pytest.param(
            Destination.COLOUR_TERMINAL,
            logging.INFO,
            "21:00:12 INFO hardserve.edge: one\n  two",
            id="what is ordinary has no colour",
        ),
        pytest.param(
            Destination.JOURNAL,
            logging.WARNING,
            "<4>hardserve.edge: one\n<4>  two",
            id="a journal has the priority before every line and no time",
        ),
    ],
)
def test_forms(there: Destination, level: int, expected: str) -> None:
    assert FORMATTERS[there]().format(record(level, "one\ntwo")) == expected


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7), (25, 6)],
)
def test_a_level_has_its_syslog_priority(level: int, priority: int) -> None:
    assert FORMATTERS[Destination.JOURNAL]().format(record(level, "one")) == f"<{priority}>hardserve.edge: one"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param("naïve ☃", "naïve ☃", id="text of any language stays"),
        pytest.param("a\tb", "a\tb", id="a tab stays"),
        pytest.param("\x1b[31ma", r"\x1b[31ma", id="a terminal escape is escaped"),
        pytest.param("a\rb", r"a\rb", id="a carriage return is escaped"),
        pytest.param("a\x7f\x9bb", r"a\x7f\x9bb", id="DEL and C1 are escaped"),
        pytest.param("a\u2028b\u202eb", r"a\u2028b\u202eb", id="line separators and bidi overrides are escaped"),
        pytest.param("a\udc80b", r"a\udc80b", id="a lone surrogate is escaped"),
        pytest.param("a\n<0>b", "a\n  <0>b", id="a second line cannot pass for a record"),
    ],
)
def test_what_does_not_print_is_escaped(message: str, expected: str) -> None:
    text = FORMATTERS[Destination.PLAIN]().format(record(logging.INFO, message))
    assert text.partition("hardserve.edge: ")[2] == expected


def test_a_record_without_end_is_cut() -> None:
    text = FORMATTERS[Destination.PLAIN]().format(record(logging.INFO, "x" * (RECORD_MAX + 1)))
    assert text.endswith(f": {'x' * RECORD_MAX}...")


# --- what is logged where ---


def test_the_server_and_the_app_log_to_the_same_file(path: Path) -> None:
    with logging_to(path) as logs:
        logging.getLogger("hardserve.edge").info("from the server")
        flask.Flask("shop").logger.info("from the app")
        logging.getLogger("shop.basket").debug("below the level")
        assert logged(path, logs) == ["INFO hardserve.edge: from the server", "INFO shop: from the app"]
        assert re.match(f"{STAMP} INFO ", path.read_text())


def test_flask_adds_no_handler_of_its_own(path: Path) -> None:
    with logging_to(path):
        app = flask.Flask("cafe")
        assert app.logger.handlers == []


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_is_the_settings(path: Path, level: str, count: int) -> None:
    with bare_root():
        logs = configure(LogSettings(error=str(path), level=level))
        for name in ("hardserve.edge", "app"):
            for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
                logging.getLogger(name).log(number, "message")
        assert logs.close(TIMEOUT_S)
        assert len(path.read_text().splitlines()) == 2 * count


def fail() -> None:
    raise ValueError("what\nfor")


def test_a_traceback_is_whole_and_indented(path: Path) -> None:
    with logging_to(path) as logs:
        try:
            fail()
        except ValueError:
            logging.getLogger("app").exception("it failed")
        first, second, *frames, last, rest = logged(path, logs)
        assert first == "ERROR app: it failed"
        assert second == "  Traceback (most recent call last):"
        assert all(line.startswith("    ") for line in frames)
        assert (last, rest) == ("  ValueError: what", "  for")


def test_a_record_that_cannot_be_formatted_is_logged_by_its_place(path: Path) -> None:
    with logging_to(path) as logs:
        logging.getLogger("app").info("%d items", "many")
        (line,) = logged(path, logs)
        assert re.fullmatch(r"ERROR app: a record logged at .*/test_logs\.py:\d+ cannot be formatted: TypeError", line)


def test_warnings_are_logged(path: Path) -> None:
    with logging_to(path) as logs:
        with warnings.catch_warnings():
            # pytest has its own way of showing warnings; put back what `configure` had set.
            warnings.simplefilter("always")
            logging._warnings_showwarning = None  # type: ignore[attr-defined]
            logging.captureWarnings(True)
            warnings.warn("old", UserWarning, stacklevel=1)
            logging.captureWarnings(False)
        assert "UserWarning: old" in logged(path, logs)[0]


def test_a_file_that_cannot_be_opened_changes_nothing(tmp_path: Path) -> None:
    with bare_root() as root:
        with pytest.raises(LogFileError, match=r'^log\.error = "/.*/error\.log": cannot be opened'):
            configure(LogSettings(error=str(tmp_path / "missing" / "error.log")))
        assert root.handlers == []
        assert logging.getLogger(SERVER).handlers == []


def test_closing_gives_back_what_was_set(path: Path) -> None:
    with bare_root() as root:
        logs = configure(LogSettings(error=str(path)))
        server = logging.getLogger(SERVER)
        assert (root.level, server.propagate) == (logging.INFO, False)
        assert logs.close(TIMEOUT_S)
        assert logs.close(TIMEOUT_S)
        assert (root.handlers, root.level) == ([], logging.WARNING)
        assert (server.handlers, server.level, server.propagate) == ([], logging.NOTSET, True)


def test_a_handler_that_somebody_kept_raises_nothing_after_close(path: Path) -> None:
    with bare_root() as root:
        logs = configure(LogSettings(error=str(path)))
        (handler,) = root.handlers
        assert logs.close(TIMEOUT_S)
        handler.handle(record(logging.ERROR, "late"))
        handler.flush()
        logs.reopen()
        assert path.read_text() == ""


def test_a_moved_file_is_reopened(path: Path, tmp_path: Path) -> None:
    with logging_to(path) as logs:
        logging.getLogger("app").error("one")
        path.rename(tmp_path / "moved")
        logging.getLogger("app").error("two")
        logs.reopen()
        assert logs.flush(TIMEOUT_S)
        logging.getLogger("app").error("three")
        assert logged(path, logs) == ["ERROR app: three"]
        assert len((tmp_path / "moved").read_text().splitlines()) == 2


def test_a_full_disk_is_told_to_stderr_and_later_to_the_log(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to(path) as logs:
        path.unlink()
        path.symlink_to("/dev/full")
        logs.reopen()
        assert logs.flush(TIMEOUT_S)
        logging.getLogger("app").error("one")
        assert logs.flush(TIMEOUT_S)
        trouble = f"error log {path}: No space left on device; lines wait in memory, and are dropped when that is full"
        assert capfd.readouterr().err == f"hardserve: {trouble}\n"
        path.unlink()
        assert logs.flush(TIMEOUT_S)
        lines = logged(path, logs)
        assert lines[:2] == ["ERROR app: one", f"ERROR hardserve.ops: {trouble}"]
        assert re.fullmatch(
            r"WARNING hardserve\.ops: error log .*: written again after \d+s, 0 lines dropped", lines[2]
        )


def test_a_thread_stuck_in_formatting_keeps_no_other_from_logging(path: Path) -> None:
    with logging_to(path) as logs:
        entered, leave = threading.Event(), threading.Event()

        class Slow:
            def __str__(self) -> str:
                entered.set()
                leave.wait(TIMEOUT_S)
                return "slow"

        thread = threading.Thread(target=logging.getLogger("app").error, args=(Slow(),))
        thread.start()
        assert entered.wait(TIMEOUT_S)
        logging.getLogger("app").error("quick")
        assert logged(path, logs) == ["ERROR app: quick"]
        leave.set()
        thread.join()
        assert logged(path, logs) == ["ERROR app: quick", "ERROR app: slow"]


# --- an app that configures logging itself ---


def test_a_root_with_handlers_is_left_alone(path: Path) -> None:
    with bare_root() as root:
        theirs = logging.NullHandler()
        root.addHandler(theirs)
        logs = configure(LogSettings(error=str(path)))
        logging.getLogger("app").error("theirs")
        logging.getLogger("hardserve.edge").info("ours")
        assert (root.handlers, root.level) == ([theirs], logging.WARNING)
        assert logged(path, logs) == ["INFO hardserve.edge: ours"]
        assert logs.close(TIMEOUT_S)
        assert root.handlers == [theirs]


APP = """
import logging, logging.config, sys
edge = logging.getLogger("hardserve.edge")
from hardserve.ops.logs import configure
from hardserve.settings import LogSettings
logs = configure(LogSettings(error=sys.argv[1]))
{app}
edge.info("ours")
logging.getLogger("hardserve").info("ours")
logging.getLogger("app").warning("theirs")
logs.close(10)
"""

DICT_CONFIG = """
logging.config.dictConfig({{
    "version": 1,
    "formatters": {{"short": {{"format": "app says %(message)s"}}}},
    "handlers": {{"out": {{"class": "logging.StreamHandler", "stream": sys.stdout, "formatter": "short"}}}},
    {more}
}})
"""


@pytest.mark.parametrize(
    ("app", "in_our_file", "on_stdout"),
    [
        pytest.param("", ["edge: ours", "hardserve: ours", "app: theirs"], "", id="an app that does nothing"),
        pytest.param(
            DICT_CONFIG.format(more="'root': {'handlers': ['out']}"),
            ["edge: ours", "hardserve: ours"],
            "app says theirs\n",
            id="a dictConfig for the root, which disables the loggers that exist",
        ),
        pytest.param(
            DICT_CONFIG.format(more="'loggers': {'shop': {'handlers': ['out']}}"),
            ["edge: ours", "hardserve: ours", "app: theirs"],
            "",
            id="a dictConfig for a logger of its own, which closes our handler",
        ),
        pytest.param(
            DICT_CONFIG.format(more="'loggers': {'hardserve': {'handlers': ['out'], 'level': 'INFO'}}"),
            ["app: theirs"],
            "app says ours\napp says ours\n",
            id="a dictConfig that names hardserve is obeyed",
        ),
        pytest.param(
            "logging.basicConfig(level=logging.ERROR)",
            ["edge: ours", "hardserve: ours", "app: theirs"],
            "",
            id="a basicConfig leaves a configured root alone",
        ),
        pytest.param(
            "logging.basicConfig(force=True, stream=sys.stdout, format='app says %(message)s')",
            ["edge: ours", "hardserve: ours"],
            "app says theirs\n",
            id="a basicConfig with force",
        ),
    ],
)
def test_an_app_that_configures_logging(path: Path, app: str, in_our_file: list[str], on_stdout: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", APP.format(app=app), str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    lines = [re.sub(rf"^{STAMP} [A-Z]+ (hardserve\.)?", "", line) for line in path.read_text().splitlines()]
    assert lines == in_our_file
    assert (ran.stdout, ran.stderr) == (on_stdout, "")


# --- processes ---

LAST_WORDS = """
import logging, sys
from hardserve.ops.logs import configure
from hardserve.settings import LogSettings
configure(LogSettings())
logging.getLogger("hardserve").error("last words")
sys.exit(3)
"""


def test_what_was_logged_before_an_exit_without_close_is_written() -> None:
    ran = subprocess.run([sys.executable, "-c", LAST_WORDS], capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 3
    assert re.fullmatch(f"{STAMP} ERROR hardserve: last words\n", ran.stderr)


def test_a_journal_is_recognised_by_its_stream(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with journal.open("w") as stream:
        status = os.fstat(stream.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        subprocess.run([sys.executable, "-c", LAST_WORDS], stderr=stream, env=environ, timeout=30, check=False)
    assert journal.read_text() == "<3>hardserve: last words\n"
