"""What can be reached by names in a directory, and that nothing else can, whatever is swapped meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Self
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.files import tree as tree_module
from hardserve.files.tree import MAX_DEPTH, MAX_ENTRIES, MAX_LINKS, OpenFile, Tree, may_be_served
from tests.support import PATIENCE_S, switching_often
from tests.traversal import BAIT, PUBLIC, SERVED, attempts, plant

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")


def open_below(directory: Path) -> list[str]:
    """Return which files below `directory` this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that the list was read by
            path = os.readlink(f"/proc/self/fd/{number}")
            if path.startswith(f"{directory}/") or path == str(directory):
                found.append(path)
    return found


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A directory with nothing of it open at the end, whatever the test did."""
    base = tmp_path.resolve()
    yield base
    if os.path.isdir("/proc/self/fd"):
        assert open_below(base) == []


@pytest.fixture
def mount(base: Path) -> Path:
    return plant(base)


def content(file: OpenFile) -> bytes:
    try:
        return os.read(file.descriptor, 65536)
    finally:
        file.close()


def parts_of(path: str | bytes) -> list[bytes]:
    return os.fsencode(path).split(b"/")


def read(tree: Tree, path: str | bytes) -> bytes:
    return content(tree.open(parts_of(path)))


def in_time(call: Callable[[], Any]) -> list[BaseException | object]:
    """Return what `call` returned or raised, unless it blocks, which fails the test."""
    outcome: list[BaseException | object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it blocks"
    return outcome


# --- what is there ---


@pytest.mark.parametrize("follow_symlinks", [False, True])
@pytest.mark.parametrize("path", SERVED)
def test_what_is_in_the_directory_is_opened(mount: Path, path: str, follow_symlinks: bool) -> None:
    tree = Tree(mount, follow_symlinks=follow_symlinks)
    file = tree.open(parts_of(path))
    status = os.stat(mount / path)
    assert (file.size, file.mtime_ns, file.stat.st_ino) == (len(PUBLIC), status.st_mtime_ns, status.st_ino)
    assert not os.get_inheritable(file.descriptor)
    assert tree.status(parts_of(path)).st_ino == status.st_ino
    assert content(file) == PUBLIC
    file.close()  # a second time


@pytest.mark.parametrize("follow_symlinks", [False, True])
@pytest.mark.parametrize("parts", [[], [b"css"], [b"css", b"deep"], [b"inner"], [b".well-known"]], ids=str)
def test_a_directory_is_said_to_be_one(mount: Path, parts: list[bytes], follow_symlinks: bool) -> None:
    tree = Tree(mount, follow_symlinks=follow_symlinks)
    with pytest.raises(IsADirectoryError):
        tree.open(parts)
    with pytest.raises(IsADirectoryError):
        tree.status(parts)


def test_names_that_are_unusual_and_harmless_are_served(base: Path) -> None:
    names = [
        "a b.txt",
        "a..b",
        "file.",
        "two..",
        "~",
        "c:",
        "-rf",
        "%2e%2e",
        "né.txt",
        "\u202e.txt",
        "\uff0e\uff0e",
        "a;b",
    ]
    for name in names:
        (base / name).write_bytes(name.encode())
    tree = Tree(base, follow_symlinks=False)
    assert [read(tree, name) for name in names] == [name.encode() for name in names]


# --- what is refused ---

NEVER_SERVED = [
    pytest.param([b""], id="an empty name"),
    pytest.param([b"css", b"", b"site.css"], id="an empty name between others"),
    pytest.param([b"index.html", b""], id="an empty name at the end"),
    pytest.param([b"."], id="a dot"),
    pytest.param([b"css", b".", b"site.css"], id="a dot between others"),
    pytest.param([b".."], id="two dots"),
    pytest.param([b"css", b"..", b"index.html"], id="two dots that would stay within"),
    pytest.param([b"..", b"bait.txt"], id="two dots that would not"),
    pytest.param([b"../bait.txt"], id="a slash in a name"),
    pytest.param([b"css/site.css"], id="a slash in a name that would stay within"),
    pytest.param([b"/etc/passwd"], id="an absolute name"),
    pytest.param([b"..\\bait.txt"], id="a backslash"),
    pytest.param([b"css\\site.css"], id="a backslash in an existing name"),
    pytest.param([b"index.html\0"], id="NUL at the end"),
    pytest.param([b"index.html\0.css"], id="NUL before a suffix"),
    pytest.param([b"line\nend"], id="a line end"),
    pytest.param([b"de\x7fl"], id="DEL"),
    pytest.param([b"c1\xc2\x85"], id="a control character past ASCII"),
    pytest.param([b"latin-\xe9"], id="no UTF-8"),
    pytest.param([b"\xc0\xae\xc0\xae", b"bait.txt"], id="two overlong dots"),
    pytest.param([b"\xed\xb3\xa9"], id="half a surrogate pair"),
    pytest.param([b".env"], id="a dot file"),
    pytest.param([b".git", b"config"], id="in a dot directory"),
    pytest.param([b"css", b".hidden"], id="a dot file further down"),
    pytest.param([b"css", b".well-known", b"x"], id=".well-known further down"),
    pytest.param([b".well-known", b".hidden"], id="a dot file in .well-known"),
    pytest.param([b".well-known2", b"x"], id="what only begins like .well-known"),
    pytest.param([b".Well-Known", b"security.txt"], id=".well-known in another case"),
    pytest.param([b"nothing"], id="what is not there"),
    pytest.param([b"index.html", b"x"], id="something in a file"),
    pytest.param([b"x" * 300], id="a name that is too long"),
    pytest.param([b"css"] + [b"x" * 200] * 40, id="a path that is too long"),
    pytest.param([b"loop"], id="a link to itself"),
    pytest.param([b"loop", b"x"], id="something in a link to itself"),
    pytest.param([b"dangling"], id="a link to nothing"),
    pytest.param([b"fifo"], id="a FIFO"),
    pytest.param([b"socket"], id="a socket"),
    pytest.param([b"to-fifo"], id="a link to a FIFO"),
]
WAYS_OUT = [
    pytest.param([b"bait-link"], id="an absolute link to a file outside"),
    pytest.param([b"leaving", b"bait.txt"], id="a relative link to a directory outside"),
    pytest.param([b"device"], id="a link to a device"),
    pytest.param([b"css", b"to-hidden"], id="a link to a dot file"),
    pytest.param([b"css", b"to-well-known"], id="a link to a .well-known that is further down"),
    pytest.param([b"to-git", b"config"], id="a link to a dot directory"),
    pytest.param([b"further-up"], id="a link above the root of the file system"),
    pytest.param([b"sibling"], id="a link to a sibling whose name begins with the mount's"),
    pytest.param([b"parent", b"bait.txt"], id="a link to the directory above"),
    pytest.param([b"twice", b"bait.txt"], id="a link to a link that leaves"),
    pytest.param([b"back", b"..", b"bait.txt"], id="out, and back through a link outside"),
]


@pytest.fixture
def hostile(mount: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mount, with everything in it that must not be opened."""
    for name in (b"css\\site.css", b"line\nend", b"de\x7fl", b"c1\xc2\x85", b"latin-\xe9", b"\xc0\xae\xc0\xae"):
        (mount / os.fsdecode(name)).write_bytes(BAIT)
    (mount / "css/.well-known").mkdir()
    (mount / "css/.well-known/x").write_bytes(BAIT)
    (mount / ".well-known2").mkdir()
    (mount / ".well-known2/x").write_bytes(BAIT)
    os.mkfifo(mount / "fifo")
    monkeypatch.chdir(mount)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    (base / "to-mount").symlink_to(mount)
    for link, target in {
        "loop": "loop",
        "dangling": "nowhere",
        "to-fifo": "fifo",
        "device": "/dev/zero",
        "to-git": ".git",
        "css/to-well-known": ".well-known/x",
        "further-up": f"{'../' * 60}etc/passwd",
        "sibling": "../mount-private/bait.txt",
        "parent": "..",
        "twice": "leaving",
        "back": "../to-mount",
    }.items():
        (mount / link).symlink_to(target)
    return mount


