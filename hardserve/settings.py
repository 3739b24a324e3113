"""What can be set: every setting once, with its kind, bounds, default and a line of help.

Data only, immutable, safe to read from any thread. A component receives its own section and nothing
else. How a value gets here (files, environment, flags, messages about mistakes) is options.py's, and
this module must not know it; nor does it import anything of hardserve.

Units are those of the kind: a Duration is seconds (float), a Size is bytes (int).
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds, bounds included."""

    min: float
    max: float


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes, bounds included."""

    min: int
    max: int


@dataclass(frozen=True, slots=True)
class Int:
    """A count, bounds included."""

    min: int
    max: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these words."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """Where lines go: one of these words, or the path of a file, which has a slash or a dot in it.

    Anything else is taken for a misspelt word, not for the name of a file to create.
    """

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AddressList:
    """Some of host:port, [v6]:port, unix:/path?mode=660&owner=user:group and fd:N, each with ?proxy_protocol.

    At least one, unless there may be `none`.
    """

    none: bool = False


@dataclass(frozen=True, slots=True)
class PathGlob:
    """The paths of some requests: "/upload", "/upload/*", "*.iso". `http.paths.PathPattern` says what that means."""


@dataclass(frozen=True, slots=True)
class MethodList:
    """Some request methods, in capitals."""


@dataclass(frozen=True, slots=True)
class RefusalStatus:
    """An HTTP status with which a request may be refused: one of those in refusals.py."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """The path of a small text file with one of these suffixes. It is read at start; `max` is its size in bytes."""

    suffixes: tuple[str, ...]
    max: int


@dataclass(frozen=True, slots=True)
class NetworkList:
    """Any number of networks and addresses, and of the words unix, loopback and private."""


@dataclass(frozen=True, slots=True)
class HostList:
    """Any number of host names and addresses without a port; ".example.com" is the name and all below it, "*" any.

    With `domains`, names alone, each of one host, such as a certificate authority can prove.
    """

    domains: bool = False


@dataclass(frozen=True, slots=True)
class StatusList:
    """Some HTTP statuses of responses."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many in what time: "300/minute", or with `several`, "20/second; 300/minute". With `off`, also that word."""

    several: bool = False
    off: bool = False


@dataclass(frozen=True, slots=True)
class RateKey:
    """By what requests are counted: client, client+path, user, global or header:NAME."""


@dataclass(frozen=True, slots=True)
class StorageUrl:
    """Where counts are kept: "memory", or the address of a store that `limits` knows."""


@dataclass(frozen=True, slots=True)
class FilePath:
    """The path of a file, or one of these words."""

    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """Some printable ASCII characters without quotes and backslashes, at most so many."""

    max: int


@dataclass(frozen=True, slots=True)
class FieldValue:
    """The value of a header field: printable ASCII characters, at most so many; or one of these words."""

    max: int
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UrlPath:
    """Where something is on the site: "/media". Decoded, without a slash at the end; "/" is all of it."""


@dataclass(frozen=True, slots=True)
class Directory:
    """The path of a directory, or one of these words."""

    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileName:
    """The name of a file in a directory, without a slash; or one of these words."""

    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MountList:
    """Any number of URL=PATH: where on the site a directory is, or a file."""


@dataclass(frozen=True, slots=True)
class PathGlobList:
    """Any number of what a PathGlob is."""


