"""What `hardserve --help` and `--help-all` say: the commands, and what can be set, from its one declaration.

Main thread, and then the process ends.
"""

from __future__ import annotations

import click

from hardserve.describe import describe
from hardserve.options import OPTIONS, SECTIONS, TABLES, Option
from hardserve.settings import (
    AddressList,
    Choice,
    Directory,
    Duration,
    FieldValue,
    FilePath,
    HostList,
    Int,
    MountList,
    NetworkList,
    Output,
    Rate,
    Size,
    StorageUrl,
    Text,
)

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


class Command(click.Command):
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
                    (_usage(option), f"{option.help} [{option.shown(option.default)}]")
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
                    default = option.shown(option.default)
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


def print_help_all(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and isinstance(ctx.command, Command):
        click.echo(ctx.command.help_all(ctx), nl=False)
        ctx.exit()


def print_version(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        from hardserve import __version__  # noqa: PLC0415

        click.echo(f"hardserve {__version__}")
        ctx.exit()
