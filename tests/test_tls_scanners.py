"""What scanners say of a server with HTTPS: Debian's testssl.sh and sslscan, on loopback, and nothing above "low".

Both know weaknesses of two decades. What testssl.sh cannot like about a certificate that no public authority has signed
is in EXPECTED, each with its reason; everything else that it does not like fails the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from hardserve.tls.policy import CIPHERS
from tests.certs import Authority
from tests.support import serving
from tests.test_http import echo

TESTSSL = shutil.which("testssl") or shutil.which("testssl.sh")
SSLSCAN = shutil.which("sslscan")
# testssl.sh takes half a minute when it has a core to itself.
TESTSSL_LIMIT_S = 240.0
SSLSCAN_LIMIT_S = 60.0

# Protocols, cipher categories, forward secrecy, what the server prefers and tells, headers, and all vulnerabilities.
# Left out: the same ciphers one by one, and what its list of browsers would choose.
# Two of it look at once: it does one thing after the other, and waits for most.
SECTIONS = (("-p", "-s", "-f", "-P", "-S", "-h"), ("-U",))
OFFLINE = ("--ip", "127.0.0.1", "--nodns", "none", "--connect-timeout", "10", "--openssl-timeout", "20")
HARMLESS = {"DEBUG", "INFO", "OK", "LOW"}
# By id and severity: what else it says, and why that is no fault of the server.
EXPECTED: Mapping[tuple[str, str], str] = {
    ("cert_revocation", "HIGH"): "only a public authority says where one can ask whether a certificate was revoked",
    ("engine_problem", "WARN"): "of the openssl that it uses: it has no GOST ciphers",
    ("sessionresumption_ticket", "WARN"): "its client may leave before the ticket comes, which follows the handshake",
}

pytestmark = pytest.mark.peer
needs_testssl = pytest.mark.skipif(TESTSSL is None, reason="no testssl: apt-get install testssl.sh")
needs_sslscan = pytest.mark.skipif(SSLSCAN is None, reason="no sslscan: apt-get install sslscan")


def run(limit_s: float, *command: str, directory: Path) -> str:
    """Run what starts much else by itself; return what it says. All of it ends with this."""
    with (
        (directory / "said").open("wb") as output,
        subprocess.Popen(
            command,
            cwd=directory,
            env={"PATH": os.environ["PATH"], "HOME": str(directory), "TERM": "dumb", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            process.wait(limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return (directory / "said").read_text(errors="replace")


def certified(directory: Path, kind: str) -> dict[str, Any]:
    """Return the settings of a site as it should be, with a certificate of its own authority."""
    root = Authority(kind=kind)
    (directory / "root.pem").write_text(root.pem)
    pair = root.leaf("localhost", "127.0.0.1", kind=kind).write(directory)
    return {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key), "tls_hsts": "8760h"}


def scan(port: int, root: Path, directory: Path, sections: tuple[str, ...]) -> tuple[str, list[dict[str, str]]]:
    """Have testssl.sh look at these sections; return what it says, and what it has found."""
    directory.mkdir()
    said = run(
        TESTSSL_LIMIT_S,
        *(TESTSSL or "testssl", "--quiet", "--color", "0", "--warnings", "batch", *OFFLINE, "--add-ca", str(root)),
        *("--jsonfile", "found.json", *sections, f"https://localhost:{port}"),
        directory=directory,
    )
    found: list[dict[str, str]] = json.loads((directory / "found.json").read_text())
    return said, found


@needs_testssl
def test_testssl_finds_nothing_above_low(tmp_path: Path) -> None:
    with serving(echo, **certified(tmp_path, "p256")) as running, ThreadPoolExecutor(len(SECTIONS)) as scanners:
        looking = [
            scanners.submit(scan, running.port, tmp_path / "root.pem", tmp_path / str(number), sections)
            for number, sections in enumerate(SECTIONS)
        ]
        results = [each.result() for each in looking]
    said = "".join(said for said, _ in results)
    found = [each for _, found in results for each in found]
    severities = {each["id"]: each["severity"] for each in found}
    # It has come to the end, and looked: these are of the first and of the last sections.
    assert {
        "TLS1_2",
        "TLS1_3",
        "cipherlist_NULL",
        "PFS",
        "cipher_order",
        "HSTS_time",
        "cert_trust",
    } <= severities.keys(), said
    assert {"heartbleed", "ROBOT", "secure_renego", "BREACH", "LUCKY13", "RC4"} <= severities.keys(), said
    assert severities["HSTS_time"] == severities["cert_chain_of_trust"] == severities["cipher_order"] == "OK"
    bad = [each for each in found if each["severity"] not in HARMLESS]
    assert [each for each in bad if (each["id"], each["severity"]) not in EXPECTED] == []


@needs_sslscan
@pytest.mark.parametrize("kind", ["p256", "p384", "rsa2048", "rsa3072", "self-signed"])
def test_sslscan_finds_what_is_safe_and_nothing_else(tmp_path: Path, kind: str) -> None:
    assert SSLSCAN is not None
    settings = (
        {"tls": "self-signed", "tls_state": str(tmp_path)} if kind == "self-signed" else certified(tmp_path, kind)
    )
    with serving(echo, **settings) as running:
        said = run(
            SSLSCAN_LIMIT_S,
            *(SSLSCAN, "--no-colour", "--xml=found.xml", f"127.0.0.1:{running.port}"),
            directory=tmp_path,
        )
    scan = ET.parse(tmp_path / "found.xml").getroot().find("ssltest")  # of our own making
    assert scan is not None, said

    def all_of(tag: str, *names: str) -> list[tuple[str | None, ...]]:
        return [tuple(map(each.get, names)) for each in scan.iter(tag)]

    enabled = {
        f"{kind} {version}" for kind, version, on in all_of("protocol", "type", "version", "enabled") if on == "1"
    }
    assert enabled == {"tls 1.2", "tls 1.3"}
    assert len(all_of("protocol")) == 6
    assert all_of("renegotiation", "supported", "secure") == [("0", "0")], "of the client's will, there is none"
    assert all_of("heartbleed", "vulnerable") == 2 * [("0",)]
    assert not any(on != "0" for (on,) in all_of("compression", "supported"))
    ciphers = all_of("cipher", "sslversion", "cipher", "strength")
    assert {strength for _, _, strength in ciphers} <= {"strong", "acceptable"}
    authentication = "RSA" if kind.startswith("rsa") else "ECDSA"
    assert {cipher for version, cipher, _ in ciphers if version == "TLSv1.2"} == {
        cipher for cipher in CIPHERS if f"-{authentication}-" in cipher
    }
    groups = {name.partition(" ")[0] for (name,) in all_of("group", "name") if name}
    assert {"x25519", "secp256r1"} <= groups <= {"x25519", "x448", "secp256r1", "secp384r1", "secp521r1"}
    (certificate,) = scan.iter("certificate")
    assert certificate.findtext("expired") == "false"
    assert {each.get("error") for each in certificate.iter("pk")} == {"false"}
