"""httpbin, a real Flask app, served by the real command and driven by requests, httpx and curl.

What a server gets wrong shows between two things that it did not write: an app that streams, redirects, compresses and
drips, and clients that have opinions about framing. The clients here are asked to check what they received.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import requests
from requests.auth import HTTPDigestAuth

from tests.conftest import Command, StartCommand

CURL = shutil.which("curl")
PATIENCE_S = 15
MEGABYTE = 1 << 20

pytestmark = [
    pytest.mark.peer,
    # Looked for and not imported: it logs at import that flasgger, which shows its documentation, is missing.
    pytest.mark.skipif(importlib.util.find_spec("httpbin") is None, reason="httpbin is not installed"),
]
needs_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def httpbin(start_command: StartCommand) -> Iterator[Command]:
    with start_command("httpbin:app") as command:
        yield command


@pytest.fixture(params=["requests", "httpx"])
def client(request: pytest.FixtureRequest, httpbin: Command) -> Iterator[Client]:
    """Each client library in turn, with what the tests need of both."""
    kind = {"requests": RequestsClient, "httpx": HttpxClient}[request.param]
    with kind(httpbin.url) as client:
        yield client


class Client:
    """A keep-alive session with one server. Everything returned has `status_code`, `headers` and `content`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def request(self, method: str, path: str, **given: Any) -> Any:
        raise NotImplementedError

    def get(self, path: str, **given: Any) -> Any:
        return self.request("GET", path, **given)

    def pieces(self, path: str) -> list[bytes]:
        """Return the body as it arrived, piece by piece."""
        raise NotImplementedError

    def digest(self, user: str, password: str) -> Any:
        raise NotImplementedError

    def connections(self) -> int:
        """Return how many connections were opened."""
        raise NotImplementedError


class RequestsClient(Client):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no netrc of the person who tests

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def request(self, method: str, path: str, **given: Any) -> requests.Response:
        return self._session.request(method, self.url + path, timeout=PATIENCE_S, **given)

    def pieces(self, path: str) -> list[bytes]:
        with self.request("GET", path, stream=True) as response:
            response.raise_for_status()
            return list(iter(lambda: response.raw.read1(65536), b""))

    def digest(self, user: str, password: str) -> HTTPDigestAuth:
        return HTTPDigestAuth(user, password)

    def connections(self) -> int:
        pools = self._session.get_adapter(self.url).poolmanager.pools
        keys = pools.keys()  # pools is no dict, and cannot be iterated
        return sum(pools[key].num_connections for key in keys)


class HttpxClient(Client):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._client = httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False, follow_redirects=True)
        self._connected = 0

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def _trace(self, event: str, _info: object) -> None:
        self._connected += event == "connection.connect_tcp.complete"

    def request(self, method: str, path: str, **given: Any) -> httpx.Response:
        if isinstance(given.get("data"), bytes | Iterator):
            given["content"] = given.pop("data")
        redirects = given.pop("allow_redirects", True)
        return self._client.request(
            method, path, follow_redirects=redirects, extensions={"trace": self._trace}, **given
        )

    def pieces(self, path: str) -> list[bytes]:
        with self._client.stream("GET", path) as response:
            response.raise_for_status()
            return list(response.iter_raw())

    def digest(self, user: str, password: str) -> httpx.DigestAuth:
        return httpx.DigestAuth(user, password)

    def connections(self) -> int:
        return self._connected


