"""What there is to know of an app before it is judged: its configuration, its extensions, its code and its files.

Main thread, after the app was loaded; reads files. Only looks: of the app nothing is called. Extensions are known by
what they have left in the app, and none is imported for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hardserve.audit.appcode import (
    defends_itself,
    functions_in,
    hooks,
    is_from,
    logs_in,
    owner_of,
    place_of,
    shown,
    shows_traceback,
    uses_class_of,
    uses_host,
    uses_session,
    views_and_hooks,
)
from hardserve.audit.appsource import Place, Source, read_source
from hardserve.audit.strength import why_short, why_weak
from hardserve.audit.tracked import is_tracked
from hardserve.files.exposure import exposed
from hardserve.loader.hosts import has_proxy_fix, hosts_of
from hardserve.loader.kinds import is_flask
from hardserve.loader.production import parts_of
from hardserve.loader.sources import AppSource, source_of
from hardserve.loader.statics import all_folders, static_folders
from hardserve.mounting import files_of

if TYPE_CHECKING:
    from flask import Flask

# What an app signs with.
KEYS = ("SECRET_KEY", "SECRET_KEY_FALLBACKS", "JWT_SECRET_KEY", "WTF_CSRF_SECRET_KEY")
_SECRETS = re.compile(
    r"(?:^|_)(?:PASSWORD|PASSWD|SECRET|SECRET_KEY|API_KEY|PRIVATE_KEY|ACCESS_KEY|AUTH_TOKEN|ACCESS_TOKEN|PASSWORD_SALT)$"
)
_ABOUT_SECRETS = re.compile(r"^/|\s|\.html?$|[{}]")
# From here on a text is in no source by chance; a shorter one must be given to the setting there.
_MIN_UNIQUE = 16
_MIN_SECRET = 6
_LOGINS = frozenset({"login", "log-in", "log_in", "signin", "sign-in", "sign_in", "logon"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_UPLOADS = ("UPLOAD_FOLDER", "UPLOADS_DEFAULT_DEST", "UPLOAD_DIR", "UPLOAD_DIRECTORY", "UPLOAD_PATH")

_INSTALLED = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """A key that an app signs with; "" is what cannot be said of it."""

    name: str
    weak: str  # the end of a sentence: "has 3 characters"
    short: str
    random: str  # where it is made, "app.py:5"
    source: str  # where it stands


@dataclass(frozen=True, slots=True)
class FlaskFacts:
    """One Flask app. `config` is what it has; texts say where something is, "" that it is not there."""

    name: str
    config: Mapping[str, Any]
    keys: Sequence[KeyFacts]
    secrets: Sequence[tuple[str, str]]  # the settings whose values stand in the source, and where
    databases: Sequence[tuple[str, str]]  # those with a password in a URL
    signs_sessions: bool  # Flask's own, in a cookie
    session_use: str
    host_use: str
    changes: bool  # something, by POST and the like
    defends: bool  # itself against requests that other sites make
    logins: Sequence[str]  # paths that passwords are posted to
    escapes: bool  # what templates are given
    telling_handlers: Sequence[str]
    toolbar: bool
    flask_login: bool
    remembering: str  # where it is told to remember a user past the session
    limiter: bool  # that is in force
    limiter_for_all: bool  # with limits for everything
    talisman: Any  # the object, None without
    compress: bool
    uploads: Sequence[tuple[str, str]]  # settings that name a folder which the app shows, and the folder


@dataclass(frozen=True, slots=True)
class AppFacts:
    """An app, which may be several Flask apps or none that can be seen."""

    flasks: Sequence[FlaskFacts]
    proxy_fix: bool
    whitenoise: bool
    hosts: Sequence[str]
    left: Sequence[str]  # sentences on static folders that are left to the app
    exposed: Sequence[tuple[str, str]]  # the URL of a static folder, and a sentence on what is in it


def app_facts(
    app: object, *, directory: Path, environ: Mapping[str, str], taken: Sequence[str] = (), auto: str = "on"
) -> AppFacts:
    """Return what there is to know of `app`. Places are as somebody in `directory` would write them.

    At the URLs that are `taken`, the operator has something else served than the app's folders; `auto` is files.auto.
    """
    parts = parts_of(app)
    own = source_of(app)
    source = read_source(own.files, environ)
    left = [] if auto == "off" else static_folders(app, always=auto == "always", taken=taken)[1]
    return AppFacts(
        flasks=[_flask_facts(part, own, source, directory, environ) for part in parts if is_flask(part)],
        proxy_fix=has_proxy_fix(app),
        whitenoise=any(is_from(part, "whitenoise") for part in parts),
        hosts=hosts_of(app)[0],
        left=left,
        exposed=list(_exposed(app, own, taken)),
    )


def _exposed(app: object, own: AppSource, taken: Sequence[str]) -> Iterator[tuple[str, str]]:
    files = files_of(own)
    folders = {folder.directory: folder.url for folder in all_folders(app) if folder.url not in taken}
    for directory, url in folders.items():
        yield from ((url, sentence) for sentence in exposed(Path(directory), app_files=files))


def _flask_facts(
    flask: Flask, own: AppSource, source: Source, directory: Path, environ: Mapping[str, str]
) -> FlaskFacts:
    config: dict[str, Any] = dict(flask.config)
    files = frozenset(os.path.realpath(path) for path in own.files)
    written = _Written(source, directory)
    around = {id(owner): owner for owner in map(owner_of, hooks(flask)) if owner is not None}.values()
    limiters = [each for each in _several(flask.extensions.get("limiter")) if getattr(each, "enabled", False)]
    handlers = [each for scopes in flask.error_handler_spec.values() for each in scopes.values()]
    rules = list(flask.url_map.iter_rules())
    functions = functions_in(views_and_hooks(flask), files)
    has_logins = is_from(vars(flask).get("login_manager"), "flask_login")
    return FlaskFacts(
        name=flask.name,
        config=config,
        keys=list(_keys(config, written, (flask.name, directory.name), environ)),
        secrets=[(name, place) for name in config if (place := written.secret(name, config[name]))],
        databases=[(name, place) for name, url in _urls(config) if (place := written.password(url))],
        signs_sessions=any(
            cls.__name__ == "SecureCookieSessionInterface" for cls in type(flask.session_interface).__mro__
        ),
        session_use=uses_session(functions, directory) or (logs_in(functions, directory) if has_logins else ""),
        host_use=uses_host(functions, directory),
        changes=any((rule.methods or set()) - _SAFE for rule in rules),
        defends="csrf" in flask.extensions
        or uses_class_of("flask_wtf", functions)
        or defends_itself(functions_in(hooks(flask), files)),
        logins=sorted({rule.rule for rule in rules if _is_login(rule.rule) and "POST" in (rule.methods or ())}),
        escapes=flask.jinja_options.get("autoescape", True) is not False and not _env_without_escapes(flask),
        telling_handlers=[
            place_of(function, directory)
            for codes in handlers
            for each in codes.values()
            for function in functions_in(iter([each]), files)[:1]
            if shows_traceback(function)
        ],
        toolbar="debugtoolbar" in flask.extensions or "debug_toolbar" in flask.extensions,
        flask_login=has_logins,
        remembering=logs_in(functions, directory, remembering=True) if has_logins else "",
        limiter=bool(limiters),
        limiter_for_all=any(map(_has_limits_for_all, limiters)),
        talisman=next((each for each in around if is_from(each, "flask_talisman")), None),
        compress=any(is_from(each, "flask_compress") for each in around),
        uploads=list(_uploads(flask, own)),
    )


def _several(value: object) -> Sequence[object]:
    return list(value) if isinstance(value, set | frozenset | list | tuple) else [] if value is None else [value]


def _is_login(rule: str) -> bool:
    return rule.rstrip("/").rpartition("/")[2].lower() in _LOGINS


def _env_without_escapes(flask: Flask) -> bool:
    """Look at the environment of templates, if there is one yet: to ask for it would make it."""
    environment = vars(flask).get("jinja_env")
    return environment is not None and environment.autoescape is False


def _has_limits_for_all(limiter: Any) -> bool:
    manager = getattr(limiter, "limit_manager", limiter)
    return bool(getattr(manager, "_default_limits", None) or getattr(manager, "_application_limits", None))


def _uploads(flask: Flask, own: AppSource) -> Iterator[tuple[str, str]]:
    public = [os.path.realpath(path) for path in own.public]
    for name in _UPLOADS:
        value = flask.config.get(name)
        if isinstance(value, str | os.PathLike) and os.fspath(value):
            for base in ("", flask.root_path):
                folder = os.path.realpath(os.path.join(base, os.fspath(value)))
                if os.path.isdir(folder) and any(os.path.commonpath([folder, each]) == each for each in public):
                    yield name, folder
                    break


# --- keys and passwords ---


def _keys(
    config: Mapping[str, Any], written: _Written, words: Sequence[str], environ: Mapping[str, str]
) -> Iterator[KeyFacts]:
    for name in KEYS:
        for key in _several(config.get(name)):
            if isinstance(key, str | bytes) and key:
                text = _text(key)
                given = text in environ.values()
                yield KeyFacts(
                    name=name,
                    weak=why_weak(key, words),
                    short=why_short(key),
                    random="" if given else written.place(written.source.random.get(name)),
                    source=written.key(name, text),
                )


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _urls(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the settings that are a URL, or have some."""
    for name, value in config.items():
        several = value.values() if isinstance(value, dict) else [value]
        for each in several:
            url = each.get("url") if isinstance(each, dict) else each
            if isinstance(url, str) and "://" in url:
                yield name, url


@dataclass(frozen=True, slots=True)
class _Written:
    """Where values stand in the source, as somebody in `directory` would write it. What git leaves out is not there."""

    source: Source
    directory: Path

    def place(self, place: Place | None) -> str:
        if place is None or _is_kept_back(Path(place[0])):
            return ""
        return f"{shown(place[0], self.directory)}:{place[1]}"

    def key(self, name: str, text: str) -> str:
        found = self.source.texts.get(text) if len(text) >= _MIN_UNIQUE else None
        return self.place(found or self.source.assigned.get((name, text)))

    def secret(self, name: str, value: object) -> str:
        if name in KEYS or not _SECRETS.search(name) or not isinstance(value, str) or len(value) < _MIN_SECRET:
            return ""
        # There are pages and texts about passwords, too.
        return "" if _ABOUT_SECRETS.search(value) else self.key(name, value)

    def password(self, url: str) -> str:
        try:
            password = urlsplit(url).password
        except ValueError:
            return ""
        return self.place(self.source.place_of_part(f":{password}@")) if password else ""


def _is_kept_back(path: Path) -> bool:
    """Return whether git leaves out a file of the app; one of an installed package is public in any case."""
    return not _INSTALLED & set(path.parts) and is_tracked(path) is False