@pytest.mark.parametrize("follow_symlinks", [False, True])
@pytest.mark.parametrize("parts", NEVER_SERVED)
def test_it_looks_as_if_it_were_not_there(hostile: Path, parts: list[bytes], follow_symlinks: bool) -> None:
    tree = Tree(hostile, follow_symlinks=follow_symlinks)
    for call in (tree.open, tree.status, tree.entries):
        (outcome,) = in_time(lambda call=call: call(parts))  # type: ignore[misc]
        assert isinstance(outcome, FileNotFoundError), (call, outcome)


@pytest.mark.parametrize("parts", WAYS_OUT)
def test_a_link_that_leaves_looks_as_if_it_were_not_there(hostile: Path, parts: list[bytes]) -> None:
    tree = Tree(hostile, follow_symlinks=False)
    for call in (tree.open, tree.status, tree.entries):
        (outcome,) = in_time(lambda call=call: call(parts))  # type: ignore[misc]
        assert isinstance(outcome, FileNotFoundError), (call, outcome)


@pytest.mark.parametrize(
    "path",
    ["bait-link", "leaving/bait.txt", "css/to-hidden", "to-git/config", "sibling", "parent/bait.txt", "twice/bait.txt"],
)
def test_an_operator_can_allow_links_that_leave(hostile: Path, path: str) -> None:
    tree = Tree(hostile, follow_symlinks=True)
    assert read(tree, path) == BAIT
    assert tree.status(parts_of(path)).st_size == len(BAIT)


