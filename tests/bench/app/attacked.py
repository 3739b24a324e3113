"""The app that hostile clients ask for: a small page, a stream, a large block, and an upload."""

from collections.abc import Iterator

from flask import Flask, Response, request

STREAM_BLOCKS = 512
STREAM_BLOCK = b"s" * 65536
BLOCK = b"b" * (4 << 20)

app = Flask(__name__)


@app.get("/")
def page() -> str:
    return "<!doctype html><title>Small</title><p>Hello, World!"


@app.get("/big")
def stream() -> Response:
    def blocks() -> Iterator[bytes]:
        for _ in range(STREAM_BLOCKS):
            yield STREAM_BLOCK

    return Response(blocks(), mimetype="application/octet-stream")


@app.get("/block")
def block() -> Response:
    return Response(BLOCK, mimetype="application/octet-stream")


@app.post("/upload")
def upload() -> str:
    return f"{len(request.get_data())}\n"
