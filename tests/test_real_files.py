"""Files of the real command as those take them who will: curl and wget that go on with a download, and a browser.

What counts is what they end up with, and, in the access log, how they came by it.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import pi, sin
from pathlib import Path

import pytest

from tests.browser import Browser, needs_chromium
from tests.conftest import PATIENCE_S, REPOSITORY, Command, StartCommand

CURL = shutil.which("curl")
WGET = shutil.which("wget")
APP = f"{REPOSITORY / 'tests' / 'apps' / 'hello.py'}:app"
DOWNLOAD = b"".join(b"%015d\n" % number for number in range(1 << 18))  # 4 MiB
ENTRY = re.compile(r'"(?:GET|HEAD) (\S+) HTTP/1.1" (\d+) (\d+) ')

pytestmark = pytest.mark.peer
needs_curl = pytest.mark.skipif(CURL is None, reason="no curl: apt-get install curl")
needs_wget = pytest.mark.skipif(WGET is None, reason="no wget: apt-get install wget")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    (directory / "download.bin").write_bytes(DOWNLOAD)
    return directory


@pytest.fixture
def command(files: Path, start_command: StartCommand) -> Iterator[Command]:
    """The command with `files` at /files, which it looks at again each time."""
    (files.parent / "icon.png").write_bytes(png())
    flags = ("--static", f"/files={files}", "--static", "/favicon.ico=icon.png", "--files-check", "0s")
    with start_command(APP, *flags, directory=files.parent) as command:
        yield command


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, start_command: StartCommand) -> Iterator[Command]:
    """One command for all that do not read its log: /files is its directory, of which each has a part, its `room`."""
    directory = tmp_path_factory.mktemp("standing")
    (directory / "icon.png").write_bytes(png())
    flags = ("--static", f"/files={directory}", "--static", "/favicon.ico=icon.png", "--files-check", "0s")
    with start_command(APP, *flags, directory=directory) as command:
        yield command


@dataclass
class Room:
    """A directory that is served, and its address."""

    directory: Path
    url: str


@pytest.fixture
def room(standing: Command) -> Room:
    directory = Path(tempfile.mkdtemp(prefix="room-", dir=standing.directory))
    return Room(directory, f"{standing.url}/files/{directory.name}")


def answers(command: Command, target: str) -> list[int]:
    """Return the statuses of all requests for `target`, when the command has ended and written all of its log."""
    if command.process.poll() is None:
        assert command.stop() == 0
    return [int(status) for path, status, _ in ENTRY.findall(command.access_log.read_text()) if path == target]


# --- downloads that go on ---


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    flags = ("--disable", "--silent", "--show-error", "--noproxy", "*", "--max-time", f"{PATIENCE_S:g}")
    return subprocess.run(
        [CURL or "curl", *flags, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )


def wget(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    flags = ("--no-config", "--no-proxy", "--tries=1", f"--timeout={PATIENCE_S:g}", "--no-verbose")
    return subprocess.run(
        [WGET or "wget", *flags, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )


def begin_download(url: str, to: Path) -> int:
    """Have curl cut off in the middle of a download; return how much has come."""
    process = subprocess.Popen(
        [CURL or "curl", "--disable", "--silent", "--noproxy", "*", "--limit-rate", "2M", "--output", str(to), url],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not to.exists() or to.stat().st_size < 100_000:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait(PATIENCE_S)
    if to.stat().st_size == len(DOWNLOAD):  # it was faster than the rate that it was told, and than we are
        os.truncate(to, 100_000)
    return to.stat().st_size


@needs_curl
def test_curl_goes_on_with_a_download_that_was_cut(command: Command, tmp_path: Path) -> None:
    url, to = f"{command.url}/files/download.bin", tmp_path / "got"
    begin_download(url, to)
    assert curl("--fail", "--continue-at", "-", "--output", str(to), url).returncode == 0
    assert to.read_bytes() == DOWNLOAD
    # Once more: that there is nothing left is no failure.
    assert curl("--continue-at", "-", "--output", str(to), url).returncode == 0
    assert to.read_bytes() == DOWNLOAD
    assert answers(command, "/files/download.bin") == [200, 206, 416]


@needs_wget
def test_wget_goes_on_with_a_download_that_was_cut(command: Command, tmp_path: Path) -> None:
    url, to = f"{command.url}/files/download.bin", tmp_path / "got"
    to.write_bytes(DOWNLOAD[:1_234_567])
    assert wget("--continue", f"--output-document={to}", url).returncode == 0
    assert to.read_bytes() == DOWNLOAD
    assert wget("--continue", f"--output-document={to}", url).returncode == 0
    assert to.read_bytes() == DOWNLOAD
    assert answers(command, "/files/download.bin") == [206, 416]


@needs_wget
def test_wget_does_not_load_again_what_has_not_changed(command: Command, files: Path, tmp_path: Path) -> None:
    arguments = ("--timestamping", f"--directory-prefix={tmp_path}", f"{command.url}/files/download.bin")
    assert wget(*arguments).returncode == 0
    assert (tmp_path / "download.bin").read_bytes() == DOWNLOAD
    assert int((tmp_path / "download.bin").stat().st_mtime) == int((files / "download.bin").stat().st_mtime)
    assert wget(*arguments).returncode == 0
    assert answers(command, "/files/download.bin") == [200, 304]


@needs_curl
def test_a_download_of_a_file_that_was_replaced_begins_anew_for_who_says_which_one_it_was(
    command: Command, files: Path, tmp_path: Path
) -> None:
    """curl does not say by itself, and gets what it asks for: the rest of another file. With If-Range it is told."""
    url, to = f"{command.url}/files/download.bin", tmp_path / "got"
    head = curl("--head", url).stdout.decode()
    (etag,) = re.findall(r"(?m)^ETag: (\S+)\r$", head)
    got = begin_download(url, to)
    to.rename(tmp_path / "first")
    replacement = DOWNLOAD[::-1]
    (files / "part").write_bytes(replacement)
    (files / "part").rename(files / "download.bin")

    shutil.copy(tmp_path / "first", to)
    assert curl("--fail", "--continue-at", "-", "--output", str(to), url).returncode == 0
    assert to.read_bytes() == DOWNLOAD[:got] + replacement[got:]

    shutil.copy(tmp_path / "first", to)
    refused = curl("--continue-at", "-", "--header", f"If-Range: {etag}", "--output", str(to), url)
    assert refused.returncode == 33, refused.stderr  # the server does not go on with it, as curl has it
    assert (
        curl("--fail", "--header", f"Range: bytes={got}-", "--header", f"If-Range: {etag}", url).stdout == replacement
    )
    assert answers(command, "/files/download.bin") == [200, 200, 206, 200, 200]


@needs_curl
def test_curl_gets_several_ranges(room: Room) -> None:
    (room.directory / "download.bin").write_bytes(DOWNLOAD)
    got = curl("--fail", "--include", "--range", "0-9,100-109,-16", f"{room.url}/download.bin").stdout
    head, _, body = got.partition(b"\r\n\r\n")
    (boundary,) = re.findall(rb"(?m)^Content-Type: multipart/byteranges; boundary=(\S+)\r$", head)
    first, *parts, last = body.split(b"--" + boundary)
    assert (first.strip(), last.strip()) == (b"", b"--")
    contents = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]
    assert contents == [DOWNLOAD[0:10], DOWNLOAD[100:110], DOWNLOAD[-16:]]


CODINGS = {"gzip": (".gz", "libz"), "br": (".br", "brotli"), "zstd": (".zst", "zstd")}


def encoded(data: bytes, coding: str) -> bytes:
    """Return `data` in a coding, made without our own encoders; skips where no package makes it."""
    if coding == "gzip":
        return gzip.compress(data)
    if coding == "br":
        made: bytes = pytest.importorskip("brotli", reason="brotli is not installed").compress(data)
    else:
        made = pytest.importorskip("zstandard", reason="zstandard is not installed").compress(data)
    return made


@needs_curl
@pytest.mark.parametrize("coding", CODINGS)
def test_curl_decodes_a_sibling(room: Room, coding: str) -> None:
    suffix, feature = CODINGS[coding]
    if feature not in curl("--version").stdout.decode().split("Features:")[1].split():
        pytest.skip(f"this curl is built without {feature}")
    (room.directory / "text.txt").write_bytes(b"as it is\n")
    (room.directory / f"text.txt{suffix}").write_bytes(encoded(b"from the sibling\n", coding))
    url = f"{room.url}/text.txt"
    got = curl("--fail", "--include", "--compressed", "--header", f"Accept-Encoding: {coding}", url).stdout.decode()
    assert f"\r\nContent-Encoding: {coding}\r\n" in got
    assert got.endswith("\r\n\r\nfrom the sibling\n")
    assert curl("--fail", url).stdout == b"as it is\n"


# --- a browser ---

RATE = 48_000  # frames a second, of 4 bytes
TONE_S = 300
PAGE = """\
<!doctype html>
<html lang="en">
<title>Page</title>
<link rel="stylesheet" href="style.css">
<script src="script.js"></script>
<script src="app.3f2a91c4.js"></script>
<img src="picture.png" alt="">
"""
PAGE_FILES = ("", "style.css", "script.js", "picture.png")


def write_tone(path: Path) -> None:
    """Write five minutes of a tone, 55 MiB that no browser loads before it is asked to."""
    second = b"".join(struct.pack("<hh", *2 * [int(8000 * sin(2 * pi * 440 * at / RATE))]) for at in range(RATE))
    size = TONE_S * len(second)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, RATE, 4 * RATE, 4, 16)
    with path.open("wb") as file:
        file.write(struct.pack("<4sI4s", b"RIFF", 4 + len(form) + 8 + size, b"WAVE") + form)
        file.write(struct.pack("<4sI", b"data", size))
        for _ in range(TONE_S):
            file.write(second)


def png() -> bytes:
    """Return a picture of one pixel."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0\x80")),
        (b"IEND", b""),
    )
    made = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        made += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return made


