"""`hardserve systemd`: what is in the units, which are made for what app, and how they are installed and removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hardserve.options import DEFAULT, OPTIONS, from_keywords
from hardserve.units import _is_ours
from hardserve.units.access import barrier, data_in, outermost, private_code
from hardserve.units.install import Systemd
from hardserve.units.plan import OLDEST, Plan, UnitsError, is_marked
from hardserve.units.planning import Facts, plan_for
from hardserve.units.service import service, units_of
from hardserve.units.template import template_plan
from hardserve.units.text import Line, Section, command, literal, path_word, render, word

REPOSITORY = Path(__file__).parent.parent
SHIPPED = REPOSITORY / "systemd"
PATIENCE_S = 60.0
TO_BIND = ("AmbientCapabilities=CAP_NET_BIND_SERVICE", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "PrivateUsers=no")
SOMEBODY = 12345  # an id that no user has

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def settings_in(text: str) -> dict[str, list[str]]:
    """Return the settings of a unit: of each its values, in order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


# --- what is shipped ---


def test_the_shipped_units_are_those_of_the_source() -> None:
    shipped = {path.name: path.read_text() for path in SHIPPED.iterdir()}
    assert shipped == units_of(template_plan()), (
        "stale: from hardserve.units.service import units_of, hardserve.units.template import template_plan;"
        " write units_of(template_plan()) to systemd/"
    )


def test_everything_begins_with_the_mark_by_which_it_may_be_removed() -> None:
    for text in units_of(template_plan()).values():
        assert is_marked(text)
        assert is_marked(f"# /etc/systemd/system/x.service\n{text}"), "as it is when it was printed and saved"
    assert not is_marked("[Unit]\nDescription=Written by hardserve\n")


def test_a_line_of_a_unit_fits_a_terminal_and_says_why_above() -> None:
    for text in units_of(template_plan()).values():
        assert max(map(len, (line for line in text.splitlines() if line.startswith("#")))) <= 120
        assert "\n# " in text


# --- systemd's own judgement ---


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def verified(directory: Path, units: dict[str, str]) -> str:
    """Return what `systemd-analyze verify` says about units, whose paths below /srv are there."""
    program = directory / "srv/.venv/bin/hardserve"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    place = directory / "units"
    place.mkdir()
    for name, text in units.items():
        (place / name).write_text(
            text.replace("/srv/%i", str(directory / "srv")).replace("/srv/shop", str(directory / "srv"))
        )
    done = analyze("verify", *(place / name for name in units))
    return done.stdout + done.stderr


def with_examples(text: str) -> str:
    """Take the # away from every line that is there for that."""
    return re.sub(r"(?m)^#(?=[A-Z][A-Za-z]+=)", "", text)


@pytest.mark.peer
@needs_systemd
@pytest.mark.parametrize("instance", ["", "my-app", "My_App2"])
def test_verify_has_nothing_to_say_about_the_templates(tmp_path: Path, instance: str) -> None:
    units = {name.replace("@", f"@{instance}"): text for name, text in units_of(template_plan()).items()}
    assert verified(tmp_path, units) == ""


@pytest.mark.peer
@needs_systemd
def test_verify_has_nothing_to_say_with_every_example_in_force(tmp_path: Path) -> None:
    units = units_of(template_plan())
    changed = {name: with_examples(text) for name, text in units.items()}
    assert changed != units
    assert verified(tmp_path, changed) == ""


@pytest.mark.peer
@needs_systemd
def test_verify_would_have_something_to_say(tmp_path: Path) -> None:
    units = {
        name: text.replace("[Service]\n", "[Service]\nTypo=yes\n") for name, text in units_of(template_plan()).items()
    }
    assert "Typo" in verified(tmp_path, units)


def exposure_is_at_most(tenths: int, directory: Path, text: str) -> bool:
    unit = directory / "hardserve@.service"
    unit.write_text(text)
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={tenths}", unit)
    assert "Overall exposure level" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


@pytest.mark.peer
@needs_systemd
def test_the_exposure_behind_a_socket_unit_is_within_the_bar(tmp_path: Path) -> None:
    text = service(template_plan())
    assert exposure_is_at_most(13, tmp_path, text)
    assert not exposure_is_at_most(13, tmp_path, text.replace("CapabilityBoundingSet=\n", "")), "a bar that is none"


