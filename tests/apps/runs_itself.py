"""An app whose app.run() has no `__main__` guard."""

from flask import Flask

app = Flask(__name__)

app.run(port=0)