@needs_chromium
def test_a_browser_plays_and_seeks(command: Command, files: Path, browser: Browser) -> None:
    write_tone(files / "tone.wav")
    (files / "player.html").write_text(
        "<!doctype html><title>Player</title><audio id=audio src=tone.wav></audio>"
        "<button onclick='audio.play()'>Play</button>"
    )
    browser.open(f"{command.url}/files/player.html")
    browser.click("button")  # nothing sounds before somebody has wanted it
    browser.wait_until("audio.currentTime > 0.2")
    assert round(browser.run("return audio.duration")) == TONE_S
    for seconds in (TONE_S - 20, 100, TONE_S - 1):
        browser.run(f"audio.currentTime = {seconds}")
        browser.wait_until(f"!audio.seeking && (audio.currentTime > {seconds} + 0.2 || audio.ended)")
    browser.wait_until("audio.ended")
    assert browser.run("return audio.error") is None
    assert browser.console() == []
    statuses = answers(command, "/files/tone.wav")
    # From the start on, and for where it was sent to; between them it asks whether it is still the same file.
    assert statuses.count(206) >= 3
    assert set(statuses) <= {206, 304}


@needs_chromium
def test_a_browser_plays_and_seeks_in_a_video(command: Command, files: Path, browser: Browser) -> None:
    (files / "recorder.html").write_text("<!doctype html><title>Recorder</title><canvas></canvas>")
    browser.open(f"{command.url}/files/recorder.html")
    recorded = browser.run(RECORD)
    (files / "video.webm").write_bytes(base64.b64decode(recorded))
    (files / "player.html").write_text("<!doctype html><title>Player</title><video src=video.webm muted></video>")
    browser.open(f"{command.url}/files/player.html")
    browser.run("window.video = document.querySelector('video'); video.play()")
    browser.wait_until("video.ended")
    browser.run("video.currentTime = 0.5")
    browser.wait_until("!video.seeking && video.currentTime >= 0.5 && video.readyState >= 2")
    assert browser.run("return [video.error, video.videoWidth]") == [None, 300]
    assert browser.console() == []
    assert set(answers(command, "/files/video.webm")) == {206}


