"""The control socket: how `hardserve bans` and `hardserve unban` speak with the server that runs.

A Unix stream socket and JSON lines: a request {"command": "bans", ...arguments} is one line of at most 64 KiB, and its
response is one line, {"ok": true, "result": ...} or {"ok": false, "error": "text for the operator"}. A connection may
ask several things, one after the other. The socket has a thread of its own, "hardserve-control", which serves one
client at a time and gives it two seconds for all that it has to say and to take, so that nobody waits long behind one
that says nothing. What a command does is not known here; it is called on that thread.

Who may connect: the user that the server runs as, and root. The file has mode 0600 before anybody can connect, and
whoever connects is asked for its user (SO_PEERCRED, on Linux). No directory on the path may be one in which others
could put something else in its place: each belongs to that user or to root and nobody else may write to it, or, above
the last, it is sticky. So /tmp/x.sock is refused and /tmp/mine/x.sock is not. The last one is made, with mode 0700, if
it is missing.

A socket that nobody listens on any more is replaced, one that somebody does is not, and what is no socket is not
touched. Two servers that start at once take turns: each holds a lock on the directory meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import select
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from hardserve.settings import ServerSettings

logger = logging.getLogger("hardserve.ops")

MAX_REQUEST_BYTES = 64 * 1024
# Of a response: tens of thousands of bans.
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
# sockaddr_un without the NUL at its end (unix(7)); the BSDs have four bytes less.
MAX_PATH_BYTES = 107 if sys.platform == "linux" else 103

CLIENT_PATIENCE_S = 2.0
ASK_PATIENCE_S = 5.0
# For another server that is just starting in the same directory.
LOCK_PATIENCE_S = 2.0

_BACKLOG = 8
_RETRY_S = 0.02
# After an accept that failed because there are no descriptors: it would fail again at once.
_PAUSE_S = 1.0
_JOIN_S = 1.0
_MAX_NAME_CHARS = 40

Command = Callable[[Mapping[str, object]], object]


class ControlError(Exception):
    """There is no control socket to be had, or no answer from it. The text is for the operator."""


class CommandError(Exception):
    """A command cannot do what it was asked. The text is for whoever asked."""


def control_path(server: ServerSettings, environ: Mapping[str, str], uid: int) -> Path | None:
    """Return where the control socket of a server with these settings is, None if it has none."""
    if server.control == "off":
        return None
    return default_path(environ, uid, server.bind[0]) if server.control == "auto" else Path(server.control)


def default_path(environ: Mapping[str, str], uid: int, name: str) -> Path | None:
    """Return where the control socket is if the settings do not say, None if there is no place for it.

    That is in the directory that systemd has made for the service (RuntimeDirectory=), or in that of the user with the
    id `uid`. There may be several servers in the latter: `name`, any text, tells them apart.
    """
    service = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if service.startswith("/"):
        return Path(service, "control.sock")
    own = environ.get("XDG_RUNTIME_DIR", "")
    if not own.startswith("/"):
        return None
    with contextlib.suppress(OSError):
        if os.stat(own).st_uid == uid:  # sudo and su may leave the variable of another user
            return Path(own, "hardserve", _file_name(name) + ".sock")
    return None


def _file_name(name: str) -> str:
    plain = re.sub(r"[^0-9A-Za-z._-]", "-", name)
    if len(plain) <= _MAX_NAME_CHARS:
        return plain
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=6).hexdigest()
    return f"{plain[: _MAX_NAME_CHARS - 13]}-{digest}"


# --- the server's side ---


class ControlSocket:
    """Serves `commands` at `path` from `start` to `close`.

    A command is called on the control thread with the arguments of the request, and returns what JSON can say. It
    raises CommandError for what it cannot do; for anything else that it raises, "internal error" is the response. It
    should take less than the five seconds that `ask` waits.
    """

    def __init__(
        self, path: Path, commands: Mapping[str, Command], *, client_patience_s: float = CLIENT_PATIENCE_S
    ) -> None:
        self._path = Path(os.path.abspath(path))
        self._commands = dict(commands)
        self._client_patience_s = client_patience_s
        self._uid = -1  # whose it is
        self._listening: socket.socket | None = None
        self._identity = (0, 0)  # device and inode of our file
        self._bell = -1  # a byte in this pipe, whose other end is polled beside every socket, is the end
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<ControlSocket {self._path} {'closed' if self._listening is None else 'listening'}>"

    def start(self) -> None:
        """Bind, listen, and start the thread; `close` must follow. Raises ControlError, and then holds nothing."""
        self._uid = os.geteuid()
        with contextlib.ExitStack() as undo:
            try:
                listening = undo.enter_context(self._listen())
                undo.callback(_unlink_if, self._path, self._identity)
                ending, self._bell = os.pipe()
            except OSError as error:
                raise ControlError(f"control socket {self._path}: {error.strerror or error}") from None
            undo.callback(os.close, ending)
            undo.callback(os.close, self._bell)
            self._thread = threading.Thread(
                target=self._run, args=(listening, ending), name="hardserve-control", daemon=True
            )
            self._thread.start()
            undo.pop_all()  # the thread's, from here on
        self._listening = listening

    def close(self) -> None:
        """Remove the file, if it is still ours, and end the thread, for which a second is waited. Can be repeated."""
        if self._listening is None or self._thread is None:
            return
        self._listening = None
        _unlink_if(self._path, self._identity)  # the thread has the socket open: no other file has its inode
        os.write(self._bell, b"\0")  # closing would not do: a process that was forked has the pipe, too
        os.close(self._bell)
        self._thread.join(_JOIN_S)

    # --- where it listens ---

    def _listen(self) -> socket.socket:
        _check_length(self._path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._path.parent, 0o700)
        # From here on without links, which lead where they did when the directories were looked at.
        directory = self._path.parent.resolve(strict=True)
        _check_directories(directory, self._uid)
        self._path = directory / self._path.name
        _check_length(self._path)
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._lock(held)
            self._remove_stale()
            return self._bind()
        finally:
            os.close(held)

    def _lock(self, held: int) -> None:
        give_up_at = monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if monotonic() >= give_up_at:
                    raise ControlError(f"control socket {self._path}: somebody holds a lock on its directory") from None
            sleep(_RETRY_S)

    def _remove_stale(self) -> None:
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ControlError(f"control socket {self._path}: there is a file that is no socket, which is left alone")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # one that is too busy to accept is there all the same
            try:
                probe.connect(str(self._path))
            except ConnectionRefusedError:
                os.unlink(self._path)
                return
            except FileNotFoundError:
                return
            except BlockingIOError:
                pass
        raise ControlError(f"control socket {self._path}: another server listens on it; stop it or choose another path")

    def _bind(self) -> socket.socket:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # On Linux the file gets its mode from the socket. The umask would be that of all threads.
            with contextlib.suppress(OSError):
                os.fchmod(bound.fileno(), 0o600)
            bound.bind(str(self._path))
            found = os.lstat(self._path)
            self._identity = found.st_dev, found.st_ino
            try:
                os.chmod(self._path, 0o600)
                bound.listen(_BACKLOG)
            except OSError:
                _unlink_if(self._path, self._identity)
                raise
            bound.setblocking(False)
        except OSError:
            bound.close()
            raise
        return bound

    # --- the control thread ---

    def _run(self, listening: socket.socket, ending: int) -> None:
        try:
            while _is_ready(ending, listening, select.POLLIN, None):
                self._accept(listening, ending)
        finally:
            listening.close()
            os.close(ending)

    def _accept(self, listening: socket.socket, ending: int) -> None:
        try:
            client, _ = listening.accept()
        except OSError:
            # No descriptor is left, which others complain of, or the client is not there any more.
            _is_ready(ending, None, 0, monotonic() + _PAUSE_S)
            return
        with client:
            try:
                self._serve(client, ending)
            except OSError:
                return  # it has gone
            except Exception:
                logger.exception("the control socket failed")

    def _serve(self, client: socket.socket, ending: int) -> None:
        client.setblocking(False)
        deadline = monotonic() + self._client_patience_s
        if not _is_permitted(_user_of(client), self._uid):
            _send(client, ending, _failure("only the user that the server runs as may use it"), deadline)
            return
        received = bytearray()
        while True:
            line, newline, rest = received.partition(b"\n")
            if len(line) > MAX_REQUEST_BYTES:
                _send(client, ending, _failure(f"a request is a line of at most {MAX_REQUEST_BYTES} bytes"), deadline)
                return
            if newline:
                received = rest
                called_at = monotonic()
                response = self._respond(bytes(line))
                deadline += monotonic() - called_at  # the time that a command takes is not its client's
                if not _send(client, ending, response, deadline):
                    return
            else:
                if not _is_ready(ending, client, select.POLLIN, deadline):
                    return
                data = client.recv(MAX_REQUEST_BYTES)
                if not data:
                    return
                received += data

    def _respond(self, line: bytes) -> bytes:
        try:
            request = json.loads(line.decode())
        except (ValueError, RecursionError):
            request = None
        name = request.pop("command", None) if isinstance(request, dict) else None
        if not isinstance(name, str):
            return _failure('a request is one line of JSON, such as {"command": "bans"}')
        command = self._commands.get(name)
        if command is None:
            return _failure(f"there is no such command; there are: {', '.join(sorted(self._commands))}")
        try:
            response = json.dumps({"ok": True, "result": command(request)}).encode() + b"\n"
        except CommandError as error:
            return _failure(str(error))
        except Exception:
            logger.exception("the command %s of the control socket failed", name)
            return _failure("internal error; the server's log has it")
        return response if len(response) <= MAX_RESPONSE_BYTES else _failure("the answer is too long to be sent")


def _is_ready(ending: int, waited_for: socket.socket | None, event: int, deadline: float | None) -> bool:
    """Wait until `waited_for` is ready, and return whether it is before the deadline and before the end."""
    poll = select.poll()  # select.select() takes no descriptor above 1023
    poll.register(ending, select.POLLIN)
    if waited_for is not None:
        poll.register(waited_for, event)
    ready = poll.poll(None if deadline is None else max(0.0, deadline - monotonic()) * 1000)
    return bool(ready) and all(descriptor != ending for descriptor, _ in ready)


def _send(client: socket.socket, ending: int, response: bytes, deadline: float) -> bool:
    unsent = memoryview(response)
    while unsent:
        if not _is_ready(ending, client, select.POLLOUT, deadline):
            return False
        with contextlib.suppress(BlockingIOError):
            unsent = unsent[client.send(unsent) :]
    return True


def _failure(text: str) -> bytes:
    return json.dumps({"ok": False, "error": text}).encode() + b"\n"


def _user_of(client: socket.socket) -> int | None:
    """Return the user id of who connected, None where the system does not say."""
    if sys.platform != "linux":
        return None
    _, uid, _ = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    return int(uid)


def _is_permitted(peer: int | None, own: int) -> bool:
    return peer in (None, 0, own)


def _unlink_if(path: Path, identity: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == identity:
            os.unlink(path)


def _check_length(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise ControlError(
            f"control socket {path}: the path has {length} bytes, a Unix socket's may have {MAX_PATH_BYTES}"
        )


def _check_directories(directory: Path, uid: int) -> None:
    """Raise ControlError if another user could put another socket in the place of ours; no links in `directory`."""
    for checked in (directory, *directory.parents):
        found = os.stat(checked)
        if found.st_uid not in (0, uid):
            problem = f"{checked} belongs to another user"
        elif found.st_mode & 0o022 and (checked == directory or not found.st_mode & stat.S_ISVTX):
            problem = f"others may write to {checked} (mode {stat.S_IMODE(found.st_mode):04o})"
        else:
            continue
        raise ControlError(
            f"control socket in {directory}: {problem}, who could replace it; "
            "choose a directory that only this user may write to"
        )


# --- the client's side ---


def ask(path: Path, command: str, /, **arguments: object) -> Any:
    """Have the server at `path` do `command` and return its result. Raises ControlError; waits five seconds at most."""
    _check_length(path)
    deadline = monotonic() + ASK_PATIENCE_S
    request = json.dumps({**arguments, "command": command}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            _connect(asking, path, deadline)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it says why before it closes
                asking.sendall(request)
            line = _receive_line(asking, deadline)
    except (FileNotFoundError, NotADirectoryError):
        raise ControlError(
            f"{path}: there is no such socket; is hardserve running, as the same user and with the same settings?"
        ) from None
    except PermissionError:
        raise ControlError(f"{path}: permission denied; only the user that the server runs as may use it") from None
    except ConnectionRefusedError:
        raise ControlError(f"{path}: nobody listens; the server that made it has ended") from None
    except TimeoutError:
        raise ControlError(f"{path}: the server has not answered for {ASK_PATIENCE_S:g} s") from None
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror or error}") from None
    return _result(path, line)


def _connect(asking: socket.socket, path: Path, deadline: float) -> None:
    while True:
        _set_timeout(asking, deadline)
        try:
            return asking.connect(str(path))
        except BlockingIOError:  # not refused: as many as may are waiting already
            sleep(_RETRY_S)


def _receive_line(asking: socket.socket, deadline: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        _set_timeout(asking, deadline)
        data = asking.recv(65536)
        if not data or len(received) > MAX_RESPONSE_BYTES:
            raise OSError(errno.EPROTO, "it has closed the connection without an answer, or the answer has no end")
        received += data
    return bytes(received)


def _set_timeout(asking: socket.socket, deadline: float) -> None:
    left_s = deadline - monotonic()
    if left_s <= 0:
        raise TimeoutError
    asking.settimeout(left_s)


def _result(path: Path, line: bytes) -> Any:
    try:
        response = json.loads(line.decode())
    except (ValueError, RecursionError):
        response = None
    if isinstance(response, dict):
        if response.get("ok") is True and "result" in response:
            return response["result"]
        if response.get("ok") is False and isinstance(response.get("error"), str):
            raise ControlError(response["error"])
    raise ControlError(f"{path}: what answers there is not hardserve, or another version of it")
