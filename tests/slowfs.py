"""A slow disk for tests and benchmarks: a read-only mirror of a directory that answers when it is told to.

    with slow_filesystem(source, mountpoint) as fs:
        fs.delay(read_s=0.2)         # from now on each READ takes as long
        fs.hold()                    # or: READs wait until they are released
        ...
        fs.wait_until_held(1)        # somebody has come to wait
        fs.release()

It speaks the kernel's FUSE protocol itself, as <linux/fuse.h> has it, over /dev/fuse, and is mounted with mount(2);
both need root, and without them `Unavailable` is raised, for tests to skip with.

Theory of operation
-------------------
A thread that waits for such a disk cannot be ended, not even by SIGKILL: so it is with a disk, and that is the point.
But whoever answers it must then not be in the process that waits. So the file system is a process of its own
(`python tests/slowfs.py`), steered over a pipe, and when it ends, in whatever way, the kernel fails what waits with
ECONNABORTED and what comes later with ENOTCONN. The `with` block kills it first and detaches the mount then, in which
order nothing can block. The process ends by itself, and detaches the mount, when the pipe ends because the test was
killed, and when a request has been held for `LONGEST_HOLD_S`.

In it there is one thread and one loop: requests that wait are a heap by the time when they are due, those that are
held a list. What a READ reads, it reads when it is answered.

What the kernel keeps: nothing between two opens of a file, and no name or status, so every open finds the file cold.
With `remembers` it keeps everything, as it does for a disk that nobody else writes to.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import heapq
import itertools
import mmap
import os
import select
import stat
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

SLOW = ("lookup", "open", "read")
ANSWER_LIMIT_S = 10.0
LONGEST_HOLD_S = 60.0

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH = 2


class Unavailable(Exception):  # noqa: N818 - no error of anybody's: a reason to skip
    """There can be no such file system here; the message says why."""


# --- the test's side ---


class SlowFilesystem:
    """What steers it. Each call returns when it is in force; any thread may call.

    Raises OSError when the process has ended, and TimeoutError, having ended it, when an answer does not come in time.
    """

    def __init__(self, process: subprocess.Popen[bytes], mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self._process = process
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = "running" if self._process.poll() is None else "ended"
        return f"<SlowFilesystem {self.mountpoint} {state}>"

    def delay(self, *, read_s: float = 0.0, lookup_s: float = 0.0, open_s: float = 0.0) -> None:
        """Have requests that come from now on take so long; what is not named takes no time.

        The kernel reads ahead, 128 KiB at most and several READs at a time, so a file takes more than one of them.
        """
        self._tell(f"delay lookup={lookup_s} open={open_s} read={read_s}")

    def hold(self, *operations: str) -> None:
        """Have requests that come from now on wait for `release`: READs, or those that are named, of `SLOW`."""
        if unknown := set(operations) - set(SLOW):
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SLOW)}")
        self._tell(" ".join(["hold", *(operations or ("read",))]))

    def waiting(self) -> int:
        """Return how many requests are held."""
        return int(self._tell("waiting"))

    def wait_until_held(self, count: int = 1) -> None:
        """Return as soon as at least `count` requests are held; meanwhile no other thread is heard."""
        self._tell(f"await {count}")

    def release(self) -> None:
        """Answer all that are held, and hold no more."""
        self._tell("release")

    def fail(self, number: int = errno.EIO) -> None:
        """Answer READs with this error from now on; 0: with what the file holds."""
        self._tell(f"fail {number}")

    def count(self, operation: str) -> int:
        """Return how many requests of this kind, of `SLOW`, have come so far."""
        return int(self._tell(f"count {operation}"))

    def kill(self) -> None:
        """End it, as if the disk were pulled out: what waits fails."""
        self._process.kill()
        self._process.wait(ANSWER_LIMIT_S)

    def _tell(self, command: str) -> str:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(command.encode() + b"\n")
            return _answer(self._process)


@contextlib.contextmanager
def slow_filesystem(source: Path, mountpoint: Path, *, remembers: bool = False) -> Iterator[SlowFilesystem]:
    """Mount a mirror of `source` at `mountpoint`, which is there and empty, while the block runs.

    Raises Unavailable where that is not possible.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", __file__, str(source), str(mountpoint), "remembers" if remembers else "forgets"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,  # a Ctrl-C is the test's affair
    )
    try:
        said = _answer(process)
        if said != "mounted":
            raise Unavailable(said)
        yield SlowFilesystem(process, mountpoint)
    finally:
        process.kill()
        process.wait(ANSWER_LIMIT_S)
        with contextlib.suppress(OSError):  # it was not mounted
            _umount(os.fsencode(mountpoint))
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def _answer(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], ANSWER_LIMIT_S)
    if not readable:
        # An answer that came later would be taken for that to the next command.
        process.kill()
        process.wait(ANSWER_LIMIT_S)
        raise TimeoutError(f"the slow file system did not answer within {ANSWER_LIMIT_S:g} s")
    # A line is written at once and is short, and there is never a second one before the next command.
    said = os.read(process.stdout.fileno(), 4096)
    if not said:
        raise BrokenPipeError("the slow file system has ended")
    return said.decode().strip()


