"""What a server serves without its app: the operator's mounts, the app's own folders, and what is refused at start."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask

from hardserve.configfiles import SettingsError
from hardserve.mounting import WAY_OUT, mounts_of
from hardserve.options import from_keywords
from tests.support import serving
from tests.test_cli import environment, hardserve

APP = """\
from flask import Flask
app = Flask(__name__)

@app.get("/")
def index():
    return "hello"
"""
KEY = b"-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"app"]


def write(path: Path, content: str | bytes = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def source(project: Path) -> None:
    """The directory of the app itself is served."""


def source_below(project: Path) -> None:
    write(project / "wsgi.txt", "app.py")


def env_file(project: Path) -> None:
    write(project / "media" / ".env", "SECRET_KEY=x\n")


def database(project: Path) -> None:
    with sqlite3.connect(write(project / "media" / "shop.db", b"")) as connection:
        connection.execute("create table a (b)")
    connection.close()


def key(project: Path) -> None:
    write(project / "media" / "tls" / "server.key", KEY)


# --- the operator's ---

REFUSED: list[Any] = [
    pytest.param(source, ".", "app.py is the app's own source", id="the app's source"),
    pytest.param(source_below, "..", "app.py is the app's own source", id="what the app's source is somewhere in"),
    pytest.param(env_file, "media", ".env is a file of environment variables, which hold secrets", id="a .env"),
    pytest.param(database, "media", "shop.db is a database", id="a database"),
    pytest.param(key, "media", "tls/server.key is a private key", id="a key"),
]


@pytest.mark.parametrize(("plant", "directory", "what"), REFUSED)
def test_a_mount_that_shows_too_much_is_exit_78(
    tmp_path: Path, plant: Callable[[Path], None], directory: str, what: str
) -> None:
    project = tmp_path / "project"
    write(project / "app.py", APP)
    write(project / "media" / "a.txt")
    plant(project)
    done = hardserve("app:app", "--bind=127.0.0.1:0", "--static", f"/media={directory}", directory=project)
    is_refused(done, f'static = "/media={directory}": ', what)


def test_an_internal_mount_that_shows_too_much_is_exit_78(tmp_path: Path) -> None:
    """What of it is sent may be what an app's clients have asked for."""
    write(tmp_path / "app.py", APP)
    database(tmp_path)
    table = '[[static]]\nurl = "/media"\ndirectory = "media"\ninternal = "on"\n'
    write(tmp_path / "hardserve.toml", table)
    done = hardserve("app:app", "--bind=127.0.0.1:0", directory=tmp_path)
    is_refused(done, 'static[0].directory = "media": ', "media/shop.db is a database")


def is_refused(done: subprocess.CompletedProcess[str], where: str, what: str) -> None:
    assert done.returncode == 78
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(where in line for line in lines)
    assert [line for line in lines if what in line], done.stderr
    assert lines[-1].endswith(WAY_OUT)


