"""The app of `hardserve demo`: one page that shows what the server does for an app.

Worker threads, as any app; it knows nothing of the server but what WSGI tells it. It may be left on the internet by
mistake: it stores nothing, sends back little and escaped, and everything that takes time or a worker is bounded.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import IO

from flask import Blueprint, Flask, Response, abort, current_app, make_response, render_template, request, send_file
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

MAX_UPLOAD_BYTES = 1024 * 1024
MAX_ECHO_BYTES = 4096
SLOW_S = 1.0
# A stream holds a worker as long as it lasts: half of the workers there are by default, for a minute.
MAX_STREAMS = 4
STREAM_EVENTS = 60
DOWNLOAD_LINES = 20_000
SLEEP, STREAMS = "hardserve.demo.sleep", "hardserve.demo.streams"  # in app.extensions
# Never Cookie or Authorization: what is private to a visitor is not repeated, not even to the visitor.
SHOWN_HEADERS = ("Host", "User-Agent", "Accept", "Accept-Language", "Accept-Encoding", "Connection", "X-Forwarded-For")

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

pages = Blueprint("demo", __name__)


def create_app(*, sleep: Callable[[float], None] = time.sleep) -> Flask:
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_UPLOAD_BYTES
    app.extensions[SLEEP] = sleep
    app.extensions[STREAMS] = threading.BoundedSemaphore(MAX_STREAMS)
    app.register_blueprint(pages)
    return app


# Of the pages alone: the static files need no policy, and leave without the app while nothing of it wants to see them.
@pages.after_request
def secure(response: Response) -> Response:
    response.headers.update(SECURITY_HEADERS)
    return response


@pages.get("/")
def index() -> str:
    environ = request.environ
    facts = {
        "Request id": request.headers.get("X-Request-ID", "none"),
        "Client": request.remote_addr or "unknown",
        "Method": request.method,
        "Target": request.full_path.rstrip("?")[:200],
        "HTTP version": environ.get("SERVER_PROTOCOL", "unknown"),
        "Scheme": request.scheme,
        "Server": environ.get("SERVER_SOFTWARE", "unknown"),
        "Worker": threading.current_thread().name,
    }
    headers = {name: request.headers[name][:300] for name in SHOWN_HEADERS if name in request.headers}
    return render_template("index.html", facts=facts, headers=headers, max_upload=MAX_UPLOAD_BYTES)


@pages.get("/events")
def events() -> ResponseReturnValue:
    streams: threading.BoundedSemaphore = current_app.extensions[STREAMS]
    if not streams.acquire(blocking=False):
        abort(503, f"All {MAX_STREAMS} streams are taken; each ends within {STREAM_EVENTS} s.")
    response = Response(
        _clock(current_app.extensions[SLEEP]), mimetype="text/event-stream", headers={"Cache-Control": "no-store"}
    )
    # Not in the generator: one that has never been started is closed without running its `finally`.
    response.call_on_close(streams.release)
    return response


@pages.get("/slow")
def slow() -> ResponseReturnValue:
    current_app.extensions[SLEEP](SLOW_S)
    return {"slept_s": SLOW_S, "worker": threading.current_thread().name}


@pages.post("/upload")
def upload() -> ResponseReturnValue:
    files = request.files.getlist("file")[:10]
    sizes = [{"name": (file.filename or "")[:100], "bytes": _size(file.stream)} for file in files]
    request.close()  # the temporary files
    return _page_or_json("Uploaded, counted and forgotten", {"files": sizes})


@pages.get("/download")
def download() -> ResponseReturnValue:
    text = "".join(f"{number},{number * number}\n" for number in range(DOWNLOAD_LINES))
    return send_file(io.BytesIO(text.encode()), "text/csv", as_attachment=True, download_name="squares.csv")


@pages.get("/error")
def error() -> ResponseReturnValue:
    raise RuntimeError("the demo raised this on purpose")


@pages.route("/echo", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def echo() -> ResponseReturnValue:
    body = request.get_data(cache=False)
    return {
        "method": request.method,
        "path": request.path,
        "query": request.query_string.decode("latin-1")[:MAX_ECHO_BYTES],
        "headers": {name: request.headers[name][:300] for name in SHOWN_HEADERS if name in request.headers},
        "body": body[:MAX_ECHO_BYTES].decode(errors="replace"),
        "body_bytes": len(body),
        "request_id": request.headers.get("X-Request-ID"),
    }


@pages.app_errorhandler(HTTPException)
def refused(error: HTTPException) -> ResponseReturnValue:
    code = error.code or 500
    if code < 400:  # a redirect, from Flask's routing
        return error.get_response()
    text = error.description or ""
    if isinstance(error, RequestEntityTooLarge):
        text = f"The upload is larger than the {MAX_UPLOAD_BYTES:,} bytes that the demo takes."
    elif code == 500:
        text = "The app raised an exception. What it was is in the log, and not told here."
    facts = {"problem": text, "request_id": request.headers.get("X-Request-ID")}
    response = make_response(_page_or_json(f"{code} {error.name}", facts))
    response.status_code = code
    response.headers.extend(header for header in error.get_headers() if header[0] != "Content-Type")  # such as Allow
    return secure(response)  # which no page may have been asked for


def _clock(sleep: Callable[[float], None]) -> Iterator[str]:
    for number in range(1, STREAM_EVENTS + 1):
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        yield f"data: {json.dumps({'number': number, 'of': STREAM_EVENTS, 'time': now})}\n\n"
        sleep(1.0)
    yield "event: end\ndata: {}\n\n"


def _size(stream: IO[bytes]) -> int:
    stream.seek(0, io.SEEK_END)
    return stream.tell()


def _page_or_json(title: str, facts: Mapping[str, object]) -> ResponseReturnValue:
    """Answer the page's script with JSON, and a form or an address that was typed with a page."""
    if request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json":
        return {"title": title, **facts}
    return render_template("answer.html", title=title, facts=facts)


app = create_app()
