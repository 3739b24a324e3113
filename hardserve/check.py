"""`hardserve check`: what is wrong with an app, its settings and its box, before it goes live.

Main thread, of a command that then ends. The app is loaded as for serving and is not served; nothing is changed. Facts
are gathered here, once, and judged in `audit`, whose checks each have an id that stays.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from hardserve.audit import appfindings, box, certfindings, doubledfindings, secretfindings, service, settingfindings
from hardserve.audit.appfacts import AppFacts, app_facts
from hardserve.audit.boxplace import Place
from hardserve.audit.boxreach import reach_facts
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.reach import reach_of
from hardserve.audit.secretfindings import SecretFile
from hardserve.audit.settingfindings import SettingFacts
from hardserve.audit.tracked import is_open, is_tracked
from hardserve.cert import held
from hardserve.checks.users import Authenticator, UsersFileError
from hardserve.configfiles import DotEnv, SettingsError, shown_path
from hardserve.loader import LoadError, load_app
from hardserve.loader.errors import EXIT_CONFIGURATION, EXIT_FAILURE, EXIT_USAGE
from hardserve.mounting import mounts_of
from hardserve.ops.logfile import Destination, destination

if TYPE_CHECKING:
    from hardserve.options import Resolved
    from hardserve.settings import Settings

DEMO = "hardserve.demo:app"
DOTENV_FILES = (".env", ".flaskenv")

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def all_checks() -> tuple[Check, ...]:
    """Return every check there is, the worst first."""
    modules = (appfindings, doubledfindings, secretfindings, settingfindings, certfindings, box, service)
    return tuple(sorted((check for module in modules for check in module.CHECKS), key=_by_severity))


def check_command(app: str | None, resolved: Resolved, *, directory: Path, as_json: bool, ignore: Sequence[str]) -> int:
    """Print what is wrong; return the exit code.

    0 if there is nothing but notes, 1 for a warning or an error that is not in `ignore`, 78 where the settings cannot
    be used, 2 for an APP that cannot be read. Raises click.UsageError for an id in `ignore` that there is not.
    """
    _check_ids(ignore)
    try:
        on_internet = bool(reach_facts(Path("/"), is_root=os.geteuid() == 0).public)
        found = [*app_findings(app, resolved, directory, on_internet=on_internet), *box_findings(resolved, directory)]
    except LoadError as error:
        click.echo(str(error), err=True)
        return error.exit_code
    except SettingsError as error:
        click.echo("\n".join(f"hardserve: {resolved.placed(each)}" for each in error.problems), err=True)
        return EXIT_CONFIGURATION
    except UsersFileError as error:
        click.echo(f"hardserve: auth.users: {error}", err=True)
        return EXIT_CONFIGURATION
    told = sorted((each for each in found if each.check.id not in ignore), key=lambda each: _by_severity(each.check))
    click.echo(in_json(told) if as_json else in_words(told, len(found) - len(told), colour=_has_colour()))
    code = EXIT_FAILURE if any(each.check.severity > Severity.NOTE for each in told) else 0
    if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        # The app has started them, and they would keep this process: nobody tells them that it is not served.
        sys.stdout.flush()
        os._exit(code)
    return code


def _by_severity(check: Check) -> int:
    return -check.severity


def _check_ids(ignore: Sequence[str]) -> None:
    known = [check.id for check in all_checks()]
    for each in ignore:
        if each not in known:
            close = difflib.get_close_matches(each, known, n=3) or [name for name in known if each in name][:3]
            meant = f"; did you mean {' or '.join(close)}?" if close else "; hardserve check --list has all"
            raise click.UsageError(f"--ignore {each}: there is no such id{meant}")


# --- what there is ---


def app_findings(
    app: str | None, resolved: Resolved, directory: Path, *, on_internet: bool = True
) -> Iterator[Finding]:
    """Yield what is wrong with the app and the settings. `on_internet` is whether this box has a public address.

    Raises LoadError for an APP that cannot be read, and SettingsError and UsersFileError as serving would.
    """
    settings = resolved.settings
    reach = reach_of(settings, on_internet=on_internet)
    _refuse_store(settings)
    facts: AppFacts | None = None
    try:
        facts = _app_facts(app, settings, directory)
    except LoadError as error:
        if error.exit_code == EXIT_USAGE:
            raise
        yield _not_loaded(error)
    flasks = () if facts is None else facts.flasks
    hosts = settings.access.hosts or (() if facts is None else facts.hosts)
    if facts is not None:
        yield from appfindings.app_findings(facts, settings, reach)
        yield from doubledfindings.doubled_findings(facts, reach)
    for flask in flasks:
        yield from secretfindings.secret_findings(flask, reach, hosts or settings.tls.domain)
    yield from secretfindings.file_findings(list(_secret_files(resolved, directory)))
    yield from settingfindings.setting_findings(
        SettingFacts(
            settings,
            reach,
            _users_warnings(settings),
            has_socket_unit=_has_socket_unit(),
            has_proxy_fix=facts is not None and facts.proxy_fix,
        )
    )
    holdings = held(settings, os.environ, time.time())
    sets_hsts = any(getattr(flask.talisman, "strict_transport_security", False) for flask in flasks)
    yield from certfindings.certificate_findings(settings, reach, hosts, holdings, sets_hsts=sets_hsts)


def box_findings(resolved: Resolved, directory: Path) -> Iterator[Finding]:
    """Yield what is wrong with this box, and with the systemd units of the app."""
    place = Place(directory, resolved.config_path, tuple(_env_files(resolved, directory)))
    yield from box.box_findings(resolved.settings, place=place)
    yield from service.service_findings(resolved.settings, place=place)


def _app_facts(app: str | None, settings: Settings, directory: Path) -> AppFacts:
    with _quiet():
        loaded = load_app(app, directory=directory, environ=os.environ)
        if settings.server.static or settings.static:
            mounts_of(loaded.app, settings)  # refuses what a server would
        taken = [text.partition("=")[0] for text in settings.server.static] + [each.url for each in settings.static]
        return app_facts(loaded.app, directory=directory, environ=os.environ, taken=taken, auto=settings.files.auto)


def _not_loaded(error: LoadError) -> Finding:
    check = appfindings.DEBUG_ON if error.exit_code == EXIT_CONFIGURATION else appfindings.LOAD_FAILED
    return check.found(str(error))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have what a server would log as it starts go nowhere: what matters of it is a finding.

    What the app prints goes to stderr: stdout is for findings, which a program may read.
    """
    logger = logging.getLogger("hardserve")
    handler = logging.NullHandler()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def _refuse_store(settings: Settings) -> None:
    """Raise SettingsError for a store that a server would not take. Nobody is asked."""
    if settings.rate_limiting.storage != "memory":
        from hardserve.checks.sharedrates import check_settings  # noqa: PLC0415  # it brings all of `limits`

        problems = check_settings(settings.rate_limiting.storage, settings.rate_limit)
        if problems:
            raise SettingsError(problems)


