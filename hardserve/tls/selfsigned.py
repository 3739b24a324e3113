"""A certificate that the server makes for itself: an encrypted tool on a local network needs no authority.

Main thread at start, a check thread after that: writes files and may run a command, so it may block. It knows no
connection.

The key is P-256, and of one certificate only. A certificate lasts 397 days, which every browser takes, and is made anew
when two thirds are over, or when it is not for a name that is wanted now. A name that is wanted no more is no reason:
people have told their browsers to trust this very certificate.

Key and certificate are two files, since the latter is for handing out, and two files are not replaced in one step. The
key goes first; should the machine stop before the certificate, the next start finds that they do not match, and makes
both anew. A running server keeps what it has until they match.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import ipaddress
import os
import secrets
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from hardserve.http.hostnames import covers, is_address, normal_name
from hardserve.tls import certificates
from hardserve.tls.certificates import CertificateError, Pair
from hardserve.tls.policy import PairFiles

LIFETIME_DAYS = 397
MAX_NAMES = 64
# For another process that makes a certificate, which runs two commands at most.
LOCK_PATIENCE_S = 60.0
_LOCK_RETRY_S = 0.02
_OPENSSL_S = 25.0
_MAX_COMMON_NAME = 64
_CERTIFICATE, _KEY = "certificate.pem", "key.pem"
_SIOCGIFADDR = 0x8915
_IFA_F_TEMPORARY = 0x01

# What makes a key and a certificate, both PEM, for some names.
Maker = Callable[[Sequence[str]], tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class SelfSigned:
    """A pair that this server made; `made` is whether it was just now, and `why`."""

    pair: Pair
    made: bool
    why: str


def files_in(directory: Path) -> PairFiles:
    """Return where `keep` keeps a pair. Pure."""
    return PairFiles(directory / _CERTIFICATE, directory / _KEY)


def keep(
    directory: Path, names: Iterable[str], now: float, *, force: bool = False, maker: Maker | None = None
) -> SelfSigned:
    """Return the self-signed pair in `directory` for `names`, made if need be, or in any case with `force`. Blocks.

    `now` is in seconds of the epoch. Names are host names, wildcards and addresses; what is none of these is left out.
    `directory` is made if it is missing, for this user alone. Raises CertificateError and OSError, and a pair that was
    there stays.
    """
    wanted = _wanted(names)
    with _locked(directory):
        files = files_in(directory)
        kept, why = _kept(files, wanted, now)
        if force:
            why = why or "a new one was asked for"
        if kept is not None and not why:
            return SelfSigned(kept, False, "")
        key, certificate = (maker or maker_here())(wanted)
        _replace(files.key, key)
        _replace(files.certificate, certificate)
        return SelfSigned(certificates.load(files, now), True, why)


def _wanted(names: Iterable[str]) -> tuple[str, ...]:
    normal = (normal_name(name) for name in names)
    wanted = tuple(dict.fromkeys(name for name in normal if name is not None))[:MAX_NAMES]
    return wanted or ("localhost",)


def _kept(files: PairFiles, wanted: Sequence[str], now: float) -> tuple[Pair | None, str]:
    """Return what is there and why it will not do, "" if it will."""
    if not os.path.exists(files.certificate):
        return None, "there was none"
    try:
        pair = certificates.load(files, now)
    except CertificateError as error:
        return None, "; ".join(error.problems)
    return pair, why_not(pair.names, pair.not_before, pair.not_after, wanted, now)


def why_not(names: Sequence[str], not_before: float, not_after: float, wanted: Sequence[str], now: float) -> str:
    """Return why a certificate for `names` has to be made anew, "" if it has not. Pure."""
    missing = [name for name in wanted if name not in names and not covers(names, name)]
    if missing:
        return f"it was not for {', '.join(missing)}"
    if now > _due_at(not_before, not_after):
        return "two thirds of its time were over"
    return ""


def next_time(
    names: Sequence[str], not_before: float, not_after: float, wanted: Iterable[str], now: float
) -> tuple[float, str]:
    """Return from when on `keep` makes another one in the place of a certificate for `names`, and why. Pure."""
    why = why_not(names, not_before, not_after, _wanted(wanted), now)
    return (now, why) if why else (_due_at(not_before, not_after), "two thirds of its time are over then")


def _due_at(not_before: float, not_after: float) -> float:
    return not_before + (not_after - not_before) * 2 / 3


# --- names of this host ---


def host_names() -> tuple[str, ...]:
    """Return this host's names and addresses, as far as it knows them without asking anybody. Main thread."""
    name = socket.gethostname()
    names = [name, "localhost", "127.0.0.1", "::1", *_ipv4_addresses(), *_ipv6_addresses()]
    if "." not in name:
        names.insert(1, f"{name}.local")  # what a Raspberry Pi is called by multicast DNS
    return _wanted(name for name in names if normal_name(name) is not None)


