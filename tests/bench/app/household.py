"""The app that is asked for everything that may be written somewhere: a page, static files and forms with photos."""

from pathlib import Path

from flask import Flask, request

STATIC = Path(__file__).resolve().parents[3] / "hardserve" / "demo" / "static"

app = Flask(__name__, static_folder=str(STATIC), static_url_path="/static")


@app.get("/")
def hello() -> str:
    return "Hello, World!"


@app.post("/body")
def body() -> str:
    return f"{len(request.get_data())}"


@app.post("/photo")
def photo() -> str:
    """Read a form, as an app does that stores its photos in a database: they pass through files of Werkzeug's."""
    return f"{len(request.files['photo'].read())}"
