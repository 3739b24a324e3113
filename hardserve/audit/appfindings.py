"""What is wrong with an app that is to be served: flags of a developer, limits, files and hosts.

Pure: it judges facts. Keys and cookies are secretfindings', and what the server does itself is doubledfindings'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hardserve.audit.appfacts import AppFacts, FlaskFacts
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.reach import Reach
from hardserve.http.paths import PathPattern
from hardserve.settings import MIB, Settings
from hardserve.values import format_size

_CONFIGURATION = "in the app's configuration"

LOAD_FAILED = Check(
    "load-failed",
    Severity.ERROR,
    "the app cannot be loaded",
    "the server does not start",
    "mend what is said there, and try again",
)
DEBUG_ON = Check(
    "debug-on",
    Severity.ERROR,
    "the app is set up for development",
    "the server does not start: a debugger shows source and runs code for everybody",
    "turn off each of what is said there; for development there is `flask run --debug`",
)
TESTING_ON = Check(
    "testing-on",
    Severity.WARNING,
    "the app believes that it is being tested",
    "error pages of the app are not used, and extensions leave checks out",
    f"take TESTING = True out of what is {_CONFIGURATION}",
)
PROPAGATES = Check(
    "exceptions-propagate",
    Severity.WARNING,
    "exceptions go past the app's error handlers",
    "its own page and log for a 500 are not used",
    f"take PROPAGATE_EXCEPTIONS = True out of what is {_CONFIGURATION}",
)
TRAPS = Check(
    "errors-trapped",
    Severity.WARNING,
    "errors of clients are errors of the app",
    "a request for what is missing, or without a field, is a 500 and a traceback in the log",
    f"take TRAP_HTTP_EXCEPTIONS and TRAP_BAD_REQUEST_ERRORS out of what is {_CONFIGURATION}",
)
TEMPLATES_RELOAD = Check(
    "templates-reload",
    Severity.NOTE,
    "templates are looked at for changes each time they are used",
    "it costs time, and a deploy is seen half done",
    f"take TEMPLATES_AUTO_RELOAD = True out of what is {_CONFIGURATION}",
)
TEMPLATES_EXPLAINED = Check(
    "template-loading-explained",
    Severity.WARNING,
    "each template that is loaded is explained in the log",
    "the log grows by many lines for nothing",
    f"take EXPLAIN_TEMPLATE_LOADING = True out of what is {_CONFIGURATION}",
)
SQL_ECHO = Check(
    "sql-echo",
    Severity.WARNING,
    "every SQL statement is logged, with its values",
    "what users have entered is in the log, also what nobody should read there",
    f"take SQLALCHEMY_ECHO = True out of what is {_CONFIGURATION}",
)
LOGIN_DISABLED = Check(
    "login-disabled",
    Severity.ERROR,
    "login_required lets everybody in",
    "LOGIN_DISABLED is for tests: pages behind a login are open",
    f"take LOGIN_DISABLED = True out of what is {_CONFIGURATION}",
)
CSRF_OFF = Check(
    "csrf-off",
    Severity.WARNING,
    "the app's protection against forms of other sites is off",
    "WTF_CSRF_ENABLED = False is for tests: other sites can post in the name of a user",
    f"take WTF_CSRF_ENABLED = False out of what is {_CONFIGURATION}",
)
TOOLBAR = Check(
    "debug-toolbar",
    Severity.ERROR,
    "the debug toolbar is on",
    "it shows configuration, requests and SQL to everybody",
    f"take DEBUG_TB_ENABLED = True out of what is {_CONFIGURATION}",
)
AUTOESCAPE_OFF = Check(
    "autoescape-off",
    Severity.WARNING,
    "templates do not escape what they are given",
    "whatever a user has entered is HTML of the page, with its scripts",
    "leave autoescape of jinja_options and jinja_env as Flask has it, and mark what is HTML with |safe",
)
ERROR_TELLS = Check(
    "error-page-tells",
    Severity.WARNING,
    "an error handler answers with the traceback",
    "source, paths and values are shown to who has caused the error",
    "log it (app.logger.exception) and answer with a sentence",
)
UPLOAD_LIMIT = Check(
    "upload-limit-above",
    Severity.WARNING,
    "the app takes larger uploads than the server lets through",
    "they get 413 before the app sees them",
    "limits.body, or max_body of a [[route]] for the path of the upload, as large as MAX_CONTENT_LENGTH",
)
FORM_MEMORY = Check(
    "form-memory-unbounded",
    Severity.WARNING,
    "fields of a form may take any amount of memory",
    "parsing a form of many or large fields takes a multiple of its size",
    f"leave MAX_FORM_MEMORY_SIZE and MAX_FORM_PARTS {_CONFIGURATION} at Flask's 500 kB and 1,000",
)
UPLOADS_SHOWN = Check(
    "uploads-in-static",
    Severity.WARNING,
    "what users upload is served beside the app's own scripts",
    "an HTML page, a script or a .gz that somebody uploads is one of the site's",
    "move it out of the static folder, and send the files with send_from_directory, or by a [[static]] of its own with "
    'precompressed = "off"',
)
STATIC_LEFT = Check(
    "static-left-to-app",
    Severity.NOTE,
    "static files take a worker",
    "code of the app is between, which may be access control",
    'files.auto = "always", if that code does not matter for static files',
)
STATIC_SHOWS = Check(
    "static-exposes",
    Severity.ERROR,
    "a static folder has something in it that is nobody's business",
    "everybody can download it",
    "move it out of the static folder",
)
HOSTS_ANY = Check(
    "hosts-any",
    Severity.NOTE,
    "requests for any host are served",
    "who points a name of theirs here has your site under it",
    'access.hosts = ["example.org"], with the names of this site',
)
HOSTS_IN_LINKS = Check(
    "hosts-in-links",
    Severity.WARNING,
    "links that the app makes lead to whatever host a client has sent",
    "a mail to reset a password may have a link to somebody else's site",
    HOSTS_ANY.fix,
)
LOGIN_UNLIMITED = Check(
    "login-unlimited",
    Severity.NOTE,
    "passwords can be tried at the rate of any request",
    "rate_limiting.default lets a client ask 50 times a second",
    '[[rate_limit]] path = "/login", methods = ["POST"], limit = "5/minute; 50/hour"',
)

CHECKS: tuple[Check, ...] = (
    LOAD_FAILED,
    DEBUG_ON,
    TESTING_ON,
    PROPAGATES,
    TRAPS,
    TEMPLATES_RELOAD,
    TEMPLATES_EXPLAINED,
    SQL_ECHO,
    LOGIN_DISABLED,
    CSRF_OFF,
    TOOLBAR,
    AUTOESCAPE_OFF,
    ERROR_TELLS,
    UPLOAD_LIMIT,
    FORM_MEMORY,
    UPLOADS_SHOWN,
    STATIC_LEFT,
    STATIC_SHOWS,
    HOSTS_ANY,
    HOSTS_IN_LINKS,
    LOGIN_UNLIMITED,
)

# Settings that are a finding when they are true.
_FLAGS: Mapping[str, Check] = {
    "TESTING": TESTING_ON,
    "PROPAGATE_EXCEPTIONS": PROPAGATES,
    "TRAP_HTTP_EXCEPTIONS": TRAPS,
    "TRAP_BAD_REQUEST_ERRORS": TRAPS,
    "TEMPLATES_AUTO_RELOAD": TEMPLATES_RELOAD,
    "EXPLAIN_TEMPLATE_LOADING": TEMPLATES_EXPLAINED,
    "SQLALCHEMY_ECHO": SQL_ECHO,
}
# A field of this size takes some hundred MiB while it is parsed.
_MAX_FORM_MEMORY = 16 * MIB
# What a folder is left to the app for, where a finding of its own says so.
_SAID_ELSEWHERE = ("flask_talisman.", "whitenoise.", "flask_compress.")


def app_findings(facts: AppFacts, settings: Settings, reach: Reach) -> Iterator[Finding]:
    """Yield what is wrong with the app."""
    for flask in facts.flasks:
        yield from _flag_findings(flask)
        yield from _limit_findings(flask, settings)
        yield from _login_findings(flask, settings, reach)
    for sentence in facts.left:
        if not any(name in sentence for name in _SAID_ELSEWHERE):
            said, _, remedy = sentence.partition(". ")
            yield STATIC_LEFT.found(said, remedy)
    for url, sentence in facts.exposed:
        yield STATIC_SHOWS.found(f"below {url}: {sentence}")
    if reach.public and not facts.hosts and not settings.access.hosts:
        seen = f"server.bind = {', '.join(reach.open)}, without access.hosts, and without TRUSTED_HOSTS of the app"
        use = next((flask.host_use for flask in facts.flasks if flask.host_use), "")
        if use:
            yield HOSTS_IN_LINKS.found(f"{seen}; {use}", _hosts_fix(settings))
        else:
            yield HOSTS_ANY.found(seen, _hosts_fix(settings))


def _hosts_fix(settings: Settings) -> str:
    names = ", ".join(f'"{name}"' for name in settings.tls.domain)
    return f"access.hosts = [{names}]" if names else HOSTS_ANY.fix


def _flag_findings(flask: FlaskFacts) -> Iterator[Finding]:
    config, of = flask.config, f'of the Flask app "{flask.name}"'
    for name, check in _FLAGS.items():
        if config.get(name) is True or (name == "SQLALCHEMY_ECHO" and config.get(name)):
            yield check.found(f"{name} {of} is on")
    if flask.flask_login and config.get("LOGIN_DISABLED"):
        yield LOGIN_DISABLED.found(f"LOGIN_DISABLED {of} is on")
    if config.get("WTF_CSRF_ENABLED") is False:
        yield CSRF_OFF.found(f"WTF_CSRF_ENABLED {of} is off")
    if flask.toolbar and config.get("DEBUG_TB_ENABLED"):
        yield TOOLBAR.found(f"DEBUG_TB_ENABLED {of} is on")
    if not flask.escapes:
        yield AUTOESCAPE_OFF.found(f"autoescape of the templates {of} is off")
    for place in flask.telling_handlers:
        yield ERROR_TELLS.found(f"{place} returns traceback.format_exc()")


def _limit_findings(flask: FlaskFacts, settings: Settings) -> Iterator[Finding]:
    config, of = flask.config, f'of the Flask app "{flask.name}"'
    limit = config.get("MAX_CONTENT_LENGTH")
    largest = max([settings.limits.body, *(route.max_body or 0 for route in settings.route)])
    if isinstance(limit, int) and limit > largest:
        yield UPLOAD_LIMIT.found(
            f"MAX_CONTENT_LENGTH {of} is {format_size(limit)}, and limits.body is {format_size(settings.limits.body)}",
            f'limits.body = "{format_size(limit)}", or that as max_body of a [[route]] for the path of the upload',
        )
    memory = config.get("MAX_FORM_MEMORY_SIZE", 0)
    if memory is None or (isinstance(memory, int) and memory > _MAX_FORM_MEMORY):
        said = "None" if memory is None else format_size(memory)
        yield FORM_MEMORY.found(f"MAX_FORM_MEMORY_SIZE {of} is {said}")
    if config.get("MAX_FORM_PARTS", 0) is None:
        yield FORM_MEMORY.found(f"MAX_FORM_PARTS {of} is None")
    for name, folder in flask.uploads:
        yield UPLOADS_SHOWN.found(f"{name} {of} is {folder}, which is in a static folder")


def _login_findings(flask: FlaskFacts, settings: Settings, reach: Reach) -> Iterator[Finding]:
    if flask.limiter or not (reach.public or reach.proxied) or reach.closed:
        return
    open_ones = [path for path in flask.logins if not _is_limited(path, settings)]
    if open_ones:
        yield LOGIN_UNLIMITED.found(
            f'POST {_listed(open_ones)} of the Flask app "{flask.name}" is in no [[rate_limit]]',
            LOGIN_UNLIMITED.fix.replace("/login", open_ones[0]),
        )


def _is_limited(path: str, settings: Settings) -> bool:
    return any(
        PathPattern(rule.path).matches(path) and (not rule.methods or "POST" in rule.methods) and rule.dry_run == "off"
        for rule in settings.rate_limit
        if not rule.status or {200, 302, 401, 403} & set(rule.status)
    )


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