def _ipv4_addresses() -> Iterator[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            # Linux; elsewhere, and for an interface without an address, there is none to be had.
            with contextlib.suppress(OSError):
                yield socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])


def _ipv6_addresses() -> Iterator[str]:
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as file:
        for line in file:
            yield from lasting_address(line)


def lasting_address(line: str) -> Iterator[str]:
    """Yield the address in a line of /proc/net/if_inet6 if it lasts and can stand in a URL. Pure."""
    fields = line.split()
    if len(fields) == 6:
        address = ipaddress.IPv6Address(int(fields[0], 16))
        if not address.is_link_local and not int(fields[4], 16) & _IFA_F_TEMPORARY:
            yield str(address)


# --- making ---


def maker_here() -> Maker:
    """Return what can make a certificate here. Raises CertificateError if nothing can."""
    try:
        import cryptography.x509  # noqa: F401, PLC0415 - an extra
    except ImportError:
        pass
    else:
        return by_package
    if shutil.which("openssl"):
        return by_command
    raise CertificateError(
        ["a self-signed certificate needs the command openssl or a package: pip install 'hardserve[tls]'"]
    )


def _common_name(names: Sequence[str]) -> str:
    return next((name for name in names if len(name) <= _MAX_COMMON_NAME), "hardserve")


def by_package(names: Sequence[str]) -> tuple[bytes, bytes]:
    """Make a key and a certificate with the package `cryptography`."""
    from cryptography import x509  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, _common_name(names))])
    start = dt.datetime.now(dt.UTC).replace(microsecond=0)
    general = [x509.IPAddress(ipaddress.ip_address(n)) if is_address(n) else x509.DNSName(n) for n in names]
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=LIFETIME_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, encipher_only=False, decipher_only=False, **usage), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(general), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(encoding)


def request_config(names: Sequence[str]) -> str:
    """Write what `openssl req` has to know of a certificate, as by_package makes it. Pure."""
    general = ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names)
    return f"""\
[req]
prompt = no
distinguished_name = subject
x509_extensions = extensions
[subject]
CN = {_common_name(names)}
[extensions]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {general}
subjectKeyIdentifier = hash
authorityKeyIdentifier = none
"""


def by_command(names: Sequence[str]) -> tuple[bytes, bytes]:
    """Make a key and a certificate with the command `openssl`. The key is never in a file or an argument."""
    key = _openssl(b"", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    read, write = os.pipe()
    with open(read, "rb") as config, open(write, "wb") as file:
        file.write(request_config(names).encode())  # some kilobytes, which a pipe holds
        file.close()
        options = ("-days", str(LIFETIME_DAYS), "-sha256", "-key", "/dev/stdin")
        made = _openssl(
            key, "req", "-new", "-x509", *options, "-config", f"/dev/fd/{read}", pass_fds=(config.fileno(),)
        )
    return key, made


def _openssl(given: bytes, *arguments: str, pass_fds: tuple[int, ...] = ()) -> bytes:
    command = shutil.which("openssl") or "openssl"
    try:
        done = subprocess.run(  # noqa: S603 - no part of it is anybody's input
            [command, *arguments], input=given, capture_output=True, timeout=_OPENSSL_S, check=True, pass_fds=pass_fds
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines() or [f"exit code {error.returncode}"]
        raise CertificateError([f"openssl {arguments[0]} failed: {lines[0][:200]}"]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CertificateError([f"openssl {arguments[0]} could not be run: {error}"]) from error
    return done.stdout


# --- keeping ---


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Have `directory` be there, this user's alone, while no other process makes a certificate in it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise CertificateError([f"{directory} belongs to another user, so a key kept there would be theirs, too"])
        if status.st_mode & 0o077:
            os.fchmod(fd, 0o700)
        until = monotonic() + LOCK_PATIENCE_S
        while not _try_lock(fd):
            if monotonic() > until:
                raise CertificateError([f"another process has had {directory} locked for {LOCK_PATIENCE_S:g} s"])
            sleep(_LOCK_RETRY_S)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(target: Path, data: bytes) -> None:
    """Put `data` in the place of `target` in one step, for this user alone, for good."""
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fd = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
