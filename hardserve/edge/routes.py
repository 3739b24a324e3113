"""Which of the operator's routes a request is on, and what that allows it. Pure; any thread.

Paths are compared as the app sees them, decoded once, and without what different spellings of one path differ in
(RFC 3986 5.2.4, 6.2.2): `//upload`, `/./upload`, `/a/../upload` and `/%75pload` meet the rule for `/upload`. What the
app is given is not changed by this. It may take such a path as it stands, and Flask does: to `/item/<name>`, `/item/..`
is an item. So a path that can be written simpler is on the routes of all its `spellings`, and must be let in by each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hardserve.http.paths import PathPattern, spellings
from hardserve.settings import LimitSettings, RouteSettings

FORM = "application/x-www-form-urlencoded"


class Route:
    """One of the operator's routes, ready to be compared with requests."""

    __slots__ = ("_methods", "_pattern", "settings")

    def __init__(self, settings: RouteSettings) -> None:
        self.settings = settings
        self._pattern = PathPattern(settings.path)
        self._methods = with_head(settings.methods)

    def __repr__(self) -> str:
        return f"<Route {self._pattern!r}>"

    def fits(self, method: str, path: str) -> bool:
        """Return whether such a request is on it. `path` is one of its `spellings`."""
        return (not self._methods or method in self._methods) and self._pattern.matches(path)


def with_head(methods: Sequence[str]) -> frozenset[str]:
    """Return the methods that an operator means: GET is HEAD, too, as in nginx.

    Whoever serves GET serves HEAD, mostly without knowing, and a rule for the one must not be passed by the other.
    """
    return frozenset(methods) | ({"HEAD"} if "GET" in methods else frozenset())


Found = tuple[Route | None, ...]  # one at least
NO_ROUTE: Found = (None,)


class Routes:
    """The routes of one server, in the operator's order: the first that fits a path counts, and no other."""

    __slots__ = ("_max_body", "_max_form", "_routes")

    def __init__(self, routes: Sequence[RouteSettings], limits: LimitSettings) -> None:
        self._max_body = limits.body
        self._max_form = min(limits.body, limits.form)
        self._routes = [Route(settings) for settings in routes]

    def __repr__(self) -> str:
        return f"<Routes {len(self._routes)}>"

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def find(self, method: str, path: str) -> Found:
        """Return the routes of such a request: of each of its spellings one, or None where that is on none.

        `path` is the decoded WSGI path.
        """
        if not self._routes:
            return NO_ROUTE
        return tuple(dict.fromkeys(self._first(method, spelling) for spelling in spellings(path)))

    def _first(self, method: str, path: str) -> Route | None:
        for route in self._routes:
            if route.fits(method, path):
                return route
        return None

    def max_body(self, found: Found, content_type: str) -> int:
        """Return how many bytes the body of a request on these routes may have, by the strictest of them."""
        return min(self._max_body_of(route, content_type) for route in found)

    def _max_body_of(self, route: Route | None, content_type: str) -> int:
        """Return how many bytes the body of a request on `route` may have.

        A route's own cap is for bodies of any type: its operator knows what the app does with them.
        """
        if route is not None and route.settings.max_body is not None:
            return route.settings.max_body
        return self._max_form if content_type.lower().startswith(FORM) else self._max_body
