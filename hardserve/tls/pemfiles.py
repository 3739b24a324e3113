"""The PEM files of a certificate: read within bounds, told apart, and who else on this machine can get at them.

Main thread and check threads: may block on a file system. What is in a certificate is for tls.certificates; here it is
only a block of base64. Every problem is a sentence for the operator.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import pwd
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hardserve.tls.policy import MAX_PASSPHRASE_BYTES, PairFiles

# A chain is some kilobytes; this is far above anything but a whole bundle of roots, which nobody should send.
MAX_CERTIFICATE_BYTES = 256 * 1024
MAX_KEY_BYTES = 64 * 1024
MAX_CHAIN = 20

_CERTIFICATE = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----\s+([A-Za-z0-9+/=\s]*)-----END ")
_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_ENCRYPTED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
_DER = b"\x30\x82"  # how nearly every certificate, key and PKCS #12 store begins that is not PEM

# What tells one state of the files from another: for each its device, number, size and times, or why there is none.
Signature = tuple[tuple[int | str, ...], ...]


class CertificateError(Exception):
    """A pair cannot be used; `problems` are sentences that say why.

    With `passing`, it may be that somebody is replacing the files just now.
    """

    def __init__(self, problems: list[str], *, passing: bool = False) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Contents:
    """What the files of a pair hold: the certificates in their order, as DER, and whether the key is encrypted."""

    chain: tuple[bytes, ...]
    encrypted: bool
    warnings: tuple[str, ...]


def signature(paths: tuple[Path, ...]) -> Signature:
    """Return what changes when one of the files is replaced or written to, a symlink on the way included."""
    return tuple(_state(path) for path in paths)


def _state(path: Path) -> tuple[int | str, ...]:
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.strerror or str(error),)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read(files: PairFiles) -> Contents:
    """Read and look over the files of a pair. Raises CertificateError with everything that is wrong with them."""
    problems: list[str] = []
    warnings: list[str] = []
    passing = False
    held: dict[Path, bytes] = {}
    limits = {files.certificate: MAX_CERTIFICATE_BYTES, files.key: MAX_KEY_BYTES}
    if files.certificate == files.key:
        limits[files.key] = MAX_CERTIFICATE_BYTES
    for path in files.paths:
        limit = limits.get(path, MAX_PASSPHRASE_BYTES)
        try:
            held[path], status = _read_bounded(path, limit)
        except CertificateError as error:
            problems += error.problems
        except OSError as error:
            passing = passing or isinstance(error, FileNotFoundError)
            problems.append(_unreadable(path, error))
        else:
            secret = path != files.certificate or _KEY.search(held[path]) is not None
            if secret:
                wrong, doubtful = permission_problems(path, status.st_mode, status.st_uid, os.geteuid())
                problems += wrong
                warnings += doubtful
    if problems:
        # Somebody's files, while they are replaced, are missing and nothing else.
        raise CertificateError(problems, passing=passing)
    return _contents(files, held, warnings)


def _contents(files: PairFiles, held: dict[Path, bytes], warnings: list[str]) -> Contents:
    chain = tuple(certificates_in(held[files.certificate]))
    key = held[files.key]
    problems = []
    if not chain:
        problems.append(_no_certificate(files.certificate, held[files.certificate]))
    elif len(chain) > MAX_CHAIN:
        problems.append(
            f"{files.certificate} holds {len(chain)} certificates: expected the server's own and its intermediates, "
            "not a bundle of roots"
        )
    encrypted = any(mark in key for mark in _ENCRYPTED)
    if not _KEY.search(key):
        problems.append(_no_key(files, key))
    elif encrypted and files.passphrase_file is None:
        problems.append(f"{files.key} is encrypted: say with passphrase_file which file holds the passphrase")
    if problems:
        raise CertificateError(problems, passing=not (held[files.certificate].strip() and key.strip()))
    if files.passphrase_file is not None and not encrypted:
        warnings.append(f"{files.key} is not encrypted, so {files.passphrase_file} is not needed")
    return Contents(chain, encrypted, tuple(warnings))


def _read_bounded(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    # Non-blocking is for what is no regular file.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CertificateError([f"{path} is no regular file"])
        with open(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise CertificateError([f"{path} is larger than {limit} bytes, so it is not what it should be"])
    return data, status


def _unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path} cannot be read by user {user_name(os.geteuid())}: {error.strerror}"
    return f"{path} cannot be read: {error.strerror or error}"


def chain_of(path: Path) -> tuple[bytes, ...]:
    """Return the certificates of a file in their order, as DER; none where it cannot be read, or is larger than any."""
    try:
        data, _ = _read_bounded(path, MAX_CERTIFICATE_BYTES)
    except (CertificateError, OSError):
        return ()
    return tuple(certificates_in(data))


def certificates_in(data: bytes) -> Iterator[bytes]:
    """Yield the certificates of a PEM file in their order, as DER; b"" for one that is no base64. Pure."""
    for match in _CERTIFICATE.finditer(data):
        try:
            yield base64.b64decode(b"".join(match[1].split()), validate=True)
        except binascii.Error:
            yield b""


def _no_certificate(path: Path, data: bytes) -> str:
    quoted = shlex.quote(str(path))
    if path.suffix.lower() in (".p12", ".pfx"):
        return f"{path} is a PKCS #12 store and not PEM: openssl pkcs12 -in {quoted} -nodes -out site.pem"
    if data.startswith(_DER):
        return f"{path} is not PEM but DER: openssl x509 -inform der -in {quoted} -out site.pem"
    if _KEY.search(data):
        return f"{path} holds a key and no certificate: are certificate and key the wrong way round?"
    return f"{path} holds no certificate: expected a line -----BEGIN CERTIFICATE-----"


def _no_key(files: PairFiles, data: bytes) -> str:
    quoted = shlex.quote(str(files.key))
    if data.startswith(_DER):
        return f"{files.key} is not PEM but DER: openssl pkey -inform der -in {quoted} -out site.key"
    if b"-----BEGIN OPENSSH PRIVATE" in data:
        return f"{files.key} is a key for SSH: a certificate's key begins with -----BEGIN PRIVATE KEY-----"
    if files.key != files.certificate and next(certificates_in(data), None) is not None:
        return f"{files.key} holds a certificate and no key: are certificate and key the wrong way round?"
    return f"{files.key} holds no private key: expected a line -----BEGIN PRIVATE KEY-----"


def permission_problems(path: Path, mode: int, owner: int, user: int) -> tuple[list[str], list[str]]:
    """Return errors and warnings about who else can get at a file that holds a secret. Pure but for users' names."""
    quoted = shlex.quote(str(path))
    everybody = _can(mode, 0o004, 0o002)
    if everybody:
        return [f"everybody on this machine can {everybody} {path}: chmod o= {quoted}"], []
    warnings = []
    if group := _can(mode, 0o040, 0o020):
        warnings.append(f"the group of {path} can {group} it: chmod g= {quoted}, if nobody in it needs to")
    if owner not in (0, user):
        theirs = f"{path} belongs to user {user_name(owner)}, who can replace it"
        warnings.append(f"{theirs}: chown {user_name(user)} {quoted}")
    return [], warnings


def _can(mode: int, read_bit: int, write_bit: int) -> str:
    return " and ".join(what for bit, what in ((read_bit, "read"), (write_bit, "change")) if mode & bit)


def user_name(number: int) -> str:
    """Return what a user is called on this machine, or else the number."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
