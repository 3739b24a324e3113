"""The bundled demo: what it shows, and that it is harmless where anyone can reach it."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from hardserve import demo
from hardserve.loader import load_app

ROOT = Path(demo.__file__).parent


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def client(slept: list[float]) -> FlaskClient:
    return demo.create_app(sleep=slept.append).test_client()


def test_page_shows_the_request_as_the_server_gave_it(client):
    page = client.get(
        "/?q=1", headers={"X-Request-ID": "abc-123", "User-Agent": "tester"}, environ_base={"REMOTE_ADDR": "192.0.2.7"}
    ).text
    for shown in ("abc-123", "192.0.2.7", "GET", "/?q=1", "HTTP/1.1", "tester"):
        assert f"<dd>{shown}</dd>" in page


def test_page_escapes_what_the_client_says(client):
    attack = "<script>alert(1)</script>"
    page = client.get(f"/?{attack}", headers={"User-Agent": attack, "X-Request-ID": attack}).text
    assert attack not in page
    assert "&lt;script&gt;" in page


def test_page_keeps_private_headers_and_long_ones_to_itself(client):
    headers = {"Cookie": "session=hidden-1", "Authorization": "Basic hidden-2", "User-Agent": "x" * 5000}
    for answer in (client.get("/", headers=headers).text, client.get("/echo", headers=headers).text):
        assert "hidden-" not in answer
        assert "x" * 300 in answer
        assert "x" * 301 not in answer


def test_page_needs_nothing_from_elsewhere_and_may_run_nothing_inline(client):
    response = client.get("/")
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    sources = [response.text, *(file.read_text() for file in ROOT.glob("static/*"))]
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+|\son\w+=|<style|style=", "".join(sources))
    local = re.findall(r'(?:src|href|action|data-url)="(/[^"]*)"', response.text)
    assert len(local) == 9
    for path in set(local) - {"/error", "/events"}:
        with client.open(path, method="POST" if path == "/upload" else "GET") as answer:
            assert answer.status_code == 200


def test_page_works_below_a_prefix(client):
    page = client.get("/", environ_overrides={"SCRIPT_NAME": "/demo"}).text
    assert all(path.startswith("/demo/") for path in re.findall(r'(?:src|href|action|data-url)="(/[^"]*)"', page))


def test_stream_yields_an_event_before_it_sleeps_and_ends_by_itself(client, slept):
    response = client.get("/events")
    assert response.mimetype == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    events = response.iter_encoded()
    assert json.loads(next(events).removeprefix(b"data: "))["number"] == 1
    assert slept == []
    rest = list(events)
    assert len(rest) == demo.STREAM_EVENTS  # 59 more, and the end
    assert rest[-1] == b"event: end\ndata: {}\n\n"
    assert slept == [1.0] * demo.STREAM_EVENTS


def test_streams_are_limited_and_given_back_started_or_not(client):
    open_streams = [client.get("/events") for _ in range(demo.MAX_STREAMS)]
    next(open_streams[0].iter_encoded())
    refused = client.get("/events", headers={"Accept": "text/html"})
    assert refused.status_code == 503
    assert "All 4 streams are taken" in refused.text
    for stream in open_streams:
        stream.close()
    again = [client.get("/events") for _ in range(demo.MAX_STREAMS)]
    assert [stream.status_code for stream in again] == [200] * demo.MAX_STREAMS
    for stream in again:
        stream.close()


def test_head_of_a_stream_takes_none(client):
    for _ in range(demo.MAX_STREAMS * 2):
        with client.head("/events") as response:
            assert response.status_code == 200


def test_slow_request_sleeps_as_long_as_the_demo_says_whatever_the_client_asks(client, slept):
    assert client.get("/slow?seconds=1000").json["slept_s"] == 1.0
    assert slept == [1.0]


def test_upload_is_counted(client):
    body = b"".join(  # as bytes: what the client encodes itself, it leaves in an open file
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n' % file
        for file in ((b"a.bin", b"x" * 600_000), (b"<b>.txt", b""))
    )
    page = client.post("/upload", data=body + b"--b--\r\n", content_type="multipart/form-data; boundary=b").text
    assert "<dt>a.bin</dt><dd>600,000 bytes</dd>" in page
    assert "<dt>&lt;b&gt;.txt</dt><dd>0 bytes</dd>" in page


def test_upload_answers_its_script_with_json(client):
    data = {"file": (io.BytesIO(b"abc"), "a.bin")}
    answer = client.post("/upload", data=data, headers={"Accept": "application/json"}).json
    assert answer["files"] == [{"name": "a.bin", "bytes": 3}]


@pytest.mark.parametrize(("path", "kind"), [("/upload", "multipart/form-data; boundary=b"), ("/echo", "text/plain")])
def test_body_past_the_cap_is_refused_with_413(path, kind, client):
    response = client.post(path, data=b"x" * (demo.MAX_UPLOAD_BYTES + 1), content_type=kind)
    assert response.status_code == 413
    assert "larger than the 1,048,576 bytes" in response.text


def test_download_has_a_length_and_comes_in_parts_if_asked(client):
    whole = client.get("/download")
    assert whole.headers["Content-Disposition"] == "attachment; filename=squares.csv"
    assert len(whole.data) == int(whole.headers["Content-Length"]) < 1_000_000
    part = client.get("/download", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.data) == (206, whole.data[4:8])


@pytest.mark.parametrize("accept", ["text/html", "application/json", "*/*"])
def test_exception_is_500_with_the_request_id_and_without_what_was_raised(accept, client, caplog):
    response = client.get("/error", headers={"Accept": accept, "X-Request-ID": "abc-123"})
    assert response.status_code == 500
    assert "abc-123" in response.text
    assert "on purpose" not in response.text
    assert "on purpose" in caplog.text


def test_echo_repeats_a_json_request_up_to_its_limit(client):
    answer = client.put("/echo?a=1", json={"text": "<b>ü</b>"}, headers={"X-Request-ID": "abc-123"}).json
    assert (answer["method"], answer["query"], answer["request_id"]) == ("PUT", "a=1", "abc-123")
    assert json.loads(answer["body"]) == {"text": "<b>ü</b>"}
    long = client.post("/echo", data=b"\xff" * 100_000).json
    assert (len(long["body"]), long["body_bytes"]) == (demo.MAX_ECHO_BYTES, 100_000)


def test_other_errors_keep_their_status_and_headers(client):
    assert client.get("/nothing-here").status_code == 404
    response = client.delete("/upload")
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"


def test_demo_is_loaded_as_any_app():
    loaded = load_app("hardserve.demo:app", directory=ROOT.parent.parent, environ={**os.environ, "FLASK_DEBUG": "0"})
    assert loaded.flask is demo.app
