"""An app that tells what it may and may not do where it runs. It is the app of a service in a booted machine."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flask import Flask, abort, request

STATE = Path(os.environ.get("STATE_DIRECTORY", "."))
LIBC = ctypes.CDLL(None, use_errno=True)

# What a test has put there before the start: it makes a start slow, fail or end.
IMPORTED = Path(__file__).with_name("at-import")
if IMPORTED.exists():
    exec(IMPORTED.read_text())

app = Flask(__name__)
logger = logging.getLogger("box")
number = os.getpid()


@app.get("/")
def hello() -> dict[str, Any]:
    return {"pid": number}


@app.get("/client")
def client() -> dict[str, Any]:
    return {"address": request.remote_addr, "host": request.host, "port": request.environ["SERVER_PORT"]}


@app.get("/slow")
def slow() -> dict[str, Any]:
    time.sleep(float(request.args["s"]))
    return {"pid": number}


@app.get("/stream")
def stream() -> Iterator[str]:
    """Answer at once, and end later."""
    left_s = float(request.args["s"])

    def parts() -> Iterator[str]:
        yield "begun"
        time.sleep(left_s)
        yield ", ended"

    return parts()


@app.get("/status")
def status() -> dict[str, str]:
    """Return what the kernel says about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


@app.get("/environ")
def environ() -> dict[str, str]:
    return dict(os.environ)


@app.get("/credential/<name>")
def credential(name: str) -> str:
    return (Path(os.environ["CREDENTIALS_DIRECTORY"]) / name).read_text()


@app.get("/log/<level>")
def log(level: str) -> str:
    logger.log(logging.getLevelNamesMapping()[level.upper()], "said as %s", level)
    return level


@app.get("/raise")
def fail() -> str:
    raise ValueError("said as a traceback")


# --- state ---


@app.post("/count")
def count() -> dict[str, int]:
    """Count in SQLite as apps do that expect readers meanwhile: with a write-ahead log."""
    with sqlite3.connect(STATE / "app.db", timeout=20) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE IF NOT EXISTS visits (at REAL)")
        database.execute("INSERT INTO visits VALUES (?)", (time.time(),))
        (visits,) = database.execute("SELECT count(*) FROM visits").fetchone()
    return {"visits": visits}


@app.post("/uploads/<name>")
def upload(name: str) -> dict[str, int]:
    """Keep a file of a form, which is on a disk meanwhile if it is large."""
    (STATE / "uploads").mkdir(exist_ok=True)
    place = STATE / "uploads" / name
    request.files["file"].save(place)
    return {"size": place.stat().st_size}


@app.get("/uploads/<name>")
def uploaded(name: str) -> bytes:
    return (STATE / "uploads" / name).read_bytes()


# --- what goes wrong ---


@app.get("/stick")
def stick() -> str:
    """Never end, and let others run."""
    threading.Event().wait()
    return "never"


@app.get("/freeze")
def freeze() -> str:
    """Never end, and never let go of the interpreter."""
    ctypes.PyDLL(None).sleep(3600)
    return "never"


@app.get("/die/<name>")
def die(name: str) -> str:
    if name == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.Signals[name])
    threading.Event().wait()  # which may be another thread's to see
    return "still here"


# --- what may be done, and what may not ---


def _call(name: str, *arguments: Any) -> int:
    result = getattr(LIBC, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return int(result)


def _write(path: str) -> None:
    Path(path).write_text("written")


def _call_back() -> None:
    """Have C call Python, which is code that is made while it runs."""
    ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)()


def _read_journal() -> None:
    next(Path("/var/log/journal").rglob("*.journal")).read_bytes()


def _setuid_file() -> None:
    place = STATE / "setuid"
    place.write_text("#!/bin/sh\n")
    place.chmod(0o4755)
    if not place.stat().st_mode & stat.S_ISUID:
        raise PermissionError(errno.EPERM, "the bit is gone")


def _run_upload() -> None:
    place = STATE / "uploaded-program"
    place.write_bytes(Path("/usr/bin/true").read_bytes())
    place.chmod(0o700)
    subprocess.run([place], check=True)


def _writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        socket.create_connection(listening.getsockname(), 2).close()


def _listen(port: int) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", port))


def _socket(family: int, kind: int) -> None:
    socket.socket(family, kind).close()


