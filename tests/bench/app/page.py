"""The app whose page is as small as a page can be that the rules for every response are asked about: 200 bytes."""

from flask import Flask

PAGE = "<!doctype html><title>Hello</title><p>Hello, World!".ljust(199, ".") + "\n"

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return PAGE
