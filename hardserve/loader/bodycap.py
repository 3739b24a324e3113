"""A Flask app that sets no MAX_CONTENT_LENGTH is told how large the body of a request may be here.

The server holds every body to its cap before the app is called. This is for what the app makes of it: Werkzeug holds
each reading of the body to the same number, and code that asks for `request.max_content_length`, to show it or to hand
it on, does not get None. Whatever the app itself says counts: the configuration, a request class of its own, or what
is set for one request.

Main thread at start, and workers for each request. Imports neither Flask nor Werkzeug.
"""

from __future__ import annotations

from typing import Any

from .kinds import is_flask
from .production import parts_of

# Where the server puts the cap of the request's route, in bytes.
MAX_BODY = "hardserve.max_body"


class CappedByRoute:
    """Goes before an app's request class: `max_content_length` is the route's unless the app has one.

    Reads what the class behind it has, whatever that is: a property (Flask), one that can also be set (Flask 3.1), or
    a plain value (Werkzeug, and the request classes of many apps).
    """

    environ: dict[str, Any]

    @property
    def max_content_length(self) -> int | None:
        own = vars(self).get("max_content_length")  # set for this request, where the class has a plain value
        if own is None:
            own = super().max_content_length  # type: ignore[misc]  # of the app's request class
        return self.environ.get(MAX_BODY) if own is None else own

    @max_content_length.setter
    def max_content_length(self, value: int | None) -> None:
        after = type(self).__mro__[type(self).__mro__.index(CappedByRoute) + 1 :]
        inherited: Any = next(vars(cls)["max_content_length"] for cls in after if "max_content_length" in vars(cls))
        if hasattr(type(inherited), "__set__"):
            inherited.__set__(self, value)  # raises AttributeError where the app could not have set it either
        else:
            vars(self)["max_content_length"] = value


def give_body_cap(app: object) -> None:
    """Have every Flask app that `app` is or wraps tell its requests the cap in their environ.

    Main thread, before requests come. Harmless when called again, or for an app that is served by several servers:
    the number is that of the request. An app with a MAX_CONTENT_LENGTH is left as it is.
    """
    for part in parts_of(app):
        if is_flask(part) and part.config.get("MAX_CONTENT_LENGTH") is None:
            request_class = part.request_class
            if not issubclass(request_class, CappedByRoute):
                namespace = {"__module__": request_class.__module__, "__doc__": request_class.__doc__}
                part.request_class = type(request_class.__name__, (CappedByRoute, request_class), namespace)