# Has Chromium make a video of a moving square, and returns it in base64.
RECORD = """
const canvas = document.querySelector('canvas'), pen = canvas.getContext('2d');
const recorder = new MediaRecorder(canvas.captureStream(30), {mimeType: 'video/webm;codecs=vp8'});
const blocks = [];
recorder.ondataavailable = event => blocks.push(event.data);
let at = 0;
const painting = setInterval(() => { pen.clearRect(0, 0, 300, 150); pen.fillRect(at++ % 250, 50, 50, 50); }, 30);
recorder.start();
return new Promise(tell => {
    setTimeout(() => { clearInterval(painting); recorder.stop(); }, 1500);
    recorder.onstop = () => {
        const reader = new FileReader();
        reader.onload = () => tell(reader.result.split(',')[1]);
        reader.readAsDataURL(new Blob(blocks));
    };
});
"""


@needs_chromium
def test_a_browser_is_told_the_second_time_that_it_has_everything(
    command: Command,
    files: Path,
    browser: Browser,
) -> None:
    for name, content in {
        "index.html": PAGE,
        "style.css": "html { color: rgb(1, 2, 3) }",
        "script.js": "window.plain = 1",
        "app.3f2a91c4.js": "window.hashed = 1",
    }.items():
        (files / name).write_text(content)
    (files / "picture.png").write_bytes(png())
    shown = "[window.plain, window.hashed, document.images[0].naturalWidth, getComputedStyle(document.body).color]"
    for _ in range(3):
        browser.open(f"{command.url}/files/")
        browser.wait_until("document.readyState == 'complete'")
        assert browser.run(f"return {shown}") == [1, 1, 1, "rgb(1, 2, 3)"]
    # What has changed comes anew.
    (files / "style.css").write_text("html { color: rgb(4, 5, 6) }")
    browser.open(f"{command.url}/files/")
    browser.wait_until("document.readyState == 'complete'")
    assert browser.run(f"return {shown}") == [1, 1, 1, "rgb(4, 5, 6)"]
    assert browser.console() == []
    statuses = {name: answers(command, f"/files/{name}") for name in PAGE_FILES}
    unchanged = [200, 304, 304, 304]
    assert statuses == dict.fromkeys(PAGE_FILES, unchanged) | {"style.css": [200, 304, 304, 200]}
    assert answers(command, "/files/app.3f2a91c4.js") == [200], "it was told that this one never changes"


