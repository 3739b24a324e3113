"""The app that every server is given: Flask's hello, and the same after 20 ms of waiting."""

import time

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return "Hello, World!"


@app.get("/sleep")
def sleep() -> str:
    time.sleep(0.020)
    return "Hello, World!"
