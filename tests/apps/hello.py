"""The smallest Flask app. Also in the benchmarks' sense: nothing but the server costs time here."""

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return "Hello, World!"
