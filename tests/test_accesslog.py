import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.ops.accesslog import (
    FIELD_MAX,
    TARGET_MAX,
    AccessEntry,
    AccessLog,
    CombinedLine,
    CompactLine,
    JsonLine,
    line_maker,
)
from hardserve.ops.logwriter import LogFileError
from hardserve.settings import LogSettings

TIMEOUT_S = 10.0

ENTRY = AccessEntry(
    time=1_795_361_412.345,
    client="192.0.2.7",
    method="GET",
    target="/items?page=2&sort=name",
    version="1.1",
    status=200,
    bytes_sent=512,
    duration_s=0.001234,
    request_id="4f2a9c",
    refusal="",
    referer="https://example.org/",
    user_agent="curl/8.5.0 (a b)",
    user="",
)

# What common parsers make of the format: nginx's and Apache's own documentation, with our three fields behind.
COMBINED = re.compile(
    r"(?P<client>\S+) - (?P<user>\S+) \[(?P<time>[^\]]+)\] "
    r'"(?P<request>[^"]*)" (?P<status>\d{3}) (?P<sent>\d+) "(?P<referer>[^"]*)" "(?P<agent>[^"]*)"'
    r" id=(?P<id>\S+) took=(?P<took>\d+\.\d{6}) refused=(?P<refused>\S+)\n"
)
COMPACT = re.compile(
    r"\d\d:\d\d:\d\d \d{3} (?P<method>\S+) (?P<target>\S+) \d+\.\dms \d+B (?P<client>\S+) (?P<id>\S+)"
    r"( refused=(?P<refused>\S+))?\n"
)


pytestmark = pytest.mark.usefixtures("india")


# --- the formats ---


def test_combined_is_what_nginx_and_apache_write_and_three_fields_more() -> None:
    assert CombinedLine()(ENTRY).decode() == (
        '192.0.2.7 - - [22/Nov/2026:21:00:12 +0530] "GET /items?page=2&sort=name HTTP/1.1" 200 512 '
        '"https://example.org/" "curl/8.5.0 (a b)" id=4f2a9c took=0.001234 refused=-\n'
    )


def test_json_is_one_object_with_every_key() -> None:
    line = JsonLine()(ENTRY).decode()
    assert json.loads(line) == {
        "time": "2026-11-22T21:00:12.345+05:30",
        "client": "192.0.2.7",
        "user": "",
        "method": "GET",
        "target": "/items?page=2&sort=name",
        "http": "1.1",
        "status": 200,
        "bytes": 512,
        "took": 0.001234,
        "referer": "https://example.org/",
        "agent": "curl/8.5.0 (a b)",
        "id": "4f2a9c",
        "refused": "",
    }
    assert ": " not in line


def test_compact_is_for_people() -> None:
    line = "GET /items?page=2&sort=name 1.2ms 512B 192.0.2.7 4f2a9c"
    assert CompactLine(colour=False)(ENTRY).decode() == f"21:00:12 200 {line}\n"
    assert CompactLine(colour=True)(ENTRY).decode() == f"21:00:12 \x1b[32m200\x1b[0m {line}\n"


@pytest.mark.parametrize(
    ("changes", "combined", "compact"),
    [
        pytest.param({"user": "ann"}, "192.0.2.7 - ann [", "192.0.2.7 4f2a9c\n", id="a user is named"),
        pytest.param({"client": ""}, "- - - [", "512B - 4f2a9c\n", id="a client without an address is a dash"),
        pytest.param(
            {"refusal": "queue_full", "status": 503},
            " took=0.001234 refused=queue_full\n",
            " 4f2a9c refused=queue_full\n",
            id="a refusal is named",
        ),
        pytest.param(
            {"method": "", "target": "", "version": "", "status": 400},
            '] "-" 400 ',
            " 400 - - 1.2ms",
            id="a request that could not be read is a dash",
        ),
        pytest.param({"referer": "", "user_agent": ""}, ' 512 "-" "-" id=', " 512B ", id="absent headers are dashes"),
        pytest.param({"request_id": ""}, " id=- took=", "192.0.2.7 -\n", id="a missing id is a dash"),
    ],
)
def test_special_entries(changes: dict[str, Any], combined: str, compact: str) -> None:
    entry = ENTRY._replace(**changes)
    assert combined in CombinedLine()(entry).decode()
    assert compact in CompactLine(colour=False)(entry).decode()


