"""The app that is flooded: Flask's hello, which notes that it was called, and says at another path how often."""

from __future__ import annotations

from itertools import count

from flask import Flask

app = Flask(__name__)
_calls = count()
_asked = count()


@app.get("/")
def hello() -> str:
    next(_calls)
    return "Hello, World!"


@app.get("/calls")
def calls() -> str:
    return str(next(_calls) - next(_asked))  # less what was counted by asking