def curl(*arguments: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run curl. Not a word from it but an error, no settings of the person who tests, and no proxy."""
    assert CURL is not None
    command = [CURL, "-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", str(PATIENCE_S), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENCE_S * 2, check=False)
    assert not check or done.returncode == 0, done.stderr.decode()
    return done


def blocks(count: int, size: int = 65536) -> Iterator[bytes]:
    """Yield a body of unknown length, which a client can only send in chunks."""
    for number in range(count):
        yield bytes([ord("a") + number % 26]) * size


# --- methods and bodies ---


def test_a_query_reaches_the_app(client: Client) -> None:
    answer = client.get("/get", params={"word": "naïve café", "list": ["1", "2"]}).json()
    assert answer["args"] == {"word": "naïve café", "list": ["1", "2"]}
    assert answer["url"].startswith(f"{client.url}/get?")
    assert answer["origin"] == "127.0.0.1"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_form_reaches_the_app_with_every_method(client: Client, method: str) -> None:
    answer = client.request(method, f"/{method.lower()}", data={"name": "Zoë", "empty": ""})
    assert answer.json()["form"] == {"name": "Zoë", "empty": ""}


def test_json_reaches_the_app(client: Client) -> None:
    document = {"nested": [1, 2.5, None, {"key": "välue"}]}
    assert client.request("POST", "/post", json=document).json()["json"] == document


def test_an_empty_post_has_an_empty_body(client: Client) -> None:
    answer = client.request("POST", "/post").json()
    assert (answer["data"], answer["form"], answer["headers"]["Content-Length"]) == ("", {}, "0")


def test_a_multipart_upload_of_5_mb_arrives_whole(client: Client) -> None:
    content = bytes(range(256)) * (5 * MEGABYTE // 256)
    answer = client.request("POST", "/post", files={"file": ("five.bin", content)}, data={"field": "value"}).json()
    assert answer["form"] == {"field": "value"}
    # httpbin shows what is not text as a data URL.
    encoded = answer["files"]["file"].partition("base64,")[2]
    assert base64.b64decode(encoded) == content


def test_a_body_sent_in_chunks_arrives_whole_and_with_a_length(client: Client) -> None:
    answer = client.request("POST", "/post", data=blocks(20)).json()
    assert answer["data"].encode() == b"".join(blocks(20))
    # httpbin refuses chunked requests from a server that leaves them to the app.
    assert answer["headers"]["Content-Length"] == str(20 * 65536)
    assert "Transfer-Encoding" not in answer["headers"]


def test_a_body_over_the_limit_is_refused_and_read_as_such(httpbin: Command) -> None:
    with HttpxClient(httpbin.url) as client:
        answer = client.request("POST", "/post", data=b"x" * (16 * MEGABYTE + 1))
    assert answer.status_code == 413


def test_head_has_the_headers_of_get_and_no_body(client: Client) -> None:
    plain = {"Accept-Encoding": "identity"}  # how long a compressed one is shows only when it is made
    head = client.request("HEAD", "/html", headers=plain, allow_redirects=False)
    get = client.get("/html", headers=plain)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == get.headers[name]
    assert len(get.content) == int(get.headers["Content-Length"])
    assert client.connections() == 1


def test_options_lists_the_methods_of_a_route(client: Client) -> None:
    answer = client.request("OPTIONS", "/post")
    assert answer.status_code == 200
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_trace_is_refused_though_the_app_would_answer_it(client: Client) -> None:
    assert client.request("TRACE", "/anything").status_code == 501


def test_a_method_that_the_route_has_not_is_the_apps_to_refuse(client: Client) -> None:
    answer = client.request("DELETE", "/get")
    assert answer.status_code == 405
    assert "GET" in answer.headers["Allow"]


# --- what the app answers ---


@pytest.mark.parametrize("status", [200, 201, 202, 204, 304, 400, 401, 404, 418, 429, 500, 503, 599])
def test_every_status_passes_and_keeps_the_connection(client: Client, status: int) -> None:
    for _ in range(2):
        assert client.get(f"/status/{status}").status_code == status
    assert client.connections() == 1


@pytest.mark.parametrize("path", ["/redirect/3", "/relative-redirect/3", "/absolute-redirect/3"])
def test_redirects_are_followed_on_one_connection(client: Client, path: str) -> None:
    answer = client.get(path)
    assert [each.status_code for each in answer.history] == [302, 302, 302]
    assert str(answer.url) == f"{client.url}/get"
    assert client.connections() == 1


def test_a_stream_of_lines_arrives_whole_and_keeps_the_connection(client: Client) -> None:
    answer = client.get("/stream/20")
    assert [json.loads(line)["id"] for line in answer.content.splitlines()] == list(range(20))
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert client.get("/get").status_code == 200
    assert client.connections() == 1


@pytest.mark.parametrize("size", [1, 1000, 102400])
@pytest.mark.parametrize("chunk_size", [1000, 102400])
def test_streamed_bytes_are_those_of_the_seed(client: Client, size: int, chunk_size: int) -> None:
    first, second = (client.get(f"/stream-bytes/{size}?seed=7&chunk_size={chunk_size}").content for _ in range(2))
    assert first == second
    assert first == client.get(f"/bytes/{size}?seed=7").content
    assert len(first) == size


def test_bytes_have_a_length(client: Client) -> None:
    answer = client.get("/bytes/102400")
    assert answer.headers["Content-Length"] == str(len(answer.content)) == "102400"


def test_what_an_app_drips_leaves_drop_by_drop(client: Client) -> None:
    pieces = client.pieces("/drip?numbytes=5&duration=0.5&delay=0")
    assert b"".join(pieces) == b"*****"
    assert len(pieces) > 1  # and not kept until the app is done


def test_a_delayed_answer_arrives(client: Client) -> None:
    assert client.get("/delay/0.2").status_code == 200


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-0", 206, 0, 0),
        ("bytes=10-19", 206, 10, 19),
        ("bytes=-5", 206, 995, 999),
        ("bytes=990-", 206, 990, 999),
    ],
)
def test_a_range_is_the_apps_206(client: Client, asked: str, status: int, first: int, last: int) -> None:
    whole = client.get("/range/1000").content
    answer = client.get("/range/1000", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, whole[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/1000"
    assert answer.headers["Content-Length"] == str(last + 1 - first)


def test_a_range_past_the_end_is_416(client: Client) -> None:
    answer = client.get("/range/1000", headers={"Range": "bytes=2000-3000"})
    assert (answer.status_code, answer.content, answer.headers["Content-Range"]) == (416, b"", "bytes */1000")


def test_cookies_are_set_sent_back_and_deleted(client: Client) -> None:
    assert client.get("/cookies/set?one=1&two=2").json() == {"cookies": {"one": "1", "two": "2"}}
    assert client.get("/cookies/delete?one=").json() == {"cookies": {"two": "2"}}


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_answer_is_what_its_header_says(client: Client, coding: str) -> None:
    answer = client.get(f"/{coding}")
    assert answer.headers["Content-Encoding"] == coding
    assert answer.json()["gzipped" if coding == "gzip" else "deflated"] is True


def test_a_brotli_answer_is_what_its_header_says(client: Client) -> None:
    # brotlicffi comes with httpbin, which compresses with it; requests and httpx use it when it is there.
    pytest.importorskip("brotlicffi")
    answer = client.get("/brotli", headers={"Accept-Encoding": "br"})
    assert answer.headers["Content-Encoding"] == "br"
    assert answer.json()["brotli"] is True


def test_basic_auth(client: Client) -> None:
    assert client.get("/basic-auth/user/secret").status_code == 401
    assert client.get("/basic-auth/user/secret", auth=("user", "wrong")).status_code == 401
    assert client.get("/basic-auth/user/secret", auth=("user", "secret")).json()["authenticated"] is True


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256", "SHA-512"])
def test_digest_auth(client: Client, algorithm: str) -> None:
    path = f"/digest-auth/auth/user/secret/{algorithm}"
    assert client.get(path, auth=client.digest("user", "secret")).json()["authenticated"] is True
    assert client.get(path, auth=client.digest("user", "wrong")).status_code == 401


def test_what_proxies_add_reaches_the_app_and_what_would_forge_it_does_not(client: Client) -> None:
    added = {
        "Via": "1.1 proxy",
        "X-Api-Key": "good",
        "X-Request-Id": "from-the-proxy",
    }
    answer = client.get(
        "/headers?show_env=1",
        headers=added | {"X_Api_Key": "evil", "X-Forwarded-For": "203.0.113.66", "Forwarded": "for=203.0.113.66"},
    )
    seen = answer.json()["headers"]
    assert {name: seen[name] for name in added} == added
    assert "203.0.113.66" not in answer.text
    assert answer.headers["X-Request-ID"] == "from-the-proxy"


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF"), ("svg", b"<svg")]
)
def test_images(client: Client, kind: str, magic: bytes) -> None:
    answer = client.get(f"/image/{kind}")
    assert answer.content.startswith(magic)
    assert answer.headers["Content-Type"].startswith(f"image/{kind}")


@pytest.mark.parametrize("path", ["/html", "/xml", "/json", "/encoding/utf8", "/robots.txt", "/forms/post", "/"])
def test_pages(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    coded = "Content-Encoding" in answer.headers
    assert 0 < int(answer.headers["Content-Length"]) <= len(answer.content)
    assert coded == (len(answer.content) >= 1024)


def test_a_path_is_decoded_once(client: Client) -> None:
    # werkzeug quotes again what it finds in PATH_INFO; decoded twice, the last piece would be a slash.
    assert client.get("/anything/a%20b/%C3%A9%252F").json()["url"].endswith("/anything/a%20b/é%2F")


def test_every_kind_of_answer_leaves_one_connection_open(client: Client) -> None:
    for path in ("/get", "/status/204", "/stream/3", "/bytes/10", "/status/404", "/stream-bytes/3000", "/gzip"):
        client.get(path)
    client.request("POST", "/post", data=blocks(2))
    client.request("HEAD", "/stream/3", allow_redirects=False)
    client.get("/get")
    assert client.connections() == 1


@pytest.mark.parametrize("kind", [RequestsClient, HttpxClient])
def test_twenty_clients_at_once_get_their_own_answers(httpbin: Command, kind: type[Client]) -> None:
    def visit(number: int) -> int:
        with kind(httpbin.url) as client:
            for turn in range(5):
                mark = f"{number}-{turn}"
                answer = client.request(
                    "POST", f"/anything/{mark}", data=mark.encode() * 1000, headers={"X-Mark": mark}
                )
                echo = answer.json()
                assert echo["url"] == f"{httpbin.url}/anything/{mark}"
                assert echo["data"] == mark * 1000
                assert echo["headers"]["X-Mark"] == mark
            return client.connections()

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(visit, range(20))) == [1] * 20


# --- curl ---


@needs_curl
def test_curl_fetches_two_urls_on_one_connection(httpbin: Command) -> None:
    urls = [f"{httpbin.url}/get", f"{httpbin.url}/stream/3"]
    done = curl("--write-out", "%{stderr}%{http_code} %{num_connects}\n", *urls)
    assert done.stderr.split(b"\n") == [b"200 1", b"200 0", b""]


@needs_curl
def test_curl_waits_for_100_continue_before_it_sends_2_mb(httpbin: Command, tmp_path: Path) -> None:
    upload = tmp_path / "two.txt"
    upload.write_bytes(b"".join(blocks(32)))
    # Without a 100 it would wait longer than it may take.
    patience = ("--expect100-timeout", str(PATIENCE_S * 2), "--header", "Expect: 100-continue")
    done = curl(
        "--verbose", *patience, "--data-binary", f"@{upload}", "-H", "Content-Type: text/plain", f"{httpbin.url}/post"
    )
    assert b"< HTTP/1.1 100 Continue" in done.stderr
    assert json.loads(done.stdout)["data"].encode() == upload.read_bytes()


@needs_curl
def test_curl_learns_that_a_body_is_too_large_before_it_sends_it(httpbin: Command, tmp_path: Path) -> None:
    upload = tmp_path / "large.bin"
    with upload.open("wb") as file:
        file.truncate(17 * MEGABYTE)
    patience = ("--expect100-timeout", str(PATIENCE_S * 2), "--header", "Expect: 100-continue")
    done = curl(
        *patience,
        "--upload-file",
        str(upload),
        "--write-out",
        "%{stderr}%{http_code} %{size_upload}",
        f"{httpbin.url}/put",
    )
    assert done.stderr == b"413 0"


@needs_curl
def test_curl_uploads_its_standard_input_in_chunks(httpbin: Command) -> None:
    body = b"".join(blocks(40))
    done = curl("--verbose", "--upload-file", "-", "-H", "Content-Type: text/plain", f"{httpbin.url}/put", stdin=body)
    assert b"> Transfer-Encoding: chunked" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["data"].encode() == body
    assert answer["headers"]["Content-Length"] == str(len(body))


@needs_curl
def test_curl_speaks_http_1_0(httpbin: Command) -> None:
    done = curl("--http1.0", "--include", f"{httpbin.url}/stream/5", f"{httpbin.url}/get")
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert [json.loads(line)["id"] for line in body.partition(b"HTTP/1.1 200")[0].splitlines()] == list(range(5))


@needs_curl
def test_curl_keeps_a_connection_of_http_1_0_when_it_asks_for_it(httpbin: Command) -> None:
    urls = [f"{httpbin.url}/get"] * 2
    done = curl("--http1.0", "-H", "Connection: keep-alive", "--write-out", "%{stderr}%{num_connects}\n", *urls)
    assert done.stderr.split() == [b"1", b"0"]


@needs_curl
def test_curl_downloads_slowly_and_gets_everything(httpbin: Command, tmp_path: Path) -> None:
    upload = tmp_path / "eight.txt"
    upload.write_bytes(b"".join(blocks(128)))
    url = f"{httpbin.url}/post"
    done = curl(
        *("--limit-rate", "12M", "--expect100-timeout", "1", "-H", "Content-Type: text/plain"),
        *("--data-binary", f"@{upload}", url),
    )
    assert json.loads(done.stdout)["data"].encode() == upload.read_bytes()


@needs_curl
@pytest.mark.parametrize(
    ("arguments", "path", "expected"),
    [
        ("--location", "/redirect/3", b'"url": '),
        ("--compressed", "/gzip", b'"gzipped": true'),
        ("--range 10-19", "/range/100", b"klmnopqrst"),
        ("--user user:secret", "/basic-auth/user/secret", b'"authenticated": true'),
        ("--digest --user user:secret", "/digest-auth/auth/user/secret", b'"authenticated": true'),
        ("--form file=@{file};type=text/plain --form field=value", "/post", b'"file": "content'),
        ("--head", "/html", b"Content-Length: "),
        ("--include --request OPTIONS", "/get", b"Allow: "),
        ("--cookie name=value", "/cookies", b'"name": "value"'),
        ("--no-buffer", "/drip?numbytes=3&duration=0.1", b"***"),
        ("--request DELETE", "/delete", b'"url": '),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("/") else "",
)
def test_curl_gets_what_it_asks_for(
    httpbin: Command, tmp_path: Path, arguments: str, path: str, expected: bytes
) -> None:
    upload = tmp_path / "upload.txt"
    upload.write_text("content")
    done = curl("--fail", *(each.format(file=upload) for each in arguments.split()), httpbin.url + path)
    assert expected in done.stdout


@needs_curl
def test_curl_is_refused_trace(httpbin: Command) -> None:
    done = curl("--request", "TRACE", "--write-out", "%{http_code}", "--output", "/dev/null", f"{httpbin.url}/anything")
    assert done.stdout == b"501"


# --- the operator's side ---


def test_every_request_is_one_line_of_the_access_log(start_command: StartCommand) -> None:
    with start_command("httpbin:app") as command, HttpxClient(command.url) as client:
        for number in range(50):
            client.get(f"/status/{200 + number % 3}?n={number}")
        client.request("TRACE", "/refused")
        command.stop()
    lines = command.access_log.read_text().splitlines()
    assert len(lines) == 51
    for number in range(50):
        assert f"/status/{200 + number % 3}?n={number} " in lines[number]
