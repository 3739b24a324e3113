"""What an app does about its cookies. Main thread, at start. Only looks. Imports neither Flask nor Werkzeug."""

from __future__ import annotations

from .kinds import is_flask
from .production import parts_of


def sends_session_in_plain(app: object) -> bool:
    """Return whether a Flask app that has sessions lets browsers send their cookie without HTTPS, too."""
    return any(
        part.config.get("SECRET_KEY") and not part.config.get("SESSION_COOKIE_SECURE")
        for part in filter(is_flask, parts_of(app))
    )