@pytest.mark.peer
@needs_systemd
def test_the_exposure_of_what_binds_port_80_itself_is_within_the_bar(tmp_path: Path) -> None:
    text = service(template_plan())
    for line in TO_BIND:
        assert f"\n#{line}\n" in text
        text = text.replace(f"#{line}\n", f"{line}\n")
    assert exposure_is_at_most(17, tmp_path, text)
    assert exposure_is_at_most(17, tmp_path, service(replace(template_plan(), own_ports=True)))


# --- how it is written ---


WORDS = {
    "plain": ("/srv/shop", "/srv/shop"),
    "a space": ("/srv/my shop", '"/srv/my shop"'),
    "a percent sign, which begins a specifier": ("/srv/100%", "/srv/100%%"),
    "a double quote": ('a"b', r'"a\"b"'),
    "a single quote": ("it's", '"it\'s"'),
    "a backslash": ("a\\b", r'"a\\b"'),
    "nothing": ("", '""'),
    "a semicolon, which would end the command": (";", '";"'),
    "a dollar sign, which ExecStart= is told not to look at": ("$HOME", "$HOME"),
}


@pytest.mark.parametrize(("text", "written"), WORDS.values(), ids=WORDS)
def test_a_word_is_quoted(text: str, written: str) -> None:
    assert word(text) == written


def test_what_ends_a_path_among_others_is_quoted_in_it() -> None:
    assert path_word("/srv/a:b") == r'"/srv/a\:b"'
    assert literal("/srv/my shop 5%") == "/srv/my shop 5%%"


def test_a_command_with_a_dollar_sign_is_not_searched_for_variables() -> None:
    assert command(["/bin/a", "$x y"]) == ':/bin/a "$x y"'
    assert command(["/bin/a", "x"]) == "/bin/a x"


@pytest.mark.parametrize("text", ["a\nb", "a\tb", " a", "a ", "\udcff"])
def test_what_no_unit_can_say_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rename it"):
        word(text)


def test_a_reason_stands_above_its_line() -> None:
    text = render(["head"], [Section("Unit", [Line("A", "1", "because"), Line("B", "2", example=True)])])
    assert text == "# head\n\n[Unit]\n# because\nA=1\n#B=2\n"


# --- what a newer systemd has ---


def test_a_newer_systemd_gets_what_it_knows() -> None:
    old, new = (settings_in(service(template_plan(version))) for version in (OLDEST, 254))
    assert old["Type"] == ["notify"]
    assert "kill -HUP" in old["ExecReload"][0]
    assert new["Type"] == ["notify-reload"]
    assert "ExecReload" not in new, "it would be reloaded twice"
    assert new["RestartSteps"] and new["RestartMaxDelaySec"]  # noqa: PT018 - one fact
    assert "RestartSteps" not in old


