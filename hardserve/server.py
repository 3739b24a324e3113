"""The composition root: binds, wires the two kinds of thread together, serves, drains, ends.

    bind -> workers start -> ready -> [ I/O thread turns ] -> drain -> workers end -> logs close -> exit code

The thread that calls `Server.run` becomes the I/O thread. This is the only module that knows both sides: `edge` and
`wsgi` do not import each other, and what they need of each other is handed to them here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hardserve.checks.offload import Offload
from hardserve.configfiles import SettingsError
from hardserve.edge.admission import Peers
from hardserve.edge.budget import Budget
from hardserve.edge.challenge import Serve
from hardserve.edge.clients import Clients
from hardserve.edge.connection import BUSY, Connection, EdgeContext
from hardserve.edge.deadlines import Timer
from hardserve.edge.gate import Gate
from hardserve.edge.listener import Listener, ListenError, open_listeners
from hardserve.edge.loop import Loop
from hardserve.edge.networks import Networks, prefix_key
from hardserve.edge.parsing import ParserRules, Request
from hardserve.edge.ratelimit import RateLimiter
from hardserve.edge.readers import Readers
from hardserve.files.mounts import Mounts
from hardserve.files.sendfile import NotMountedError, Sender
from hardserve.files.static import FileContext, StaticFiles
from hardserve.files.storages import Storages
from hardserve.loader.bodycap import give_body_cap
from hardserve.loader.hosts import has_proxy_fix, hosts_of
from hardserve.mounting import mounts_of
from hardserve.ops.accesslog import AccessLog
from hardserve.ops.control import CommandError, ControlError, ControlSocket, control_path
from hardserve.ops.heartbeat import Heartbeat
from hardserve.ops.operate import Operations
from hardserve.ops.supervisor import is_supervised
from hardserve.pages import ErrorPages
from hardserve.pool import Pool
from hardserve.protocol import DateClock, SharedFile
from hardserve.record import Record
from hardserve.refusals import QUEUE_DEADLINE, QUEUE_FULL, DryRun, Refusal
from hardserve.replacing import Parts, Replacement
from hardserve.securityheaders import default_lines, hsts_line, hsts_of
from hardserve.wsgi.appfiles import Named
from hardserve.wsgi.context import AppContext, Application
from hardserve.wsgi.response import BadResponseError
from hardserve.wsgi.task import Task
from hardserve.wsgi.watch import LOOK_S, PoolContext, Watch
from hardserve.wsgi.workers import Workers

if TYPE_CHECKING:
    from hardserve.checks.users import Authenticator
    from hardserve.https import Https
    from hardserve.ops.notify import Notifier
    from hardserve.settings import Settings

logger = logging.getLogger("hardserve")

# Descriptors that are not connections: listeners, logs, the app's own files and database connections.
SPARE_DESCRIPTORS = 256
# Static files that may be open at once however few descriptors there are; each counts once, however many load it.
FILES_AT_LEAST = 16
# A worker that has sent its response may still be in the app's `close`; a log may still be on its way to the disk.
LAST_WORDS_S = 2.0

# So short that nobody waits for it, and long enough that the lock changes hands.
LET_GO_S = 20e-6

# Requests that may wait for a file thread, and files that may wait to be compressed.
WAITING_FILES = 4096
WAITING_COMPRESSIONS = 256


Job = tuple[Connection, Request]  # a complete request, and where its answer goes


def describe(job: Job) -> str:
    """Name the request and its client, for the log. Any thread."""
    connection, request = job
    return f"{request!r} of {request.address or connection.peer[0]}"


class Server:
    """Serves one app on its listeners until it is stopped.

    `bind`, then `run` on the thread that is to be the I/O thread; `stop` from any other, or from a signal handler.
    A server is used once.
    """

    def __init__(self, app: Application, settings: Settings, access_log: AccessLog) -> None:
        self.settings = settings
        self._app = app
        give_body_cap(app)
        self._listeners: list[Listener] = []
        self._date = DateClock()
        self._workers: Workers[Job] = Workers(
            settings.server.threads,
            settings.server.queue,
            self._answer,
            max_client=settings.server.max_client_workers,
            max_stuck=settings.server.max_stuck,
        )
        self._budget = Budget(settings.limits.buffered_memory, settings.limits.buffered_files)
        self._watch = self._make_watch()
        self._watch_timer = Timer(self._look_at_pool)
        self._pages = ErrorPages()
        self._trusted = Networks(settings.proxy.trusted)
        self._record = Record(access_log, settings.ban)
        self._authenticator: Authenticator | None = None
        self._mounts = Mounts(())
        self._sender = Sender(self._mounts)
        self._storages = Storages(settings.files.readers, WAITING_FILES)
        self._compression_pool = Pool("compress", 1, WAITING_COMPRESSIONS)
        self._served_hosts: Sequence[str] = ()
        self._https: Https | None = None
        self._offload: Offload
        self._max_open_files = FILES_AT_LEAST
        self._loop: Loop
        self._readers: Readers
        self._app_ctx: AppContext
        self._parts: Parts  # while it runs
        self._stop_calls = 0
        self._failed = False  # ends because it hung

    def __repr__(self) -> str:
        return f"<Server {' '.join(self.urls)} {self._workers!r}>"

    @property
    def urls(self) -> list[str]:
        """The addresses that are listened on, with the ports that port 0 became."""
        return [listener.url for listener in self._listeners if not listener.redirects]

    @property
    def redirects(self) -> list[str]:
        """The addresses that only send on to HTTPS."""
        return [listener.url for listener in self._listeners if listener.redirects]

    @property
    def certificate(self) -> str:
        """What an operator is told of the certificate, "" where there is none."""
        return "" if self._https is None else self._https.about

    @property
    def files(self) -> list[str]:
        """The URLs below which files are served without the app."""
        return self._mounts.urls

    def bind(self, handed: Mapping[str, Sequence[int]] | None = None) -> None:
        """Open every address of the settings, and read what refusals look like.

        `handed` has the sockets of a former process by their addresses; those that are not wanted are closed. Raises
        ListenError, UsersFileError, SettingsError for a store that is no use, for a mount that is none or shows too
        much and for certificates that cannot be served, and OSError for a page that cannot be read, and then has opened
        nothing.
        """
        self._pages = ErrorPages.load(self.settings.error_page, self.settings.headers)
        self._check_storage()
        self._read_users()
        self._mounts = mounts_of(self._app, self.settings)
        self._sender = Sender(self._mounts)
        self._served_hosts = self._hosts(self.settings)
        self._secure()
        self._listen(dict(handed or {}))
        limits = self.settings.limits
        clients = Clients(limits.client_connections, limits.client_connection_rate)
        peers = Peers(self._trusted, limits.ipv6_prefix, self._record.is_banned)
        connections = self._max_connections()
        tls, choose = (None, None) if self._https is None else (self._https.context, self._https.choose)
        self._loop = self._record.loop = Loop(self._listeners, connections, clients, peers, tls, choose)
        self._max_open_files = max(FILES_AT_LEAST, self._descriptors() - connections - SPARE_DESCRIPTORS)
        half = max(1, self.settings.server.threads // 2)
        self._readers = Readers(half, self._budget, self._workers.wanted, self._loop)

    def _secure(self) -> None:
        """Load or make the certificates, if there are to be any."""
        if not self.settings.serves_tls:
            if self.settings.has_certificate:
                logger.warning("server.tls is off: the certificate is not used, and everything is in plain")
        else:
            from hardserve.https import Https  # noqa: PLC0415  # who has a proxy for it needs none of it

            self._https = Https(self.settings, self._served_hosts, self._app)

    def _listen(self, handed: dict[str, Sequence[int]]) -> None:
        server = self.settings.server
        tls = self._https is not None
        try:
            for address in server.bind:
                fds = handed.pop(address, ())
                self._listeners += open_listeners(address, server.backlog, tls=tls, handed=fds)
            for address in server.redirect:
                fds = handed.pop(address, ())
                self._listeners += open_listeners(address, server.backlog, redirects=True, handed=fds)
        except ListenError:
            for listener in self._listeners:
                listener.close()
            raise
        for fds in handed.values():
            for fd in fds:
                os.close(fd)

    @property
    def sockets(self) -> list[tuple[int, str]]:
        """The descriptors that are listened on, and what the settings call each. Any thread."""
        open_ones = [(listener.fd, listener.address) for listener in self._listeners]
        return [(fd, address) for fd, address in open_ones if fd >= 0]

    def share(self, shared: bool) -> None:
        """Say whether another process listens on the same sockets, so that nothing is closed for good. Any thread."""
        for listener in self._listeners:
            listener.shared = shared or listener.address.startswith("fd:")

    def post(self, action: Callable[[float], None]) -> None:
        """Have `action(now)` done on the I/O thread. After `bind`. Any thread, and signal handlers."""
        self._loop.post(action)

    def hand_over(self) -> None:
        """Drain and end, as another process goes on with the same sockets. Any thread."""
        self.share(True)
        self._drain()

    def plan(self, at: float, action: Callable[[float], None]) -> None:
        """Have `action(now)` done at `at` (monotonic seconds). I/O thread."""
        self._loop.plan(at, action)

    @property
    def is_draining(self) -> bool:
        """Whether it has begun to end. I/O thread."""
        return self._loop.is_draining

    def prepare(self, settings: Settings, files: Settings) -> Replacement:
        """Make what is needed to go on with other settings: see `Parts.prepare`. Any thread that may block."""
        return self._parts.prepare(settings, files)

    def take(self, replacement: Replacement, now: float) -> None:
        """Go on with what was prepared. I/O thread."""
        self._parts.take(replacement, now)
        self.settings = replacement.settings

    def look_at_certificates(self) -> None:
        """Take certificates that have been replaced, now and not in some seconds. Any thread, and signal handlers."""
        if self._https is not None:
            self._https.look()

    def _check_storage(self) -> None:
        if self.settings.rate_limiting.storage != "memory":
            from hardserve.checks.sharedrates import check_settings  # noqa: PLC0415  # it brings all of `limits`

            problems = check_settings(self.settings.rate_limiting.storage, self.settings.rate_limit)
            if problems:
                raise SettingsError(problems)

    def _read_users(self) -> None:
        auth = self.settings.auth
        if auth.users != "none":
            from hardserve.checks.users import Authenticator  # noqa: PLC0415  # it brings Werkzeug, if the app does not

            self._authenticator = Authenticator(auth.users, auth.remember)
            for warning in self._authenticator.load():
                logger.warning("%s", warning)

    def _make_limiter(self) -> None:
        """Put together how often a client may ask, and what may block before it is told."""
        settings = self.settings
        rates = settings.rate_limiting
        shared = None
        if rates.storage != "memory":
            from hardserve.checks.sharedrates import SharedRates  # noqa: PLC0415  # as above

            shared = SharedRates(rates.storage, rates.storage_timeout)
        self._limiter = RateLimiter(
            settings.rate_limit,
            rates,
            failures=settings.auth.failures,
            ipv6_prefix=settings.limits.ipv6_prefix,
            shared=shared is not None,
            dry_run=lambda rule, client: self._record.count(DryRun(f"dry run of {rule}"), client),
        )
        self._offload = Offload(
            post=self._loop.post,
            plan=self._loop.plan,
            limiter=self._limiter,
            authenticator=self._authenticator,
            shared=shared,
            store_timeout_s=rates.storage_timeout,
        )

    def _make_gate(self, files: StaticFiles | None) -> Gate:
        """Put together who may come in."""
        gate = Gate(
            self.settings,
            trusted=self._trusted,
            hosts=self._served_hosts,
            limiter=self._limiter,
            banned=self._record.is_banned,
            ban_left_s=self._record.bans.remaining_s,
            auth=self._authenticator,
            checks=self._offload,
        )
        if self._https is not None:
            self._https.guard(gate, self._listeners)
        if files is not None:
            gate.file_refusal = files.refuses_body
        return gate

    def _make_files(self) -> StaticFiles | None:
        if not self._mounts:
            return None
        ctx = FileContext(
            date=self._date,
            lines=default_lines(self.settings.headers, hsts_of(self.settings.tls)),
            post=self._loop.post,
            plan=self._loop.plan,
            submit=self._storages.submit,
            submit_compression=self._compression_pool.submit,
            max_open=self._max_open_files,
            responded=self._limiter.responded,
            outcome=self._record.outcome,
        )
        return StaticFiles(self._mounts, self.settings.files, ctx)

    def _open_named(self, field: str, value: str) -> Named:
        """Open the file that the app names in a header field. Worker thread."""
        try:
            return self._sender.open(field, value)
        except NotMountedError as error:
            raise BadResponseError(str(error)) from None

    def _read_file(
        self, file: SharedFile, start: int, count: int, done: Callable[[bytes | BaseException], None]
    ) -> bool:
        """Have a file thread read what the I/O thread would wait for. I/O thread."""
        return self._storages.submit(file.storage, lambda: file.read(start, count), done)

    def _hosts(self, settings: Settings) -> Sequence[str]:
        """Return the hosts that are served, none for all."""
        hosts = settings.access.hosts
        if hosts:
            return hosts
        learnt, source = hosts_of(self._app)
        if learnt:
            logger.info(
                'only these hosts are served, as %s of the app says: %s (access.hosts = ["*"] serves all)',
                source,
                ", ".join(learnt),
            )
        return learnt

    def _say_what_proxy_fix_does(self) -> None:
        if has_proxy_fix(self._app):
            if self._trusted:
                advice = "proxy.trusted does its work, and it finds nothing to do: take it out"
            else:
                advice = "it finds nothing, for what proxies say counts from those in proxy.trusted: name yours there"
            logger.warning("the app has Werkzeug's ProxyFix: %s", advice)

    @staticmethod
    def _descriptors() -> int:
        """Return how many this process may have."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return sys.maxsize if soft == resource.RLIM_INFINITY else soft

    def _max_connections(self) -> int:
        """Return `limits.connections`, or as many as this process may have descriptors for."""
        wanted = self.settings.limits.connections
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A connection may be sent a file, and that is open meanwhile.
        ceiling = 2 * wanted + SPARE_DESCRIPTORS
        if soft < ceiling and soft != resource.RLIM_INFINITY:
            soft = ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # macOS has a ceiling besides the hard limit
            possible = max(1, soft - SPARE_DESCRIPTORS, soft // 2)
            if possible < wanted:
                logger.warning(
                    "limits.connections is %d, but this process may open %d descriptors: %d connections will be taken; "
                    "raise the hard limit (ulimit -Hn, or LimitNOFILE= in a systemd unit) or lower the setting",
                    wanted,
                    soft,
                    possible,
                )
                return possible
        return wanted

    def run(self, ready: Callable[[Server], None] | None = None) -> int:
        """Serve until stopped; return the exit code. `ready` is called once connections are accepted.

        0 is a complete drain, or one that took longer than `server.drain` and cut the rest; 1 is a second `stop`, or
        a server that has stopped by itself because too many threads hang.
        """
        settings = self.settings
        self._make_limiter()
        files = self._make_files()
        gate = self._make_gate(files)
        serve_file: Serve | None = None if files is None else files.serve
        if self._https is not None:
            serve_file = self._https.answering(gate, self._date, self._record.outcome, serve_file)
        self._say_what_proxy_fix_does()
        self._app_ctx = AppContext(
            self._app,
            self._date,
            self._pages,
            self._record.outcome,
            self._limiter.responded,
            # A thread that hangs is replaced, and may come back beside its replacement.
            multithread=settings.server.threads > 1 or settings.timeouts.app > 0,
            interrupts=settings.timeouts.interrupt > 0,
            headers=settings.headers,
            compression=settings.compression,
            open_named=self._open_named if self._mounts.named else None,
            hsts=hsts_of(settings.tls),
        )
        ctx = EdgeContext(
            settings=settings,
            rules=ParserRules(settings.limits),
            date=self._date,
            poller=self._loop,
            budget=self._budget,
            readers=self._readers,
            pages=self._pages,
            admit=gate.admit,
            identify=self._loop.identify,
            serve_file=serve_file,
            read_file=self._read_file,
            dispatch=self._dispatch,
            withdraw=self._withdraw,
            responded=self._limiter.responded,
            log_refusal=self._record.refusal,
            log_cut=self._record.cut,
            log_turned_away=self._record.turned_away,
            give_way=self._give_way,
            log_handshake=self._record.handshake,
            tls_fields=hsts_line(hsts_of(settings.tls)),
        )
        self._parts = Parts(
            settings=settings,
            hosts=self._served_hosts,
            hosts_of=self._hosts,
            trusted=self._trusted,
            gate=gate,
            limiter=self._limiter,
            authenticator=self._authenticator,
            offload=self._offload,
            record=self._record,
            loop=self._loop,
            listeners=self._listeners,
            https=self._https,
            edge=ctx,
            app=self._app_ctx,
        )
        if self._https is not None:
            self._https.begin(ctx, self._loop)
        self._workers.start()
        self._offload.start()
        if ready is not None:
            self._loop.post(lambda _now: ready(self))
        try:
            self._loop.run(ctx)
        finally:
            self._end()
        return 1 if self._stop_calls > 1 or self._failed else 0

    def open_control(self) -> ControlSocket | None:
        """Open the control socket, if there is to be one and it can be had. After `bind`; the caller closes it."""
        path = control_path(self.settings.server, os.environ, os.getuid())
        if path is None:
            return None
        operations = Operations(
            self._loop.post,
            self._record.bans,
            lambda address: prefix_key(address, 32, self.settings.limits.ipv6_prefix),
        )
        control = ControlSocket(path, {**operations.commands(), "renew": self._renew})
        try:
            control.start()
        except ControlError as error:
            if self.settings.server.control != "auto":
                raise
            # Another server with the same address may be there, such as the one that this one is to replace.
            logger.warning("%s; `hardserve bans` cannot be asked of this one", error)
            return None
        return control

    def _renew(self, _arguments: Mapping[str, object]) -> list[str]:
        """Renew certificates, and return what an operator should know. Control thread."""
        if self._https is None:
            raise CommandError("this server speaks plain HTTP: there is no certificate to renew")
        return self._https.renew()

    def make_heartbeat(self, notifier: Notifier) -> Heartbeat:
        """Return what tells the service manager how this server is, once it is begun on the I/O thread."""
        return Heartbeat(
            notifier,
            self._loop.plan,
            stalled_s=self._watch.stalled_s,
            left_s=self._loop.drain_left_s,
            figures=self._figures,
        )

    def _figures(self) -> str:
        """Return how the server is, in a line. I/O thread."""
        workers = self._workers
        state = "draining" if self._loop.is_draining else "serving" if self.healthy else "unhealthy"
        return (
            f"{state}; {len(self._loop.connections)} connections, {len(workers.busy())} of {len(workers.workers)} "
            f"threads busy, {workers.waiting()} requests wait, {self._record.answered} answered"
        )

    @property
    def healthy(self) -> bool:
        """Whether fewer than `server.max_stuck` threads hang in the app. Any thread."""
        return self._watch.healthy

    def _end(self) -> None:
        """Cut what is left, and say what that is."""
        now = time.monotonic()
        # Their clients are told that they failed, and may repeat them elsewhere: they must not be begun here.
        self._workers.discard()
        cut = [connection for connection in self._loop.connections if connection.phase is BUSY]
        for connection in cut:
            request = connection.request
            if request is not None:  # else a worker has finished it in this moment
                logger.warning("cut after %.1f s: %s", now - request.started, describe((connection, request)))
                self._record.outcome(connection, request, 503, 0, "cut_at_stop")
        self._loop.close()
        self._record.flush(now)
        until = now if cut or self._stop_calls > 1 else now + LAST_WORDS_S
        self._workers.stop(until)
        self._offload.stop(until)
        self._storages.stop(until)
        self._compression_pool.stop(until)
        if self._https is not None:
            self._https.stop(until)

    def stop(self) -> None:
        """Drain and end: accept nothing more, answer what has come in. Called again, end at once. Any thread."""
        self._stop_calls += 1
        if self._stop_calls == 1:
            self._drain()
        else:
            self._loop.stop()

    def _drain(self) -> None:
        self._loop.drain(self.settings.server.drain)
        self._loop.post(self._announce_drain)

    def _announce_drain(self, _now: float) -> None:
        """Say what a drain waits for: an open page may hold a stream for as long as it is allowed to. I/O thread."""
        waiting = sum(connection.phase is BUSY for connection in self._loop.connections)
        if waiting:
            logger.info(
                "stopping: requests in progress: %d; they have %g s, and a second signal ends them now",
                waiting,
                self.settings.server.drain,
            )

    def report_threads(self) -> None:
        """Log what every worker is serving and where every thread is. Any thread."""
        self._loop.post(lambda now: logger.warning("%s", self._describe_threads(now)))

    def _describe_threads(self, now: float) -> str:
        lines = [f"{self._loop!r}, {self._workers!r}, {'healthy' if self.healthy else 'unhealthy'}"]
        jobs = {worker.thread.ident: worker for worker in (*self._workers.workers, *self._workers.stuck)}
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():  # noqa: SLF001  # the documented way, despite its name
            worker = jobs.get(ident)
            job = None if worker is None else worker.job
            doing = f", {now - worker.since:.1f} s on {describe(job)}" if worker and job else ""
            lines.append(f"thread {names.get(ident, ident)}{doing}")
            lines += [line.rstrip() for line in traceback.format_stack(frame)]
        return "\n".join(lines)

    # --- what the edge hands to the workers, and both to the log ---

    def _dispatch(self, connection: Connection, request: Request, now: float) -> Refusal | None:
        """I/O thread."""
        if not self._workers.submit((connection, request), request.client, now):
            return QUEUE_FULL
        if self._readers.waited_for:
            self._readers.make_way(now)
        if not self._watch_timer.is_set:
            self._watch_timer.set(now + LOOK_S, now, self._loop)
        return None

    def _give_way(self) -> None:
        """Let a worker have the interpreter lock between two turns of a flood of refusals. I/O thread.

        System calls keep the lock (edge.transport.HeldCalls), and who waits for it asks for it only after milliseconds.
        While 32 connections flood, everybody else's median is 1.3 times the quiet one with this, and 2 without.
        """
        if self._workers.in_pool:
            # EINVAL, where somebody sets the clock that a library has put before the system's (libfaketime).
            with contextlib.suppress(OSError):
                time.sleep(LET_GO_S)

    def _withdraw(self, connection: Connection, request: Request) -> bool:
        """I/O thread."""
        return request.app_since == math.inf and self._workers.withdraw((connection, request), request.client)

    def _answer(self, job: Job) -> None:
        """Worker thread."""
        connection, request = job
        request.app_since = time.monotonic()
        try:
            Task(self._app_ctx, connection, request).run()
        except BaseException:
            # A bug of ours. Nobody else would end the connection: it has no deadline while it is with a worker.
            connection.abort(reset=True)
            raise

    # --- deadlines of the pool, and what follows from them (I/O thread) ---

    def _make_watch(self) -> Watch[Job]:
        timeouts = self.settings.timeouts
        ctx = PoolContext[Job](
            describe=describe,
            app_since=lambda job: job[1].app_since,
            expired=lambda job, now: job[0].refuse_waiting(QUEUE_DEADLINE, now),
            late=lambda job, now: job[0].expire(job[1], now),
            interrupt=self._interrupt,
            unhealthy=self._on_health,
        )
        return Watch(self._workers, ctx, queue_s=timeouts.queue, app_s=timeouts.app, interrupt_s=timeouts.interrupt)

    def _look_at_pool(self, now: float) -> None:
        again: float | None = now + LOOK_S
        try:
            again = self._watch.look(now)
        finally:
            # Also when that failed: with the queue full, nothing else would set it again.
            if again is not None:
                self._watch_timer.set(again, now, self._loop)

    def _interrupt(self, job: Job) -> None:
        interrupt = job[1].interrupt
        if interrupt is not None and interrupt():
            logger.warning("an exception was raised in the app: %s", describe(job))

    def _on_health(self, unhealthy: bool) -> None:
        choice = self.settings.server.exit_when_stuck
        if unhealthy and (choice == "on" or (choice == "auto" and is_supervised(os.environ, os.getpid()))):
            logger.critical("stopping, to be started again (server.exit_when_stuck = %s)", choice)
            self._failed = True
            self._drain()  # not `stop`: if somebody else did, that was not their second
