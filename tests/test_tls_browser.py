"""A site with HTTPS in a real browser: pages, files, forms, and a certificate that is replaced while it looks on."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.browser import needs_chromium, running_browser
from tests.certs import Authority, Made, client_context
from tests.conftest import StartCommand
from tests.support import PATIENCE_S, TlsSocket
from tests.test_http import eventually

pytestmark = [pytest.mark.peer, needs_chromium]

ROOT = Authority()
APP = """\
import threading

from flask import Flask, redirect, request, session

app = Flask(__name__)
app.config.update(SECRET_KEY="a secret of this test", SESSION_COOKIE_SECURE=True)
told = threading.Event()


@app.get("/")
def page():
    said = session.get("said", "nothing")
    return f'''<!doctype html><html lang="en"><title>Page</title><link rel="icon" href="data:,">
        <script src="/files/script.js"></script>
        <form method="post"><input name="said" id="said"><button id="say">Say</button></form>
        <p id="heard">{said}</p>'''


@app.post("/")
def say():
    session["said"] = request.form["said"]
    return redirect("/", 303)


@app.get("/stream")
def stream():
    def parts():
        yield "data: first\\n\\n"
        told.wait(20)
        yield "data: last\\n\\n"

    return parts(), {"Content-Type": "text/event-stream"}


@app.post("/tell")
def tell():
    told.set()
    return ""
"""
HEARD = "document.querySelector('#heard')?.innerText"


def pin(made: Made) -> str:
    """Return by what Chromium knows a key whose certificate it is to take."""
    key = made.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


def served(port: int) -> bytes | None:
    raw = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    client = TlsSocket(raw, client_context(ROOT), "localhost")
    with raw:
        return client.tls.getpeercert(True)


def test_a_site_in_a_browser_before_and_after_its_certificate_is_replaced(
    tmp_path: Path, start_command: StartCommand
) -> None:
    (tmp_path / "front.py").write_text(APP)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "script.js").write_text("window.loaded = true\n")
    old, new = ROOT.leaf("localhost", "127.0.0.1"), ROOT.leaf("localhost", "127.0.0.1")
    pair, replacement = old.write(tmp_path), new.write(tmp_path / "new")
    flags = ("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key), "--static", "/files=files")
    with (
        start_command("front:app", *flags, "--tls-hsts", "1h", directory=tmp_path) as command,
        running_browser(
            tmp_path / "chromium", f"--ignore-certificate-errors-spki-list={pin(old)},{pin(new)}"
        ) as browser,
    ):
        browser.open(f"https://localhost:{command.port}/")
        browser.wait_until("window.loaded")
        assert browser.run("return isSecureContext")
        assert browser.run(f"return {HEARD}") == "nothing"
        browser.type("#said", "Grüße")
        browser.click("#say")
        browser.wait_until(f"{HEARD} == 'Grüße'")  # so that the cookie, which is for HTTPS alone, has come back

        browser.run("window.parts = []; new EventSource('/stream').onmessage = part => parts.push(part.data)")
        browser.wait_until("parts.length == 1")
        os.replace(replacement.key, pair.key)
        os.replace(replacement.certificate, pair.certificate)
        eventually(lambda: "was replaced: for localhost" in command.output)
        assert served(command.port) == new.der
        # The same connections go on: on one of them, the answer has not ended.
        browser.run("return fetch('/tell', {method: 'POST'}).then(answer => answer.text())")
        browser.wait_until("parts.includes('last')")
        browser.run("location.reload()")
        browser.wait_until(f"document.readyState == 'complete' && window.loaded && !window.parts && {HEARD} == 'Grüße'")
        assert browser.console() == []

        # Of another origin it has no connection yet.
        browser.open(f"https://127.0.0.1:{command.port}/")
        browser.wait_until("window.loaded")
        assert browser.run(f"return {HEARD}") == "nothing"
        assert browser.console() == []