# --- which units are made for what app ---


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory that stands for /, with the app `shop` in /srv. Everybody may read all of it."""
    top = tmp_path / "root"
    for path in (
        "",
        "srv",
        "srv/shop",
        "srv/shop/.venv",
        "srv/shop/templates",
        "etc",
        "home",
        "home/pi",
        "home/pi/shop",
    ):
        (top / path).mkdir()
        (top / path).chmod(0o755)
    for path in ("srv/shop", "home/pi/shop"):
        (top / path / "app.py").write_text("app = None\n")
        (top / path / "app.py").chmod(0o644)
    return top


def facts(root: Path, directory: str = "/srv/shop", origin: str = "hardserve.toml:1", **keywords: object) -> Facts:
    """Return the facts of an app in `directory` with these settings, all from the same place."""
    of_facts = {name: keywords.pop(name) for name in list(keywords) if name in Facts.__dataclass_fields__}
    given = {option.key: origin for option in OPTIONS if option.keyword in keywords}
    return replace(
        Facts(
            name="shop",
            words=(f"{directory}/.venv/bin/hardserve",),
            directory=Path(directory),
            code=(Path(directory, ".venv"), Path("/usr")),
            settings=from_keywords(**keywords),
            origins=dict.fromkeys((option.key for option in OPTIONS), DEFAULT) | given,
            version=252,
            root=root,
        ),
        **of_facts,
    )


def plan(*arguments: object, **keywords: object) -> Plan:
    return plan_for(facts(*arguments, **keywords))[0]


def give_away(root: Path, path: str) -> None:
    """Have somebody own a directory and what is in it."""
    for each in (root / path, *(root / path).rglob("*")):
        os.chown(each, SOMEBODY, SOMEBODY, follow_symlinks=False)


def test_an_app_that_everybody_may_read_runs_as_a_user_of_its_own(root: Path) -> None:
    made = settings_in(service(plan(root)))
    assert made["DynamicUser"] == ["yes"]
    assert "User" not in made
    assert made["ExecStart"] == ["/srv/shop/.venv/bin/hardserve"]
    assert made["WorkingDirectory"] == ["/srv/shop"]
    assert made["StateDirectory"] == made["RuntimeDirectory"] == ["hardserve/shop"]
    assert list(units_of(plan(root))) == ["hardserve-shop.service"], "no port that needs a socket unit"


def test_an_env_file_that_only_its_owner_may_read_is_passed_on_by_systemd(root: Path) -> None:
    env = root / "srv/shop/.env"
    env.write_text("SECRET_KEY=x\n")
    env.chmod(0o600)
    made = settings_in(service(plan(root, env_files=[Path("/srv/shop/.env")])))
    assert made["DynamicUser"] == ["yes"]
    assert made["LoadCredential"] == ["env:/srv/shop/.env"]
    assert made["ExecStart"] == ["/srv/shop/.venv/bin/hardserve --no-env-file --env-file %d/env"]
    assert made["BindReadOnlyPaths"] == ["/dev/null:/srv/shop/.env"], "or load_dotenv() of the app would fail"


def test_so_is_a_key(root: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (root / "etc" / name).write_text("x")
        (root / "etc" / name).chmod(0o600 if name == "key.pem" else 0o644)
    # The settings look at the files where they are said to be; the units have them where they will be.
    pair = {"tls_certificate": str(root / "etc/cert.pem"), "tls_key": str(root / "etc/key.pem")}
    given = facts(root, **pair)
    tls = replace(given.settings.tls, certificate="/etc/cert.pem", key="/etc/key.pem")
    made = settings_in(service(plan_for(replace(given, settings=replace(given.settings, tls=tls)))[0]))
    assert made["LoadCredential"] == ["tls_key:/etc/key.pem"]
    assert "HARDSERVE_TLS_KEY=%d/tls_key" in made["Environment"]


@needs_root
@pytest.mark.parametrize("why", ["private code", "private directory", "data", "home", "log"])
def test_what_only_its_owner_can_run_runs_as_that(root: Path, why: str) -> None:
    directory = "/home/pi/shop" if why == "home" else "/srv/shop"
    here = root / directory.lstrip("/")
    keywords: dict[str, object] = {}
    match why:
        case "private code":
            (here / "app.py").chmod(0o600)
        case "private directory":
            here.chmod(0o700)
        case "data":
            (here / "instance").mkdir()
        case "log":
            keywords["log_access"] = "/srv/shop/log/access.log"
    give_away(root, directory.lstrip("/"))
    made, notes = plan_for(facts(root, directory, **keywords))
    lines = settings_in(service(made))
    assert lines["User"] == [str(SOMEBODY)]
    assert "DynamicUser" not in lines
    assert len(notes) == 1
    assert notes[0].startswith(f"It runs as {SOMEBODY}, who owns {directory}, because ")
    if why == "home":
        assert lines["ProtectHome"] == ["tmpfs"]
        assert lines["BindReadOnlyPaths"] == ["/home/pi/shop"]
    elif why in ("data", "log"):
        assert lines["ReadWritePaths"] == [f"-/srv/shop/{'instance' if why == 'data' else 'log'}"]


@needs_root
def test_what_was_made_as_root_in_an_app_of_somebody_is_named(root: Path) -> None:
    give_away(root, "srv/shop")
    (root / "srv/shop/instance").mkdir(mode=0o755)
    env = root / "srv/shop/.env"
    env.write_text("SECRET_KEY=x\n")
    env.chmod(0o600)
    made, notes = plan_for(facts(root, env_files=[Path("/srv/shop/.env")]))
    assert made.user == str(SOMEBODY)
    assert notes[1:] == [
        f"{SOMEBODY} may not read /srv/shop/.env: chown -R {SOMEBODY} /srv/shop/.env",
        f"{SOMEBODY} may not write to /srv/shop/instance: chown -R {SOMEBODY} /srv/shop/instance",
    ]


@needs_root
def test_settings_that_are_found_must_be_readable_too(root: Path) -> None:
    config = root / "srv/shop/hardserve.toml"
    config.write_text("")
    config.chmod(0o600)
    with pytest.raises(UnitsError, match=r"not everybody may read /srv/shop/hardserve\.toml"):
        plan(root, found_config=Path("/srv/shop/hardserve.toml"))


@needs_root
def test_an_owner_who_may_write_nothing_of_an_app_is_told_so(root: Path) -> None:
    give_away(root, "home/pi/shop")
    _, (note,) = plan_for(facts(root, "/home/pi/shop"))
    assert note.endswith("which is /var/lib/hardserve/shop, it may write nothing in /home/pi/shop.")


@needs_root
def test_data_below_home_is_writable_and_the_code_is_not(root: Path) -> None:
    (root / "home/pi/shop/instance").mkdir()
    give_away(root, "home/pi")
    lines = settings_in(service(plan(root, "/home/pi/shop")))
    assert lines["BindReadOnlyPaths"] == ["/home/pi/shop"]
    assert lines["BindPaths"] == ["-/home/pi/shop/instance"]
    assert "ReadWritePaths" not in lines


@needs_root
def test_an_app_of_root_below_root_is_refused_with_the_way_out(root: Path) -> None:
    (root / "root/shop").mkdir(parents=True)
    with pytest.raises(UnitsError, match=r"/root/shop is in a home directory.*no app is served.*to /srv/shop"):
        plan(root, "/root/shop")


def test_an_app_in_a_temporary_directory_is_refused(root: Path) -> None:
    with pytest.raises(UnitsError, match=r"/tmp/shop is in a directory for temporary files"):
        plan(root, "/tmp/shop")


PORTS = {
    "a high port": ({"bind": ["127.0.0.1:8000"]}, {}),
    "port 80": (
        {"bind": ["0.0.0.0:80", "[::]:80"]},
        {"hardserve-shop.socket": (["0.0.0.0:80", "[::]:80"], "bind")},
    ),
    "HTTPS, and a redirect to it": (
        {"bind": ["0.0.0.0:443"], "redirect": ["0.0.0.0:80"], "tls": "self-signed"},
        {
            "hardserve-shop.socket": (["0.0.0.0:443"], "bind"),
            "hardserve-shop-redirect.socket": (["0.0.0.0:80"], "redirect"),
        },
    ),
    "a redirect from a low port to a high one": (
        {"bind": ["0.0.0.0:8443"], "redirect": ["0.0.0.0:80"], "tls": "self-signed"},
        {
            "hardserve-shop.socket": (["0.0.0.0:8443"], "bind"),
            "hardserve-shop-redirect.socket": (["0.0.0.0:80"], "redirect"),
        },
    ),
    "a Unix socket where it can make none": (
        {"bind": ["unix:/run/shop.sock?mode=660"]},
        {"hardserve-shop.socket": (["/run/shop.sock"], "bind")},
    ),
    "a Unix socket in its own directory": ({"bind": ["unix:/run/hardserve/shop/web.sock"]}, {}),
}


@pytest.mark.parametrize(("keywords", "sockets"), PORTS.values(), ids=PORTS)
def test_what_the_service_may_not_open_systemd_does(
    root: Path, keywords: dict[str, object], sockets: dict[str, tuple[list[str], str]]
) -> None:
    units = units_of(plan(root, **keywords))
    made = {name: settings_in(text) for name, text in units.items() if name.endswith(".socket")}
    assert {name: (each["ListenStream"], each["FileDescriptorName"][0]) for name, each in made.items()} == sockets
    assert all(each["RequiredBy"] == ["hardserve-shop.service"] for each in made.values())


def test_the_mode_of_a_unix_socket_is_that_of_the_settings(root: Path) -> None:
    units = units_of(plan(root, bind=["unix:/run/shop.sock?mode=660&owner=www-data:web"]))
    made = settings_in(units["hardserve-shop.socket"])
    assert (made["SocketMode"], made["SocketUser"], made["SocketGroup"]) == (["0660"], ["www-data"], ["web"])


def test_an_address_that_may_come_later_can_be_opened_before(root: Path) -> None:
    made = settings_in(units_of(plan(root, bind=["192.168.1.5:80"]))["hardserve-shop.socket"])
    assert made["FreeBind"] == ["yes"]


UNUSABLE = {
    "a port that a user may not open": (
        {"bind": ["0.0.0.0:80"], "of_user": True},
        "cannot open ports below 1024.*sysctl",
    ),
    "a name instead of an address": ({"bind": ["localhost:80"]}, "localhost:80 is a name.*write 127.0.0.1"),
    "a socket of somebody else": ({"bind": ["0.0.0.0:80", "fd:3"]}, "fd:3 is a socket that somebody passes on"),
    "a password that everybody could read": (
        {"rate_limiting_storage": "redis://:geheim@localhost:6379", "origin": "flag --rate-limiting-storage"},
        "has a password in it.*HARDSERVE_RATE_LIMITING_STORAGE",
    ),
}


@pytest.mark.parametrize(("keywords", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_is_refused_with_the_way_out(root: Path, keywords: dict[str, object], message: str) -> None:
    with pytest.raises(UnitsError, match=message):
        plan(root, **keywords)


def test_flags_and_variables_are_the_services_too(root: Path) -> None:
    flags = settings_in(
        service(plan(root, origin="flag --threads", threads=4, bind=["127.0.0.1:1", "127.0.0.1:8001"], low_ports=1))
    )
    assert flags["ExecStart"] == ["/srv/shop/.venv/bin/hardserve --bind 127.0.0.1:1 --bind 127.0.0.1:8001 --threads 4"]
    environ = {"HARDSERVE_DRAIN": "1m 5%"}
    variables = settings_in(service(plan(root, origin="environment HARDSERVE_DRAIN", drain=60, environ=environ)))
    assert '"HARDSERVE_DRAIN=1m 5%%"' in variables["Environment"]
    assert variables["TimeoutStopSec"] == ["70s"]


def test_the_caps_follow_the_settings(root: Path) -> None:
    made = settings_in(service(plan(root, limits_connections=100, threads=2, drain="90s")))
    assert int(made["LimitNOFILE"][0]) > 200
    assert int(made["TasksMax"][0]) >= 100
    assert made["TimeoutStopSec"] == ["100s"]


PRIVILEGED = {
    "DynamicUser",
    "User",
    "CapabilityBoundingSet",
    "PrivateDevices",
    "ProtectSystem",
    "ProtectKernelModules",
    "PrivateTmp",
}


def test_a_users_own_service_asks_for_nothing_that_takes_a_privilege(root: Path) -> None:
    made = settings_in(service(plan(root, "/home/pi/shop", of_user=True)))
    assert not PRIVILEGED & made.keys()
    assert made["WantedBy"] == ["default.target"]
    assert made["NoNewPrivileges"] == ["yes"]
    assert made["SystemCallFilter"]


@pytest.mark.peer
@needs_systemd
@pytest.mark.parametrize("of_user", [False, True], ids=["the machine's systemd", "a user's"])
def test_verify_has_nothing_to_say_about_generated_units(root: Path, tmp_path: Path, of_user: bool) -> None:
    made = plan(
        root,
        of_user=of_user,
        bind=["127.0.0.1:8000"] if of_user else ["0.0.0.0:80", "unix:/run/a b.sock?mode=660"],
        environ={"HARDSERVE_LOG_LEVEL": "info"},
        words=("/srv/shop/.venv/bin/hardserve", "app:create_app('100% \"$5\" \\ it')"),
    )
    awkward = replace(
        made,
        shown=["/home/a b/it's 5% $x:y"],
        kept=["-/home/a b/it's 5% $x:y/instance"],
        writable=['-/srv/a "b" 5%'],
        environment=['A=b c $d 5% "e" \\'],
    )
    (tmp_path / "v").mkdir()
    assert verified(tmp_path / "v", units_of(awkward)) == ""


# --- who may read what ---


def test_the_first_thing_in_the_way_is_named(root: Path) -> None:
    (root / "srv").chmod(0o750)
    assert barrier(Path("/srv/shop/app.py"), root) == Path("/srv")
    (root / "srv").chmod(0o711)
    assert barrier(Path("/srv/shop/app.py"), root) is None, "a directory on the way need not be listed"
    assert barrier(Path("/srv"), root) == Path("/srv"), "one that is read needs to be"
    assert barrier(Path("/nowhere"), root) is None


def test_data_and_other_peoples_repositories_are_not_code(root: Path) -> None:
    for name in (".git", "uploads"):
        (root / "srv/shop" / name).mkdir(mode=0o700)
        (root / "srv/shop" / name / "x.py").touch(0o600)
    assert private_code(Path("/srv/shop"), root) is None
    (root / "srv/shop/templates/a.html").touch(0o600)
    assert private_code(Path("/srv/shop"), root) == Path("/srv/shop/templates/a.html")


def test_where_a_database_lies_sqlite_writes_beside_it(root: Path) -> None:
    assert data_in(Path("/srv/shop"), root) == []
    (root / "srv/shop/instance").mkdir()
    assert data_in(Path("/srv/shop"), root) == [Path("/srv/shop/instance")]
    (root / "srv/shop/shop.sqlite3").touch()
    assert data_in(Path("/srv/shop"), root) == [Path("/srv/shop")]


def test_of_nested_directories_the_outermost_is_enough() -> None:
    assert outermost(map(Path, ("/a/b/c", "/a/b", "/a/bc", "/a/b"))) == [Path("/a/b"), Path("/a/bc")]


# --- installing and removing ---

# In the shell's own words alone. An empty file is a no.
SYSTEMCTL = """#!/bin/sh
# Remembers what it was asked, and what is enabled and active by that.
echo "$*" >>"$FAKE/calls"
[ "$1" = --user ] && shift
verb=$1
shift
for unit in "$@"; do
    case $verb in
    enable) echo yes >"$FAKE/enabled-$unit" ;;
    disable) : >"$FAKE/enabled-$unit" && : >"$FAKE/active-$unit" ;;
    stop) : >"$FAKE/active-$unit" ;;
    start | restart)
        case $unit in *.service) [ -e "$FAKE/broken" ] && echo "Job for $unit failed" >&2 && exit 1 ;; esac
        echo yes >"$FAKE/active-$unit"
        ;;
    esac