@pytest.mark.parametrize("follow_symlinks", [False, True])
def test_a_device_is_never_opened(base: Path, follow_symlinks: bool) -> None:
    try:
        os.mknod(base / "zero", 0o20644, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")
    with pytest.raises(FileNotFoundError):
        Tree(base, follow_symlinks=follow_symlinks).open([b"zero"])


@pytest.mark.parametrize("follow_symlinks", [False, True])
def test_a_fifo_is_not_even_opened(hostile: Path, monkeypatch: pytest.MonkeyPatch, follow_symlinks: bool) -> None:
    """To have it open for an instant would already let its writer go on."""
    opened: list[object] = []
    real_open = os.open

    def recording(path: Any, *args: Any, **keywords: Any) -> int:
        opened.append(path)
        return real_open(path, *args, **keywords)

    monkeypatch.setattr(os, "open", recording)
    tree = Tree(hostile, follow_symlinks=follow_symlinks)
    for name in (b"fifo", b"to-fifo"):
        with pytest.raises(FileNotFoundError):
            tree.open([name])
    assert not any(os.fsencode(path).endswith(b"fifo") for path in opened)  # type: ignore[arg-type]
    read(tree, "index.html")
    assert any(os.fsencode(path).endswith(b"index.html") for path in opened)  # type: ignore[arg-type]


def test_a_name_is_judged_alone() -> None:
    assert may_be_served(b".well-known", first=True)
    assert not may_be_served(b".well-known", first=False)
    assert not any(may_be_served(bytes([byte]), first=True) for byte in (*range(32), *b"./\\\x7f", *range(128, 256)))
    assert all(may_be_served(b"a%c" % byte, first=False) for byte in range(32, 127) if byte not in b"/\\")


# --- links that stay ---


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("page.html", id="a name"),
        pytest.param("./page.html", id="a name in the same directory"),
        pytest.param("../sub/page.html", id="up and down again"),
        pytest.param("deep/../page.html", id="down and up again"),
        pytest.param("..//sub///page.html", id="several slashes"),
        pytest.param("second", id="another link"),
        pytest.param("{real}/sub/page.html", id="the directory's real path"),
        pytest.param("{configured}/sub/page.html", id="the path that it is configured by"),
        pytest.param("{configured}/sub/../sub/page.html", id="that path and a way down and up"),
        pytest.param("{real}/../{name}/sub/page.html", id="above it and back"),
        pytest.param("../../{name}/sub/page.html", id="relatively above it and back"),
        pytest.param("../../../../../../../../../../../../..{real}/sub/page.html", id="above everything and back"),
    ],
)
def test_a_link_that_stays_is_followed(base: Path, target: str) -> None:
    real = base / "releases/7"
    (real / "sub/deep").mkdir(parents=True)
    (real / "sub/page.html").write_bytes(PUBLIC)
    (real / "sub/second").symlink_to("page.html")
    (real / "directory").symlink_to("sub")
    configured = base / "current"
    configured.symlink_to("releases/7")
    (real / "sub/link").symlink_to(target.format(real=real, configured=configured, name=real.name))
    tree = Tree(configured, follow_symlinks=False)
    assert read(tree, "sub/link") == PUBLIC
    assert read(tree, "directory/link") == PUBLIC
    assert os.fsencode("link") in [entry.name for entry in tree.entries([b"sub"])]