def make_cold(path: Path) -> None:
    """Have the kernel forget what it keeps of a file on a disk, so that the next read waits for the disk.

    Raises Unavailable when the kernel keeps it, as in tmpfs.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        kept = _pages_in_memory(file.fileno())
    if kept:
        raise Unavailable(f"{path}: {kept} pages stay in memory")


def _pages_in_memory(descriptor: int) -> int:
    size = os.fstat(descriptor).st_size
    if not size:
        return 0
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        try:
            _checked(_libc().mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), pages))
        finally:
            del view  # a mapping with a view cannot be closed
    return sum(page & 1 for page in pages)


# --- system calls that os does not have ---


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(mountpoint: bytes, descriptor: int) -> None:
    options = f"fd={descriptor},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    options += ",allow_other,default_permissions"
    flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    _checked(_libc().mount(b"slowfs", mountpoint, b"fuse.slowfs", flags, options.encode()))


def _umount(mountpoint: bytes) -> None:
    _checked(_libc().umount2(mountpoint, _MNT_DETACH))


# --- the file system's side: structures and numbers of <linux/fuse.h>, version 7.31 ---

_IN_HEADER = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_OUT_HEADER = struct.Struct("=IiQ")  # length, negative error, unique
_ATTR = struct.Struct("=6Q10I")
_ENTRY = struct.Struct("=4Q2I")  # node, generation, seconds the name and the status may be kept, and nanoseconds
_ATTR_OUT = struct.Struct("=Q2I")
_INIT_IN = struct.Struct("=4I")  # major, minor, read-ahead, flags
_INIT_OUT = struct.Struct("=4I2H2I2H8I")
_OPEN_OUT = struct.Struct("=Q2I")  # handle, flags, padding
_READ_IN = struct.Struct("=2Q2IQ2I")  # handle, offset, size, ...
_HANDLE_IN = struct.Struct("=Q")
_FORGET_ONE = struct.Struct("=2Q")  # node, how often it was looked up
_DIRENT = struct.Struct("=2Q2I")  # inode, next offset, length of the name, type
_STATFS_OUT = struct.Struct("=5Q10I")

_MAJOR, _MINOR = 7, 31
_BUFFER_BYTES = 256 * 1024  # more than any request is
_MAX_WRITE = 4096
_MAX_BACKGROUND = 256  # with the usual 12, readers would wait for each other
_ASYNC_READ, _PARALLEL_DIROPS = 1 << 0, 1 << 18
_KEEP_CACHE = 1 << 1
_REMEMBERED_S = 3600
_ROOT = 1

_LOOKUP, _FORGET, _GETATTR, _READLINK, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
_INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 26, 27, 28, 29, 36, 42
_SLOW_OPCODES = {_LOOKUP: "lookup", _OPEN: "open", _READ: "read"}


class _Mirror:
    """What is in the directory, as answers to requests. Each answer is the bytes behind its header, or an OSError."""

    def __init__(self, source: bytes, *, remembers: bool) -> None:
        self.failing = 0
        self._remembered_s = _REMEMBERED_S if remembers else 0
        self._open_flags = _KEEP_CACHE if remembers else 0
        self._paths = {_ROOT: source}
        # A file that takes another's place is another node: what the kernel keeps of the old one is not for it.
        self._nodes: dict[tuple[bytes, int, int], int] = {}
        self._keys: dict[int, tuple[bytes, int, int]] = {}
        self._lookups: Counter[int] = Counter()
        self._files: dict[int, tuple[int, int]] = {}  # handle → node, descriptor
        self._directories: dict[int, list[tuple[bytes, int, int]]] = {}
        self._numbers = itertools.count(_ROOT + 1)
        self._answers: dict[int, Callable[[int, bytes], bytes]] = {
            _LOOKUP: self._lookup,
            _GETATTR: self._getattr,
            _READLINK: lambda node, _: os.readlink(self._paths[node]),
            _OPEN: self._open,
            _READ: self._read,
            _STATFS: self._statfs,
            _RELEASE: self._release,
            _OPENDIR: self._opendir,
            _READDIR: self._readdir,
            _RELEASEDIR: self._releasedir,
        }

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        known = self._answers.get(opcode)
        if known is None:
            raise OSError(errno.ENOSYS, "not implemented")  # which the kernel takes for "and never ask again"
        return known(node, body)

    def forget(self, forgotten: Iterable[tuple[int, ...]]) -> None:
        for node, count in forgotten:
            self._lookups[node] -= count
            if node != _ROOT and self._lookups[node] <= 0:
                del self._lookups[node]
                self._paths.pop(node, None)
                self._nodes.pop(self._keys.pop(node, (b"", 0, 0)), None)

    def _lookup(self, parent: int, body: bytes) -> bytes:
        path = os.path.join(self._paths[parent], body.rstrip(b"\0"))
        status = os.lstat(path)
        key = (path, status.st_dev, status.st_ino)
        node = self._nodes.get(key) or next(self._numbers)
        self._nodes[key], self._keys[node], self._paths[node] = node, key, path
        self._lookups[node] += 1
        return _ENTRY.pack(node, 0, self._remembered_s, self._remembered_s, 0, 0) + _attributes(status)

    def _getattr(self, node: int, body: bytes) -> bytes:
        return _ATTR_OUT.pack(self._remembered_s, 0, 0) + _attributes(self._status(node))

    def _status(self, node: int) -> os.stat_result:
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(self._paths[node])
            if node == _ROOT or self._keys[node][1:] == (status.st_dev, status.st_ino):
                return status
        # It is there no more, or replaced; who has it open still has it.
        for opened, descriptor in self._files.values():
            if opened == node:
                return os.fstat(descriptor)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _open(self, node: int, body: bytes) -> bytes:
        handle = next(self._numbers)
        self._files[handle] = node, os.open(self._paths[node], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        return _OPEN_OUT.pack(handle, self._open_flags, 0)

    def _read(self, node: int, body: bytes) -> bytes:
        handle, offset, size, *_ = _READ_IN.unpack_from(body)
        if self.failing:
            raise OSError(self.failing, os.strerror(self.failing))
        return os.pread(self._files[handle][1], size, offset)

    def _release(self, node: int, body: bytes) -> bytes:
        (handle,) = _HANDLE_IN.unpack_from(body)
        os.close(self._files.pop(handle)[1])
        return b""

    def _opendir(self, node: int, body: bytes) -> bytes:
        handle = next(self._numbers)
        entries = [(b".", 0, stat.S_IFDIR), (b"..", 0, stat.S_IFDIR)]
        with os.scandir(self._paths[node]) as found:
            entries += [(entry.name, entry.inode(), entry.stat(follow_symlinks=False).st_mode) for entry in found]
        self._directories[handle] = entries
        return _OPEN_OUT.pack(handle, 0, 0)

    def _readdir(self, node: int, body: bytes) -> bytes:
        handle, offset, size, *_ = _READ_IN.unpack_from(body)
        packed = b""
        for number, (name, inode, mode) in enumerate(self._directories[handle][offset:], offset + 1):
            entry = _DIRENT.pack(inode or 1, number, len(name), stat.S_IFMT(mode) >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(packed) + len(entry) > size:
                break
            packed += entry
        return packed

    def _releasedir(self, node: int, body: bytes) -> bytes:
        (handle,) = _HANDLE_IN.unpack_from(body)
        del self._directories[handle]
        return b""

    def _statfs(self, node: int, body: bytes) -> bytes:
        found = os.statvfs(self._paths[_ROOT])
        blocks = (found.f_blocks, 0, 0, found.f_files, 0)
        return _STATFS_OUT.pack(*blocks, found.f_bsize, found.f_namemax, found.f_frsize, *[0] * 7)


def _attributes(status: os.stat_result) -> bytes:
    nanoseconds = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    return _ATTR.pack(
        *(status.st_ino, status.st_size, status.st_blocks),
        *(time_ns // 10**9 for time_ns in nanoseconds),
        *(time_ns % 10**9 for time_ns in nanoseconds),
        *(status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, status.st_blksize, 0),
    )


_Request = tuple[int, int, int, bytes]  # unique, opcode, node, body


class _Server:
    """The loop: requests from the kernel, commands from the pipe, and answers when they are due."""

    def __init__(self, device: int, mirror: _Mirror) -> None:
        self._device = device
        self._mirror = mirror
        self._delays = dict.fromkeys(SLOW, 0.0)
        self._holding: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._due: list[tuple[float, _Request]] = []  # by when it is due
        self._held: list[tuple[float, _Request]] = []  # by since when
        self._awaited = 0

    def run(self) -> None:
        """Return when the pipe has ended, or somebody has been held for too long. Raises OSError when unmounted."""
        poll = select.poll()
        for descriptor in (self._device, 0):
            poll.register(descriptor, select.POLLIN)
        while not self._held or time.monotonic() < self._held[0][0] + LONGEST_HOLD_S:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else 1.0
            for descriptor, _ in poll.poll(wait_s * 1000):
                if descriptor == self._device:
                    self._take_requests()
                elif not self._take_command():
                    return
            while self._due and self._due[0][0] <= time.monotonic():
                self._answer(*heapq.heappop(self._due)[1])

    def _take_requests(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = os.read(self._device, _BUFFER_BYTES)
                except (FileNotFoundError, InterruptedError):
                    continue  # it was taken back before it was read
                _, opcode, unique, node, *_ = _IN_HEADER.unpack_from(data)
                self._take(opcode, unique, node, data[_IN_HEADER.size :])

    def _take(self, opcode: int, unique: int, node: int, body: bytes) -> None:
        operation = _SLOW_OPCODES.get(opcode)
        if operation is not None:
            self._counts[operation] += 1
            if operation in self._holding:
                self._held.append((time.monotonic(), (unique, opcode, node, body)))
                self._tell_who_waits()
                return
            if delay_s := self._delays[operation]:
                heapq.heappush(self._due, (time.monotonic() + delay_s, (unique, opcode, node, body)))
                return
        if opcode == _FORGET:
            self._mirror.forget([(node, _HANDLE_IN.unpack_from(body)[0])])
        elif opcode == _BATCH_FORGET:
            self._mirror.forget(_FORGET_ONE.iter_unpack(body[8:]))
        elif opcode == _INIT:
            _, _, read_ahead, flags = _INIT_IN.unpack_from(body)
            wanted = flags & (_ASYNC_READ | _PARALLEL_DIROPS)
            limits = (_MAX_BACKGROUND, _MAX_BACKGROUND * 3 // 4, _MAX_WRITE, 1)
            self._send(unique, _INIT_OUT.pack(_MAJOR, _MINOR, read_ahead, wanted, *limits, *[0] * 10))
        else:
            # INTERRUPT among them: no more than a disk does it let itself be hurried.
            self._answer(unique, opcode, node, body)

    def _answer(self, unique: int, opcode: int, node: int, body: bytes) -> None:
        try:
            answer = self._mirror.answer(opcode, node, body)
        except OSError as error:
            self._send(unique, b"", error.errno or errno.EIO)
        else:
            self._send(unique, answer)

    def _send(self, unique: int, answer: bytes, error: int = 0) -> None:
        with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
            os.write(self._device, _OUT_HEADER.pack(_OUT_HEADER.size + len(answer), -error, unique) + answer)

    def _take_command(self) -> bool:
        command, *words = os.read(0, 4096).decode().split() or [""]
        if command == "delay":
            self._delays = {name: float(value) for name, value in (word.split("=") for word in words)}
        elif command == "hold":
            self._holding = set(words)
        elif command == "release":
            self._holding = set()
            held, self._held = self._held, []
            for _, request in held:
                self._answer(*request)
        elif command == "fail":
            self._mirror.failing = int(words[0])
        elif command == "await":
            self._awaited = int(words[0])
            self._tell_who_waits()
            return True
        _say(str({"waiting": len(self._held), "count": self._counts[words[0]] if words else 0}.get(command, "done")))
        return command != ""

    def _tell_who_waits(self) -> None:
        if self._awaited and len(self._held) >= self._awaited:
            self._awaited = 0
            _say("held")


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, text.encode() + b"\n")


def main(source: str, mountpoint: str, memory: str) -> None:
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        _mount(os.fsencode(mountpoint), device)
    except OSError as error:
        _say(f"no FUSE file system can be mounted here: {error}")
        return
    # The kernel asks for INIT while mount(2) returns, and has everything else wait for it.
    _say("mounted")
    try:
        _Server(device, _Mirror(os.fsencode(source), remembers=memory == "remembers")).run()
    finally:
        with contextlib.suppress(OSError):
            _umount(os.fsencode(mountpoint))


if __name__ == "__main__":
    main(*sys.argv[1:])
