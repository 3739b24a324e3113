"""The static folders that a Flask app and its blueprints have.

A folder found here is served past the app's code, so the question is always what that code would have done. Whatever
might deny a request, answer it another way or change its answer (middleware, hooks, receivers of signals, views,
methods of a subclass, classes that Flask is told to use, other rules below the same URL) leaves the folder to the app,
and a sentence for the log says so. What cannot be seen through counts as such a thing. With `always`, the operator has
answered for the app's code, and only what would be served at the wrong URL, or in the place of another view, is still
left.

Not among them is what comes after the answer: functions for teardown, and the signals around them. Nearly every app
has some, to close a database; they see no response, and Flask's documentation wants them not to raise.

Flask makes the rule `<prefix>/<path:filename>` with the endpoint `static`, or `<blueprint>.static`; `url_for` builds
its URLs from that rule, and so do we. A function is known for Flask's own by the module that it was compiled in, which
`functools.wraps` does not copy: so a method that was overridden and one that was patched both show.

Main thread, at start. Only looks: the one thing that is asked, not read, is the map of rules, whom a path belongs to.
Imports neither Flask nor Werkzeug.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import shlex
import sys
from abc import ABC
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from .bodycap import CappedByRoute
from .kinds import is_dash, is_flask, is_proxy_fix
from .production import parts_of

if TYPE_CHECKING:
    from flask import Flask

# What a request for a static file goes through in Flask, besides the hooks. A subclass may do anything in them.
_ON_THE_WAY = (
    "request_context",
    "app_context",
    "ensure_sync",
    "full_dispatch_request",
    "preprocess_request",
    "dispatch_request",
    "make_response",
    "finalize_request",
    "process_response",
    "send_static_file",
    "get_send_file_max_age",
    "static_folder",
)
_FILE_METHODS = ("send_static_file", "get_send_file_max_age", "static_folder")  # of a blueprint

# Where a Flask app says what is made, or asked, for each request.
_CLASSES = ("request_class", "response_class", "session_interface", "app_ctx_globals_class")

_HOOKS = (
    ("before_request function", "before_request_funcs"),
    ("url_value_preprocessor", "url_value_preprocessors"),
    ("after_request function", "after_request_funcs"),
)

# Those of flask.signals that are sent for every request until it has its answer.
_SIGNALS = ("appcontext_pushed", "request_started", "request_finished")
_OF_RESPONSES = {"after_request function", "request_finished receiver"}

# What common extensions have that neither denies the GET of a file nor adds to the answer what it is not complete
# without: hooks, receivers, wrappers of a method of Flask's, and classes.
_HARMLESS = {
    ("dash.dash", "Dash._setup_server"),  # finishes the Dash app once, at whichever request is the first
    ("dash.dash", "Dash.enable_pages.<locals>.router"),  # likewise
    ("dash.dash", "Dash.enable_pages.<locals>.router_sync"),
    ("flask_login.login_manager", "LoginManager._update_remember_cookie"),  # waits in the session for the next page
    ("flask_wtf.csrf", "CSRFProtect.init_app.<locals>.csrf_protect"),  # of methods that change something
    ("flask_compress.flask_compress", "Compress.after_request"),  # the server compresses
    # Sentry notes which request it was, should there be an error, and how long it took.
    ("sentry_sdk.integrations.flask", "_request_started"),
    ("sentry_sdk.integrations.flask", "FlaskIntegration.setup_once.<locals>.sentry_patched_wsgi_app"),
    # Flask-Session keeps elsewhere what Flask has in the cookie.
    ("flask_session.base", "ServerSideSessionInterface"),
    ("flask_session.cachelib.cachelib", "CacheLibSessionInterface"),
    ("flask_session.dynamodb.dynamodb", "DynamoDBSessionInterface"),
    ("flask_session.filesystem.filesystem", "FileSystemSessionInterface"),
    ("flask_session.memcached.memcached", "MemcachedSessionInterface"),
    ("flask_session.mongodb.mongodb", "MongoDBSessionInterface"),
    ("flask_session.redis.redis", "RedisSessionInterface"),
    ("flask_session.sqlalchemy.sqlalchemy", "SqlAlchemySessionInterface"),
}

# Where middleware says that it takes something off the path, or gives it to another app.
_PREFIXES = ("prefix", "url_prefix", "path_prefix", "script_name", "mount_point")

_VARIABLE = re.compile(r"<[^<>]*>")  # in a rule

_MAX_LAYERS = 64  # as in production: one inside another, without end, is no middleware

# What to do about a folder that is left to the app; {flags} and {paths} are those of the folders in question.
_ALWAYS = 'If that does not matter, have it served from here: {flags}; or all such folders: files.auto = "always"'
_SECTION = "To have it served from here: {paths}, with the URL that it has, or a [[static]] section"
_APP_PATHS = "To have it served from here, name it in a [[static]] section, with what the app must answer in app_paths"
_OWN_URL = "Give one of them a url_prefix or a static_url_path of its own"


@dataclass(frozen=True, slots=True)
class AppStatic:
    """A folder to serve at `url` ("/" or without a slash at its end; not percent-encoded).

    A miss is the app's to answer, and so is every method but GET and HEAD. `max_age` is in seconds; None is Flask's
    "no-cache".
    """

    url: str
    directory: str
    max_age: int | None
    endpoint: str


@dataclass(frozen=True, slots=True)
class AppFolder:
    """A static folder, whoever serves it. `paths` is a pattern of the app's paths for it: "*" stands for anything."""

    url: str
    paths: str
    directory: str