@pytest.mark.parametrize("follow_symlinks", [False, True])
def test_a_link_must_not_end_in_a_file_with_a_slash(base: Path, follow_symlinks: bool) -> None:
    (base / "file").write_bytes(PUBLIC)
    (base / "link").symlink_to("file/")
    with pytest.raises(FileNotFoundError):
        Tree(base, follow_symlinks=follow_symlinks).open([b"link"])


def test_so_many_links_and_no_more(base: Path) -> None:
    (base / "0").write_bytes(PUBLIC)
    for number in range(1, MAX_LINKS + 2):
        (base / str(number)).symlink_to(str(number - 1))
    tree = Tree(base, follow_symlinks=False)
    assert read(tree, str(MAX_LINKS)) == PUBLIC
    with pytest.raises(FileNotFoundError):
        tree.open([b"%d" % (MAX_LINKS + 1)])


@pytest.mark.parametrize("follow_symlinks", [False, True])
def test_so_deep_and_no_deeper(base: Path, follow_symlinks: bool) -> None:
    deepest = base.joinpath(*"d" * MAX_DEPTH)
    deepest.mkdir(parents=True)
    (deepest / "file").write_bytes(BAIT)
    (deepest.parent / "file").write_bytes(PUBLIC)
    tree = Tree(base, follow_symlinks=follow_symlinks)
    assert read(tree, "d/" * (MAX_DEPTH - 1) + "file") == PUBLIC
    with pytest.raises(FileNotFoundError):
        tree.open([*[b"d"] * MAX_DEPTH, b"file"])


def test_links_do_not_lead_deeper_either(base: Path) -> None:
    """Each is one name of a request, and could have a hundred directories held open."""
    base.joinpath(*"d" * (2 * MAX_DEPTH)).mkdir(parents=True)
    (base / "far").symlink_to("d/" * MAX_DEPTH)
    base.joinpath(*"d" * MAX_DEPTH, "farther").symlink_to("d/d/d")
    with pytest.raises(IsADirectoryError):
        Tree(base, follow_symlinks=False).open([b"far"])
    with pytest.raises(FileNotFoundError):
        Tree(base, follow_symlinks=False).open([b"far", b"farther"])


# --- the directory itself ---


@pytest.mark.parametrize("follow_symlinks", [False, True])
def test_a_deploy_swaps_the_directory(base: Path, follow_symlinks: bool) -> None:
    for release in ("6", "7"):
        (base / release).mkdir()
        (base / release / "file").write_text(release)
    (base / "current").symlink_to("6")
    tree = Tree(base / "current", follow_symlinks=follow_symlinks)
    assert read(tree, "file") == b"6"
    (base / "next").symlink_to("7")
    (base / "next").rename(base / "current")
    assert read(tree, "file") == b"7"
    (base / "current").unlink()
    for call in (tree.open, tree.status):
        with pytest.raises(FileNotFoundError):
            call([b"file"])
    with pytest.raises(FileNotFoundError):
        tree.entries([])


def test_swapped_meanwhile_links_are_of_the_directory_that_was_opened(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("6", "7"):
        (base / release).mkdir()
        (base / release / "file").write_text(release)
        (base / release / "link").symlink_to(base / release / "file")
    (base / "current").symlink_to("6")
    (base / "next").symlink_to("7")
    steps = [(base / "current", base / "last"), (base / "next", base / "current")]
    seen = swapped_before_each_step(Tree(base / "current", follow_symlinks=False), "link", steps, monkeypatch)
    assert seen == [b"7", *[b"6"] * (len(seen) - 1)], "the first swap is before anything was opened"
    assert len(seen) >= 5


def test_without_proc_links_are_followed_as_well(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mount / "absolute").symlink_to(mount.parent / "mount/../mount/index.html")
    real_readlink = os.readlink

    def without_proc(path: Any, **keywords: Any) -> Any:
        if os.fsencode(path).startswith(b"/proc"):
            raise FileNotFoundError
        return real_readlink(path, **keywords)

    monkeypatch.setattr(os, "readlink", without_proc)
    tree = Tree(mount, follow_symlinks=False)
    assert read(tree, "absolute") == PUBLIC
    with pytest.raises(FileNotFoundError):
        tree.open([b"bait-link"])


def test_a_relative_directory_stays_where_it_was(mount: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base)
    tree = Tree("mount", follow_symlinks=False)
    monkeypatch.chdir("/")
    assert read(tree, "index.html") == PUBLIC
    assert repr(tree) == f"<Tree {mount}>"


def test_the_whole_file_system_can_be_served(mount: Path) -> None:
    (mount / "absolute").symlink_to(mount / "index.html")
    tree = Tree("/", follow_symlinks=False)
    assert read(tree, str(mount)[1:] + "/absolute") == PUBLIC


# --- errors that are no one's name ---


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory that everybody may enter, and no rights beyond that while the test runs."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    (directory / "secret").write_bytes(BAIT)
    (directory / "secret").chmod(0)
    (directory / "closed").mkdir(0o711)
    (directory / "closed/file").write_bytes(PUBLIC)
    (directory / "locked").mkdir()
    (directory / "locked/file").write_bytes(BAIT)
    (directory / "locked").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65_534)
    try:
        yield directory
    finally:
        if root:
            os.seteuid(0)
        (directory / "locked").chmod(0o700)
        shutil.rmtree(directory)


