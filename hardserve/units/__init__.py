"""`hardserve systemd`: prints the units of an app, or installs and starts them, or takes them away again.

Main thread; a command of its own, beside the server. planning.py and access.py look at the app, service.py and
sandbox.py say what its units are, install.py steers systemd.

Exit codes: 0, 78 where the app's settings cannot be a service's, those of the loader for an app that is not there, 1
anything else.
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from hardserve.configfiles import DotEnv
from hardserve.loader import LoadError
from hardserve.loader.target import read_target
from hardserve.options import CONFIG_PATHS, Resolved
from hardserve.units import access
from hardserve.units.install import Systemd, version
from hardserve.units.plan import OLDEST, UnitsError
from hardserve.units.planning import Facts, plan_for
from hardserve.units.service import units_of
from hardserve.units.template import template_plan

__all__ = ["units_command"]

EXIT_FAILURE = 1
SYSTEM_UNITS = Path("/etc/systemd/system")
TEMPLATES = ("hardserve@.socket", "hardserve-redirect@.socket", "hardserve@.service")
ENV_FILES = (".flaskenv", ".env")
_LOW_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
LINGER = Path("/var/lib/systemd/linger")


def units_command(
    app: str | None,
    resolved: Resolved,
    *,
    directory: Path,
    install: bool,
    remove: bool,
    user: bool,
    template: bool,
    name: str | None,
) -> int:
    """Print, install or remove the units of `app` in `directory`; return the exit code."""
    try:
        chosen = _name(name, directory)
        systemd = Systemd(_unit_directory(of_user=user), of_user=user, say=click.echo)
        names = TEMPLATES if template else _unit_names(chosen)
        if install or remove:
            _refuse_to_act(of_user=user)
        if remove:
            systemd.remove(names)
            if not template:
                _say_what_is_left(chosen, of_user=user)
            return 0
        plan, notes = template_plan(version() or OLDEST), list[str]()
        if not template:
            plan, notes = plan_for(_facts(app, resolved, directory, chosen, of_user=user))
            notes += _other_environment(directory)
        for note in notes:
            click.echo(f"hardserve: {note}", err=True)
        units = units_of(plan)
        if install:
            systemd.install(units, formerly=names, start=not template)
            _say_what_follows(template=template, of_user=user)
        else:
            click.echo("\n".join(f"# {systemd.directory / file}\n{text}" for file, text in units.items()), nl=False)
    except LoadError as error:
        click.echo(str(error), err=True)
        return error.exit_code
    except (UnitsError, OSError) as error:
        click.echo(f"hardserve systemd: {error}", err=True)
        return EXIT_FAILURE
    return 0


def _say_what_is_left(name: str, *, of_user: bool) -> None:
    if of_user:
        # systemd 252 and older keep a user's StateDirectory= with the settings.
        kept = [
            path for base in (".local/state", ".config") if (path := Path.home() / base / "hardserve" / name).exists()
        ]
        if kept:
            click.echo(f"the app's data is left where it is: {' and '.join(map(str, kept))}")
    elif Path(f"/var/lib/hardserve/{name}").exists():
        click.echo(f"the app's data is left where it is: hardserve/{name} in /var/lib, /var/cache and /var/log")


def _say_what_follows(*, template: bool, of_user: bool) -> None:
    user = os.environ.get("USER") or str(os.geteuid())
    if template:
        click.echo("what an app needs is said in hardserve@.service; then: systemctl enable --now hardserve@NAME")
    elif of_user and not (LINGER / user).exists():
        click.echo(
            f"it ends when you log out, and starts when you log in; for ever: sudo loginctl enable-linger {user}"
        )


def _name(given: str | None, directory: Path) -> str:
    """Return what the app is called in the names of its units."""
    if given is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", given):
            raise UnitsError(f"--name {given}: expected letters, digits, dots, hyphens and underscores")
        return given
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", directory.name).strip("-.")[:100]
    if not name:
        raise UnitsError(f"{directory}: name the app with --name")
    return name


def _unit_names(name: str) -> list[str]:
    return [f"hardserve-{name}.socket", f"hardserve-{name}-redirect.socket", f"hardserve-{name}.service"]


def _unit_directory(*, of_user: bool) -> Path:
    if not of_user:
        return SYSTEM_UNITS
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "systemd" / "user"


def _refuse_to_act(*, of_user: bool) -> None:
    """Raise UnitsError where no unit can be installed or removed."""
    if of_user:
        if os.geteuid() == 0:
            raise UnitsError("--user is for the systemd of the user who types it: without sudo")
        if not Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}", "systemd").is_dir():
            raise UnitsError(
                "there is no systemd of this user: log in as them (su does not start one; machinectl shell does)"
            )
    else:
        if os.geteuid() != 0:
            words = " ".join(sys.argv[1:])
            raise UnitsError(f"only root may: sudo {_program()} {words}\nor --user, for a service of your own")
        if not Path("/run/systemd/system").is_dir():
            raise UnitsError("this machine is not run by systemd: without --install, the units are printed")


def _program() -> str:
    """Return the path of the command that belongs to this interpreter."""
    return str(Path(sys.executable).with_name("hardserve"))


def _is_ours(program: Path) -> bool:
    """Return whether a script is for this interpreter: one of a virtual environment that was moved is not."""
    try:
        with program.open("rb") as file:
            return os.fsencode(Path(sys.executable).parent) in file.read(1024)
    except OSError:
        return False


def _facts(app: str | None, resolved: Resolved, directory: Path, name: str, *, of_user: bool) -> Facts:
    target = read_target(app, directory, os.environ)
    top = target.module.partition(".")[0]
    if importlib.machinery.PathFinder.find_spec(top, [*map(str, target.roots), *sys.path]) is None:
        raise target.error(f'there is no module "{top}", neither in {target.roots[0]} nor installed in {sys.prefix}')
    found = access.find_upwards(directory, ENV_FILES, Path("/"))
    program = Path(_program())
    words = [str(program)] if _is_ours(program) else [sys.executable, "-m", "hardserve"]
    spec = app or _flask_app(found)
    code = [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[1]]
    config = Path(os.path.abspath(resolved.config_path)) if resolved.config_path else None
    named_config = resolved.config_path not in (None, *(directory / each for each in CONFIG_PATHS))
    return Facts(
        name=name,
        words=[*words, *([spec] if spec else [])],
        directory=directory,
        code=code,
        settings=resolved.settings,
        origins=resolved.origins,
        environ=os.environ,
        config_path=config if named_config else None,
        found_config=None if named_config else config,
        env_files=found,
        env_file=None
        if resolved.dotenv_path is None or resolved.dotenv_path in found
        else Path(os.path.abspath(directory / resolved.dotenv_path)),
        no_env_file=bool(found) and resolved.dotenv_path is None,
        version=version() or OLDEST,
        of_user=of_user,
        low_ports=_low_ports(),
    )


def _other_environment(directory: Path) -> list[str]:
    """Say so if the app has another virtual environment than the one that this command is of: it was copied."""
    own = directory / ".venv"
    if not own.is_dir() or own.resolve() == Path(sys.prefix).resolve():
        return []
    return [
        f"the service will run in {sys.prefix}, and not in {own}: for that one, {own}/bin/python -m hardserve systemd"
    ]


def _flask_app(found: list[Path]) -> str:
    """Return FLASK_APP, if it is not in a file that the service reads, too."""
    given = os.environ.get("FLASK_APP", "")
    files: Mapping[str, str] = {}
    for path in found:
        files = {**files, **DotEnv.load(path).values}
    return "" if files.get("FLASK_APP") == given else given


def _low_ports() -> int:
    try:
        return int(_LOW_PORTS.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 1024