@needs_chromium
@pytest.mark.parametrize("coding", CODINGS)
def test_a_browser_decodes_a_sibling(room: Room, browser: Browser, coding: str) -> None:
    suffix, _ = CODINGS[coding]
    (room.directory / "page.html").write_text("<!doctype html><title>Page</title><script src=script.js></script>")
    (room.directory / "script.js").write_text("window.marker = 'plain'")
    (room.directory / f"script.js{suffix}").write_bytes(encoded(f"window.marker = '{coding}'".encode(), coding))
    browser.open(f"{room.url}/page.html")
    browser.wait_until("window.marker")
    assert browser.run("return window.marker") == coding
    assert browser.console() == []


@needs_chromium
def test_a_browser_decodes_what_is_compressed_in_the_background(room: Room, browser: Browser) -> None:
    (room.directory / "page.html").write_text("<!doctype html><title>Page</title>")
    (room.directory / "long.txt").write_text("line\n" * 10_000)
    browser.open(f"{room.url}/page.html")
    fetched = "fetch('long.txt', {cache: 'no-store'})"
    coding = f"await {fetched}.then(answer => answer.headers.get('content-encoding'))"
    deadline = time.monotonic() + PATIENCE_S
    while not (found := browser.run(f"return (async () => {coding})()")):
        assert time.monotonic() < deadline
    assert found in CODINGS
    told = browser.run(f"return {fetched}.then(async answer => [answer.headers.get('vary'), await answer.text()])")
    assert told == ["Accept-Encoding", "line\n" * 10_000]
    assert browser.console() == []