def test_the_way_out_of_it_leads_out(tmp_path: Path) -> None:
    write(tmp_path / "app.py", APP)
    write(tmp_path / "media" / "public" / "a.txt", "a")
    env_file(tmp_path)
    flags = ["--bind=127.0.0.1:0", "--static=/media=media/public"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hardserve", "app:app", *flags],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert any("listening" in line for line in process.stderr)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_all_problems_of_all_mounts_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path / "one" / ".env")
    write(tmp_path / "two" / "k.key", KEY)
    write(tmp_path / "good" / "a.txt")
    settings = from_keywords(
        static=[{"url": f"/{name}", "directory": str(tmp_path / name)} for name in ("one", "good", "two")]
    )
    with pytest.raises(SettingsError) as caught:
        mounts_of(app, settings)
    problems = caught.value.problems
    assert [problem.partition(".")[0] for problem in problems] == ["static[0]", "static[0]", "static[2]", "static[2]"]
    assert [problem.endswith(WAY_OUT) for problem in problems] == [False, True, False, True]


def test_a_mount_that_went_away_since_the_settings_were_read(tmp_path: Path) -> None:
    settings = from_keywords(static=[{"url": "/m", "directory": str(write(tmp_path / "m" / "a").parent)}])
    (tmp_path / "m" / "a").unlink()
    (tmp_path / "m").rmdir()
    with pytest.raises(SettingsError) as caught:
        mounts_of(app, settings)
    assert list(caught.value.problems) == [f'static[0].directory = "{tmp_path}/m": No such file or directory']


# --- the app's own folders ---


def shop(base: Path, **settings: Any) -> Flask:
    write(base / "static" / "a.txt", "the app's")
    return Flask("shop", root_path=str(base), static_folder="static", **settings)


def mounted(flask: Flask, **settings: Any) -> list[str]:
    return mounts_of(flask, from_keywords(**settings)).urls


def test_the_folders_of_the_app_and_its_blueprints_are_found(tmp_path: Path) -> None:
    flask = shop(tmp_path)
    write(tmp_path / "admin" / "files" / "a.txt")
    flask.register_blueprint(
        Blueprint("admin", "admin", root_path=str(tmp_path / "admin"), static_folder="files", url_prefix="/admin")
    )
    assert sorted(mounted(flask)) == ["/admin/files", "/static"]
    assert mounted(flask, files_auto="off") == []


@pytest.mark.parametrize("plant", [env_file, database, key], ids=["a .env", "a database", "a key"])
def test_a_folder_of_the_app_that_shows_too_much_is_left_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, plant: Callable[[Path], None]
) -> None:
    flask = shop(tmp_path / "p")
    plant(tmp_path)
    (tmp_path / "media").rename(tmp_path / "p" / "static" / "media")
    assert mounted(flask) == []
    assert mounted(flask, files_auto="always") == []
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2
    assert said[0].startswith("/static is left to the app, which may serve that as well: ")
    assert said[0].endswith("; move it")
    with serving(flask) as running, running.connect() as client:
        assert client.get("/static/a.txt").body == b"the app's"


@pytest.mark.parametrize("internal", ["off", "on"])
@pytest.mark.parametrize("url", ["/static", "/caf\u00e9"])
def test_what_the_operator_says_of_the_same_url_counts_alone(
    tmp_path: Path, url: str, internal: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "other" / "a.txt", "other")
    flask = shop(tmp_path, static_url_path=url)
    mounts = mounts_of(
        flask, from_keywords(static=[{"url": url, "directory": str(tmp_path / "other"), "internal": internal}])
    )
    assert [mount.tree.directory for mount in mounts.named] == [str(tmp_path / "other")]


def test_what_the_operator_mounts_below_or_above_does_not_take_the_apps_folder(tmp_path: Path) -> None:
    write(tmp_path / "other" / "a.txt", "other")
    flask = shop(tmp_path)
    with (
        serving(flask, static=[f"/static/extra={tmp_path / 'other'}", f"/s={tmp_path / 'other'}"]) as running,
        running.connect() as client,
    ):
        assert client.get("/static/a.txt").body == b"the app's"
        assert client.get("/static/extra/a.txt").body == b"other"
        assert client.get("/s/a.txt").body == b"other"


def test_an_internal_mount_is_no_clients(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "internal")
    mount = {"url": "/internal", "directory": str(tmp_path), "internal": "on"}
    with serving(app, static=[mount]) as running, running.connect() as client:
        for target in ("/internal/a.txt", "//internal/a.txt", "/%69nternal/a.txt", "/x/../internal/a.txt"):
            assert b"internal" not in client.get(target).body
        assert running.server.files == []


def test_the_folder_of_an_app_whose_path_is_a_link_is_the_new_one_after_a_deploy(tmp_path: Path) -> None:
    write(tmp_path / "1" / "static" / "a.txt", "one")
    write(tmp_path / "2" / "static" / "a.txt", "two")
    (tmp_path / "current").symlink_to("1")
    flask = Flask("shop", root_path=str(tmp_path / "current"))
    with serving(flask, files_check=0) as running, running.connect() as client:
        assert client.get("/static/a.txt").body == b"one"
        (tmp_path / "next").symlink_to("2")
        os.replace(tmp_path / "next", tmp_path / "current")
        assert client.get("/static/a.txt").body == b"two"