# Those of which there may be several: brackets in a file, commas in a variable, a flag that is given again.
ListKind = AddressList | MethodList | NetworkList | HostList | StatusList | MountList | PathGlobList
Kind = (
    Duration
    | Size
    | Int
    | Choice
    | Output
    | PathGlob
    | RefusalStatus
    | PageFile
    | Rate
    | RateKey
    | StorageUrl
    | FilePath
    | Text
    | FieldValue
    | UrlPath
    | Directory
    | FileName
    | ListKind
)


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a setting besides its name and default.

    `example` is written where there is no default worth showing; `without` says, in a table, what holds where the
    setting is left out.
    """

    kind: Kind
    help: str
    example: Any = None
    without: str = ""


@dataclass(frozen=True, slots=True)
class AboutTables:
    """What is known of an array of tables besides its name: the class of each, one line of help, how many at most."""

    type: type
    help: str
    max: int = 1000


# Where a field's metadata keeps the About of a setting, the AboutTables of an array of tables, and the one line of help
# of a section.
ABOUT = "about"


def setting(default: T, kind: Kind, help: str, *, example: object = None, without: str = "") -> T:  # noqa: A002
    """Declare a setting: a dataclass field that carries its About."""
    return field(default=default, metadata={ABOUT: About(kind, help, example, without)})


def required(kind: Kind, help: str, *, example: object) -> Any:  # noqa: A002 - it is the help
    """Declare a setting that every table of its array must have."""
    return field(metadata={ABOUT: About(kind, help, example)})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    bind: tuple[str, ...] = setting(
        ("127.0.0.1:8000",),
        AddressList(),
        "Addresses to listen on.",
    )
    tls: str = setting(
        "auto",
        Choice(("auto", "on", "self-signed", "off")),
        "Whether server.bind speaks HTTPS; auto = if there is a certificate, or a tls.domain.",
    )
    redirect: tuple[str, ...] = setting(
        (),
        AddressList(none=True),
        "Addresses for plain HTTP, whose requests are sent to the same place with https.",
        example=("0.0.0.0:80",),
    )
    redirect_port: int = setting(
        0, Int(0, 65535), "The port that they are sent to, where a router maps it; 0 = that of the first HTTPS address."
    )
    threads: int = setting(8, Int(1, 256), "Threads that run the app.")
    static: tuple[str, ...] = setting(
        (), MountList(), "Directories and files to serve without the app; [[static]] says more of one."
    )
    queue: int = setting(
        1024, Int(1, 100_000), "Complete requests that may wait for a thread; past it a client gets 503."
    )
    max_client_workers: int = setting(
        0, Int(0, 256), "Requests of one client that may be with the threads at once; 0 = all threads but one."
    )
    max_stuck: int = setting(
        0,
        Int(0, 256),
        "Threads that hang past timeouts.app, each replaced, at which it is unhealthy. 0 = server.threads.",
    )
    exit_when_stuck: str = setting(
        "auto",
        Choice(("auto", "on", "off")),
        "Whether an unhealthy server drains and exits with 1; auto = if a supervisor will start it again.",
    )
    backlog: int = setting(1024, Int(1, 65_535), "Connections the kernel may hold before they are accepted.")
    control: str = setting(
        "auto",
        FilePath(("auto", "off")),
        "Socket for `hardserve bans` and `unban`; auto = in $RUNTIME_DIRECTORY or $XDG_RUNTIME_DIR.",
    )
    drain: float = setting(
        25.0, Duration(0.0, HOUR), "How long a stop waits for the requests in progress; then they are cut."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    domain: tuple[str, ...] = setting(
        (),
        HostList(domains=True),
        "Names for a CA's certificate; see [acme].",
        example=("example.org", "www.example.org"),
    )
    certificate: str = setting(
        "none",
        FilePath(("none",)),
        "Certificate and those above it, but for the root, in PEM; [[certificate]] is for several.",
        example="./fullchain.pem",
    )
    key: str = setting("none", FilePath(("none",)), "Its key, in PEM.", example="./privkey.pem")
    passphrase_file: str = setting(
        "none",
        FilePath(("none",)),
        "File whose first line opens the key, where that is encrypted.",
        example="./passphrase.txt",
    )
    unknown_names: str = setting(
        "first",
        Choice(("first", "refuse")),
        "What clients get that want a name no certificate is for: the first one, or no connection.",
    )
    client_certificates: str = setting(
        "off",
        Choice(("off", "optional", "required")),
        "Whether clients are asked for a certificate of their own, and whether they need one.",
    )
    client_ca: str = setting(
        "none",
        FilePath(("none",)),
        "Certificates of those who sign the clients' certificates, in PEM.",
        example="./client-ca.pem",
    )
    handshake_rate: int = setting(
        1000, Int(0, 1_000_000), "TLS handshakes begun a second; past it clients wait for their turn. 0 = no limit."
    )
    hsts: float = setting(
        0.0,
        Duration(0.0, 1000 * DAY),
        "How long browsers will use nothing but HTTPS for this host, once they have been here. 0 = off.",
    )
    hsts_subdomains: str = setting(
        "off",
        Choice(("on", "off")),
        "Whether tls.hsts is for all names below this host, too; each must have HTTPS then.",
    )
    state: str = setting(
        "auto",
        Directory(("auto",)),
        "Where certificates of our own are kept; auto = $STATE_DIRECTORY, or below ~/.local/state.",
        example="/var/lib/hardserve",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoritySettings:
    agree: str = setting("off", Choice(("on", "off")), "Whether you agree to the CA's terms of service.", example="on")
    email: str = setting("none", Text(254), "Where the CA writes to if something is wrong.", example="you@example.org")
    directory: str = setting(
        "letsencrypt",
        Text(2048),
        "The CA: letsencrypt, letsencrypt-staging (to try things), or the https URL of its directory.",
        example="https://ca.internal/acme/directory",
    )
    challenge: str = setting(
        "auto",
        Choice(("auto", "http-01", "tls-alpn-01")),
        "How names are proven; auto = over server.redirect if there is one, or else over server.bind.",
    )
    eab_kid: str = setting(
        "none", Text(1024), "Id of the key that ties the account to one that you have with the CA.", example="kid-1"
    )
    eab_key_file: str = setting(
        "none", FilePath(("none",)), "File with that key, as the CA gives it (base64url).", example="./eab.key"
    )
    ca_file: str = setting(
        "none",
        FilePath(("none",)),
        "Certificates that the CA's own site is verified with, in PEM, for a CA of your own.",
        example="./ca.pem",
    )
    profile: str = setting("none", Text(64), "Kind of certificate, where the CA has several.", example="shortlived")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutSettings:
    first_byte: float = setting(20.0, Duration(0.1, HOUR), "For the first byte on a new connection.")
    handshake: float = setting(10.0, Duration(0.1, 300.0), "For the whole of a TLS handshake.")
    header: float = setting(10.0, Duration(0.1, 300.0), "For the whole head of a request, from its first byte.")
    body: float = setting(30.0, Duration(0.1, HOUR), "Between two reads of a request's body.")
    body_total: float = setting(
        0.0, Duration(0.0, DAY), "For the whole body of a request; 0 = as long as it is neither idle nor too slow."
    )
    rate_grace: float = setting(
        15.0, Duration(0.0, HOUR), "Before limits.body_rate and limits.response_rate are asked for."
    )
    queue: float = setting(
        10.0, Duration(0.1, HOUR), "For a complete request to be taken by a thread; past it its client gets 503."
    )
    app: float = setting(
        60.0,
        Duration(0.0, DAY),
        "For the app to answer, and between two parts of a stream; past it the client gets 504. 0 = never.",
    )
    interrupt: float = setting(
        0.0,
        Duration(0.0, HOUR),
        "How long after timeouts.app an exception is raised in the app's thread; 0 = never.",
    )
    response: float = setting(30.0, Duration(0.1, HOUR), "For a client that takes no byte of its response.")
    keep_alive: float = setting(60.0, Duration(0.1, HOUR), "For an idle connection between two requests.")
    connection: float = setting(
        HOUR, Duration(1.0, 7 * DAY), "Age at which a connection is closed, after the answer that is then due."
    )
    linger: float = setting(
        2.0, Duration(0.0, 60.0), "Between two reads of what a refused client still sends while it reads its answer."
    )
    linger_total: float = setting(
        30.0, Duration(0.0, HOUR), "For all that a refused client still sends; then it is cut."
    )
    abandoned: float = setting(
        1.0,
        Duration(0.0, HOUR),
        "How long a stream whose client has gone may wait for a chunk; then its app is told. 0 = never.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    connections: int = setting(
        16_384, Int(1, 1_000_000), "Connections open at once; past it an idle one is closed for each newcomer."
    )
    client_connections: int = setting(
        256,
        Int(0, 1_000_000),
        "Connections open at once from one client, an IPv4 address or an IPv6 network; 0 = no limit.",
    )
    ipv6_prefix: int = setting(
        64, Int(32, 128), "Bits of an IPv6 address by which its client is counted, here, in rates and in bans."
    )
    client_connection_rate: int = setting(
        100, Int(0, 1_000_000), "New connections a second from one client, and twice as many at once; 0 = no limit."
    )
    connection_requests: int = setting(
        1000, Int(1, 1_000_000_000), "Requests answered on one connection before it is closed."
    )
    request_line: int = setting(8 * KIB, Size(256, MIB), "Method, target and version of a request.")
    header_line: int = setting(16 * KIB, Size(256, MIB), "One header field, name and value.")
    header: int = setting(64 * KIB, Size(KIB, 16 * MIB), "The whole head of a request.")
    header_count: int = setting(100, Int(1, 10_000), "Header fields in a request.")
    chunk_line: int = setting(
        256, Size(32, 64 * KIB), "One chunk's size and extensions, in a body that comes in chunks."
    )
    chunk_extensions: int = setting(
        16 * KIB, Size(0, 16 * MIB), "All chunk extensions of a body, by which they may be larger than the body itself."
    )
    trailer: int = setting(8 * KIB, Size(0, MIB), "The trailer fields after a body that came in chunks.")
    body: int = setting(16 * MIB, Size(0, TIB), "The body of a request; a larger one gets 413.")
    form: int = setting(
        MIB,
        Size(0, TIB),
        "A body of application/x-www-form-urlencoded, for parsing one takes 60 times its size in memory.",
    )
    body_memory: int = setting(
        512 * KIB, Size(0, GIB), "Of one body kept in memory; more goes to a temporary file without a name."
    )
    body_rate: int = setting(
        KIB, Size(0, GIB), "Bytes a second that a body must come in at on average, after timeouts.rate_grace; 0 = any."
    )
    buffered_memory: int = setting(
        128 * MIB,
        Size(MIB, TIB),
        "Of all requests and responses kept in memory; past it bodies go to files, slow readers are cut.",
    )
    buffered_files: int = setting(
        2 * GIB,
        Size(0, 1024 * TIB),
        "Of all requests and responses together kept in temporary files; past it new bodies get 503.",
    )
    linger: int = setting(
        64 * MIB, Size(0, TIB), "Of what a refused client still sends, taken so that it can read its answer."
    )
    pipeline: int = setting(
        64 * KIB,
        Size(KIB, 16 * MIB),
        "Read ahead from a connection while its previous request is being answered.",
    )
    response_buffer: int = setting(
        MIB,
        Size(64 * KIB, GIB),
        "Of one response kept in memory for a client that reads slowly.",
    )
    response_file: int = setting(
        0,
        Size(0, TIB),
        "Of one response kept in a file when limits.response_buffer is full; past it, its thread waits.",
    )
    response_rate: int = setting(
        KIB,
        Size(0, GIB),
        "Bytes a second at which a response must be read on average, after timeouts.rate_grace; 0 = any.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    trusted: tuple[str, ...] = setting(
        (), NetworkList(), "Proxies in front whose word for who the client is counts; from others it is removed."
    )
    headers: str = setting(
        "x-forwarded",
        Choice(("x-forwarded", "forwarded", "off")),
        "Where they say so: X-Forwarded-For, -Proto, -Host, -Port and -Prefix, or Forwarded (RFC 7239).",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    allow: tuple[str, ...] = setting((), NetworkList(), "Networks whose clients may come in; none = all.")
    deny: tuple[str, ...] = setting((), NetworkList(), "Networks whose clients get 403, also if access.allow has them.")
    hosts: tuple[str, ...] = setting(
        (),
        HostList(),
        "Names in Host that are served, else 421; none = the app's TRUSTED_HOSTS or SERVER_NAME, or all.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    users: str = setting("none", FilePath(("none",)), "File of names and password hashes, made by `hardserve passwd`.")
    required: str = setting(
        "off", Choice(("on", "off")), "Whether all requests need one of those names and its password."
    )
    realm: str = setting("hardserve", Text(64), "What a browser calls the place that asks for a password.")
    remember: float = setting(
        300.0, Duration(0.0, DAY), "How long a good password is taken again without computing its hash."
    )
    failures: str = setting(
        "10/minute", Rate(off=True), "Wrong passwords from one client; past it 429, without a look at the password."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitingSettings:
    default: str = setting(
        "50/second",
        Rate(off=True),
        "Requests of one client to anything, besides default_burst at once; off = no limit.",
    )
    default_burst: int = setting(500, Int(0, 1_000_000), "Requests that a client may make at once on top of that.")
    storage: str = setting(
        "memory",
        StorageUrl(),
        "Where [[rate_limit]] counts: in memory, or shared, such as redis://127.0.0.1:6379/0.",
    )
    storage_timeout: float = setting(
        0.05, Duration(0.001, 10.0), "For a shared storage to answer; past it the count in memory decides."
    )
    max_keys: int = setting(
        50_000, Int(100, 10_000_000), "Counts kept in memory; past it the one least recently used goes."
    )
    legacy_headers: str = setting(
        "off", Choice(("on", "off")), "Whether 429 has X-RateLimit-Limit, -Remaining and -Reset, too."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BanSettings:
    after: int = setting(
        500, Int(0, 1_000_000), "Refusals within ban.within after which a client cannot connect; 0 = never."
    )
    within: float = setting(60.0, Duration(1.0, DAY), "The time in which they are counted.")
    for_: float = setting(60.0, Duration(1.0, 7 * DAY), "How long its first ban is; each repeat doubles it.")
    ceiling: float = setting(DAY, Duration(1.0, 30 * DAY), "How long a ban is at most.")
    exempt: tuple[str, ...] = setting(
        ("loopback", "private"), NetworkList(), "Networks that are never banned, as trusted proxies never are."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    auto: str = setting(
        "on",
        Choice(("on", "always", "off")),
        "Whether the app's static folders are served without it; always = also past its request hooks.",
    )
    check: float = setting(
        1.0, Duration(0.0, HOUR), "How long what is known of a file counts before the file is looked at again."
    )
    memory: int = setting(
        32 * MIB, Size(0, TIB), "Of all files kept in memory, whole and compressed; the least recently used go."
    )
    in_memory: int = setting(64 * KIB, Size(0, MIB), "The largest file that is kept in memory.")
    compress: str = setting(
        "on", Choice(("on", "off")), "Whether text without a .br, .zst or .gz file beside it is compressed and kept."
    )
    readers: int = setting(
        4, Int(1, 64), "Threads that read the files of one mount, so that its storage holds up nobody else."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSettings:
    content_type_options: str = setting("nosniff", FieldValue(64, ("off",)), "The field X-Content-Type-Options.")
    frame_options: str = setting("SAMEORIGIN", FieldValue(256, ("off",)), "The field X-Frame-Options.")
    referrer_policy: str = setting(
        "strict-origin-when-cross-origin", FieldValue(256, ("off",)), "The field Referrer-Policy."
    )
    permissions_policy: str = setting(
        "off", FieldValue(4096, ("off",)), "The field Permissions-Policy.", example="geolocation=()"
    )
    content_security_policy: str = setting(
        "off", FieldValue(8192, ("off",)), "The field Content-Security-Policy.", example="default-src 'self'"
    )
    server: str = setting("off", FieldValue(256, ("off",)), "The field Server.", example="hardserve")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionSettings:
    responses: str = setting("on", Choice(("on", "off")), "Whether responses of the app are compressed.")
    min_size: int = setting(KIB, Size(0, GIB), "The smallest body that is.")
    breach: str = setting(
        "auto",
        Choice(("auto", "filler", "off")),
        "Where a page's length could tell its secrets: auto = not compressed, or with a filler.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    level: str = setting("info", Choice(("debug", "info", "warning", "error")), "The least severe message to log.")
    access: str = setting("stdout", Output(("stdout", "stderr", "off")), "Where a line for each request goes.")
    access_format: str = setting(
        "auto",
        Choice(("combined", "json", "compact", "auto")),
        "How that line looks; auto = compact on a terminal, else combined.",
    )
    error: str = setting("stderr", Output(("stderr",)), "Where the logging of the server and the app goes.")
    max_size: int = setting(0, Size(0, TIB), "Size at which a log file is rotated; 0 = never.")
    backups: int = setting(3, Int(1, 100), "Rotated files kept of each log.")


# A setting that is added to one of these, or another array of tables, is declared here and nowhere else.


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSettings:
    """What holds for the requests to some paths."""

    path: str = required(PathGlob(), "The paths of the requests.", example="/upload")
    methods: tuple[str, ...] = setting(
        (), MethodList(), "The methods of the requests; GET means HEAD, too.", example=("POST",), without="all"
    )
    allow: tuple[str, ...] = setting(
        (), NetworkList(), "Networks whose clients may come in here.", example=("private",), without="all"
    )
    deny: tuple[str, ...] = setting(
        (), NetworkList(), "Networks whose clients get 403 here.", example=("192.0.2.0/24",), without="none"
    )
    allowed_methods: tuple[str, ...] = setting(
        (), MethodList(), "Methods that are served here; others get 405.", example=("GET", "POST"), without="all"
    )
    auth: str | None = setting(
        None,
        Choice(("on", "off")),
        "Whether these requests need a name and password of auth.users.",
        example="off",
        without="auth.required",
    )
    client_certificate: str | None = setting(
        None,
        Choice(("required", "optional")),
        "Whether these requests need a certificate of the client's own; others get 403.",
        example="optional",
        without="tls.client_certificates",
    )
    max_body: int | None = setting(
        None,
        Size(0, TIB),
        "The body of such a request; a larger one gets 413.",
        example=GIB,
        without="limits.body",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSettings:
    """A directory, or a file, that is served without the app."""

    url: str = required(UrlPath(), "Where on the site it is; the longest that fits a path counts.", example="/media")
    directory: str = required(Directory(), "The directory that is served there, or the one file.", example="uploads")
    index: str = setting(
        "index.html",
        FileName(("off",)),
        "The file that is served for a directory.",
        example="home.html",
        without="index.html",
    )
    listing: str = setting(
        "off", Choice(("on", "off")), "Whether a directory without that is listed.", example="on", without="off"
    )
    miss: str = setting(
        "not-found", Choice(("not-found", "app")), "What follows where no file is: 404, or the app's answer.",
        example="app", without="not-found",
    )  # fmt: skip
    fallback: str = setting(
        "off",
        FileName(("off",)),
        "The file in the directory that is served where no other is, for a single-page app.",
        example="index.html",
        without="off",
    )
    app_paths: tuple[str, ...] = setting(
        (), PathGlobList(), "Paths that are left to the app.", example=("/api/*",), without="none"
    )
    cache_control: str = setting(
        "no-cache",
        FieldValue(256, ("off",)),
        "Cache-Control of its files.",
        example="max-age=3600",
        without="no-cache",
    )
    immutable: str = setting(
        "auto",
        Choice(("auto", "on", "off")),
        "Whether files may be kept for ever; auto = scripts, styles and fonts with a hash in the name.",
        example="on",
        without="auto",
    )
    precompressed: str = setting(
        "on",
        Choice(("on", "off")),
        "Whether a .br, .zst or .gz file beside one is sent for it; off where visitors choose names.",
        example="off",
        without="on",
    )
    follow_symlinks: str = setting(
        "off",
        Choice(("on", "off")),
        "Whether symbolic links may lead out of the directory.",
        example="on",
        without="off",
    )
    internal: str = setting(
        "off",
        Choice(("on", "off")),
        "Whether only the app can send its files, by X-Accel-Redirect or X-Sendfile.",
        example="on",
        without="off",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSettings:
    """One of several certificates. A client gets the first that is for the name it wants."""

    certificate: str = required(
        FilePath(), "The certificate and those above it, but for the root, in PEM.", example="./example.org.pem"
    )
    key: str = required(FilePath(), "Its key, in PEM.", example="./example.org.key")
    passphrase_file: str = setting(
        "none",
        FilePath(("none",)),
        "File whose first line opens the key, where that is encrypted.",
        example="./passphrase.txt",
        without="none",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPageSettings:
    """A page for the clients that are refused with some status."""

    status: int = required(RefusalStatus(), "The status of the refusals.", example=413)
    file: str = required(
        PageFile((".html", ".json", ".txt"), 64 * KIB),
        "The page, from the directory where hardserve is started; {{ request_id }} in it is the request's id.",
        example="413.html",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitSettings:
    """How many requests of one kind are served, in what time."""

    limit: str = required(
        Rate(several=True), 'How many; several at once are written "20/second; 300/minute".', example="300/minute"
    )
    path: str = setting("*", PathGlob(), "The paths of the requests.", example="/login", without="all")
    methods: tuple[str, ...] = setting(
        (), MethodList(), "The methods of the requests; GET means HEAD, too.", example=("POST",), without="all"
    )
    key: str = setting("client", RateKey(), "What has a count of its own.", example="client+path", without="client")
    strategy: str = setting(
        "sliding-window-counter",
        Choice(("fixed-window", "moving-window", "sliding-window-counter")),
        "How a window is counted; see `limits`.",
        example="moving-window",
        without="sliding-window-counter",
    )
    burst: int | None = setting(
        None,
        Int(0, 1_000_000),
        "Steady instead of by strategy: so many more may come at once, then one each period/amount.",
        example=20,
        without="windows",
    )
    cost: int = setting(1, Int(1, 1_000_000), "What one request counts.", example=5, without="1")
    exempt: tuple[str, ...] = setting(
        (), NetworkList(), "Networks whose clients are not counted.", example=("loopback",), without="none"
    )
    status: tuple[int, ...] = setting(
        (),
        StatusList(),
        "Only responses with these statuses count; past the limit the next request gets 429.",
        example=(401, 404),
        without="all requests count",
    )
    dry_run: str = setting(
        "off", Choice(("on", "off")), "Whether what is past the limit is logged only.", example="on", without="off"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. `Settings()` is every default."""

    server: ServerSettings = field(
        default_factory=ServerSettings, metadata={ABOUT: "Where to listen, and how much to do at once."}
    )
    tls: TlsSettings = field(
        default_factory=TlsSettings, metadata={ABOUT: "HTTPS without a proxy in front; see server.tls, too."}
    )
    acme: AuthoritySettings = field(
        default_factory=AuthoritySettings,
        metadata={ABOUT: "The certificate authority (CA) that issues the certificate for tls.domain."},
    )
    timeouts: TimeoutSettings = field(
        default_factory=TimeoutSettings, metadata={ABOUT: "How long to wait, and for whom."}
    )
    limits: LimitSettings = field(default_factory=LimitSettings, metadata={ABOUT: "How much of anything is taken."})
    proxy: ProxySettings = field(
        default_factory=ProxySettings, metadata={ABOUT: "What is in front of this server, if anything is."}
    )
    access: AccessSettings = field(
        default_factory=AccessSettings, metadata={ABOUT: "Who may come in, and under which names."}
    )
    auth: AuthSettings = field(
        default_factory=AuthSettings, metadata={ABOUT: "Passwords (HTTP Basic); use them over HTTPS."}
    )
    rate_limiting: RateLimitingSettings = field(
        default_factory=RateLimitingSettings, metadata={ABOUT: "How often a client may ask; see [[rate_limit]], too."}
    )
    ban: BanSettings = field(
        default_factory=BanSettings, metadata={ABOUT: "Clients that go on after they were refused."}
    )
    files: FileSettings = field(
        default_factory=FileSettings,
        metadata={ABOUT: "Files that are sent without a worker; see [[static]], too."},
    )
    headers: HeaderSettings = field(
        default_factory=HeaderSettings,
        metadata={ABOUT: "Header fields of responses that have none of that name from the app; off sends none."},
    )
    compression: CompressionSettings = field(
        default_factory=CompressionSettings, metadata={ABOUT: "Compression of what the app sends."}
    )
    log: LogSettings = field(default_factory=LogSettings, metadata={ABOUT: "What is written down, and where."})
    route: tuple[RouteSettings, ...] = field(
        default=(),
        metadata={
            ABOUT: AboutTables(
                RouteSettings,
                "What holds for some requests only: the first whose path and methods fit a request counts.",
            )
        },
    )
    rate_limit: tuple[RateLimitSettings, ...] = field(
        default=(),
        metadata={
            ABOUT: AboutTables(
                RateLimitSettings, "How often some requests are served: each that fits a request must let it in."
            )
        },
    )
    static: tuple[StaticSettings, ...] = field(
        default=(),
        metadata={ABOUT: AboutTables(StaticSettings, "Directories and files served without the app.")},
    )
    certificate: tuple[CertificateSettings, ...] = field(
        default=(),
        metadata={
            ABOUT: AboutTables(
                CertificateSettings, "Certificates for HTTPS, chosen by the name that a client wants (SNI)."
            )
        },
    )
    error_page: tuple[ErrorPageSettings, ...] = field(
        default=(),
        metadata={
            ABOUT: AboutTables(
                ErrorPageSettings,
                "Pages of yours for what the server refuses: of each status one .html, one .json and one .txt.",
            )
        },
    )

    @property
    def has_certificate(self) -> bool:
        """Whether there is one that somebody else signs."""
        return self.tls.certificate != "none" or bool(self.certificate) or bool(self.tls.domain)

    @property
    def serves_tls(self) -> bool:
        """Whether `server.bind` speaks HTTPS."""
        return self.has_certificate if self.server.tls == "auto" else self.server.tls != "off"