@dataclass(frozen=True, slots=True)
class _Folder:
    flask: Flask
    owner: Any  # the Flask app, or a blueprint
    endpoint: str
    rule: Any
    directory: str

    @property
    def url(self) -> str:
        return _pattern_of(self.rule).removesuffix("/<path:filename>") or "/"

    @property
    def blueprint(self) -> str:
        return self.endpoint.removesuffix("static").rstrip(".")

    def __str__(self) -> str:
        of = f"blueprint {self.blueprint}, " if self.blueprint else ""
        return f"{self.url} ({of}{self.directory})"


@dataclass(slots=True)
class _Left:
    """What is left to the app: folders by reason, for one sentence each."""

    folders: dict[tuple[str, str], list[_Folder]] = field(default_factory=dict)

    def add(self, folder: _Folder, reason: str, remedy: str) -> None:
        self.folders.setdefault((reason, remedy), []).append(folder)

    def sentences(self) -> list[str]:
        return [
            f"{_listed(folders)} {'is' if len(folders) == 1 else 'are'} left to the app: {reason}. "
            + remedy.format(
                flags=_listed([_flag(folder.url, folder) for folder in folders]),
                paths=_listed([_flag("URL", folder) for folder in folders]),
            )
            for (reason, remedy), folders in self.folders.items()
        ]


def static_folders(
    app: object, *, always: bool = False, taken: Collection[str] = ()
) -> tuple[list[AppStatic], list[str]]:
    """Return the folders to serve in the place of `app`, and sentences for the log on those that are left to it.

    Both are empty for an app that is no Flask app as far as can be seen. A folder that is not there is neither served
    nor spoken of: every Flask app has a static folder by default. Nor is one at a URL that is `taken` by the operator.
    """
    parts = parts_of(app)
    flasks = [part for part in parts if is_flask(part)]
    elsewhere = _why_elsewhere(parts, flasks)
    left = _Left()
    candidates: list[_Folder] = []
    for flask in flasks:
        wrapped = _why_wrapped(app, flask)
        for folder in _folders_of(flask):
            if folder.url in taken:
                candidates.append(folder)
                continue
            never = elsewhere or _why_unroutable(folder)
            reason = never or ("" if always else wrapped or _why_code_matters(folder))
            hiding = "" if reason else _why_hidden(folder)
            if reason or hiding:
                left.add(folder, reason or hiding, _OWN_URL if hiding else _SECTION if never else _ALWAYS)
            else:
                candidates.append(folder)
    kept = [folder for folder in _without_overlaps(candidates, left, taken) if folder.url not in taken]
    return [AppStatic(one.url, one.directory, _max_age(one.flask), one.endpoint) for one in kept], left.sentences()


def all_folders(app: object) -> list[AppFolder]:
    """Return every static folder that is there, those that are left to the app, too."""
    folders = [folder for part in parts_of(app) if is_flask(part) for folder in _folders_of(part)]
    return [AppFolder(one.url, _VARIABLE.sub("*", _pattern_of(one.rule)), one.directory) for one in folders]


