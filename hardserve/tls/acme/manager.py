"""The thread that keeps a server's certificate: it waits, asks the CA, orders, and hands over what it has got.

Theory of operation
-------------------
`take` hands over the certificate that is held already, if there is one; everything that blocks happens, after `start`,
on one thread, "hardserve-acme". At each turn that thread reads what is kept (state.StateDirectory), has
`schedule.next_step` decide, and does it. What is kept is therefore all there is to know: after a restart, and in
another process with the same directory, the decisions are the same.

Only one process orders. It takes the lock, looks again whether there is still anything to do, and notes that it begins
before it asks the CA for anything, so that even a server that crashes at each attempt keeps to the CA's limits. The
others see at their next look that `current` is another version, and hand that over. Should it be one that they would
not have ordered, for other names or from another CA, they leave the directory to whoever did.

A failure is noted, logged with the days that are left, and tried again later. It touches nothing else: the certificate
in use is replaced by a better one, or stays. One that cannot be served, though it was put in place, counts for nothing:
what is served stays, which at the start is the version before it, and decides when another one is ordered.

A state directory that cannot be written to is a failure like others, found before the CA is asked, and remembered by
this process alone. One that others can write to stops the start.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from hardserve.tls.acme import pki, schedule
from hardserve.tls.acme.challenges import Challenges
from hardserve.tls.acme.client import AcmeError, Client, load_external_key
from hardserve.tls.acme.orders import Issued, Ordering, Request, StoppedError
from hardserve.tls.acme.schedule import DAY, Ask, Held, Order, Schedule, Wait, Wanted
from hardserve.tls.acme.settings import AcmeSettings, normal_names
from hardserve.tls.acme.state import Account, StateDirectory
from hardserve.tls.certificates import CertificateError, minute

logger = logging.getLogger("hardserve.acme")

_NAME = "hardserve-acme"
# Between two turns at least, whatever is to be done.
_SETTLE_S = 0.2


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """What `hardserve cert` shows of one certificate; times are seconds since 1970, 0 for none."""

    names: tuple[str, ...]  # as wanted
    held: tuple[str, ...]  # as in the certificate, empty if there is none
    directory: str
    not_before: float
    not_after: float
    next_attempt: float  # not after now: about to begin, or under way
    why: str
    failures: int
    error: str
    path: Path | None

    def days_left(self, now: float) -> float:
        return (self.not_after - now) / DAY


class Manager:
    """See the head of the module. `installed` is called with the chain's and the key's path, of one version.

    It runs on the caller's thread in `take` and on the ACME thread later. It raises CertificateError for what cannot be
    served, `passing` if that is not the certificate's fault and it should be called again at the next look; everything
    else that it raises is logged. `take`, `start` and `stop` are for the main thread, `renew_now` and `status` for any.
    Raises ValueError as `normal_names` does.
    """

    def __init__(
        self,
        settings: AcmeSettings,
        state_directory: Path,
        challenges: Challenges,
        installed: Callable[[Path, Path], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._wanted = Wanted(normal_names(settings.names), settings.directory)
        self._purpose = _digest(settings)
        self._state = StateDirectory(state_directory)
        self._challenges = challenges
        self._installed = installed
        self._clock = clock
        self._thread: threading.Thread | None = None
        # For the thread and whoever steers it.
        self._changed = threading.Condition()
        self._stopping = False
        self._forced = False
        self._woken = False
        # The thread's, and `take`'s before there is one.
        self._served: Held | None = None  # what was handed over
        self._at_start = ""  # the version that was there, of use or not
        self._useless: set[str] = set()  # versions that cannot be served
        self._said = ""  # why the current one cannot be, for now
        self._left_alone = ""  # the version of somebody else, who wants another certificate in the same place
        self._unwritten: Schedule | None = None  # what could not be noted

    def __repr__(self) -> str:
        doing = "stopping" if self._stopping else "running" if self._thread is not None else "not started"
        return f"<Manager of {', '.join(self._wanted.names)}, {doing}>"

    def take(self) -> bool:
        """Hand over what is held, once and before `start`; return whether that was a certificate that has not expired.

        If not, the server needs a temporary one until `installed` is called. Never waits for a CA. Raises
        PermissionError where somebody else could have put it there.
        """
        self._state.check()
        self._at_start = self._state.current()
        return self._take(self._state.held()) or self._take(self._state.former())

    def _take(self, held: Held | None) -> bool:
        if held is None or held.not_after <= self._clock():
            return False
        if held.version != self._at_start:
            logger.warning("the one before it is taken, which is valid until %s UTC", minute(held.not_after))
        if missing := schedule.names_missing(self._wanted, held):
            logger.warning(
                "the certificate for %s is not for %s: another one will be ordered",
                ", ".join(held.names),
                ", ".join(missing),
            )
        return self._hand_over(held)

    def check(self) -> None:
        """Raise PermissionError where this user may keep nothing, before `start`: that does not come with waiting."""
        try:
            self._state.prepare()
            with self._state.lock():
                pass
        except PermissionError:
            raise
        except OSError:
            pass  # a disk that is full may have room later: the thread will say so

    def start(self) -> None:
        """Begin to look after the certificate. The server should be there for the CA to ask."""
        self._thread = threading.Thread(target=self._run, name=_NAME, daemon=True)
        self._thread.start()

    def stop(self, until: float) -> bool:
        """Have the thread end; return whether it had by `until` (monotonic seconds).

        A request that the CA does not answer is not interrupted; the thread is a daemon. Can be called again.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(max(0.0, until - monotonic()))
        return not self._thread.is_alive()

    def renew_now(self) -> float:
        """Order a certificate whatever is held; return in how many seconds that begins.

        Our own patience after failures does not count then. What the CA has asked for does.
        """
        with self._changed:
            self._forced = self._woken = True
            self._changed.notify_all()
        now = self._clock()
        return max(0.0, schedule.blocked_until(self._state.read_schedule(), now, forced=True) - now)

    def status(self) -> list[CertificateStatus]:
        """Return what is held and what comes next, from what is kept. Reads a few small files."""
        return status_of(self._settings, self._state.path, self._clock(), forced=self._forced)

    # The thread.

    def _run(self) -> None:
        while not self._stopping:
            pause = self._settings.pace.look
            try:
                pause = min(pause, self._turn() - self._clock())
            except StoppedError:
                return
            except Exception:
                # A bug of ours: it must not end the thread, and not turn in circles.
                logger.exception("internal error in the ACME thread")
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._woken, pause)
                self._woken = False

    def _pause(self, seconds: float) -> None:
        """Wait while an order is under way."""
        with self._changed:
            if self._changed.wait_for(lambda: self._stopping, seconds):
                raise StoppedError

    def _turn(self) -> float:
        """Do what is to be done, and return when to look again."""
        self._take_over()
        if self._left_alone:
            self._calm()
            return math.inf
        step = self._step()
        if isinstance(step, Wait):
            return step.until
        try:
            self._state.prepare()
            with self._state.lock() as ours:
                if not ours:
                    return math.inf  # another process is at it
                self._take_over()  # that one may have had something to do until now
                step = self._step()
                if not self._left_alone:
                    self._do(step)
        except OSError as error:
            if isinstance(step, Ask):
                logger.warning("%s", self._unwritable(error))
                self._answered(None, None)
            else:
                self._failed(self._unwritable(error), self._schedule())
        return self._clock() + _SETTLE_S

    def _do(self, step: schedule.Step) -> None:
        self._tidy()
        if isinstance(step, Ask):
            self._ask()
        elif isinstance(step, Order):
            self._order(step)

    def _unwritable(self, error: OSError) -> AcmeError:
        return AcmeError(f"{error.filename or self._state.path} cannot be written to: {error.strerror or error}")

    def _step(self) -> schedule.Step:
        return schedule.next_step(self._wanted, self._held(), self._schedule(), self._clock(), forced=self._forced)

    def _current(self) -> Held | None:
        """Return what is in place, None if it cannot be served, or somebody else could have put it there."""
        try:
            self._state.check()
        except OSError:
            return None  # whatever is to be done fails for it, and says so
        held = self._state.held()
        return None if held is None or held.version in self._useless else held

    def _held(self) -> Held | None:
        """Return what decides when another one is ordered: what is in place, or is served in its stead."""
        current, served = self._current(), self._served
        if current is None and served is not None and self._state.current() not in ("", served.version):
            return served
        return current

    def _schedule(self) -> Schedule:
        return schedule.for_purpose(self._unwritten or self._state.read_schedule(), self._purpose)

    def _note(self, noted: Schedule) -> None:
        """Keep it; what cannot be written is remembered by this process. Raises OSError then."""
        self._unwritten = noted
        self._state.write_schedule(noted)
        self._unwritten = None

    def _take_over(self) -> None:
        """Hand over what is held, if it was not before."""
        held = self._current()
        if held is None or held == self._served or held.version == self._left_alone:
            return
        if held.version != self._at_start and not schedule.serves(self._wanted, held):
            # Two that replace each other's certificates would do so until the CA's limits stop them. The one that was
            # started later has the newer settings.
            self._left_alone = held.version
            logger.warning(
                "another server keeps a certificate for %s in %s: this one orders no more until it is restarted",
                ", ".join(held.names),
                self._state.path,
            )
            return
        self._left_alone = ""
        if held.not_after > self._clock():
            if not self._said:  # else it is tried once more, which is nothing new
                self._calm()  # before: whoever asks from now on wants another one
            self._hand_over(held)

    def _calm(self) -> None:
        """Whoever wanted a certificate at once has got one, or a reason."""
        with self._changed:
            self._forced = False

    def _hand_over(self, held: Held) -> bool:
        """Return whether it is served now, or nothing more can be done about that."""
        pair = self._state.pair(held)
        try:
            self._installed(pair.certificate, pair.key)
        except CertificateError as error:
            if not error.passing:
                self._useless.add(held.version)
            if str(error) != self._said:
                self._said = str(error)
                logger.warning("what the CA has issued cannot be served: %s", error)
            return False
        except Exception:
            logger.exception("the certificate in %s was not taken", pair.certificate.parent)
        self._served, self._said = held, ""
        return True

    # Asking about the renewal.

    def _ask(self) -> None:
        held = self._held()
        if held is None:
            return
        window, retry_after = None, None
        client = self._client(pki.new_key())  # anybody may ask
        try:
            client.connect()
            window = client.renewal_window(held.identifier)
            retry_after = client.retry_after
        except AcmeError as error:
            logger.debug("%s", error)
        finally:
            client.close()
        self._answered(window, retry_after)

    def _answered(self, window: tuple[float, float] | None, retry_after: float | None) -> None:
        held = self._held()
        if held is not None:
            with contextlib.suppress(OSError):  # it is remembered
                self._note(schedule.asked(self._schedule(), held, window, retry_after, self._clock()))

    # Ordering.

    def _order(self, step: Order) -> None:
        before = self._schedule()
        pace = self._settings.pace
        begun = schedule.failed(before, "refused", "an attempt was broken off", None, self._clock(), 0.0, pace)
        logger.info("ordering a certificate for %s: %s", ", ".join(self._wanted.names), step.why)
        try:
            self._note(begun)
            new = self._install(self._obtain(self._held(), before))
        except AcmeError as error:
            self._failed(error, before)
        except OSError as error:
            self._failed(self._unwritable(error), before)
        except StoppedError:
            with contextlib.suppress(OSError):
                self._note(before)  # nothing has failed
            raise
        else:
            logger.info("new certificate for %s, valid until %s UTC", ", ".join(new.names), minute(new.not_after))
            with contextlib.suppress(OSError):  # what cannot be written now is remembered, and tidied the next time
                self._note(schedule.succeeded(before, self._clock()))
            self._calm()
            self._take_over()
            if new.version in self._useless:
                self._failed(AcmeError("the new certificate cannot be served", "misconfigured"), before)
                return
            with contextlib.suppress(OSError):
                self._tidy()

    def _tidy(self) -> None:
        self._state.tidy("" if self._served is None else self._served.version)

    def _obtain(self, held: Held | None, before: Schedule) -> Issued:
        account = self._account()
        client = self._client(pki.load_key(account.key.encode()))
        try:
            client.connect()
            for last in (False, True):
                account = self._registered(client, account)
                try:
                    return self._ordering(client).obtain(self._request(account, held, before))
                except AcmeError as error:
                    # A test CA that was restarted, or an account that was closed.
                    if last or error.code != "accountDoesNotExist":
                        raise
                    account = replace(account, url="")
            raise AssertionError
        finally:
            client.close()

    def _ordering(self, client: Client) -> Ordering:
        return Ordering(client, self._state, self._challenges, self._pause, self._clock)

    def _request(self, account: Account, held: Held | None, before: Schedule) -> Request:
        proven = "" if held is None else held.challenge
        replaces = ""
        if held is not None and before.window is not None and before.asked == held.version:
            # The CA speaks RFC 9773, and the certificate is its own.
            replaces = held.identifier if held.directory == self._wanted.directory else ""
        return Request(
            names=self._wanted.names,
            directory=self._wanted.directory,
            account=account.url,
            kinds=schedule.challenge_order(self._settings.challenges, proven, before.unproven),
            replaces=replaces,
            profile=self._settings.profile,
        )

    def _account(self) -> Account:
        """Return who we are for this CA; the key is kept before it is used."""
        settings = self._settings
        account = self._state.read_account(settings.directory, settings.eab_kid)
        if account is not None:
            try:
                pki.load_key(account.key.encode())
            except pki.UnusableError as error:
                logger.warning("the key of the account at %s is not used: %s", settings.directory, error)
            else:
                return account
        key = pki.key_pem(pki.new_key()).decode("ascii")
        account = Account(settings.directory, key, eab_kid=settings.eab_kid)
        self._state.write_account(account)
        return account

    def _client(self, key: pki.Key) -> Client:
        return Client(self._settings.directory, key, ca_file=self._settings.ca_file, clock=self._clock)

    def _registered(self, client: Client, account: Account) -> Account:
        """Return the account with an address, made if it has none; `client` uses it from now on."""
        email = self._settings.email
        if not account.url:
            account = replace(account, url=self._register(client), email=email)
            self._state.write_account(account)
            return account
        client.use_account(account.url)
        if account.email != email:
            try:
                client.tell_email(account.url, email)
            except AcmeError as error:
                logger.warning("%s", error)  # no reason to go without a certificate
            else:
                account = replace(account, email=email)
                self._state.write_account(account)
        return account

    def _register(self, client: Client) -> str:
        settings = self._settings
        if client.terms and not settings.agree:
            asked = f"its terms of service must be agreed to (--acme-agree on): {client.terms}"
            raise AcmeError(asked, "misconfigured")
        if client.wants_external_account and settings.eab_key_file is None:
            asked = "the CA wants an external account's key id and key: acme.eab_kid and acme.eab_key_file"
            raise AcmeError(asked, "misconfigured")
        key = "" if settings.eab_key_file is None else load_external_key(settings.eab_key_file)
        return client.register(settings.email, settings.eab_kid, key)

    def _install(self, issued: Issued) -> Held:
        about = {
            "names": " ".join(self._wanted.names),
            "directory": self._wanted.directory,
            "challenge": issued.challenge,
            "taken": str(self._clock()),
        }
        try:
            return self._state.install(issued.chain, issued.key, about)
        except pki.UnusableError as error:
            with contextlib.suppress(OSError):
                self._state.forget_order()  # it has come to nothing else
            # The next one will be no other until somebody changes something, and each costs the CA a certificate.
            problem = f"the new certificate could not be put in place: {error}"
            raise AcmeError(problem, "misconfigured") from error

    def _failed(self, error: AcmeError, before: Schedule) -> None:
        """Note a failure after what was known `before`, and say so."""
        self._calm()
        now = self._clock()
        # Spreads attempts; nothing is guessed from it.
        chance = random.random()  # noqa: S311
        held = self._held()
        noted = schedule.failed(
            before, error.kind, str(error), error.retry_after, now, chance, self._settings.pace, held
        )
        with contextlib.suppress(OSError):  # it is remembered, and if it is not the error itself, it will be the next
            self._note(noted)
        again = schedule.blocked_until(noted, now)
        logger.log(*_line(self._wanted, held, str(error), again, now))


