"""What is said to a CA: one method for each request of RFC 8555 and RFC 9773, over Certbot's `acme` library.

The library signs, keeps nonces and knows the messages. What it leaves to its user is here: a Retry-After that comes
with an error, more than one rejected nonce, answers without end, `replaces` in an order (RFC 9773 5), TLS-ALPN-01, and
one kind of error. Everything blocks, each request for a bounded time: ACME thread only. Nothing here decides what is
asked, or when.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import time
from typing import Any

import requests
from acme import challenges, errors, messages
from acme.client import ClientNetwork, ClientV2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.b64 import b64decode, b64encode
from josepy.errors import Error as JoseError
from josepy.interfaces import JSONDeSerializable
from josepy.json_util import field
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from hardserve.http.conditions import parse_http_date
from hardserve.tls.acme import reach
from hardserve.tls.acme.answers import BoundedAdapter
from hardserve.tls.acme.schedule import RATE_LIMITED, Kind

logger = logging.getLogger("hardserve.acme")

# For connecting, for the handshake, and for each pause in an answer; `answers` has the time for all of one.
_PAUSE_S = 20
# Of `requests`, 30: each has all of the time that an answer has.
_REDIRECTS = 3
# RFC 8555 6.5: what was refused for its nonce is sent again with a new one. `post` of the library does so once.
_NONCES = 20
_TEXT_LENGTH = 500

# Nothing that comes with waiting: somebody has to change the settings, a DNS record, or the account at the CA.
_MISCONFIGURED = {
    "badCSR",
    "badPublicKey",
    "badSignatureAlgorithm",
    "caa",
    "externalAccountRequired",
    "invalidContact",
    "invalidProfile",
    "rejectedIdentifier",
    "unsupportedContact",
    "unsupportedIdentifier",
    "userActionRequired",
}


class AcmeError(Exception):
    """Something that keeps a certificate from coming. The text is one line for the log.

    `kind` and `retry_after` say how long to wait (schedule.failed); `code` is the CA's, without its prefix.
    """

    def __init__(self, text: str, kind: Kind = "refused", *, retry_after: float | None = None, code: str = "") -> None:
        super().__init__(one_line(text))
        self.kind: Kind = kind
        self.retry_after = retry_after
        self.code = code


def one_line(text: str) -> str:
    """Return a text from outside as it can stand in a log."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    return line if len(line) <= _TEXT_LENGTH else f"{line[:_TEXT_LENGTH]}..."


@dataclass(frozen=True, slots=True)
class Problem:
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Challenge:
    kind: str
    url: str
    status: str
    token: str
    key_authorization: str


@dataclass(frozen=True, slots=True)
class Authorization:
    url: str
    name: str
    status: str
    challenges: tuple[Challenge, ...]
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class OrderState:
    url: str
    status: str
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str
    problem: Problem | None


class _NewOrder(messages.NewOrder):
    """With the certificate that this one is to replace (RFC 9773 5), which CAs do not count against their limits."""

    replaces: str | None = field("replaces", omitempty=True)


