"""An app made by a factory with arguments."""

from flask import Flask


def create_app(greeting: str = "Hello", *, name: str = "World") -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: f"{greeting}, {name}!", endpoint="hello")
    return app