def status_of(
    settings: AcmeSettings, state_directory: Path, now: float, *, forced: bool = False
) -> list[CertificateStatus]:
    """Return what is held and what comes next for these settings, also where no server runs. Changes nothing."""
    wanted = Wanted(normal_names(settings.names), settings.directory)
    state = StateDirectory(state_directory)
    held = state.held()
    kept = schedule.for_purpose(state.read_schedule(), _digest(settings))
    why, due = schedule.due_at(wanted, held, kept, now)
    blocked = schedule.blocked_until(kept, now, forced=forced)
    return [
        CertificateStatus(
            names=wanted.names,
            held=() if held is None else held.names,
            directory=wanted.directory if held is None else held.directory,
            not_before=0.0 if held is None else held.not_before,
            not_after=0.0 if held is None else held.not_after,
            next_attempt=max(now if forced else due, blocked, 0.0),
            why=why,
            failures=kept.failures,
            error=kept.error,
            path=None if held is None else state.pair(held).certificate,
        )
    ]


def _line(
    wanted: Wanted, held: Held | None, error: str, again: float, now: float
) -> tuple[int, str, str, str, str, str]:
    """Return what `logger.log` takes: a failure, how long there is time, and when the next attempt is made."""
    level = logging.WARNING
    if held is None:
        left = "there is none yet"
    elif held.not_after <= now:
        level, left = logging.ERROR, f"the one there is has expired on {minute(held.not_after)} UTC"
    else:
        days = (held.not_after - now) / DAY
        left = f"the one in use stays, with {days:.1f} days left"
        if missing := schedule.names_missing(wanted, held):
            left += f", and is not for {', '.join(missing)}"
        if held.not_after - now < held.lifetime * schedule.LEFT_AT_MOST_LATE:
            level = logging.ERROR
    return (
        level,
        "no new certificate for %s: %s; %s; next attempt %s",
        ", ".join(wanted.names),
        error,
        left,
        f"{minute(again)} UTC",
    )


def _digest(settings: AcmeSettings) -> str:
    """Return something that differs when settings do that may be why an order has failed."""
    decisive = (settings.names, settings.agree, settings.email, settings.directory, settings.challenges)
    external = (settings.eab_kid, str(settings.eab_key_file), str(settings.ca_file), settings.profile)
    return hashlib.sha256(repr((decisive, external)).encode()).hexdigest()[:16]
