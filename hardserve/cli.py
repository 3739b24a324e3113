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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hardserve.helptext import Command, print_help_all, print_version
from hardserve.options import (
    DEFAULT,
    OPTIONS,
    TABLES,
    DotEnv,
    Resolved,
    SettingsError,
    example_toml,
    resolve,
)
from hardserve.rereading import Rereader, is_set, noting_reloads
from hardserve.settings import (
    ListKind,
    Settings,
)
from hardserve.values import show

if TYPE_CHECKING:
    from hardserve.successor import Started

EXIT_FAILURE, EXIT_CONFIGURATION = 1, 78
DEMO = "hardserve.demo:app"
# The words in the place of APP that serve nothing.
COMMANDS = ("config", "check", "cert", "bans", "unban", "systemd")

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
        click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=print_help_all),
        click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=print_version),
    ]
    # Text, whatever the kind: options.py reads it and reports it together with what other sources got wrong.
    settings = [
        click.Option([option.flag, option.keyword], multiple=isinstance(option.kind, ListKind)) for option in OPTIONS
    ]
    return Command(
        "hardserve",
        params=[*files, *settings],
        callback=_run,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


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

    reread = None if started is None else noting_reloads(read, started, directory)
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


def _serve(spec: str | None, directory: Path, resolved: Resolved, reread: Rereader) -> int:
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
        settings = with_passed(resolved.settings, started.passed, is_set(resolved))
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
