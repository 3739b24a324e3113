"""The benchmark of files: what it asks of whom, and that its clients read what they say. Nothing is measured here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import files, files_servers
from tests.bench.files_clients import download, downloaders
from tests.bench.peers import REPOSITORY, Run, Server
from tests.bench.process import Running, free_port, running

SIZE = 300_000
PATIENCE_S = 10.0


def test_every_part_is_there_and_measured_in_its_own_order() -> None:
    assert all(callable(getattr(files.Bench, part)) for part in files.PARTS)
    assert files.parse([]).parts == list(files.PARTS)
    assert files.parse(["--parts", "cold,small"]).parts == ["small", "cold"]


@pytest.mark.parametrize(
    "arguments",
    [["--parts", "fast"], ["--rounds", "0"], ["--seconds", "61"], ["--connections", "x"]],
    ids=["a part that is none", "no round", "too long", "no number"],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        files.parse(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_help_has_no_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        files.parse(["--help"])
    said = capsys.readouterr().out
    assert "{" not in said
    assert "100,000 files" in said


def test_a_run_of_ours_can_say_otherwise_than_its_mounts(tmp_path: Path) -> None:
    server = files_servers.ours({"/media": tmp_path})
    ((*_, mount, last),) = server.commands(Run(8000, tmp_path, options=("--static=/other=x",)))
    assert [mount, last] == [f"--static=/media={tmp_path}", "--static=/other=x"]


def test_nginx_writes_nowhere_but_in_its_own_directory_and_serves_each_mount() -> None:
    config = files_servers.nginx_config(Run(8000, Path("/own")), {"/a": Path("/one"), "/b": Path("/two")})
    written = [line.split()[1] for line in config.splitlines() if "_path" in line or "_log" in line or "pid" in line]
    assert len(written) == 7
    assert all(path.startswith("/own/") for path in written)
    assert "location /a/ { alias /one/; }" in config
    assert "location /b/ { alias /two/; }" in config


# --- its clients, against real servers ---


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    media = tmp_path / "media"
    media.mkdir()
    for number in range(4):
        (media / f"{number}.bin").write_bytes(bytes([number]) * SIZE)
    server: Server = request.param({"/media": media})
    if reason := server.missing():
        pytest.skip(reason)
    with running(server, Run(free_port(), tmp_path)) as it:
        yield it


with_nginx = pytest.mark.parametrize("served", [files_servers.nginx], indirect=True, ids=["nginx"])


@pytest.mark.peer
@pytest.mark.parametrize(
    "served", [files_servers.nginx, files_servers.whitenoise], indirect=True, ids=["nginx", "whitenoise"]
)
def test_a_peer_serves_the_file_and_says_when_it_is_unmodified(served: Running) -> None:
    whole = files.get(served.run.port, "/media/1.bin", {})
    assert whole.status == 200
    assert whole.headers["content-length"] == str(SIZE)
    assert files.get(served.run.port, "/media/1.bin", {"If-None-Match": whole.headers["etag"]}).status == 304
    assert files.get(served.run.port, "/media/none.bin", {}).status == 404


@pytest.mark.peer
@with_nginx
def test_downloads_follow_each_other_on_one_connection(served: Running) -> None:
    assert download(served.url("/media/0.bin"), 5, SIZE).bytes == 5 * SIZE
    with pytest.raises(RuntimeError, match="404"):
        download(served.url("/media/none.bin"), 1, SIZE)


@pytest.mark.peer
@with_nginx
def test_many_clients_read_at_their_rate_and_ask_again_when_it_ends(served: Running) -> None:
    rate = 8 << 20
    limit = time.monotonic() + PATIENCE_S
    with downloaders(served.run.port, 4, rate, "/media/{}.bin", REPOSITORY) as clients:
        while (served.logged() or 0) < 1 + 16:  # the first is that of who waited for it to start
            assert time.monotonic() < limit
        fates = clients.close()
    assert fates.open == 4
    # What is asked for next has been read before, but for the one that each has under way.
    assert (16 - 4) * SIZE <= fates.bytes <= 4 * (rate * (fates.took_s + 1) + SIZE)
    assert fates.slowest >= SIZE


@pytest.mark.peer
@with_nginx
def test_clients_that_are_refused_are_a_failure(served: Running) -> None:
    with pytest.raises(RuntimeError, match="404"), downloaders(served.run.port, 2, 1000, "/media/x", REPOSITORY):
        pass
