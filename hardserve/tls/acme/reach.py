"""Why nothing comes back from a CA, as one line for whoever can do something about it.

Pure; any thread. `requests` and `urllib3` put the reason three exceptions deep, and the whole of their own state around
it. What is said here is the reason alone; whatever has none that is known is left to whoever asks.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import urllib3

from hardserve.tls.certificates import minute

# Codes of X509_verify_cert (openssl/x509_vfy.h), for which Python has no names.
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
# Exceptions hold each other: more than this are a circle.
_MAX_CAUSES = 50


def in_words(error: requests.exceptions.RequestException, url: str, now: float) -> str:
    """Return a line for an error of a request, "" if the other side did answer. `url` is for an error without one.

    `now` is in seconds of the epoch.
    """
    causes = list(_causes(error))
    said = [text for text in (_of(cause, now) for cause in causes) if text]
    if not said:
        said = [_of_kind(cause) for cause in causes if _of_kind(cause)]
    if not said:
        return ""
    asked = error.request.url if error.request is not None else None
    return f"cannot reach {urlsplit(asked or url).netloc}: {said[0]}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and whatever it was made from, each once."""
    found: list[BaseException] = [error]
    for each in found:
        if len(found) > _MAX_CAUSES:
            break
        below = [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
        found += [one for one in below if isinstance(one, BaseException) and not any(one is seen for seen in found)]
    yield from found


def _of(cause: BaseException, now: float) -> str:
    """Return what the system or OpenSSL has said, "" for an exception of anybody else."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _of_certificate(cause, now)
    if isinstance(cause, ssl.SSLError):
        return _of_tls(cause)
    if isinstance(cause, socket.gaierror):
        unknown = cause.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
        return "name not known" if unknown else "its name cannot be looked up just now"
    if isinstance(cause, requests.exceptions.RequestException) or not isinstance(cause, OSError):
        return ""
    if isinstance(cause, TimeoutError) or cause.errno == errno.ETIMEDOUT:
        return "timed out"
    return os.strerror(cause.errno).lower() if cause.errno else ""


def _of_tls(error: ssl.SSLError) -> str:
    reason = getattr(error, "reason", None)  # only where OpenSSL has made it
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or reason == "UNEXPECTED_EOF_WHILE_READING":
        return "it has closed the connection"
    if reason == "NO_CERTIFICATE_OR_CRL_FOUND":
        return "acme.ca_file holds no certificate"
    return f"TLS: {(reason or error.strerror or 'no handshake').lower().replace('_', ' ')}"


def _of_kind(cause: BaseException) -> str:
    """Return what the kind of an exception says, where the system has said nothing."""
    if isinstance(cause, urllib3.exceptions.TimeoutError):
        return "timed out"
    if isinstance(cause, http.client.RemoteDisconnected | http.client.IncompleteRead):
        return "it has closed the connection"
    if isinstance(cause, urllib3.exceptions.MaxRetryError) and cause.reason is None:
        return "no connection"
    return ""


def _of_certificate(error: ssl.SSLCertVerificationError, now: float) -> str:
    code = getattr(error, "verify_code", 0)
    if code in _UNKNOWN_ISSUER:
        return "its certificate is not trusted here: acme.ca_file names the root of a CA of your own"
    if code in (_NOT_YET_VALID, _EXPIRED):
        state = "has expired" if code == _EXPIRED else "is not valid yet"
        return f"its certificate {state}, by this machine's clock: {minute(now)}"
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        return "its certificate is for another name"
    return f"its certificate is not taken: {getattr(error, 'verify_message', '') or code}"