def static_directories(app: object) -> list[str]:
    """Return the directories of all static folders, which need not be there, nor have a URL."""
    owners = [
        (flask, owner) for flask in parts_of(app) if is_flask(flask) for owner in (flask, *flask.blueprints.values())
    ]
    return list(dict.fromkeys(_directory_of(*both) for both in owners if both[1].static_folder is not None))


def _folders_of(flask: Flask) -> Iterator[_Folder]:
    owners: dict[str, Any] = {"static": flask}
    owners |= {f"{name}.static": blueprint for name, blueprint in flask.blueprints.items()}
    for rule in flask.url_map.iter_rules():
        owner = owners.get(rule.endpoint)
        # A rule for one file of the folder, such as /favicon.ico, has the name in its defaults: a page as any other.
        if owner is None or owner.static_folder is None or "<" not in rule.rule:
            continue
        directory = _directory_of(flask, owner)
        if os.path.isdir(directory):
            yield _Folder(flask, owner, rule.endpoint, rule, directory)


def _directory_of(flask: Flask, owner: Any) -> str:
    return os.path.abspath(os.path.join(flask.root_path, os.fspath(owner.static_folder)))


def _flag(url: str, folder: _Folder) -> str:
    """Return what an operator would type to have a folder served at a URL."""
    below = os.path.relpath(folder.directory)
    return f"--static {shlex.quote(f'{url}={folder.directory if below.startswith(os.pardir) else below}')}"


# Where a folder is


def _why_elsewhere(parts: Sequence[object], flasks: Sequence[Flask]) -> str:
    """Say why a path of the server may be another one to the app."""
    if len(flasks) > 1:
        return f"one of {len(flasks)} Flask apps in one, whose URLs depend on what is around them"
    for part in parts:
        attributes = {} if is_flask(part) else getattr(part, "__dict__", {})
        prefixes = [attributes.get(name) for name in _PREFIXES]
        if attributes.get("mounts") or any(isinstance(prefix, str) and prefix.strip("/") for prefix in prefixes):
            return f"{_name_of(part)} around the app changes its URLs"
    return ""


def _why_unroutable(folder: _Folder) -> str:
    flask, rule = folder.flask, folder.rule
    if flask.url_map.host_matching or flask.subdomain_matching or rule.host or rule.subdomain:
        return "the app tells its hosts or subdomains apart, and a folder is served on all of them"
    if not _is_own(type(flask), "create_url_adapter", "flask") or "create_url_adapter" in vars(flask):
        return f"{_name_of(flask)} has a create_url_adapter of its own, and may route by more than the path"
    if strange := _not_flasks(flask.url_map):
        return f"the app's url_map, {strange}, is not Flask's, and may route by more than the path"
    prefix = _pattern_of(rule).removesuffix("/<path:filename>")
    plain = prefix != _pattern_of(rule) and "<" not in prefix and "//" not in prefix
    special = rule.defaults or rule.alias or rule.redirect_to or rule.websocket or rule.build_only
    path = flask.url_map.converters.get("path")
    ours = getattr(path, "__module__", "").startswith("werkzeug.")
    if not plain or special or not ours or (rule.methods is not None and "GET" not in rule.methods):
        return f"its rule {rule.rule} is not <prefix>/<path:filename> and nothing else"
    return ""


def _why_hidden(folder: _Folder) -> str:
    """Ask the map whom a file of the folder belongs to: of two rules with the same URLs, one is never reached."""
    path = f"{folder.url.rstrip('/')}/a-file-of-the-folder"
    try:
        found, _ = folder.flask.url_map.bind("localhost").match(path, method="GET", return_rule=True)
    except Exception:  # whatever it is, the folder is not what answers
        return f"the app does not answer {path} with it"
    if found is folder.rule or _place_in(folder, found) == "part":  # which is looked for by itself
        return ""
    return f'in the app, "{found.endpoint}" ({found.rule}) answers in its place'