@pytest.mark.parametrize("follow_symlinks", [False, True])
def test_what_may_not_be_read_is_said_to_be_so(as_nobody: Path, follow_symlinks: bool) -> None:
    tree = Tree(as_nobody, follow_symlinks=follow_symlinks)
    for parts in ([b"secret"], [b"locked", b"file"]):
        with pytest.raises(PermissionError):
            tree.open(parts)
    with pytest.raises(PermissionError):
        tree.entries([b"locked"])
    assert tree.status([b"secret"]).st_size == len(BAIT)
    assert open_below(as_nobody) == []


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="a directory must be readable to be looked into")
def test_a_directory_need_not_be_readable_for_files_in_it(as_nobody: Path) -> None:
    assert read(Tree(as_nobody, follow_symlinks=False), "closed/file") == PUBLIC


@needs_proc
@pytest.mark.parametrize("left", range(5))
def test_with_no_descriptors_left_it_says_so_and_keeps_none(mount: Path, left: int) -> None:
    """Depth 2 takes three directories and the file; with fewer left it fails half way down."""
    tree = Tree(mount, follow_symlinks=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    outcomes: list[object] = []
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(left):
            os.close(taken.pop())
        for _ in range(3):  # what is lost the first time would be missed the second
            try:
                outcomes.append(content(tree.open([b"css", b"deep", b"page.html"])))
            except OSError as error:
                outcomes.append(error.errno)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcomes == [PUBLIC if left >= 4 else errno.EMFILE] * 3


# --- what may be listed ---


def test_entries_are_what_could_be_opened(hostile: Path) -> None:
    tree = Tree(hostile, follow_symlinks=False)
    entries = {entry.name: entry for entry in tree.entries([])}
    assert sorted(entries) == [b"css", b"index.html", b"inner", b"inner-link"]
    assert [entry.name for entry in entries.values() if entry.is_directory] == [b"css", b"inner"]
    status = os.stat(hostile / "index.html")
    assert (entries[b"index.html"].size, entries[b"index.html"].mtime) == (status.st_size, status.st_mtime)
    assert entries[b"inner-link"].size == len(PUBLIC)
    assert [entry.name for entry in tree.entries([b"inner"])] == [b"deep", b"site.css"]
    followed = [entry.name for entry in Tree(hostile, follow_symlinks=True).entries([])]
    assert followed == sorted(followed, key=lambda name: (not (hostile / os.fsdecode(name)).is_dir(), name))
    assert set(followed) - entries.keys() == {
        b"back",
        b"bait-link",
        b"further-up",
        b"leaving",
        b"parent",
        b"sibling",
        b"to-git",
        b"twice",
    } - ({b"further-up"} if not os.path.isfile("/etc/passwd") else set())


@pytest.mark.parametrize("follow_symlinks", [False, True])
def test_of_many_entries_there_is_one_more_than_are_listed(
    base: Path, monkeypatch: pytest.MonkeyPatch, follow_symlinks: bool
) -> None:
    assert MAX_ENTRIES == 5_000
    monkeypatch.setattr(tree_module, "MAX_ENTRIES", 20)
    for number in range(50):
        (base / f"{number:02}").touch()
    (base / "zoo").mkdir()
    tree = Tree(base, follow_symlinks=follow_symlinks)
    assert [entry.name for entry in tree.entries([])] == [b"zoo", *(b"%02d" % number for number in range(20))]
    with pytest.raises(FileNotFoundError):
        tree.entries([b"01"])
    monkeypatch.setattr(tree_module, "_MAX_NAMES", 10)
    assert len(tree.entries([])) == 10


# --- races ---


class Swapper:
    """Does and undoes something to the file system in a loop, in a thread, while a block runs."""

    def __init__(self, steps: Sequence[tuple[Path, Path]]) -> None:
        self._steps = steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            for source, target in self._steps:
                os.rename(source, target)
            for source, target in reversed(self._steps):
                os.rename(target, source)
            self.rounds += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def race_for_a_directory(base: Path, mount: Path) -> tuple[list[tuple[Path, Path]], str]:
    """A directory on the way is a link to bait every other moment."""
    (mount / "a").mkdir()
    (mount / "a/file").write_bytes(PUBLIC)
    (base / "outside/file").write_bytes(BAIT)
    (mount / "link").symlink_to("../outside")
    return [(mount / "a", mount / "b"), (mount / "link", mount / "a")], "a/file"


def race_for_a_file(base: Path, mount: Path) -> tuple[list[tuple[Path, Path]], str]:
    """The file is a link to bait every other moment."""
    (mount / "file").write_bytes(PUBLIC)
    (mount / "link").symlink_to(base / "bait.txt")
    return [(mount / "file", mount / "kept"), (mount / "link", mount / "file")], "file"


def race_for_a_link(base: Path, mount: Path) -> tuple[list[tuple[Path, Path]], str]:
    """A link that stays is one that leaves every other moment."""
    (mount / "link").symlink_to(mount / "css")
    (mount / "other").symlink_to(base / "outside")
    (mount / "css/bait.txt").write_bytes(PUBLIC)
    return [(mount / "link", mount / "kept"), (mount / "other", mount / "link")], "link/bait.txt"


def race_for_the_way_up(base: Path, mount: Path) -> tuple[list[tuple[Path, Path]], str]:
    """The directory that a link goes up from is moved out of the mount, where going up leads to bait."""
    (mount / "a/b").mkdir(parents=True)
    (mount / "file").write_bytes(PUBLIC)
    (base / "file").write_bytes(BAIT)
    (mount / "a/b/up").symlink_to("../../file")
    return [(mount / "a/b", base / "outside/b")], "a/b/up"


def race_for_a_directory_and_a_link(base: Path, mount: Path) -> tuple[list[tuple[Path, Path]], str]:
    """What a link leads through is swapped, not the link."""
    steps, path = race_for_a_directory(base, mount)
    (mount / "through").symlink_to("css/../a")
    return steps, path.replace("a/", "through/")


RACES = [
    race_for_a_directory,
    race_for_a_file,
    race_for_a_link,
    race_for_the_way_up,
    race_for_a_directory_and_a_link,
]
Race = Callable[[Path, Path], tuple[list[tuple[Path, Path]], str]]


MISSING, DIRECTORY = b"(missing)", b"(a directory)"


def outcome_of(tree: Tree, path: str) -> bytes:
    try:
        return read(tree, path)
    except FileNotFoundError:
        return MISSING
    except IsADirectoryError:
        return DIRECTORY


def outcomes_of(tree: Tree, path: str, enough: Callable[[dict[bytes, int]], bool]) -> dict[bytes, int]:
    """Open `path` again and again and count what is in it, or that it is missing."""
    seen: dict[bytes, int] = {}
    until = monotonic() + PATIENCE_S
    while not enough(seen) and monotonic() < until:
        got = outcome_of(tree, path)
        seen[got] = seen.get(got, 0) + 1
    return seen


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.__name__)
def test_swapped_meanwhile_there_is_never_a_byte_of_bait(base: Path, mount: Path, race: Race) -> None:
    steps, path = race(base, mount)
    tree = Tree(mount, follow_symlinks=False)
    with switching_often(), Swapper(steps) as swapper:
        seen = outcomes_of(tree, path, lambda seen: sum(seen.values()) >= 4_000 and PUBLIC in seen and MISSING in seen)
    assert seen.keys() == {PUBLIC, MISSING}, "either the file or nothing, and both were met"
    assert swapper.rounds > 10


