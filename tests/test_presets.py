"""The presets in config/ are real: they load, each line changes something, and each says why."""

import re
import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from hardserve.addresses import ports
from hardserve.options import OPTIONS, DotEnv, resolve
from hardserve.settings import MIB, Settings

CONFIG = Path(__file__).parent.parent / "config"
PRESETS = ("raspberry-pi", "vps", "internal-tool")


def load(preset: str) -> Settings:
    return resolve(environ={}, config=CONFIG / f"{preset}.toml", directory=CONFIG).settings


def edited(preset: str, *names: str, tmp_path: Path, flags: Mapping[str, object] | None = None) -> Settings:
    """Load a preset after the # was taken away from these settings, or heads of tables."""
    text = (CONFIG / f"{preset}.toml").read_text()
    for name in names:
        text, found = re.subn(rf"(?m)^#({re.escape(name)}(?: = .*)?)$", r"\1", text)
        assert found == 1, name
    (tmp_path / "edited.toml").write_text(text)
    return resolve(flags=flags, environ={}, config=tmp_path / "edited.toml", directory=tmp_path).settings


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_loads_and_sets_nothing_to_its_default(preset: str) -> None:
    settings = load(preset)
    given = tomllib.loads((CONFIG / f"{preset}.toml").read_text())
    keys = {f"{section}.{name}" for section, values in given.items() for name in values}
    changed = {
        option.key
        for option in OPTIONS
        if getattr(getattr(settings, option.section), option.attribute) != option.default
    }
    assert keys == changed


@pytest.mark.parametrize("preset", PRESETS)
def test_each_line_of_a_preset_has_its_reason_above_it(preset: str) -> None:
    lines = (CONFIG / f"{preset}.toml").read_text().splitlines()
    for above, line in pairwise(lines):
        in_a_table = re.match(r"#(\[\[|\w+ = )", above)  # with the # before all of it
        if re.match(r"#?\w+ = ", line) and not in_a_table:
            assert re.match(r"# .{10,}", above), line


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_says_how_to_use_it(preset: str) -> None:
    assert f"hardserve --config config/{preset}.toml app:app" in (CONFIG / f"{preset}.toml").read_text()


DOMAIN = {"tls_domain": ["example.org"], "acme_agree": "on"}


@pytest.mark.parametrize(
    ("names", "flags", "bind", "redirect"),
    [
        pytest.param((), DOMAIN, {443}, {80}, id="two flags make it HTTPS, with port 80 for who does not know yet"),
        pytest.param(("domain", "agree", "hsts"), None, {443}, {80}, id="so do the same two lines"),
        pytest.param(("bind",), None, {80}, set(), id="without a name it is plain HTTP on port 80, by one line"),
    ],
)
def test_the_vps_is_a_site_on_the_ports_of_the_web(
    names: tuple[str, ...],
    flags: Mapping[str, object] | None,
    bind: set[int],
    redirect: set[int],
    tmp_path: Path,
) -> None:
    settings = edited("vps", *names, flags=flags, tmp_path=tmp_path)
    assert set(ports(settings.server.bind)) == bind
    assert set(ports(settings.server.redirect)) == redirect
    assert settings.serves_tls == (443 in bind)


def test_the_vps_can_begin_with_the_staging_directory(tmp_path: Path) -> None:
    settings = edited("vps", "domain", "agree", 'directory = "letsencrypt-staging"', tmp_path=tmp_path)
    assert settings.acme.directory == "letsencrypt-staging"


@pytest.mark.parametrize("preset", ["internal-tool", "raspberry-pi"])
def test_one_line_makes_it_https_without_a_ca(preset: str, tmp_path: Path) -> None:
    assert not load(preset).serves_tls
    settings = edited(preset, "tls", tmp_path=tmp_path)
    assert settings.serves_tls
    assert settings.server.bind == load(preset).server.bind


def test_the_internal_tool_can_ask_for_the_certificates_of_colleagues(tmp_path: Path) -> None:
    lines = ["tls", "client_ca", "client_certificates"]
    assert edited("internal-tool", *lines, tmp_path=tmp_path).tls.client_certificates == "required"
    lines += ["[[route]]", "path", "client_certificate"]
    (route,) = edited("internal-tool", *lines, tmp_path=tmp_path).route
    assert route.client_certificate == "required"


def test_no_preset_is_forgotten_here() -> None:
    assert {path.stem for path in CONFIG.glob("*.toml")} == {"hardserve", *PRESETS}


def test_the_raspberry_pi_stays_within_its_memory() -> None:
    # Beside what is budgeted: a request read ahead and the head of one more on each connection.
    settings = load("raspberry-pi")
    limits = settings.limits
    assert limits.connections * (limits.pipeline + limits.header) + limits.buffered_memory <= 96 * MIB
    assert settings.log.access == "stdout"  # the journal, and not a file of ours on the card


@pytest.mark.parametrize("preset", PRESETS)
def test_several_of_the_largest_uploads_fit_at_once(preset: str) -> None:
    limits = load(preset).limits
    in_files = limits.buffered_files >= 8 * limits.body
    in_memory = limits.body_memory >= limits.body and limits.buffered_memory >= 6 * limits.body
    assert in_files or in_memory


def test_the_raspberry_pi_has_no_temporary_file() -> None:
    limits = load("raspberry-pi").limits
    assert limits.body_memory >= limits.body
    assert (limits.buffered_files, limits.response_file) == (0, 0)


def test_the_internal_tool_is_not_open_to_a_larger_crowd_than_the_vps() -> None:
    assert load("internal-tool").limits.connections < load("vps").limits.connections


def test_the_example_env_is_read_and_each_setting_in_it_exists(tmp_path: Path) -> None:
    text = (CONFIG / "example.env").read_text()
    (tmp_path / ".env").write_text(text)
    assert DotEnv.load(tmp_path / ".env").values == {}
    (tmp_path / ".env").write_text(re.sub(r"(?m)^#(\w+=)", r"\1", text))
    dotenv = DotEnv.load(tmp_path / ".env", directory=tmp_path)
    resolved = resolve(environ={}, dotenv=dotenv, directory=tmp_path)
    given = {option.variable for option in OPTIONS if resolved.origins[option.key] != "default"}
    assert given == {name for name in dotenv.values if name.startswith("HARDSERVE_")}
    assert len(given) >= 4
