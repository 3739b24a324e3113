import io
import os
import pty

import pytest

from hardserve.ops.banner import banner, banner_lines
from hardserve.settings import LimitSettings, LogSettings, ServerSettings, Settings, TimeoutSettings

URL = "http://127.0.0.1:8000"


def lines(settings: Settings | None = None, urls: tuple[str, ...] = (URL,), app: str = "app:app") -> list[str]:
    return banner_lines(settings or Settings(), app=app, urls=urls, version="0.1.0")


def test_the_defaults() -> None:
    assert lines() == [
        "hardserve 0.1.0 serving app:app",
        "  listening   http://127.0.0.1:8000",
        "  workers     8 threads, queue 1,024",
        "  sizes       request line 8 KiB, head 64 KiB, body 16 MiB",
        "  deadlines   head 10s, body 30s, response 30s, keep-alive 60s",
        "  limits      16,384 connections, 100 header fields",
        "  logs        access stdout, errors stderr from info",
        "  stop        SIGTERM or Ctrl-C, requests in progress get 25s",
    ]


def test_a_certificate_is_shown_in_ten_lines_at_most() -> None:
    shown = banner_lines(
        Settings(), app="a", urls=("https://[::]:443",), version="1", files=("/static",), certificate="for a.example"
    )
    assert "  certificate for a.example" in shown
    assert len(shown) <= 10


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param(
            Settings(server=ServerSettings(threads=1, drain=90.0)),
            ["1 thread, queue", "get 90s"],
            id="one thread is singular, odd minutes are seconds",
        ),
        pytest.param(
            Settings(timeouts=TimeoutSettings(header=0.5, body=120.0, response=3600.0, keep_alive=7200.0)),
            ["head 0.5s, body 2m, response 1h, keep-alive 2h"],
            id="durations are in the unit that fits",
        ),
        pytest.param(
            Settings(limits=LimitSettings(request_line=1000, header=3 << 30, body=2 << 40)),
            ["request line 1,000 B, head 3 GiB, body 2 TiB"],
            id="sizes are in the unit that divides them",
        ),
        pytest.param(
            Settings(log=LogSettings(access="off", error="/var/log/e.log", level="debug", max_size=5 << 20)),
            ["access off, errors /var/log/e.log from debug, rotated at 5 MiB"],
            id="log files and their rotation are named",
        ),
    ],
)
def test_settings_are_shown_as_people_write_them(settings: Settings, expected: list[str]) -> None:
    text = "\n".join(lines(settings))
    for part in expected:
        assert part in text


def test_it_fits_in_ten_lines_however_many_addresses_there_are() -> None:
    many = lines(urls=tuple(f"http://127.0.0.1:{port}" for port in range(8000, 8100)))
    assert len(many) <= 10
    assert many[1].endswith("http://127.0.0.1:8003  and 96 more")


def test_nothing_in_it_can_break_a_line() -> None:
    assert lines(urls=("unix:/a\nb\x1b[2J",), app="a\rb")[:2] == [
        r"hardserve 0.1.0 serving a\rb",
        r"  listening   unix:/a\nb\x1b[2J",
    ]


def test_a_terminal_gets_colour_and_nothing_else_does() -> None:
    master, slave = pty.openpty()
    try:
        with open(slave, "w", closefd=False) as stream:
            banner(Settings(), app="app:app", urls=[URL], version="0.1.0", stream=stream, environ={})
        shown = os.read(master, 10_000).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert shown.startswith("\x1b[1mhardserve 0.1.0\x1b[0m serving \x1b[1mapp:app\x1b[0m\r\n")
    plain = io.StringIO()
    banner(Settings(), app="app:app", urls=[URL], version="0.1.0", stream=plain, environ={})
    assert plain.getvalue() == "".join(f"{line}\n" for line in lines())


def test_a_stream_that_cannot_be_written_to_is_no_error() -> None:
    closed = io.StringIO()
    closed.close()
    banner(Settings(), app="app:app", urls=[URL], version="0.1.0", stream=closed, environ={})
    # Buffered, so that it is the flush that fails; closing it then has nothing left to write.
    descriptor = os.open("/dev/full", os.O_WRONLY)
    full = os.fdopen(descriptor, "w")
    banner(Settings(), app="app:app", urls=[URL], version="0.1.0", stream=full, environ={})
    with pytest.raises(OSError, match="No space"):
        full.close()