DEEDS: dict[str, Callable[[], object]] = {
    # What an app needs.
    "write its state": lambda: _write(f"{STATE}/written"),
    "write its cache": lambda: _write(f"{os.environ['CACHE_DIRECTORY']}/written"),
    "write its logs": lambda: _write(f"{os.environ['LOGS_DIRECTORY']}/written"),
    "write its runtime directory": lambda: _write(f"{os.environ['RUNTIME_DIRECTORY']}/written"),
    "write a temporary file": lambda: tempfile.TemporaryFile().close(),
    "start a program": lambda: subprocess.run(["/usr/bin/true"], check=True),
    "start Python": lambda: subprocess.run([sys.executable, "-c", "import ssl, ctypes"], check=True),
    "look up a name": lambda: socket.getaddrinfo("localhost", 80),
    "listen on a high port": lambda: _listen(0),
    "connect to this box": _connect,
    "call back from C": _call_back,
    "read the time zone": time.tzset,
    # What it does not.
    "write /usr": lambda: _write("/usr/written"),
    "write /etc": lambda: _write("/etc/written"),
    "write /boot": lambda: _write("/boot/written"),
    "write /var/lib": lambda: _write("/var/lib/written"),
    "write its own code": lambda: _write(f"{Path(__file__).parent}/written"),
    "write its own packages": lambda: _write(f"{sys.prefix}/written"),
    "list /home": lambda: next(Path("/home").iterdir()),
    "list /root": lambda: [*Path("/root").iterdir()],
    "read /etc/shadow": lambda: Path("/etc/shadow").read_text(),
    "read the journal": _read_journal,
    "read the state of another app": lambda: Path("/var/lib/private/hardserve/other/secret").read_text(),
    "read the credential of another app": lambda: os.listdir("/run/credentials/hardserve@other.service"),
    "see process 1": lambda: Path("/proc/1/status").read_text(),
    "see other processes": lambda: next(each for each in Path("/proc").glob("[0-9]*") if each.name != str(number)),
    "signal process 1": lambda: os.kill(1, 0),
    "trace a process": lambda: _call("ptrace", 16, 1, 0, 0),  # PTRACE_ATTACH
    "become root": lambda: os.setuid(0),
    "make a setuid file": _setuid_file,
    "run an upload": _run_upload,
    "write code into memory": _writable_code,
    "make a device": lambda: os.mknod(STATE / "device", stat.S_IFBLK | 0o600, os.makedev(254, 0)),
    "open a disk": lambda: os.open(STATE / "disk", os.O_RDONLY),
    "mount": lambda: _call("mount", b"none", os.fsencode(STATE), b"tmpfs", 0, 0),
    "make a user namespace": lambda: _call("unshare", 0x10000000),
    "make a mount namespace": lambda: _call("unshare", 0x00020000),
    "load a kernel module": lambda: _call("syscall", 175, b"", 0, b""),  # init_module on x86-64
    "reboot": lambda: _call("syscall", 169, 0, 0, 0, 0),  # without its magic numbers it would be EINVAL
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "name the host": lambda: socket.sethostname("taken"),
    "set a kernel parameter": lambda: _write("/proc/sys/kernel/hostname"),
    "change control groups": lambda: _write("/sys/fs/cgroup/cgroup.procs"),
    "read the kernel's log": lambda: os.open("/dev/kmsg", os.O_RDONLY),
    "use the kernel's keys": lambda: _call("syscall", 250, 0, -3, 0),  # keyctl on x86-64
    "load a program into the kernel": lambda: _call("syscall", 321, 0, 0, 0),  # bpf on x86-64
    "change the personality": lambda: _call("personality", 0x0008),  # PER_LINUX32
    "run in real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "open a raw socket": lambda: _socket(socket.AF_INET, socket.SOCK_RAW),
    "open a packet socket": lambda: _socket(socket.AF_PACKET, socket.SOCK_RAW),
    "open a Bluetooth socket": lambda: _socket(31, socket.SOCK_RAW),  # AF_BLUETOOTH
    "listen on port 81": lambda: _listen(81),
}


@app.get("/try/<path:deed>")
def attempt(deed: str) -> dict[str, str]:
    """Try something; say "done", or what kept it from being done."""
    if deed not in DEEDS:
        abort(404)
    try:
        DEEDS[deed]()
    except OSError as error:
        return {"result": errno.errorcode.get(error.errno or 0, str(error))}
    except StopIteration:
        return {"result": "nothing there"}
    except subprocess.CalledProcessError as error:
        return {"result": f"ended with {error.returncode}"}
    return {"result": "done"}
