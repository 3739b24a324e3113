"""The benchmark's own arithmetic: reading wrk, ratios, bars, tables. Nothing is measured here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench import peers, process, report, wrk

WRK = """\
Running 2s test @ http://127.0.0.1:9100/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.92ms    1.12ms  19.27ms   84.20%
    Req/Sec     7.84k   318.20     8.31k    65.00%
  Latency Distribution
     50%  873.00us
     75%    4.18ms
     90%    5.02ms
     99%    1.24s
  16361 requests in 2.10s, 2.81MB read
{extra}Requests/sec:   7792.19
Transfer/sec:      1.34MB
"""

ROUNDS = [{"rps": 9000.0}, {"rps": 4000.0}, {"rps": 10000.0}]


def hello(**rounds_by_server: float) -> report.Results:
    return {"hello": {name.replace("_", "-"): [{"rps": rps}] for name, rps in rounds_by_server.items()}}


def bar(results: report.Results, beginning: str) -> report.Bar:
    (found,) = [bar for bar in report.bars(results) if bar.what.startswith(beginning)]
    return found


def test_wrk_figures_are_read_in_milliseconds() -> None:
    assert wrk.parse(WRK.format(extra="")) == wrk.Load(16361, 7792.19, 0.873, 1240.0, 0)


@pytest.mark.parametrize(
    ("extra", "errors"),
    [
        pytest.param("  Socket errors: connect 1, read 20, write 300, timeout 4000\n", 4321, id="broken connections"),
        pytest.param("  Non-2xx or 3xx responses: 7\n", 7, id="answers that say no"),
    ],
)
def test_every_kind_of_error_counts(extra: str, errors: int) -> None:
    assert wrk.parse(WRK.format(extra=extra)).errors == errors


def test_output_without_the_figures_is_an_error() -> None:
    with pytest.raises(ValueError, match="Requests/sec"):
        wrk.parse(WRK.partition("Requests/sec")[0].format(extra=""))


def test_a_ratio_is_taken_within_each_round_and_then_the_middle_one() -> None:
    theirs = [{"rps": 3000.0}, {"rps": 1000.0}, {"rps": 5000.0}]
    assert report.compare(ROUNDS, theirs, "rps") == report.Spread(3.0, 2.0, 4.0)


def test_a_round_that_one_of_them_missed_is_left_out() -> None:
    assert report.compare(ROUNDS, [None, {"rps": 2000.0}, {}], "rps") == report.Spread(2.0, 2.0, 2.0)
    assert report.compare(ROUNDS, [None, None, None], "rps") is None


@pytest.mark.parametrize(
    ("rps", "met"), [(7999.0, False), (8000.0, True)], ids=["just under is not met", "exactly is met"]
)
def test_a_bar_is_met_from_its_limit_on(rps: float, met: bool) -> None:
    assert bar(hello(hardserve=rps, waitress=3200.0), "req/s against waitress").met is met


def test_a_bar_whose_peer_is_missing_is_neither_met_nor_failed() -> None:
    found = bar(hello(hardserve=9000.0), "req/s against waitress")
    assert found.met is None
    assert "not measured" in report.bar_table([found])


def test_a_peer_with_two_setups_competes_with_its_faster_one() -> None:
    found = bar(hello(hardserve=9000.0, granian_4=4500.0, granian_1=10000.0), "req/s against granian")
    assert "granian-1" in found.what
    assert found.measured == report.Spread(0.9, 0.9, 0.9)


def test_memory_beyond_waitress_is_a_difference_not_a_ratio() -> None:
    results = {"hello": {"hardserve": [{"rss_bytes": 42e6}], "waitress": [{"rss_bytes": 31e6}]}}
    found = bar(results, "RSS after start")
    assert found.measured == report.Spread(11.0, 11.0, 11.0)
    assert found.met is False


def test_bars_become_json_with_their_verdict() -> None:
    found = bar({"idle": {"hardserve": [{"kib_each": 2.5, "kept": 0.97}]}}, "RSS of an idle").as_dict()
    assert found["met"] is True
    assert found["measured"] == {"median": 2.5, "low": 2.5, "high": 2.5}


def test_tables_line_up() -> None:
    assert report.table(["server", "req/s"], [["ours", "9,000"], ["waitress", "3"]]) == (
        "server    req/s\n--------  -----\nours      9,000\nwaitress      3"
    )


def test_the_table_shows_median_range_ratio_and_gaps() -> None:
    text = report.hello_table({"hardserve": ROUNDS, "waitress": [{"rps": 3000.0}, None, None], "uwsgi": [None] * 3})
    ours, waitress, uwsgi = text.splitlines()[2:]
    assert "9,000 (4,000-10,000)" in ours
    assert waitress.split()[:3] == ["waitress", "3,000", "3.00"]
    assert set(uwsgi.split()[1:]) == {"-"}


def test_a_sample_taken_on_a_busy_machine_is_named() -> None:
    rounds = [{"rps": 1.0, "others": 0.02}, None, {"rps": 1.0, "others": 0.33}]
    assert report.disturbed({"hello": {"uwsgi": rounds}}) == [
        "uwsgi, hello, round 3: 33% of the machine went elsewhere"
    ]


def test_nginx_writes_nowhere_but_in_its_own_directory() -> None:
    config = peers.nginx_config(peers.Run(8000, Path("/own")), keepalive=True)
    written = [line.split()[1] for line in config.splitlines() if "_path" in line or "_log" in line or "pid" in line]
    assert len(written) == 7
    assert all(path.startswith("/own/") for path in written)


def test_a_missing_package_is_reported_with_its_remedy() -> None:
    missing = peers.Server("x", "", ("no_such_package",), "", lambda run: []).missing()
    assert "no_such_package" in missing
    assert "pip install" in missing


def test_a_server_that_dies_at_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    dying = peers.Server("x", "", (), "", lambda run: [[sys.executable, "-Ic", "exit('no luck today')"]])
    with (
        pytest.raises(process.StartError, match="no luck today"),
        process.running(dying, peers.Run(process.free_port(), tmp_path)),
    ):
        pass