class _Network(ClientNetwork):
    def post(self, *arguments: Any, **options: Any) -> requests.Response:
        """As the library's, which tries twice, but as often as a CA may reject nonces in a row."""
        for _ in range(_NONCES // 2):
            try:
                return super().post(*arguments, **options)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
                rejected = error
        raise rejected


class Client:
    """A conversation with one CA. Every method raises AcmeError, and `close` must be called."""

    def __init__(
        self,
        directory: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        self._key = JWKEC(key=key)
        self._clock = clock
        self._retry_after: float | None = None
        user_agent = f"hardserve python-acme/{metadata.version('acme')}"
        self._network = _Network(key=self._key, alg=ES256, user_agent=user_agent, timeout=_PAUSE_S)
        session = self._network.session
        session.mount("https://", BoundedAdapter())
        session.mount("http://", BoundedAdapter())
        session.max_redirects = _REDIRECTS
        session.hooks["response"].append(self._note)
        if ca_file is not None:
            self._network.verify_ssl = str(ca_file)  # type: ignore[assignment]  # as `verify` of requests
        self._directory_url = directory
        self._library: ClientV2 | None = None

    def close(self) -> None:
        self._network.session.close()

    def _note(self, response: requests.Response, *_: object, **__: object) -> None:
        self._retry_after = retry_after_s(response.headers.get("Retry-After"), self._clock())

    @property
    def retry_after(self) -> float | None:
        """In how many seconds the last answer asked to be asked again, None if it did not say."""
        return self._retry_after

    def connect(self) -> None:
        """Read the directory (RFC 8555 7.1.1); everything else needs it."""
        with self._errors("the CA's directory cannot be read"):
            directory = ClientV2.get_directory(self._directory_url, self._network)
            for name in ("newNonce", "newAccount", "newOrder"):
                _url(directory[name])
            self._library = ClientV2(directory, self._network)

    @property
    def _acme(self) -> ClientV2:
        assert self._library is not None, "not connected"
        return self._library

    # The account.

    @property
    def terms(self) -> str:
        """Where the terms of service are; "" if the CA has none."""
        return str(self._acme.directory.meta.terms_of_service or "")

    @property
    def wants_external_account(self) -> bool:
        return bool(self._acme.directory.meta.external_account_required)

    def register(self, email: str, eab_kid: str, eab_key: str) -> str:
        """Return the address of the account of our key, which is made if there is none (7.3). Terms are agreed to."""
        with self._errors("the CA gives no account"):
            binding = None
            if eab_kid:
                binding = messages.ExternalAccountBinding.from_data(
                    self._key.public_key(), eab_kid, eab_key, self._acme.directory
                )
            account = messages.NewRegistration.from_data(
                email=email or None, external_account_binding=binding, terms_of_service_agreed=True
            )
            self._network.account = None
            try:
                url = self._acme.new_account(account).uri
            except errors.ConflictError as known:
                url = known.location
            self.use_account(_url(url))
            return url

    def use_account(self, url: str) -> None:
        self._network.account = messages.RegistrationResource(uri=url, body=messages.Registration())

    def tell_email(self, url: str, email: str) -> None:
        """Have the account's address for notices be `email`, or none."""
        contact = (f"mailto:{email}",) if email else ()
        with self._errors("the CA does not take the e-mail address"):
            self._post(url, messages.UpdateRegistration(contact=contact))

    # Orders.

    def new_order(self, names: tuple[str, ...], *, replaces: str = "", profile: str = "") -> OrderState:
        identifiers = [messages.Identifier(typ=messages.IDENTIFIER_FQDN, value=name) for name in names]
        order = _NewOrder(identifiers=identifiers, profile=profile or None, replaces=replaces or None)
        with self._errors("the CA takes no order"):
            response = self._post(self._acme.directory["newOrder"], order)
            return _order_state(_url(response.headers["Location"]), response)

    def order(self, url: str) -> OrderState:
        with self._errors("the order cannot be read"):
            return _order_state(url, self._post(url, None))

    def authorization(self, url: str) -> Authorization:
        with self._errors("an authorization cannot be read"):
            # Not by the library: it takes a token for bytes that were encoded, and encodes them again, where RFC 8555
            # 8.3 has a string. And it does not know TLS-ALPN-01, which has the same fields as HTTP-01 (RFC 8737 3).
            body = self._post(url, None).json()
            challenges = body["challenges"]
            problems = [_problem(messages.Error.from_json(each["error"])) for each in challenges if each.get("error")]
            return Authorization(
                url=url,
                name=_text(body["identifier"]["value"]).lower(),
                status=_text(body["status"]),
                challenges=tuple(self._challenge(challenge) for challenge in challenges),
                problem=problems[0] if problems else None,
            )

    def _challenge(self, body: dict[str, object]) -> Challenge:
        token = body.get("token")
        token = token if isinstance(token, str) and _is_token(token) else ""
        thumbprint = b64encode(self._key.thumbprint()).decode()
        return Challenge(
            kind=_text(body["type"]),
            url=_text(body.get("url", "")),
            status=_text(body.get("status", "")),
            token=token,
            key_authorization=f"{token}.{thumbprint}",  # RFC 8555 8.1
        )

    def answer(self, challenge: Challenge) -> None:
        """Tell the CA that it may look now (7.5.1)."""
        # What is sent is an empty object for every kind.
        response = challenges.HTTP01Response(key_authorization=challenge.key_authorization)
        with self._errors("the CA does not take the answer to its challenge"):
            self._post(_url(challenge.url), response)

    def finalize(self, order: OrderState, request: x509.CertificateSigningRequest) -> OrderState:
        with self._errors("the CA does not take the request for a certificate"):
            response = self._post(_url(order.finalize), messages.CertificateRequest(csr=request))
            return _order_state(order.url, response)

    def certificate(self, order: OrderState) -> bytes:
        """Return the chain as it came."""
        with self._errors("the certificate cannot be fetched"):
            return self._post(_url(order.certificate), None).content

    # Renewal information.

    def renewal_window(self, identifier: str) -> tuple[float, float] | None:
        """Return when the CA suggests to replace a certificate (RFC 9773 4.1), None if it does not do that at all."""
        with self._errors("the CA does not say when to renew"):
            base = self._acme.directory.to_partial_json().get("renewalInfo")
            if base is None:
                return None
            found = self._network.get(f"{_url(base).rstrip('/')}/{identifier}").json()["suggestedWindow"]
            return _timestamp(found["start"]), _timestamp(found["end"])

    def _post(self, url: str, message: JSONDeSerializable | None) -> requests.Response:
        new_nonce = self._acme.directory["newNonce"]
        return self._network.post(url, message, new_nonce_url=new_nonce)  # nothing: POST-as-GET (6.3)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn whatever can go wrong with a request into an AcmeError that begins with `what`."""
        self._retry_after = None
        try:
            yield
        except messages.Error as error:
            problem = _problem(error)
            kind: Kind = "misconfigured" if problem.code in _MISCONFIGURED else "refused"
            if problem.code == "serverInternal":
                kind = "unreachable"  # it has not judged anything
            retry_after = self._retry_after
            if problem.code == "rateLimited" and retry_after is None:
                retry_after = RATE_LIMITED
            raise AcmeError(f"{what}: {problem.text}", kind, retry_after=retry_after, code=problem.code) from error
        except errors.ConflictError as error:
            raise AcmeError(f"{what}: conflict", code="conflict") from error
        except requests.exceptions.RequestException as error:
            text = reach.in_words(error, self._directory_url, self._clock()) or f"{what}: {error}"
            raise AcmeError(text, "unreachable", retry_after=self._retry_after) from error
        except errors.ClientError as error:
            # No problem document: an error page of something in front of the CA.
            status = next((part.status_code for part in error.args if isinstance(part, requests.Response)), None)
            text = f"{what}: status {status}" if status else f"{what}: the answer makes no sense"
            raise AcmeError(text, "unreachable", retry_after=self._retry_after) from error
        except OSError as error:  # the file with its roots
            raise AcmeError(f"{what}: acme.ca_file: {error.strerror or error}", "unreachable") from error
        except (errors.Error, JoseError) as error:
            raise AcmeError(f"{what}: the answer makes no sense: {error}", "unreachable") from error
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            # The library takes what it gets as it comes, and so do we: JSON of another shape ends here.
            logger.debug("an answer that makes no sense", exc_info=True)
            raise AcmeError(f"{what}: the answer makes no sense ({type(error).__name__})", "unreachable") from error


def retry_after_s(value: str | None, now: float) -> float | None:
    """Return in how many seconds, by a Retry-After (RFC 9110 10.2.3); None for none and for nonsense."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    date = parse_http_date(value.strip())
    return None if date is None else max(0.0, date - now)


def _is_token(token: str) -> bool:
    # RFC 8555 8.3: base64url; nothing else may become part of a path.
    return 0 < len(token) <= 512 and all(c.isascii() and (c.isalnum() or c in "-_") for c in token)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _url(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("https://"):
        raise ValueError("not an https:// address")
    return value


def _order_state(url: str, response: requests.Response) -> OrderState:
    body = messages.Order.from_json(response.json())
    return OrderState(
        url=url,
        status=body.status.name,
        authorizations=tuple(_url(each) for each in body.authorizations),
        finalize=str(body.finalize or ""),
        certificate=str(body.certificate or ""),
        problem=None if body.error is None else _problem(body.error),
    )


def _problem(error: messages.Error) -> Problem:
    code = str(error.typ).removeprefix(messages.ERROR_PREFIX)
    parts = [str(error.detail or error.title or error.description or "no reason given")]
    parts += [_problem(each).text for each in error.subproblems or ()]
    named = f"{error.identifier.value}: " if error.identifier is not None else ""
    return Problem(code, one_line(f"{named}{'; '.join(parts)} ({code})"))


def _timestamp(value: object) -> float:
    """Read a time of RFC 3339."""
    if not isinstance(value, str):
        raise TypeError
    moment = dt.datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("no offset")
    return moment.timestamp()


def load_external_key(path: Path) -> str:
    """Return the MAC key that a CA has given, from its file. Raises AcmeError."""
    try:
        text = path.read_text(encoding="ascii").strip()
        b64decode(text.rstrip("="))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not base64url"
        raise AcmeError(f"the external account's key in {path} cannot be used: {reason}", "misconfigured") from error
    return text.rstrip("=")