def _users_warnings(settings: Settings) -> list[str]:
    return [] if settings.auth.users == "none" else Authenticator(settings.auth.users, 0.0).load()


def _env_files(resolved: Resolved, directory: Path) -> list[Path]:
    candidates = [
        *([resolved.dotenv_path] if resolved.dotenv_path else []),
        *(directory / each for each in DOTENV_FILES),
    ]
    files = {os.path.realpath(path): path for path in candidates if path.is_file()}
    return list(files.values())


def _secret_files(resolved: Resolved, directory: Path) -> Iterator[SecretFile]:
    """Yield the files with secrets that somebody else may have seen; the mode of our own is the box's finding."""
    for path in _env_files(resolved, directory):
        names = secret_names(DotEnv.load(path).values.items())
        if names:
            yield SecretFile(shown_path(path, directory), names, is_tracked(path) is True, is_open(path))
    where = resolved.origins.get("rate_limiting.storage", "")
    if resolved.config_path is not None and _has_password(resolved.settings.rate_limiting.storage):
        path = directory / resolved.config_path
        shown = shown_path(path, directory)
        if where.startswith(f"{shown}:"):
            yield SecretFile(shown, ["rate_limiting.storage"], is_tracked(path) is True, open=False)


def secret_names(values: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names of those values that are secrets, by their name or as a URL with a password."""
    words = ("SECRET", "PASSWORD", "PASSWD", "TOKEN", "PRIVATE_KEY", "API_KEY", "ACCESS_KEY")
    return [name for name, value in values if value and (any(w in name.upper() for w in words) or _has_password(value))]


def _has_password(text: str) -> bool:
    try:
        return "://" in text and bool(urlsplit(text).password)
    except ValueError:
        return False


def _has_socket_unit() -> bool:
    places = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
    return any(next(Path(place).glob("hardserve*.socket"), None) is not None for place in places)


# --- how it is said ---


def _has_colour() -> bool:
    try:
        return destination(sys.stdout.fileno(), os.environ) is Destination.COLOUR_TERMINAL
    except (OSError, ValueError):  # a stream without a descriptor, or closed
        return False


def in_words(findings: Sequence[Finding], ignored: int = 0, *, colour: bool = False) -> str:
    """Write findings for people: a paragraph each, and how many there are."""
    bold, dim, plain = (_BOLD, _DIM, _PLAIN) if colour else ("", "", "")
    paragraphs = []
    for each in findings:
        check = each.check
        first, *more = each.evidence.rstrip().splitlines() or [""]
        lines = [f"{bold}{check.severity.name.lower()} {check.id}{plain}: {check.title}"]
        lines += [f"  {dim}seen{plain}  {_printable(first)}", *(f"        {_printable(line)}" for line in more)]
        lines += [f"  {dim}why{plain}   {check.why}", f"  {dim}fix{plain}   {_printable(each.fix)}"]
        paragraphs.append("\n".join(lines))
    beside = f" ({ignored} ignored)" if ignored else ""
    return "\n\n".join([*paragraphs, f"{_counted(findings)}{beside}"])


def _counted(findings: Sequence[Finding]) -> str:
    counts = [(severity, sum(each.check.severity is severity for each in findings)) for severity in reversed(Severity)]
    said = [f"{count} {severity.name.lower()}{'s'[: count > 1]}" for severity, count in counts if count]
    return ", ".join(said) or "nothing found"


def _printable(text: str) -> str:
    """Return a line that cannot steer a terminal, whoever has written it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def in_json(findings: Sequence[Finding]) -> str:
    """Write findings as JSON; the README says which keys there are."""
    listed = [
        {
            "id": each.check.id,
            "severity": each.check.severity.name.lower(),
            "title": each.check.title,
            "evidence": each.evidence,
            "fix": each.fix,
        }
        for each in findings
    ]
    return json.dumps(listed, indent=2)


def as_table(checks: Iterable[Check] | None = None) -> str:
    """Write every check in Markdown, for the reference."""
    cell: Callable[[str], str] = lambda text: text.replace("|", "\\|")  # noqa: E731
    rows = [
        f"| `{check.id}` | {check.severity.name.lower()} | {cell(check.title)} | {cell(check.fix)} |"
        for check in (all_checks() if checks is None else checks)
    ]
    return "\n".join(["| id | severity | what is wrong | what mends it |", "|---|---|---|---|", *rows])