done
case $verb in
is-enabled) [ -s "$FAKE/enabled-$unit" ] ;;
is-active) [ -s "$FAKE/active-$unit" ] ;;
*) exit 0 ;;
esac
"""


class Box:
    """A machine whose systemctl only remembers. `said` is what the command has printed since it was last looked at."""

    def __init__(self, directory: Path, *, of_user: bool = False) -> None:
        self.fake = directory
        self.units = directory / "units"
        self.lines: list[str] = []
        self.systemd = Systemd(self.units, of_user=of_user, say=self.lines.append)

    def done(self) -> list[str]:
        """Return what systemctl was asked to do since the last time, questions aside."""
        calls = (self.fake / "calls").read_text().splitlines() if (self.fake / "calls").exists() else []
        (self.fake / "calls").unlink(missing_ok=True)
        return [call for call in calls if not call.removeprefix("--user ").startswith(("is-", "reset-failed"))]

    def said(self) -> list[str]:
        lines, self.lines[:] = list(self.lines), []
        return lines


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    fake = tmp_path / "box"
    programs = fake / "bin"
    programs.mkdir(parents=True)
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))  # without systemd-analyze
    monkeypatch.setenv("FAKE", str(fake))
    return Box(fake)


SERVICE, SOCKET = "hardserve-shop.service", "hardserve-shop.socket"
NAMES = (SOCKET, "hardserve-shop-redirect.socket", SERVICE)


def of_shop(root: Path, **keywords: object) -> dict[str, str]:
    return units_of(plan(root, **keywords))


@pytest.fixture
def shop(root: Path) -> dict[str, str]:
    return of_shop(root, bind=["0.0.0.0:80"])


def test_units_are_written_enabled_and_started(box: Box, shop: dict[str, str]) -> None:
    box.systemd.install(shop, formerly=NAMES)
    assert {path.name: path.read_text() for path in box.units.iterdir()} == shop
    assert {path.stat().st_mode & 0o777 for path in box.units.iterdir()} == {0o644}
    assert box.done() == [
        "daemon-reload",
        f"enable {SOCKET} {SERVICE}",
        f"stop {SOCKET} {SERVICE}",
        f"start {SOCKET}",
        f"restart {SERVICE}",
    ]


def test_a_second_time_changes_nothing_and_says_so(box: Box, shop: dict[str, str]) -> None:
    box.systemd.install(shop, formerly=NAMES)
    box.done()
    box.said()
    before = {path: path.stat().st_mtime_ns for path in box.units.iterdir()}
    box.systemd.install(shop, formerly=NAMES)
    assert box.done() == []
    assert box.said() == [f"nothing to change: {SOCKET} and {SERVICE} are running"]
    assert {path: path.stat().st_mtime_ns for path in box.units.iterdir()} == before


def test_a_service_that_has_changed_is_restarted_behind_its_socket(box: Box, root: Path, shop: dict[str, str]) -> None:
    box.systemd.install(shop, formerly=NAMES)
    box.done()
    box.systemd.install(of_shop(root, bind=["0.0.0.0:80"], threads=2), formerly=NAMES)
    assert box.done() == ["daemon-reload", f"enable {SERVICE}", f"start {SOCKET}", f"restart {SERVICE}"]


def test_a_socket_that_has_changed_is_opened_while_the_service_is_stopped(
    box: Box, root: Path, shop: dict[str, str]
) -> None:
    box.systemd.install(shop, formerly=NAMES)
    box.done()
    box.systemd.install(of_shop(root, bind=["0.0.0.0:81"]), formerly=NAMES)
    done = box.done()
    assert done.index(f"stop {SOCKET} {SERVICE}") < done.index(f"start {SOCKET}") < done.index(f"restart {SERVICE}")


def test_a_socket_that_is_no_longer_needed_goes(box: Box, root: Path, shop: dict[str, str]) -> None:
    box.systemd.install(shop, formerly=NAMES)
    box.done()
    box.systemd.install(of_shop(root), formerly=NAMES)
    assert [path.name for path in box.units.iterdir()] == [SERVICE]
    assert box.done()[:2] == [f"stop {SOCKET}", f"disable {SOCKET}"]


def test_what_has_stopped_is_started_again(box: Box, shop: dict[str, str]) -> None:
    box.systemd.install(shop, formerly=NAMES)
    box.done()
    (box.fake / f"active-{SERVICE}").unlink()
    box.systemd.install(shop, formerly=NAMES)
    assert box.done() == [f"start {SOCKET}", f"restart {SERVICE}"]


def test_a_service_that_does_not_start_is_an_error_with_its_last_words(box: Box, shop: dict[str, str]) -> None:
    (box.fake / "broken").touch()
    journalctl = box.fake / "bin/journalctl"
    journalctl.write_text('#!/bin/sh\n[ "$1" = --sync ] || echo "where it says why: $*"\n')
    journalctl.chmod(0o755)
    with pytest.raises(UnitsError, match=f"(?s)Job for {SERVICE} failed.*where it says why.*--unit={SERVICE}"):
        box.systemd.install(shop, formerly=NAMES)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("OSError: [Errno 30] Read-only file system: 'instance'", r"\$STATE_DIRECTORY"),
        ("shop.socket: Failed to listen on sockets: Address already in use", "ss -ltnp"),
    ],
    ids=["a directory that is not the service's", "a port that is taken"],
)
def test_what_can_be_done_about_its_last_words_is_said(box: Box, shop: dict[str, str], said: str, advice: str) -> None:
    (box.fake / "broken").touch()
    journalctl = box.fake / "bin/journalctl"
    journalctl.write_text(f'#!/bin/sh\n[ "$1" = --sync ] || echo "{said}"\n')
    journalctl.chmod(0o755)
    with pytest.raises(UnitsError, match=advice):
        box.systemd.install(shop, formerly=NAMES)


def test_what_an_administrator_has_changed_is_left_and_named(box: Box, shop: dict[str, str]) -> None:
    box.systemd.install(shop, formerly=NAMES)
    (box.units / f"{SERVICE}.d").mkdir()
    box.systemd.remove(NAMES)
    assert box.said()[-1] == f"left, for it is yours: {box.units / SERVICE}.d"


def test_units_are_removed_and_nothing_else_is(box: Box, shop: dict[str, str]) -> None:
    box.systemd.install(shop, formerly=NAMES)
    (box.units / "other.service").write_text("[Service]\n")
    box.done()
    box.said()
    box.systemd.remove(NAMES)
    assert [path.name for path in box.units.iterdir()] == ["other.service"]
    assert box.done() == [f"stop {SOCKET} {SERVICE}", f"disable {SOCKET} {SERVICE}", "daemon-reload"]
    assert box.said() == [f"removed {box.units / SOCKET}", f"removed {box.units / SERVICE}"]
    box.systemd.remove(NAMES)
    assert box.done() == []
    assert box.said()[0].startswith("nothing to remove")


def test_a_unit_that_somebody_else_wrote_is_left_alone(box: Box, shop: dict[str, str]) -> None:
    box.units.mkdir()
    (box.units / SERVICE).write_text("[Service]\nExecStart=/bin/true\n")
    for act in (lambda: box.systemd.install(shop, formerly=NAMES), lambda: box.systemd.remove(NAMES)):
        with pytest.raises(UnitsError, match="not written by this command, and left alone"):
            act()
    assert [path.name for path in box.units.iterdir()] == [SERVICE]
    assert "/bin/true" in (box.units / SERVICE).read_text()
    assert box.done() == []


def test_templates_are_written_and_not_started(box: Box) -> None:
    units = units_of(template_plan())
    box.systemd.install(units, formerly=list(units), start=False)
    assert {path.name for path in box.units.iterdir()} == set(units)
    assert box.done() == ["daemon-reload"]
    box.said()
    box.systemd.install(units, formerly=list(units), start=False)
    assert box.done() == []
    assert box.said() == ["nothing to change"]
    box.systemd.remove(["hardserve@.service"])
    assert box.done() == ["stop hardserve@*.service", "disable hardserve@.service", "daemon-reload"]


def test_a_users_systemd_is_asked_for_a_user(box: Box, root: Path) -> None:
    own = Box(box.fake, of_user=True)
    own.systemd.install(of_shop(root, of_user=True), formerly=NAMES)
    assert own.done() == ["--user daemon-reload", f"--user enable {SERVICE}", f"--user restart {SERVICE}"]


@pytest.mark.peer
@needs_systemd
def test_units_that_systemd_finds_fault_with_are_not_written(tmp_path: Path, shop: dict[str, str]) -> None:
    box = Box(tmp_path)
    broken = {name: text.replace("Type=notify\n", "Type=notofy\n") for name, text in shop.items()}
    with pytest.raises(UnitsError, match=r"(?s)systemd-analyze verify:.*notofy"):
        box.systemd.install(broken, formerly=NAMES)
    assert not box.units.exists()


# --- the command ---


def hardserve(*arguments: str, directory: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hardserve", "systemd", *arguments],
        cwd=directory,
        env={name: value for name, value in os.environ.items() if name != "FLASK_APP"} | environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_the_command_prints_the_units_with_its_own_interpreter(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("raise RuntimeError('nothing is imported')\n")
    done = hardserve("app:app", "--user", "--name", "shop", "--threads", "3", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hardserve-shop.service\n# Written by hardserve" in done.stdout
    made = settings_in(done.stdout)
    assert made["WorkingDirectory"] == [str(tmp_path)]
    assert made["ExecStart"][0].startswith(str(Path(sys.executable).parent))
    assert made["ExecStart"][0].endswith(" app:app --threads 3")


def test_a_script_of_another_interpreter_is_not_what_a_unit_starts(tmp_path: Path) -> None:
    """As in a virtual environment that was moved, or copied for another app."""
    program = tmp_path / "hardserve"
    program.write_text("#!/srv/elsewhere/.venv/bin/python3\n")
    assert not _is_ours(program)
    program.write_text(f"#!{sys.executable}\n")
    assert _is_ours(program)
    assert not _is_ours(tmp_path / "none")


def test_the_command_prints_the_templates(tmp_path: Path) -> None:
    done = hardserve("--template", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(?m)^# /etc/systemd/system/(.*)$", done.stdout) == list(units_of(template_plan()))


WRONG = {
    "no such app": (("shop:app", "--user"), 1, 'no module "shop"'),
    "no app at all": (("--user",), 2, "wsgi.py"),
    "a name that is none": (("--template", "--name", "a/b"), 1, "expected letters, digits"),
    "both at once": (("--install", "--remove"), 2, "opposites"),
    "flags of another command": (("--renew",), 2, "--renew goes with cert"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG.values(), ids=WRONG)
def test_the_command_says_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = hardserve(*arguments, directory=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