def swapped_before_each_step(
    tree: Tree, path: str, steps: Sequence[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> list[bytes]:
    """Open `path` with the swap made before the first call that goes to the file system, then before the second ..."""
    calls = 0
    swap_before = 0

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == swap_before:
                for source, target in steps:
                    os.rename(source, target)
            return call(*args, **keywords)

        return counted

    seen = []
    with monkeypatch.context() as patched:
        for name in ("open", "stat", "readlink", "fstat"):
            patched.setattr(os, name, counting(getattr(os, name)))
        while calls >= swap_before:  # until there are fewer
            calls, swap_before = 0, swap_before + 1
            seen.append(outcome_of(tree, path))
            if calls >= swap_before:
                for source, target in reversed(steps):
                    os.rename(target, source)
    return seen


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.__name__)
def test_swapped_before_any_of_its_steps_there_is_no_bait_either(
    base: Path, mount: Path, race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, path = race(base, mount)
    seen = swapped_before_each_step(Tree(mount, follow_symlinks=False), path, steps, monkeypatch)
    assert len(seen) >= 5
    assert set(seen) == {PUBLIC, MISSING}


@pytest.mark.parametrize("follow_symlinks", [False, True])
@pytest.mark.parametrize(
    ("other", "outcome"), [("fifo", MISSING), ("socket", MISSING), ("css", DIRECTORY), ("loop", MISSING)]
)
def test_what_takes_a_files_place_is_not_taken_for_one(
    hostile: Path, other: str, outcome: bytes, monkeypatch: pytest.MonkeyPatch, follow_symlinks: bool
) -> None:
    """Nor does it block, whichever step it comes before."""
    tree = Tree(hostile, follow_symlinks=follow_symlinks)
    steps = [(hostile / "index.html", hostile / "kept"), (hostile / other, hostile / "index.html")]
    (seen,) = in_time(lambda: swapped_before_each_step(tree, "index.html", steps, monkeypatch))
    assert isinstance(seen, list)
    assert set(seen) == {PUBLIC, outcome}


@pytest.mark.parametrize(
    "race", [race for race in RACES if race is not race_for_the_way_up], ids=lambda race: race.__name__
)
def test_who_follows_links_gets_the_bait(base: Path, mount: Path, race: Race) -> None:
    """So that the test above would notice: the same races are lost by what does not look."""
    steps, path = race(base, mount)
    with switching_often(), Swapper(steps):
        seen = outcomes_of(Tree(mount, follow_symlinks=True), path, lambda seen: BAIT in seen)
    assert BAIT in seen


@pytest.mark.parametrize("follow_symlinks", [False, True])
def test_a_fifo_that_takes_a_files_place_does_not_block(base: Path, follow_symlinks: bool) -> None:
    (base / "file").write_bytes(PUBLIC)
    os.mkfifo(base / "fifo")
    tree = Tree(base, follow_symlinks=follow_symlinks)
    steps = [(base / "file", base / "kept"), (base / "fifo", base / "file")]
    with switching_often(), Swapper(steps):
        (seen,) = in_time(lambda: outcomes_of(tree, "file", lambda seen: sum(seen.values()) >= 4_000))
    assert isinstance(seen, dict)
    assert seen.keys() == {PUBLIC, MISSING}


# --- against a model ---

NAMES = st.sampled_from(["a", "b", "c", "d", ".h", ".well-known"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
# Names that are met on the way are as good as those that are asked for: what goes through a hidden directory and comes
# back is refused, though it ends in a place that could be served. So the tame ones never do.
TAME = st.lists(st.sampled_from(["a", "b", "c", "d", "..", "."]), min_size=1, max_size=5).map("/".join)
WILD = st.lists(st.sampled_from(["a", "b", ".h", "..", ".", "", "out", "mount"]), min_size=1, max_size=6).map("/".join)
PREFIXES = st.sampled_from(["", "", "", "{mount}/", "{current}/", "../mount/", "{mount}/../mount/"])


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[str], dict[str, str], bool]:
    wild = draw(st.booleans())
    files = draw(st.lists(PATHS, min_size=1, max_size=6))
    targets = st.builds("{}{}".format, PREFIXES, TAME)
    links = draw(st.dictionaries(PATHS, targets | WILD if wild else targets, max_size=5))
    return files, links, wild


def build(base: Path, files: Sequence[str], links: dict[str, str]) -> Path:
    mount = base / "mount"
    mount.mkdir()
    (base / "current").symlink_to("mount")
    (base / "out").mkdir()
    for name in ("a", "b", "out/a", "out/b"):
        (base / name).write_bytes(BAIT)
    # Where two want the same name, or one wants to be in the other, the first has it.
    for name in files:
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            (mount / name).parent.mkdir(parents=True, exist_ok=True)
            with open(mount / name, "xb") as file:
                file.write(name.encode())
    for name, target in links.items():
        with contextlib.suppress(OSError):
            if os.path.realpath((mount / name).parent).startswith(f"{mount}"):
                (mount / name).parent.mkdir(parents=True, exist_ok=True)
                (mount / name).symlink_to(target.format(mount=mount, current=base / "current"))
    return mount


def expected(mount: Path, path: str) -> bytes | None:
    """Return what is at `path`, None if it is not for a client: the model, which looks first and reads afterwards."""
    names = path.split("/")
    real = Path(os.path.realpath(mount / path))
    if not real.is_relative_to(mount) or not (mount / path).is_file():
        return None
    if any(not may_be_served(os.fsencode(name), first=not at) for at, name in enumerate(names)):
        return None
    reached = real.relative_to(mount).parts
    if any(not may_be_served(os.fsencode(name), first=not at) for at, name in enumerate(reached)):
        return None
    return real.read_bytes()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(drawn=trees(), paths=st.lists(PATHS, min_size=1, max_size=8))
def test_it_opens_what_the_model_says(drawn: tuple[list[str], dict[str, str], bool], paths: list[str]) -> None:
    files, links, wild = drawn
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory).resolve()
        mount = build(base, files, links)
        tree = Tree(base / "current", follow_symlinks=False)
        for path in {*files, *links, *paths}:
            model = expected(mount, path)
            try:
                got = read(tree, path)
            except (FileNotFoundError, IsADirectoryError):
                got = None
            # Where links go through hidden or foreign directories, it may refuse what the model allows.
            assert got == model or (wild and got is None), (path, os.path.realpath(mount / path))
            if got is not None:
                assert tree.status(parts_of(path)).st_size == len(got)
        if os.path.isdir("/proc/self/fd"):
            assert open_below(base) == []


# --- traversal by rule ---


def parts_as_decoded(target: bytes, times: int) -> list[bytes]:
    """Return the parts of a target as a server sees them that decodes so many times."""
    path = target.partition(b"?")[0]
    for _ in range(times):
        path = unquote_to_bytes(path)
    return path.removeprefix(b"/").split(b"/")


def test_nothing_leaks_in_100_000_tries(mount: Path) -> None:
    """Even to a server that decodes twice, which is as many names again."""
    tree = Tree(mount, follow_symlinks=False)
    tried = 0
    seen: dict[tuple[bytes, ...], None] = {}
    for target in attempts(100_000, seed=5):
        for times in (1, 2):
            parts = parts_as_decoded(target, times)
            key = tuple(parts)
            if key in seen:
                continue
            seen[key] = None
            tried += 1
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                assert content(tree.open(parts)) == PUBLIC, target
    assert tried > 60_000


def test_the_attempts_are_dangerous(mount: Path) -> None:
    """A server that joins what it has decoded to the directory's path gives the bait away many times."""
    leaks = dict.fromkeys((0, 1, 2, 3), 0)
    for target in attempts(5_000, seed=7):
        assert target.startswith(b"/")
        assert not any(byte <= 32 or byte == 127 for byte in target)
        for times in leaks:
            path = b"/".join([os.fsencode(mount), *parts_as_decoded(target, times)])
            with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
                leaks[times] += file.read() == BAIT
    assert min(leaks.values()) >= 25, leaks


def test_the_attempts_are_the_same_for_a_seed() -> None:
    assert list(attempts(100, seed=1)) == list(attempts(100, seed=1))
    assert list(attempts(100, seed=1)) != list(attempts(100, seed=2))
    assert len(set(attempts(10_000, seed=3))) > 8_000


def test_every_rule_is_met() -> None:
    written = (
        *(b"%2e%2e", b"%2E%2e/", b"%252e", b"%25252e", b"%c0%ae", b"%c0%af", b"%e0%80%ae", b"%f0%80%80%ae", b"%c1%9c"),
        *(b"%ef%bc%8e", b"%e2%88%95", b"%u002e", b"..\\", b"%5c", b"%255c", b"%00", b"....//", b"..;/", b"\xc0\xae"),
        *(b"/C:/", b"file:///", b"//etc/passwd", b"%2fetc%2fpasswd", b"/../../"),
    )
    every = b"\n".join(attempts(40_000, seed=11))
    assert [rule for rule in written if rule not in every] == []
