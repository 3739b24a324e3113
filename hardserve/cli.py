"""The command: what is typed, what is printed, and the exit code.

Exit codes: 0, 2 usage, 78 configuration (EX_CONFIG of sysexits.h), 1 anything else; and what service.run()
returns. Main thread, before and around everything else. It must not know how an app is found or served, and
imports what does only when it is needed: `hardserve --version` reads neither Flask nor the server.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hardserve.configfiles import shown_path
from hardserve.describe import describe
from hardserve.names import VARIABLE_PREFIX
from hardserve.options import (
    DEFAULT,
    OPTIONS,
    SECTIONS,
    TABLES,
    DotEnv,
    Option,
    Resolved,
    SettingsError,
    example_toml,
    resolve,
)
from hardserve.settings import (
    AddressList,
    Choice,
    Directory,
    Duration,
    FieldValue,
    FilePath,
    HostList,
    Int,
    ListKind,
    MountList,
    NetworkList,
    Output,
    Rate,
    Settings,
    Size,
    StorageUrl,
    Text,
)
from hardserve.values import plain, show

if TYPE_CHECKING:
    from hardserve.successor import Started

EXIT_FAILURE, EXIT_CONFIGURATION = 1, 78
DEMO = "hardserve.demo:app"
# The words in the place of APP that serve nothing.
COMMANDS = ("config", "check", "cert", "bans", "unban", "systemd")

# What most people set; `--help-all` has the rest.
COMMON = (
    "server.bind",
    "server.threads",
    "server.static",
    "server.tls",
    "tls.domain",
    "acme.agree",
    "timeouts.body",
    "limits.body",
    "log.level",
    "log.access",
)
UNITS_FLAGS = ("--install", "--remove", "--user", "--template", "--name")
# The flags that go with some commands only.
COMMANDS_OF = {
    "--example": ("config",),
    "--all": ("unban",),
    "--renew": ("cert",),
    "--json": ("cert", "check"),
    "--ignore": ("check",),
    "--list": ("check",),
    **dict.fromkeys(UNITS_FLAGS, ("systemd",)),
}
METAVARS = {
    AddressList: "ADDRESS",
    Choice: "WORD",
    Directory: "DIRECTORY",
    Duration: "DURATION",
    FieldValue: "TEXT",
    FilePath: "FILE",
    HostList: "HOST",
    Int: "N",
    MountList: "URL=PATH",
    NetworkList: "NETWORK",
    Output: "FILE",
    Rate: "RATE",
    Size: "SIZE",
    StorageUrl: "URL",
    Text: "TEXT",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit. `arguments` are those of the process unless given."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["passwd"]:
        from hardserve.passwd import passwd_command  # noqa: PLC0415

        passwd_command.main(words[1:], prog_name="hardserve passwd")
    _command().main(words, prog_name="hardserve")


def _command() -> click.Command:
    files: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1),
        click.Option(["--config", "config_path"], type=click.Path(path_type=Path)),
        click.Option(["--env-file", "env_file"], type=click.Path(path_type=Path)),
        click.Option(["--no-env-file", "no_env_file"], is_flag=True),
        click.Option(["--example", "example"], is_flag=True),
        click.Option(["--all", "everybody"], is_flag=True),
        click.Option(["--renew", "renew"], is_flag=True),
        click.Option(["--json", "as_json"], is_flag=True),
        click.Option(["--ignore", "ignore"], multiple=True),
        click.Option(["--list", "list_checks"], is_flag=True),
        *(click.Option([flag], is_flag=flag != "--name") for flag in UNITS_FLAGS),
        click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_print_help_all),
        click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_print_version),
    ]
    # Text, whatever the kind: options.py reads it and reports it together with what other sources got wrong.
    settings = [
        click.Option([option.flag, option.keyword], multiple=isinstance(option.kind, ListKind)) for option in OPTIONS
    ]
    return _Command(
        "hardserve",
        params=[*files, *settings],
        callback=_run,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


class _Command(click.Command):
    """One command with one set of flags, in any order, whose help is in groups.

    `demo`, `config`, `check`, `cert`, `bans`, `unban` and `systemd` are words in the place of APP and not click's
    subcommands, which would have a set of flags each, with a place before and a place after. `passwd` needs no setting,
    and is a command of its own.
    """

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return ["[APP | COMMAND]", "[--SETTING VALUE]..."]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_about(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    ("APP", "Serve it. Without APP: FLASK_APP, then wsgi.py or app.py."),
                    ("demo", "Serve a small app that shows what the server does for it."),
                    ("config", "Print every setting in force and where it came from."),
                    ("config --example", "Print hardserve.toml with every setting at its default."),
                    ("check [APP]", "Say what is wrong before it goes live; --ignore ID, --list, --json."),
                    ("cert", "Show the certificates and when each is renewed; --json."),
                    ("cert --renew", "Have the server renew them now."),
                    ("bans", "List the clients that the server has banned."),
                    ("unban CLIENT...", "Let them in again; --all for all of them."),
                    ("systemd [APP]", "Print its systemd units; --install, --remove, --template."),
                    ("passwd FILE USER", "Add a user to the file that auth.users names, or set a password."),
                ]
            )
        by_key = {option.key: option for option in OPTIONS}
        with formatter.section("Common settings (defaults in brackets)"):
            formatter.write_dl(
                [
                    (_usage(option), f"{option.help} [{_shown(option, option.default)}]")
                    for option in map(by_key.__getitem__, COMMON)
                ]
            )
        with formatter.section("Other flags"):
            formatter.write_dl(
                [
                    ("--config FILE", "Read this; else hardserve.toml or config/hardserve.toml."),
                    ("--env-file FILE", "Read this too; it counts more than .env and .flaskenv."),
                    ("--no-env-file", "Read neither .env nor .flaskenv."),
                    ("--help-all", "List every setting: each has a flag, a variable and a TOML name."),
                    ("--version", "Print the version."),
                ]
            )

    def format_about(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text(
            "Serve a Flask app, or any WSGI app, safely from one process on one port. APP is module:name,"
            " module:factory(), path/to/app.py:app, or a module in which the app is found as Flask finds it."
        )

    def help_all(self, ctx: click.Context) -> str:
        """Return the help of every setting."""
        formatter = ctx.make_formatter()
        self.format_about(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text(
            "Every setting: its flag, its environment variable, and its place in a TOML file, which is"
            " [section] name = value. Precedence: default < TOML file < .env < environment < flag."
        )
        for section in SECTIONS:
            with formatter.section(f"[{section.name}] {section.help.rstrip('.')}"):
                for option in section.options:
                    default = _shown(option, option.default)
                    formatter.write_text(f"{_usage(option)}  [{option.variable}]")
                    with formatter.indentation():
                        formatter.write_text(f"{option.help} ({describe(option.kind)}; default {default})")
        formatter.write_paragraph()
        formatter.write_text("In the TOML file only, any number of each, in double brackets:")
        for table in TABLES:
            with formatter.section(f"{table.header} {table.about.help.rstrip('.')}"):
                for key in table.keys:
                    formatter.write_text(key.name)
                    with formatter.indentation():
                        formatter.write_text(f"{key.about.help} ({key.bounds.rstrip('.')})")
        return formatter.getvalue()


def _usage(option: Option) -> str:
    return f"{option.flag} {METAVARS[type(option.kind)]}"


def _shown(option: Option, value: Any) -> str:
    """Write a value for people, who would not see an empty list."""
    return plain(option.kind, value) or "none"


def _print_help_all(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and isinstance(ctx.command, _Command):
        click.echo(ctx.command.help_all(ctx), nl=False)
        ctx.exit()


def _print_version(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        from hardserve import __version__  # noqa: PLC0415

        click.echo(f"hardserve {__version__}")
        ctx.exit()


def _run(
    words: tuple[str, ...],
    config_path: Path | None,
    env_file: Path | None,
    no_env_file: bool,
    example: bool,
    everybody: bool,
    renew: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    app, *rest = words or (None,)
    given = {"--example": example, "--all": everybody, "--renew": renew, "--json": as_json}
    of_units = {flag.removeprefix("--"): flags.pop(flag.removeprefix("--")) for flag in UNITS_FLAGS}
    given |= {f"--{name}": bool(value) for name, value in of_units.items()}
    ignore, list_checks = flags.pop("ignore"), flags.pop("list_checks")
    given |= {"--ignore": bool(ignore), "--list": list_checks}
    _check_usage(app, rest, [flag for flag, is_given in given.items() if is_given])
    if example:
        click.echo(example_toml(), nl=False)
        return
    if list_checks:
        from hardserve.check import as_table  # noqa: PLC0415

        click.echo(as_table())
        return
    started = None if app in COMMANDS else _started()
    directory = Path.cwd()

    def read(environ: Mapping[str, str]) -> tuple[Resolved, DotEnv]:
        dotenv = DotEnv() if no_env_file else DotEnv.find(directory, environ)
        if env_file is not None:
            dotenv = dotenv.overridden_by(DotEnv.load(env_file, directory=directory))
        resolved = resolve(
            flags={keyword: raw for keyword, raw in flags.items() if raw not in (None, ())},
            environ=environ,
            dotenv=dotenv,
            config=config_path,
            directory=directory,
        )
        return resolved, dotenv

    reread = None if started is None else _noting_reloads(read, started, directory)
    try:
        resolved, dotenv = read(os.environ)
    except SettingsError as error:
        count = len(error.problems)
        listed = "\n".join([f"hardserve: {count} problem{'s'[: count > 1]} with the settings:", *error.problems])
        click.echo(listed, err=True)
        if started is not None:
            started.failed(listed)
        sys.exit(EXIT_CONFIGURATION)
    if reread is not None:
        dotenv.apply(os.environ)
        reread.has_begun(resolved, dotenv)
        from hardserve.ops.ending import end_without_the_app  # noqa: PLC0415

        code = _serve(DEMO if app == "demo" else app, directory, resolved, reread)
        end_without_the_app(code)
        sys.exit(code)
    if app != "config":
        dotenv.apply(os.environ)  # which app, where certificates are kept: it may say
    own: dict[str, Any] = {"renew": renew, "as_json": as_json, "ignore": ignore, "of_units": of_units}
    sys.exit(_obey(app, [str(word) for word in rest], resolved, directory, **own))


def _obey(
    app: str | None,
    rest: Sequence[str],
    resolved: Resolved,
    directory: Path,
    *,
    renew: bool,
    as_json: bool,
    ignore: Sequence[str],
    of_units: Mapping[str, Any],
) -> int:
    """Do what a command is for that serves nothing, and return its exit code."""
    if app == "cert":
        return _ask_server("renew", resolved.settings) if renew else _show_certificates(resolved, as_json=as_json)
    if app == "check":
        from hardserve.check import check_command  # noqa: PLC0415

        checked = DEMO if rest == ["demo"] else next(iter(rest), None)
        return check_command(checked, resolved, directory=directory, as_json=as_json, ignore=ignore)
    if app == "systemd":
        from hardserve.units import units_command  # noqa: PLC0415

        return units_command(next(iter(rest), None), resolved, directory=directory, **of_units)
    if app in ("bans", "unban"):
        return _ask_server(app, resolved.settings, rest)
    _print_settings(resolved)
    return 0


def _check_usage(app: str | None, rest: Sequence[str], flags: Sequence[str]) -> None:
    """Raise click.UsageError for words and flags of commands that do not go together."""
    extra = [] if app == "unban" else rest[1:] if app in ("check", "systemd") else rest
    if extra:
        import difflib  # noqa: PLC0415  # for this only

        close = difflib.get_close_matches(str(app), COMMANDS, n=1) if app not in COMMANDS else []
        if close:
            raise click.UsageError(f"there is no command {app}; did you mean {close[0]}?")
        raise click.UsageError(f"Got unexpected extra argument{'s'[: len(extra) > 1]} ({' '.join(map(str, extra))})")
    for flag in flags:
        commands = COMMANDS_OF[flag]
        if app not in commands:
            raise click.UsageError(f"{flag} goes with {' and '.join(commands)}: hardserve {commands[0]} {flag}")
    if app == "unban" and bool(rest) == ("--all" in flags):
        raise click.UsageError("unban needs the address of a client, or --all")
    if {"--install", "--remove"} <= set(flags):
        raise click.UsageError("--install and --remove are opposites")
    if app == "cert" and len(flags) > 1:
        raise click.UsageError("--json is for what there is, and not for --renew")


def _started() -> Started:
    """Return how this process was started, which is to serve, and exit if it was given what it cannot use."""
    from hardserve.successor import Started  # noqa: PLC0415

    # Until they are handled: a reload or a swap right after a start must not end it. No setting has been read yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        return Started.now()
    except SettingsError as error:
        click.echo("\n".join(f"hardserve: {problem}" for problem in error.problems), err=True)
        sys.exit(EXIT_CONFIGURATION)


class _Rereader:
    """Reads the settings again as at the start: the same flags and environment, and what files say now.

    `read` does that; a file that was read before must be there. Called by the thread of a reload, one at a time.
    """

    def __init__(self, read: Callable[[], tuple[Resolved, DotEnv]], started: Started, directory: Path) -> None:
        self._read = read
        self.started = started
        self._directory = directory
        self._files: set[Path] = set()
        self._applied: Mapping[str, str] = {}  # what .env files had for the app at the start
        self.wanted = False  # since before there was a server
        self.later: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"<_Rereader of {sorted(map(str, self._files))}>"

    def note(self, _number: int, _frame: object) -> None:
        """Note that it was asked for by a signal, while the server is being put together. Main thread."""
        self.wanted = True

    def has_begun(self, resolved: Resolved, dotenv: DotEnv) -> None:
        """Note with what the server begins."""
        self._applied = self._of_app(dotenv)
        self._note_files(resolved)

    def _of_app(self, dotenv: DotEnv) -> dict[str, str]:
        """Return what is not for the server, and counts: the environment goes before."""
        environ = self.started.environ
        return {
            name: value
            for name, value in dotenv.values.items()
            if not name.startswith(VARIABLE_PREFIX) and name not in environ
        }

    def _note_files(self, resolved: Resolved) -> None:
        self._files = {path for path in (resolved.config_path, resolved.dotenv_path) if path is not None}

    def __call__(self) -> Resolved:
        """Return the settings. Raises SettingsError with every problem of every source."""
        from hardserve.inherited import with_passed  # noqa: PLC0415

        # Without it, what it said against clients would not hold any more, and nobody need have meant that.
        gone = [path for path in self._files if not os.path.lexists(self._directory / path)]
        if gone:
            said = "it was read before, and is not there any more; a restart does without it"
            raise SettingsError([f"{shown_path(path, self._directory)}: {said}" for path in sorted(gone)])
        resolved, dotenv = self._read()
        try:
            settings = with_passed(resolved.settings, self.started.passed, _is_set(resolved))
        except SettingsError as error:
            raise SettingsError([resolved.placed(problem) for problem in error.problems]) from None
        self._note_files(resolved)
        before, now = self._applied, self._of_app(dotenv)
        differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        self.later = [f"{name}: another value in .env for the app" for name in differing]
        return replace(resolved, settings=settings)


def _noting_reloads(
    read: Callable[[Mapping[str, str]], tuple[Resolved, DotEnv]], started: Started, directory: Path
) -> _Rereader:
    """Return what reads the settings again, which knows by now if that is asked for before there is a server."""
    reread = _Rereader(lambda: read(started.environ), started, directory)
    signal.signal(signal.SIGHUP, reread.note)
    return reread


def _serve(spec: str | None, directory: Path, resolved: Resolved, reread: _Rereader) -> int:
    from hardserve.checks.users import UsersFileError  # noqa: PLC0415
    from hardserve.edge.listener import ListenError  # noqa: PLC0415
    from hardserve.inherited import with_passed  # noqa: PLC0415
    from hardserve.loader import LoadError, load_app  # noqa: PLC0415
    from hardserve.ops.control import ControlError  # noqa: PLC0415
    from hardserve.ops.logs import configure  # noqa: PLC0415
    from hardserve.ops.logwriter import LogFileError  # noqa: PLC0415
    from hardserve.service import run  # noqa: PLC0415

    started = reread.started
    try:
        settings = with_passed(resolved.settings, started.passed, _is_set(resolved))
        logs = configure(settings.log)
        loaded = load_app(spec, directory=directory, environ=os.environ)
        return run(loaded.app, loaded.spec, settings, logs, started=started, reread=reread)
    except LoadError as error:
        problem, exit_code = str(error), error.exit_code
    except LogFileError as error:
        problem, exit_code = f"hardserve: {error}", EXIT_CONFIGURATION
    except (ListenError, ControlError) as error:
        problem, exit_code = f"hardserve: {error}", EXIT_FAILURE
    except SettingsError as error:
        placed = (f"hardserve: {resolved.placed(each)}" for each in error.problems)
        problem, exit_code = "\n".join(placed), EXIT_CONFIGURATION
    except UsersFileError as error:
        problem, exit_code = f"hardserve: auth.users: {error}", EXIT_CONFIGURATION
    click.echo(problem, err=True)
    started.failed(problem)
    return exit_code


def _is_set(resolved: Resolved) -> Callable[[str], bool]:
    """Return what says of a setting whether sockets that are passed on have to be what it says.

    A site with a certificate from a CA is to be on port 443, also where nobody has said so; its redirect can be left
    out.
    """
    return lambda key: key in resolved.where or (key == "server.bind" and resolved.origins[key] != DEFAULT)


def _show_certificates(resolved: Resolved, *, as_json: bool) -> int:
    from hardserve.cert import held, in_json, in_words, is_good  # noqa: PLC0415

    now = time.time()
    try:
        holdings = held(resolved.settings, os.environ, now)
    except SettingsError as error:
        click.echo("\n".join(f"hardserve: {resolved.placed(each)}" for each in error.problems), err=True)
        return EXIT_CONFIGURATION
    if as_json:
        click.echo(in_json(holdings, now))
    elif holdings:
        click.echo(in_words(holdings, now))
    else:
        click.echo("hardserve: these settings are without a certificate: the server speaks plain HTTP", err=True)
    return 0 if is_good(holdings) else EXIT_FAILURE


def _ask_server(command: str, settings: Settings, clients: Sequence[str] = ()) -> int:
    """Have the server that runs with these settings list or lift bans, or renew; `unban` without clients is all."""
    from hardserve.ops.control import ControlError, ask, control_path  # noqa: PLC0415

    path = control_path(settings.server, os.environ, os.getuid())
    if path is None:
        click.echo(
            "hardserve: there is no control socket to ask: name one with server.control, here and there", err=True
        )
        return EXIT_FAILURE
    try:
        if command == "renew":
            click.echo("\n".join(map(str, ask(path, "renew"))))
            return 0
        if command == "bans":
            bans = ask(path, "bans")
            for ban in bans if isinstance(bans, list) else []:
                click.echo(f"{ban['client']:<24}  {ban['remaining_s']:>8.0f} s left  banned {ban['times']} times")
            if not bans:
                click.echo("nobody is banned")
            return 0
        lifted = ask(path, "unban", clients=list(clients))
    except ControlError as error:
        click.echo(f"hardserve: {error}", err=True)
        return EXIT_FAILURE
    names = lifted if isinstance(lifted, list) else []
    click.echo(
        "\n".join(f"{name} may come in again" for name in names)
        or ("nobody of these was banned" if clients else "nobody is banned")
    )
    return 0 if names or not clients else EXIT_FAILURE


def _print_settings(resolved: Resolved) -> None:
    rows = []
    for option in OPTIONS:
        value = option.shown(getattr(getattr(resolved.settings, option.section), option.attribute))
        rows.append((option.key, value, resolved.origins[option.key]))
    for table in TABLES:
        entries = getattr(resolved.settings, table.name)
        if not entries:
            rows.append((table.name, "none", DEFAULT))
        for index, entry in enumerate(entries):
            for key in table.keys:
                name = table.key_of(index, key.name)
                rows.append((name, key.shown(getattr(entry, key.name)), resolved.origins[name]))
    rows = [(name, value if value.isprintable() else show(value), origin) for name, value, origin in rows]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        click.echo(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