def _without_overlaps(folders: Sequence[_Folder], left: _Left, taken: Collection[str]) -> list[_Folder]:
    """Leave the folders that other rules match in. A folder below another one is no such thing while it is served."""
    kept = list(folders)
    while True:
        served = {id(folder.rule) for folder in kept}
        inside = {id(folder): _rules_below(folder, served) for folder in kept if folder.url not in taken}
        overlapped = {folder: rules for folder, rules in inside.items() if rules}
        if not overlapped:
            return kept
        for folder in kept:
            if id(folder) in overlapped:
                named = _listed(overlapped[id(folder)])
                left.add(folder, f"the app has other rules in the same place, {named}", _APP_PATHS)
        kept = [folder for folder in kept if id(folder) not in overlapped]


def _rules_below(folder: _Folder, served: set[int]) -> list[str]:
    """Return the other rules that may answer for a path of the folder."""
    found = []
    for rule in folder.flask.url_map.iter_rules():
        place = "" if rule.build_only or id(rule) in served else _place_in(folder, rule)
        # Who has the same paths for GET has been asked of the map; for another method it may be this rule.
        if place == "part" or (place == "all" and (rule.methods is None or rule.methods - {"GET", "HEAD", "OPTIONS"})):
            found.append(str(rule.rule))
    return found


def _place_in(folder: _Folder, rule: Any) -> Literal["", "part", "all"]:
    """Tell how much of the folder a rule matches before, or instead of, the folder's own.

    Such a rule begins with the folder's prefix as it stands: Werkzeug tries the literal segments of a path first, so
    that one with a variable there, such as /<path:page>, is never reached.
    """
    base = folder.url.rstrip("/")
    pattern = _pattern_of(rule)
    if not pattern.startswith(f"{base}/"):
        return ""
    return "all" if re.fullmatch(r"/<path:\w+>", pattern[len(base) :]) else "part"


def _pattern_of(rule: Any) -> str:
    """Return a rule as Werkzeug reads it, which joins slashes unless told otherwise."""
    text = str(rule.rule)
    return re.sub("/{2,}", "/", text) if rule.merge_slashes else text


# What of the app's code would be gone past


def _why_wrapped(app: object, flask: Flask) -> str:
    """Say what is between the server and Flask's own WSGI method, other than Werkzeug's ProxyFix."""
    outer = _without_proxy_fix(app)
    if outer is not flask:
        return f"{_name_of(outer)} is around the app, and may be access control"
    for name in ("__call__", "wsgi_app"):
        if not _is_own(type(flask), name, "flask"):
            return f"{_name_of(flask)} has a {name} of its own, which may be access control"
    inner = _without_proxy_fix(vars(flask).get("wsgi_app", flask.wsgi_app))
    if inspect.ismethod(inner) and inner.__self__ is flask and inner.__func__ is type(flask).wsgi_app:
        return ""
    return f"{_name_of(inner)} is around the app's wsgi_app, and may be access control"


def _without_proxy_fix(value: Any) -> Any:
    for _ in range(_MAX_LAYERS):
        if is_dash(value) and _is_own(type(value), "__call__", "dash"):
            value = value.server
        elif is_proxy_fix(value) and _is_own(type(value), "__call__", "werkzeug"):
            value = vars(value).get("app")
        else:
            break
    return value


def _why_code_matters(folder: _Folder) -> str:
    flask = folder.flask
    for why in (_why_methods_matter(folder), *_why_classes_matter(flask), *_why_functions_matter(folder)):
        if why:
            return why
    if flask.config.get("SEND_FILE_MAX_AGE_DEFAULT") is not None and _max_age(flask) is None:
        return "SEND_FILE_MAX_AGE_DEFAULT is no number of seconds"
    return ""


def _why_methods_matter(folder: _Folder) -> str:
    for part, names in ((folder.flask, _ON_THE_WAY), (folder.owner, _FILE_METHODS)):
        for name in names:
            if not _is_own(type(part), name, "flask") or name in vars(part):
                return f"{_name_of(part)} has a {name} of its own, which would not be called"
    view = folder.flask.view_functions.get(folder.endpoint)
    if not _is_flasks_view(view, folder.owner):
        return f"{_name_of(view)} is the view of it, which would not be called and may be access control"
    return ""


def _why_classes_matter(flask: Flask) -> Iterator[str]:
    for name in _CLASSES:
        if strange := _not_flasks(getattr(flask, name)):
            yield f"the app's {name}, {strange}, is not Flask's: it would not be used, and may be access control"
    if flask.config.get("TRUSTED_HOSTS") is None and getattr(flask.request_class, "trusted_hosts", None):
        yield f"{_name_of(flask.request_class)} has trusted_hosts, which would not be looked at"