@pytest.mark.parametrize(
    ("status", "colour"),
    [(200, "\x1b[32m"), (304, "\x1b[36m"), (404, "\x1b[33m"), (503, "\x1b[31m"), (101, "")],
)
def test_a_status_has_the_colour_of_its_class(status: int, colour: str) -> None:
    line = CompactLine(colour=True)(ENTRY._replace(status=status)).decode()
    assert line.startswith(f"21:00:12 {colour}{status}\x1b[0m GET ")


def test_the_second_changes_with_the_entry_also_backwards() -> None:
    line = CombinedLine()
    later, earlier = ENTRY._replace(time=ENTRY.time + 1), ENTRY._replace(time=ENTRY.time - 3600)
    times = [COMBINED.fullmatch(line(entry).decode()) for entry in (ENTRY, later, earlier)]
    assert [match and match["time"][12:20] for match in times] == ["21:00:12", "21:00:13", "20:00:12"]


def test_an_entry_has_no_place_for_a_body_credentials_or_a_cookie() -> None:
    assert set(AccessEntry._fields) == {
        "time", "client", "method", "target", "version", "status", "bytes_sent", "duration_s", "request_id",
        "refusal", "referer", "user_agent", "user",
    }  # fmt: skip


# --- what clients send ---

HOSTILE = [
    pytest.param("a\nb", r"a\nb", id="a newline"),
    pytest.param("a\r\nb", r"a\r\nb", id="a carriage return"),
    pytest.param("a\x1b[2Jb", r"a\x1b[2Jb", id="a terminal escape"),
    pytest.param('a"b', r"a\x22b", id="a quote"),
    pytest.param("a\\b", r"a\\b", id="a backslash"),
    pytest.param("a\x00b", r"a\x00b", id="a NUL"),
    pytest.param("a\x7fb", r"a\x7fb", id="a DEL"),
    pytest.param("a\x9bb", r"a\x9bb", id="a C1 control sequence introducer"),
    pytest.param("a\u00e9b", r"a\xe9b", id="latin-1"),
    pytest.param("a\u2028b", r"a\u2028b", id="a line separator"),
    pytest.param("a\U0001f600b", r"a\U0001f600b", id="past the basic plane"),
    pytest.param("a\udc80b", r"a\udc80b", id="a lone surrogate"),
]


@pytest.mark.parametrize(("sent", "logged"), HOSTILE)
@pytest.mark.parametrize("field", ["target", "user_agent", "referer", "user", "request_id", "client"])
def test_hostile_characters_are_escaped(field: str, sent: str, logged: str) -> None:
    changes: dict[str, Any] = {field: sent}
    entry = ENTRY._replace(**changes)
    assert logged in CombinedLine()(entry).decode()
    names = {"user_agent": "agent", "request_id": "id"}
    assert json.loads(JsonLine()(entry))[names.get(field, field)] == sent
    if field in {"target", "client", "request_id"}:
        assert logged in CompactLine(colour=False)(entry).decode()


@pytest.mark.parametrize("field", ["client", "user", "method", "target", "version", "request_id", "refusal"])
def test_a_space_cannot_end_a_field_without_quotes(field: str) -> None:
    changes: dict[str, Any] = {field: "a b"}
    entry = ENTRY._replace(**changes)
    match = COMBINED.fullmatch(CombinedLine()(entry).decode())
    assert match
    assert r"a\x20b" in match[0]
    assert match["request"].count(" ") == 2
    assert COMPACT.fullmatch(CompactLine(colour=False)(entry).decode())


@pytest.mark.parametrize(
    ("field", "length"),
    [("target", TARGET_MAX), ("user_agent", FIELD_MAX), ("referer", FIELD_MAX), ("user", FIELD_MAX)],
)
def test_a_long_field_is_cut_and_says_so(field: str, length: int) -> None:
    whole, cut = "x" * length, "x" * length + "..."
    keys = {"user_agent": "agent"}
    for sent, logged in ((whole, whole), (whole + "x", cut), (whole * 100, cut)):
        changes: dict[str, Any] = {field: sent}
        entry = ENTRY._replace(**changes)
        assert json.loads(JsonLine()(entry))[keys.get(field, field)] == logged
        assert re.search(f'(?<!x){re.escape(logged)}[ "]', CombinedLine()(entry).decode())


texts = (
    st.text(max_size=40) | st.text(st.characters(max_codepoint=0xFF), max_size=40) | st.text('"\\ \n\x1b]', max_size=5)
)
entries = st.builds(
    AccessEntry,
    time=st.floats(0, 4e9),
    client=texts,
    method=texts,
    target=texts,
    version=texts,
    status=st.integers(100, 599),
    bytes_sent=st.integers(0, 1 << 50),
    duration_s=st.floats(0, 1e6),
    request_id=texts,
    refusal=texts,
    referer=texts,
    user_agent=texts,
    user=texts,
)


