"""Which file an app's X-Sendfile or X-Accel-Redirect stands for, and that it is one that was set aside for that."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardserve.files.mounts import Mount, Mounts
from hardserve.files.sendfile import NotMountedError, Sender
from hardserve.settings import StaticSettings

UMLAUT = "\u00fcbung.txt"
KANJI = "\u65e5\u672c.txt"


@dataclass
class Site:
    """An internal directory, one that is served, one behind a link, and one file, with bait beside them."""

    base: Path
    sender: Sender

    def sent(self, field: str, value: str) -> bytes:
        """Return what of the file `value` stands for, in which {base} is where all of them are."""
        found = self.sender.open(field, value.replace("{base}", str(self.base)))
        try:
            return found.file.read(0, 1000)
        finally:
            found.file.release()


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    base = tmp_path_factory.mktemp("site")
    for name, content in {
        "files/a.txt": "a",
        "files/sub/b.txt": "b",
        "files/%61.txt": "percent",
        "files/c d?e#f.txt": "odd",
        f"files/{UMLAUT}": "umlaut",
        f"files/{KANJI}": "kanji",
        "files/.env": "bait",
        "files/.well-known/x": "well known",
        "files/deep/c.txt": "bait behind a longer root",
        "deep/c.txt": "longer",
        "files-private/a.txt": "bait",
        "secret.txt": "bait",
        "public/p.txt": "public",
        "free/a.txt": "free",
        "releases/2/r.txt": "release",
        "releases/2/hidden.txt": "one alone",
        "app/x.py": "bait",
        "one/only.txt": "only",
        "one/other.txt": "bait",
    }.items():
        write(base / name, content)
    (base / "current").symlink_to("releases/2")
    (base / "elsewhere").symlink_to("files")
    (base / "files" / "leaving").symlink_to("../secret.txt")
    (base / "files" / "leaving-dir").symlink_to("..")
    (base / "files" / "within").symlink_to("a.txt")
    (base / "free" / "leaving").symlink_to("../secret.txt")
    os.mkfifo(base / "files" / "fifo")
    mounts = [
        StaticSettings(url="/internal", directory=str(base / "files"), internal="on"),
        StaticSettings(url="/internal/deep", directory=str(base / "deep"), internal="on"),
        StaticSettings(url="/caf\u00e9", directory=str(base / "files"), internal="on"),
        StaticSettings(url="/public", directory=str(base / "public")),
        StaticSettings(url="/free", directory=str(base / "free"), internal="on", follow_symlinks="on"),
        StaticSettings(url="/current", directory=str(base / "current"), internal="on"),
        StaticSettings(url="/only.txt", directory=str(base / "one" / "only.txt")),
        StaticSettings(url="/hidden.txt", directory=str(base / "current" / "hidden.txt"), internal="on"),
    ]
    return Site(base, Sender(Mounts([Mount.from_settings(mount) for mount in mounts])))


def as_field(text: str) -> str:
    """Return how PEP 3333 has bytes in a str."""
    return text.encode().decode("latin-1")


@pytest.mark.parametrize(
    ("value", "content"),
    [
        pytest.param("{base}/files/a.txt", b"a", id="a file"),
        pytest.param("{base}/files/sub/b.txt", b"b", id="a file further down"),
        pytest.param("{base}/public/p.txt", b"public", id="one that clients can have anyway"),
        pytest.param("{base}/files//sub///b.txt", b"b", id="two slashes are one"),
        pytest.param("{base}/files/%61.txt", b"percent", id="a percent sign is one"),
        pytest.param("{base}/files/c d?e#f.txt", b"odd", id="so is everything else"),
        pytest.param("{base}/files/" + UMLAUT, b"umlaut", id="a name as Python has it, which latin-1 has"),
        pytest.param("{base}/files/" + as_field(UMLAUT), b"umlaut", id="a name with a character for each byte"),
        pytest.param("{base}/files/" + KANJI, b"kanji", id="a name that latin-1 has not"),
        pytest.param("{base}/files/" + as_field(KANJI), b"kanji", id="the same, a character for each byte"),
        pytest.param("{base}/files/within", b"a", id="a link that stays"),
        pytest.param("{base}/free/leaving", b"bait", id="a link that leaves, where that is allowed"),
        pytest.param("{base}/files/.well-known/x", b"well known", id="the one dot name that is for clients"),
        pytest.param("{base}/current/r.txt", b"release", id="a root that is a link"),
        pytest.param("{base}/releases/2/r.txt", b"release", id="the same by where it leads"),
        pytest.param("{base}/elsewhere/a.txt", b"a", id="a root by a link that its operator does not know"),
        pytest.param("{base}/app/../files/a.txt", b"a", id="a way up before the root, as Flask joins paths"),
        pytest.param("{base}/./files/a.txt", b"a", id="a dot before the root"),
        pytest.param("{base}/one/only.txt", b"only", id="a mount that is a file"),
        pytest.param("{base}/app/../one/only.txt", b"only", id="a mount that is a file, after a way up"),
        pytest.param("//{base}/files/a.txt", b"a", id="slashes before the root"),
    ],
)  # fmt: skip
def test_x_sendfile_is_a_path(site: Site, value: str, content: bytes) -> None:
    assert site.sent("x-sendfile", value) == content


@pytest.mark.parametrize(
    ("value", "content"),
    [
        pytest.param("/internal/a.txt", b"a", id="a file"),
        pytest.param("/internal/a.txt?x=/internal/sub/b.txt", b"a", id="a query makes no difference"),
        pytest.param("/internal//sub//b.txt", b"b", id="two slashes are one"),
        pytest.param("/internal/%61.txt", b"a", id="is decoded"),
        pytest.param("/internal/%2561.txt", b"percent", id="is decoded once"),
        pytest.param("/internal/c%20d%3Fe%23f.txt", b"odd", id="what must be encoded"),
        pytest.param("/internal/c d%3fe#f.txt", b"odd", id="what should be, and is not"),
        pytest.param("/internal/%C3%BCbung.txt", b"umlaut", id="a name that is encoded"),
        pytest.param("/internal/" + UMLAUT, b"umlaut", id="a name as Python has it, which latin-1 has"),
        pytest.param("/internal/" + as_field(UMLAUT), b"umlaut", id="a name with a character for each byte"),
        pytest.param("/internal/" + KANJI, b"kanji", id="a name that latin-1 has not"),
        pytest.param("/caf%C3%A9/a.txt", b"a", id="a mount whose URL is not ASCII, encoded"),
        pytest.param("/caf\u00e9/a.txt", b"a", id="a mount whose URL is not ASCII"),
        pytest.param("/%69nternal/a.txt", b"a", id="a mount's URL is decoded, too"),
        pytest.param("/internal/deep/c.txt", b"longer", id="the longest URL counts"),
        pytest.param("/public/p.txt", b"public", id="a mount that is not internal"),
        pytest.param("/only.txt", b"only", id="a mount that is a file"),
        pytest.param("/hidden.txt", b"one alone", id="an internal mount that is a file"),
    ],
)  # fmt: skip
def test_x_accel_redirect_is_a_url(site: Site, value: str, content: bytes) -> None:
    assert site.sent("x-accel-redirect", value) == content


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("x-sendfile", "{base}/files/nothing.txt", id="a name that nothing has"),
        pytest.param("x-sendfile", "{base}/files/../secret.txt", id="a way up and out"),
        pytest.param("x-sendfile", "{base}/files/../files-private/a.txt", id="into what begins with the same name"),
        pytest.param("x-sendfile", "{base}/files/../files/a.txt", id="out and back in"),
        pytest.param("x-sendfile", "{base}/files/../public/p.txt", id="out and into another root"),
        pytest.param("x-sendfile", "{base}/files/sub/../../secret.txt", id="up twice"),
        pytest.param("x-sendfile", "{base}/files/./a.txt", id="a dot behind the root"),
        pytest.param("x-sendfile", "{base}/files//{base}/secret.txt", id="an absolute path behind the root"),
        pytest.param("x-sendfile", "{base}/files/..\\secret.txt", id="a backslash"),
        pytest.param("x-sendfile", "{base}/files/a.txt\0.jpg", id="a NUL"),
        pytest.param("x-sendfile", "{base}/files/%2e%2e/secret.txt", id="a way up that is encoded is a name"),
        pytest.param("x-sendfile", "{base}/files/leaving", id="a link that leaves"),
        pytest.param("x-sendfile", "{base}/files/leaving-dir/secret.txt", id="a linked directory that leaves"),
        pytest.param("x-sendfile", "{base}/files/.env", id="a dot file"),
        pytest.param("x-sendfile", "{base}/elsewhere/.env", id="a dot file by another link"),
        pytest.param("x-sendfile", "{base}/free/../secret.txt", id="a way up where links may leave"),
        pytest.param("x-sendfile", "{base}/files/fifo", id="a FIFO"),
        pytest.param("x-sendfile", "{base}/files/sub", id="a directory"),
        pytest.param("x-sendfile", "{base}/files/a.txt/", id="a file that ends with a slash"),
        pytest.param("x-sendfile", "{base}/files/", id="a root"),
        pytest.param("x-sendfile", "{base}/files/" + "x" * 300, id="a name longer than any"),
        pytest.param("x-sendfile", "{base}/files/" + "x/" * 5000 + "x", id="a path longer than any"),
        pytest.param("x-sendfile", "{base}/files/\udcff", id="a byte that is no UTF-8"),
        pytest.param("x-accel-redirect", "/internal/nothing.txt", id="a URL of nothing"),
        pytest.param("x-accel-redirect", "/internal/../secret.txt", id="a URL that goes up"),
        pytest.param("x-accel-redirect", "/internal/%2e%2e/secret.txt", id="a URL that goes up, encoded"),
        pytest.param("x-accel-redirect", "/internal/..%2fsecret.txt", id="a URL that goes up, its slash encoded"),
        pytest.param("x-accel-redirect", "/internal/%252e%252e/secret.txt", id="a URL that goes up, encoded twice"),
        pytest.param("x-accel-redirect", "/internal/..%5csecret.txt", id="a backslash, encoded"),
        pytest.param("x-accel-redirect", "/internal/%c0%ae%c0%ae/secret.txt", id="overlong dots"),
        pytest.param("x-accel-redirect", "/internal/a.txt%00.jpg", id="a NUL, encoded"),
        pytest.param("x-accel-redirect", "/internal/leaving", id="a URL of a link that leaves"),
        pytest.param("x-accel-redirect", "/internal/.env", id="a URL of a dot file"),
        pytest.param("x-accel-redirect", "/internal/sub", id="a URL of a directory"),
        pytest.param("x-accel-redirect", "/internal/sub/", id="a URL of a directory, with a slash"),
        pytest.param("x-accel-redirect", "/internal/a.txt/", id="a URL of a file, with a slash"),
        pytest.param("x-accel-redirect", "/internal", id="a mount"),
    ],
)  # fmt: skip
def test_what_must_look_missing(site: Site, field: str, value: str) -> None:
    with pytest.raises(FileNotFoundError):
        site.sent(field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("x-sendfile", "/etc/passwd", id="an absolute path"),
        pytest.param("x-sendfile", "{base}/secret.txt", id="beside the roots"),
        pytest.param("x-sendfile", "{base}/files-private/a.txt", id="a name that begins like a root's"),
        pytest.param("x-sendfile", "{base}/one/other.txt", id="beside a mount that is a file"),
        pytest.param("x-sendfile", "{base}/app/../secret.txt", id="a way up that leads into no root"),
        pytest.param("x-sendfile", "{base}/files", id="a root without its slash"),
        pytest.param("x-sendfile", "{base}/one/only.txt/", id="a mount that is a file, with a slash"),
        pytest.param("x-sendfile", "/", id="the root of all"),
        pytest.param("x-sendfile", "/tmp/\0/../files/a.txt", id="a NUL in a way that has to be looked up"),
        pytest.param("x-sendfile", "/\ud800", id="half a character"),
        pytest.param("x-sendfile", "/internal/a.txt", id="a URL"),
        pytest.param("x-accel-redirect", "{base}/files/a.txt", id="a path"),
        pytest.param("x-accel-redirect", "/nowhere/a.txt", id="a URL of the app's"),
        pytest.param("x-accel-redirect", "/internals/a.txt", id="a URL that begins like a mount's"),
        pytest.param("x-accel-redirect", "internal/a.txt", id="a relative URL"),
        pytest.param("x-accel-redirect", "http://test/internal/a.txt", id="an absolute URL"),
        pytest.param("x-accel-redirect", "/only.txt/x", id="below a mount that is a file"),
        pytest.param("x-accel-redirect", "/hidden.txt/r.txt", id="beside an internal mount that is a file"),
        pytest.param("x-accel-redirect", "/hidden.txt/", id="an internal mount that is a file, with a slash"),
        pytest.param("x-accel-redirect", "?/internal/a.txt", id="a query alone"),
        pytest.param("x-accel-redirect", "/\ud800", id="half a character in a URL"),
    ],
)  # fmt: skip
def test_what_is_in_no_mount(site: Site, field: str, value: str) -> None:
    with pytest.raises(NotMountedError, match=r"is not in .*\[\[static\]\], and was not sent"):
        site.sent(field, value)


@pytest.mark.parametrize("value", ["a.txt", "../files/a.txt", "files/a.txt", "", "\0", "\ud800"])
def test_a_path_that_is_not_absolute_is_told_to_be(site: Site, value: str) -> None:
    with pytest.raises(NotMountedError, match="is no absolute path, as X-Sendfile expects, and was not sent"):
        site.sent("x-sendfile", value)


def test_mounts_may_say_what_else_may_be_named_by_its_path(tmp_path: Path) -> None:
    for name in ("served/a.txt", "named/b.txt", "outside.txt"):
        write(tmp_path / name, name)
    (tmp_path / "named/link").symlink_to("../outside.txt")
    served = Mount.from_settings(StaticSettings(url="/served", directory=str(tmp_path / "served")))
    named = Mount.of_app("", str(tmp_path / "named"), None, follow_symlinks=True)
    mounts = Mounts([served], named=[served, named])
    assert mounts.find("/b.txt") is None
    site = Site(tmp_path, Sender(mounts))
    for name, content in (("served/a.txt", b"served/a.txt"), ("named/b.txt", b"named/b.txt")):
        assert site.sent("x-sendfile", f"{{base}}/{name}") == content
    assert site.sent("x-sendfile", "{base}/named/link") == b"outside.txt"
    for value in ("/b.txt", "b.txt", "//b.txt"):
        with pytest.raises(NotMountedError):
            site.sent("x-accel-redirect", value)


def test_a_name_that_can_be_read_in_two_ways_is_first_what_python_says(tmp_path: Path) -> None:
    write(tmp_path / as_field(UMLAUT), "as Python has it")
    write(tmp_path / UMLAUT, "a character for each byte")
    sender = Sender(Mounts([Mount.from_settings(StaticSettings(url="/i", directory=str(tmp_path), internal="on"))]))
    for field, value in (
        ("x-sendfile", f"{tmp_path}/{as_field(UMLAUT)}"),
        ("x-accel-redirect", "/i/" + as_field(UMLAUT)),
    ):
        found = sender.open(field, value)
        assert found.file.read(0, 100) == b"as Python has it"
        found.file.release()


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    (tmp_path / "a.txt").chmod(0)
    sender = Sender(Mounts([Mount.from_settings(StaticSettings(url="/i", directory=str(tmp_path), internal="on"))]))
    with pytest.raises(PermissionError):
        sender.open("x-sendfile", f"{tmp_path}/a.txt")


def test_the_type_is_by_the_name_of_the_file(site: Site) -> None:
    found = site.sender.open("x-accel-redirect", "/internal/%61.txt")
    assert found.content_type == "text/plain; charset=utf-8"
    found.file.release()


def test_no_descriptor_stays_open(site: Site) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for value in ("a.txt", "nothing", "../secret.txt", "sub", "fifo", "leaving", "x/y", "within", "sub/b.txt"):
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError):
                site.sent("x-sendfile", f"{{base}}/files/{value}")
    assert len(os.listdir("/proc/self/fd")) == before


STEPS = [
    *(
        "..",
        ".",
        "",
        "files",
        "secret.txt",
        "files-private",
        "a.txt",
        "%2e%2e",
        "..%2f",
        "leaving",
        "leaving-dir",
        "\0",
    ),
    *("app", "elsewhere", "%00", "..\\", "%5c", "\u00fc", "\u00c3\u00bc", "\udc80", "/", "sub", ".env", "public"),
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(STEPS), max_size=8), st.sampled_from(["files/", "app/", "", "elsewhere/", "public/"]))
def test_no_name_that_a_client_can_choose_leads_to_bait(site: Site, steps: list[str], start: str) -> None:
    name = "/".join(steps)
    asked: list[tuple[str, str]] = [
        ("x-sendfile", f"{{base}}/{start}{name}"),
        ("x-accel-redirect", f"/internal/{name}"),
        ("x-accel-redirect", f"/{start}{name}"),
    ]
    for field, value in asked:
        try:
            content = site.sent(field, value)
        except (FileNotFoundError, NotMountedError):
            continue
        assert b"bait" not in content