def _why_functions_matter(folder: _Folder) -> Iterator[str]:
    for called, function in _called_for(folder):
        if not _is_harmless(function):
            so = "would not see the responses" if called in _OF_RESPONSES else "may be access control"
            yield f"the {called} {_name_of(function)} would not be called, and {so}"


def _called_for(folder: _Folder) -> Iterator[tuple[str, Any]]:
    """Yield what an app or an extension has had called for every request to the folder, and what it is."""
    for kind, attribute in _HOOKS:
        functions: Mapping[str | None, Sequence[Any]] = getattr(folder.flask, attribute)
        for scope in _scopes(folder.blueprint):
            yield from ((kind, function) for function in functions.get(scope, ()))
    for name in _SIGNALS:
        signal: Any = getattr(sys.modules["flask.signals"], name)
        yield from ((f"{name} receiver", function) for function in signal.receivers_for(folder.flask))


def _scopes(blueprint: str) -> Iterator[str | None]:
    """Yield whose hooks run for a view of a blueprint: the app's, and those of each blueprint that it is nested in."""
    yield None
    names = blueprint.split(".") if blueprint else []
    yield from (".".join(names[: depth + 1]) for depth in range(len(names)))


def _is_flasks_view(view: Any, owner: Any) -> bool:
    """Tell the lambda that Flask makes for the app, or the method of the app or the blueprint itself."""
    if inspect.ismethod(view):
        return view.__self__ is owner and view.__func__ is inspect.getattr_static(type(owner), "send_static_file")
    made_by_flask = inspect.isfunction(view) and view.__qualname__ == "Flask.__init__.<locals>.<lambda>"
    return made_by_flask and _module_of(view).startswith("flask.")


def _not_flasks(value: Any) -> str:
    """Name what a class, or an object, has that is neither Flask's nor Werkzeug's nor harmless, "" for nothing.

    Not ours either: what `give_body_cap` puts before a request class is seen through.
    """
    cls = value if isinstance(value, type) else type(value)
    of_object = {} if cls is value else getattr(value, "__dict__", {})
    for part in cls.__mro__:
        if part in (object, ABC, CappedByRoute):
            continue
        package = _package(part.__module__)
        if package not in {"flask", "werkzeug"} and (part.__module__, part.__qualname__) not in _HARMLESS:
            return _name_of(part)
        for name, member in vars(part).items():
            function = getattr(member, "__func__", member)
            if inspect.isfunction(function) and (name in of_object or _package(_module_of(function)) != package):
                return f"{_name_of(part)}.{name}"
    return ""


def _is_harmless(hook: Any) -> bool:
    function = getattr(hook, "__func__", hook)
    return (_module_of(function), getattr(function, "__qualname__", "")) in _HARMLESS


def _is_own(cls: type, name: str, package: str) -> bool:
    """Tell whether a class has its method from `package`: neither overridden by a subclass nor patched."""
    member = inspect.getattr_static(cls, name, None)
    function = member.fget if isinstance(member, property) else member
    for _ in range(_MAX_LAYERS):
        if not _is_harmless(function):
            break
        function = _wrapped_by(function)
    return _package(_module_of(function)) == package


def _wrapped_by(function: Any) -> Any:
    """Return the one function that another one is around, None where that is not plain."""
    inside = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return inside[0] if len(inside) == 1 else None


def _package(module: str) -> str:
    return module.partition(".")[0]


def _module_of(function: object) -> str:
    return str(function.__globals__.get("__name__", "")) if inspect.isfunction(function) else ""


def _max_age(flask: Flask) -> int | None:
    value: object = flask.config.get("SEND_FILE_MAX_AGE_DEFAULT")
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0:
        return int(seconds)
    return None


def _name_of(value: Any) -> str:
    function: Any = getattr(value, "__func__", value)
    named: Any = function if inspect.isroutine(function) or isinstance(function, type) else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _listed(things: Sequence[object]) -> str:
    shown = [str(thing) for thing in things[:4]]
    if len(things) > len(shown):
        shown[3:] = [f"{len(things) - 3} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