def assert_one_printable_line(line: str) -> None:
    assert line[-1] == "\n"
    assert line.isascii()
    assert line[:-1].isprintable()


@settings(deadline=None, max_examples=150)
@given(entry=entries)
def test_whatever_is_in_an_entry_its_combined_line_is_one_and_parses(entry: AccessEntry) -> None:
    line = CombinedLine()(entry).decode()
    assert_one_printable_line(line)
    match = COMBINED.fullmatch(line)
    assert match
    assert (int(match["status"]), int(match["sent"])) == (entry.status, entry.bytes_sent)


@settings(deadline=None, max_examples=150)
@given(entry=entries)
def test_whatever_is_in_an_entry_its_json_line_is_one_and_gives_it_back(entry: AccessEntry) -> None:
    line = JsonLine()(entry).decode()
    assert_one_printable_line(line)
    back = json.loads(line)
    names = ("client", "user", "method", "target", "http", "referer", "agent", "id", "refused")
    assert tuple(back[name] for name in names) == (
        entry.client, entry.user, entry.method, entry.target, entry.version, entry.referer, entry.user_agent,
        entry.request_id, entry.refusal,
    )  # fmt: skip
    assert len(back) == 13


@settings(deadline=None, max_examples=150)
@given(entry=entries)
def test_whatever_is_in_an_entry_its_compact_line_is_one_and_parses(entry: AccessEntry) -> None:
    line = CompactLine(colour=False)(entry).decode()
    assert_one_printable_line(line)
    assert COMPACT.fullmatch(line)


# --- the log ---


def test_entries_go_to_the_file_in_order(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(LogSettings(access=str(path), access_format="json"))
    log.start()
    for status in range(200, 300):
        log.write(ENTRY._replace(status=status))
    assert log.close(TIMEOUT_S)
    assert [json.loads(line)["status"] for line in path.read_text().splitlines()] == list(range(200, 300))


def test_a_file_is_reopened_and_rotated_as_the_settings_say(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(LogSettings(access=str(path), max_size=500, backups=2))
    log.start()
    log.reopen()
    for _ in range(20):
        log.write(ENTRY)
    assert log.close(TIMEOUT_S)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["access.log", "access.log.1", "access.log.2"]
    assert all(file.stat().st_size <= 500 for file in files)


def test_off_is_off() -> None:
    log = AccessLog(LogSettings(access="off"))
    log.start()
    log.write(ENTRY)
    log.reopen()
    assert log.close(TIMEOUT_S)
    assert repr(log) == "<AccessLog off>"


def test_a_file_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match=r'^log\.access = "/.*/access\.log": cannot be opened'):
        AccessLog(LogSettings(access=str(tmp_path / "missing" / "access.log"))).start()


def test_an_entry_that_cannot_be_formatted_is_counted_and_raises_nothing(tmp_path: Path) -> None:
    log = AccessLog(LogSettings(access=str(tmp_path / "access.log")))
    log.write(ENTRY._replace(time=float("nan")))
    assert "dropped=1" in repr(log)


@pytest.mark.parametrize(
    ("form", "kind"),
    [("auto", CombinedLine), ("combined", CombinedLine), ("json", JsonLine), ("compact", CompactLine)],
)
def test_the_form_of_a_file_is_combined_unless_asked(form: str, kind: type) -> None:
    assert isinstance(line_maker(LogSettings(access="/a.log", access_format=form), {}), kind)


TERMINAL = """
import os, sys
from hardserve.ops.accesslog import AccessEntry, AccessLog
from hardserve.settings import LogSettings
for environ in ({}, {"NO_COLOR": "1"}):
    log = AccessLog(LogSettings(access="stdout"), environ=environ)
    log.start()
    log.write(AccessEntry(0.0, "::1", "GET", "/", "1.1", 200, 9, 0.5, "abc", "", "", "", ""))
    log.close(10)
"""


def test_auto_is_compact_on_a_terminal_and_in_colour_unless_that_is_unwanted() -> None:
    master, slave = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", TERMINAL], stdout=slave, check=True, timeout=30)
        lines = os.read(master, 10_000).decode().splitlines()
    finally:
        os.close(master)
        os.close(slave)
    assert [line[9:] for line in lines] == [
        "\x1b[32m200\x1b[0m GET / 500.0ms 9B ::1 abc",
        "200 GET / 500.0ms 9B ::1 abc",
    ]
