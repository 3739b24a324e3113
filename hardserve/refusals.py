"""Every way the server says no, declared once.

A refusal is a value: what the client is told, whether its connection lives on, how loud the log is, and the RFC
section that asks for it. Responses and logs derive from it. This module knows no socket, no thread and no setting.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """One way of saying no.

    `name` is the reason in logs. `status` and `text` are all that the client learns: never a byte of its request.
    `close` ends the connection after the answer, because where the next request starts is unknown or unwelcome.
    `level` is the `logging` level of the summary in the error log; each single one is at DEBUG. `section` is what
    demands or permits it. `offence` counts toward a ban: nothing that a person at a browser meets by accident.
    """

    name: str
    status: int
    text: str
    close: bool
    section: str
    level: int = logging.INFO
    offence: bool = False


# --- framing: after any of these nothing more is read from the connection as a request ---
BAD_REQUEST_LINE = Refusal("bad_request_line", 400, "The request line is malformed.", True, "RFC 9112 3", offence=True)
BAD_TARGET = Refusal("bad_target", 400, "The request target is malformed.", True, "RFC 9112 3.2")
BAD_VERSION = Refusal(
    "bad_version", 505, "Only HTTP/1.0 and HTTP/1.1 are served here.", True, "RFC 9110 15.6.6", offence=True
)
TLS_ON_PLAIN_PORT = Refusal("tls_on_plain_port", 400, "This port speaks plain HTTP, not HTTPS.", True, "RFC 9112 2.2")
PLAIN_ON_TLS_PORT = Refusal("plain_on_tls_port", 400, "This port speaks HTTPS, not plain HTTP.", True, "RFC 9112 2.2")
REDIRECTED = Refusal("redirected", 301, "This site is served over HTTPS.", False, "RFC 9110 15.4.2", logging.DEBUG)
REDIRECTED_AS_IT_IS = Refusal(
    "redirected_as_it_is", 308, "This site is served over HTTPS.", False, "RFC 9110 15.4.9", logging.DEBUG
)
BAD_METHOD = Refusal("bad_method", 501, "This method is not served here.", True, "RFC 9110 15.6.2")
BAD_HEADER = Refusal("bad_header", 400, "A header field is malformed.", True, "RFC 9112 5", offence=True)
BAD_HOST = Refusal("bad_host", 400, "A request needs exactly one valid Host header field.", True, "RFC 9112 3.2")
BAD_CONTENT_LENGTH = Refusal(
    "bad_content_length", 400, "The Content-Length header field is invalid.", True, "RFC 9112 6.3", offence=True
)
BAD_TRANSFER_ENCODING = Refusal(
    "bad_transfer_encoding",
    400,
    "The Transfer-Encoding header field is invalid here.",
    True,
    "RFC 9112 6.1",
    offence=True,
)
UNKNOWN_TRANSFER_ENCODING = Refusal(
    "unknown_transfer_encoding", 501, "Only the chunked transfer coding is served here.", True, "RFC 9112 6.1"
)
BAD_CHUNK = Refusal("bad_chunk", 400, "The chunked request body is malformed.", True, "RFC 9112 7.1", offence=True)
UNKNOWN_EXPECTATION = Refusal(
    "unknown_expectation", 417, "Only the expectation 100-continue is met here.", True, "RFC 9110 10.1.1"
)

# --- who asks, and whether they may ---
BAD_FORWARDING = Refusal(
    "bad_forwarding", 400, "The proxy in front sent a malformed forwarding header field.", True, "RFC 7239 4",
    logging.ERROR,
)  # fmt: skip
HOST_MISSING = Refusal("host_missing", 400, "A Host header field is needed here.", True, "RFC 9112 3.2", offence=True)
HOST_NOT_SERVED = Refusal(
    "host_not_served", 421, "This host is not served here.", False, "RFC 9110 15.5.20", offence=True
)
ACCESS_DENIED = Refusal(
    "access_denied", 403, "Access from your address is not allowed.", False, "RFC 9110 15.5.4", offence=True
)
# Not 401, which has to name a scheme by which the same connection could try again (RFC 9110 15.5.2), nor a 400, which
# nginx gives: nothing is wrong with the request. A person meets it who has not installed the certificate yet.
CLIENT_CERTIFICATE_MISSING = Refusal(
    "client_certificate_missing", 403, "A client certificate is needed here.", False, "RFC 9110 15.5.4"
)
METHOD_NOT_ALLOWED = Refusal("method_not_allowed", 405, "This method is not allowed here.", False, "RFC 9110 15.5.6")
RATE_LIMITED = Refusal(
    "rate_limited", 429, "Too many requests; try again later.", False, "RFC 6585 4", logging.WARNING, offence=True
)
BANNED = Refusal("banned", 429, "Too many requests were refused; try again later.", True, "RFC 6585 4", logging.DEBUG)
PASSWORD_NEEDED = Refusal("password_needed", 401, "A user name and password are needed.", False, "RFC 9110 15.5.2")
PASSWORD_WRONG = Refusal(
    "password_wrong", 401, "The user name or password is wrong.", False, "RFC 9110 15.5.2", logging.WARNING,
    offence=True,
)  # fmt: skip
PASSWORDS_BUSY = Refusal(
    "passwords_busy", 503, "The server is busy; try again soon.", False, "RFC 9110 15.6.4", logging.WARNING
)
PEER_NOT_TRUSTED = Refusal(
    "peer_not_trusted", 403, "This port is for the proxy in front.", True, "RFC 9110 15.5.4", logging.WARNING
)

# --- files ---
FILE_NOT_FOUND = Refusal("file_not_found", 404, "There is nothing here.", False, "RFC 9110 15.5.5", logging.DEBUG)
FILE_FORBIDDEN = Refusal("file_forbidden", 403, "This file may not be read.", False, "RFC 9110 15.5.4", logging.WARNING)
FILE_FAILED = Refusal("file_failed", 500, "The file could not be read.", False, "RFC 9110 15.6.1", logging.ERROR)
FILES_BUSY = Refusal(
    "files_busy", 503, "The server is busy; try again soon.", False, "RFC 9110 15.6.4", logging.WARNING
)
PRECONDITION_FAILED = Refusal(
    "precondition_failed", 412, "The file is not what the request expects.", False, "RFC 9110 15.5.13", logging.DEBUG
)
RANGE_NOT_SATISFIABLE = Refusal(
    "range_not_satisfiable", 416, "The file has no such part.", False, "RFC 9110 15.5.17", logging.DEBUG
)

# --- sizes ---
REQUEST_LINE_TOO_LONG = Refusal(
    "request_line_too_long", 414, "The request target is too long.", True, "RFC 9110 15.5.15"
)
HEADER_TOO_LARGE = Refusal("header_too_large", 431, "The header fields are too large or too many.", True, "RFC 6585 5")
CHUNK_EXTENSIONS_TOO_LARGE = Refusal(
    "chunk_extensions_too_large", 400, "The chunk extensions of the request body are too large.", True, "RFC 9112 7.1.1"
)
TRAILER_TOO_LARGE = Refusal("trailer_too_large", 431, "The trailer fields are too large.", True, "RFC 6585 5")
BODY_TOO_LARGE = Refusal("body_too_large", 413, "The request body is too large.", True, "RFC 9110 15.5.14")

# --- deadlines ---
HEADER_DEADLINE = Refusal("header_deadline", 408, "The request head took too long to arrive.", True, "RFC 9110 15.5.9")
BODY_DEADLINE = Refusal("body_deadline", 408, "The request body took too long to arrive.", True, "RFC 9110 15.5.9")
BODY_TOTAL_DEADLINE = Refusal(
    "body_total_deadline", 408, "The request body took too long to arrive.", True, "RFC 9110 15.5.9"
)
BODY_TOO_SLOW = Refusal("body_too_slow", 408, "The request body arrived too slowly.", True, "RFC 9110 15.5.9")
QUEUE_DEADLINE = Refusal(
    "queue_deadline", 503, "The server is busy; try again soon.", False, "RFC 9110 15.6.4", logging.WARNING
)
APP_DEADLINE = Refusal(
    "app_deadline", 504, "The application took too long to answer.", True, "RFC 9110 15.6.5", logging.ERROR
)
FILES_SLOW = Refusal("files_slow", 503, "The file could not be read in time.", False, "RFC 9110 15.6.4", logging.ERROR)

# --- capacity ---
QUEUE_FULL = Refusal(
    "queue_full", 503, "The server is busy; try again soon.", False, "RFC 9110 15.6.4", logging.WARNING
)
BUFFERS_FULL = Refusal(
    "buffers_full", 503, "The server is busy; try again soon.", True, "RFC 9110 15.6.4", logging.WARNING
)
BODY_NOT_STORED = Refusal(
    "body_not_stored",
    503,
    "The request body cannot be stored at the moment; try again soon.",
    True,
    "RFC 9110 15.6.4",
    logging.WARNING,
)

# --- admission: answered before a byte is read, and only if the answer fits at once ---
CONNECTIONS_FULL = Refusal(
    "connections_full", 503, "The server is busy; try again soon.", True, "RFC 9110 15.6.4", logging.WARNING
)
NO_DESCRIPTORS = Refusal(
    "no_descriptors", 503, "The server is busy; try again soon.", True, "RFC 9110 15.6.4", logging.ERROR
)
CLIENT_CONNECTIONS = Refusal(
    "client_connections", 429, "Too many connections are open from your address.", True, "RFC 6585 4", logging.WARNING
)
CLIENT_CONNECTION_RATE = Refusal(
    "client_connection_rate",
    429,
    "Too many connections a second from your address.",
    True,
    "RFC 6585 4",
    logging.WARNING,
    offence=True,
)

# --- the app ---
APP_FAILED = Refusal(
    "app_failed", 500, "The application failed to answer this request.", False, "RFC 9110 15.6.1", logging.ERROR
)


@dataclass(frozen=True, slots=True)
class Cut:
    """One way of ending a connection without a word, because none can be said or none is expected.

    `name` is the reason in logs, `level` how loud the log is.
    """

    name: str
    level: int = logging.INFO


FIRST_BYTE_DEADLINE = Cut("first_byte_deadline")
HANDSHAKE_DEADLINE = Cut("handshake_deadline")
HANDSHAKE_FAILED = Cut("handshake_failed", logging.DEBUG)
HANDSHAKES_FULL = Cut("handshakes_full", logging.WARNING)  # too many wait, of this client or of all
KEEP_ALIVE_DEADLINE = Cut("keep_alive_deadline", logging.DEBUG)  # how every quiet connection ends
CONNECTION_WORN = Cut("connection_worn", logging.DEBUG)  # its age or its requests; after the answer that is due
DRAINED = Cut("drained", logging.DEBUG)  # idle when the server was told to stop
MADE_ROOM = Cut("made_room", logging.WARNING)  # idle when limits.connections was reached
LINGER_DEADLINE = Cut("linger_deadline", logging.DEBUG)
RESPONSE_DEADLINE = Cut("response_deadline")
RESPONSE_TOO_SLOW = Cut("response_too_slow")
SLOWEST_READER = Cut("slowest_reader", logging.WARNING)  # it kept a worker, or memory, that others needed
APP_DEADLINE_MIDWAY = Cut("app_deadline_midway", logging.ERROR)
FILE_CHANGED = Cut("file_changed", logging.WARNING)  # in place, while it was being sent
FILE_UNREADABLE = Cut("file_unreadable", logging.ERROR)  # or not in time
BANNED_NOW = Cut("banned")  # a connection that was open when its client was banned, or tried to come back
BAD_PROXY_HEADER = Cut("bad_proxy_header", logging.ERROR)
CLIENT_LEFT = Cut("client_disconnected", logging.DEBUG)


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a rule of rate limiting that is on trial would have refused. `name` is the rule's."""

    name: str
    level: int = logging.WARNING
