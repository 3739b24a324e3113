"""An app as it should never be served: debug mode on, inside Werkzeug's debugger."""

from flask import Flask
from werkzeug.debug import DebuggedApplication

app = Flask(__name__)
app.debug = True
app.wsgi_app = DebuggedApplication(app.wsgi_app, evalex=True)
