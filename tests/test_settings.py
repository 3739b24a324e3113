"""The declarations themselves: each is complete, within its own bounds, and cannot be changed."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from hardserve.options import OPTIONS, SECTIONS, Option
from hardserve.settings import KIB, MIB, Settings
from hardserve.values import parse


def by_key(option: Option) -> str:
    return option.key


@pytest.mark.parametrize("option", OPTIONS, ids=by_key)
def test_a_default_is_a_value_that_the_setting_takes(option: Option) -> None:
    assert parse(option.kind, option.default) == option.default
    assert type(parse(option.kind, option.default)) is type(option.default)


@pytest.mark.parametrize("option", OPTIONS, ids=by_key)
def test_help_is_one_short_sentence(option: Option) -> None:
    assert option.help.endswith((".", "never."))
    assert option.help[0].isupper()
    assert 10 < len(option.help) <= 100
    assert "\n" not in option.help


def test_the_defaults_are_those_that_the_documentation_promises() -> None:
    settings = Settings()
    assert settings.server.bind == ("127.0.0.1:8000",)  # nobody else's machine until somebody says so
    assert settings.server.drain == 25.0
    assert settings.timeouts.header == 10.0
    assert settings.limits.body == 16 * MIB
    assert settings.limits.header == 64 * KIB
    assert settings.log.access == "stdout"


def test_a_section_has_no_settings_but_those_declared() -> None:
    assert [section.name for section in SECTIONS] == [field.name for field in fields(Settings)]
    assert len({option.key for option in OPTIONS}) == len(OPTIONS)


def test_settings_cannot_be_changed_once_made() -> None:
    settings = Settings()
    with pytest.raises(FrozenInstanceError):
        settings.server.threads = 3  # type: ignore[misc]
    assert replace(settings.server, threads=3).threads == 3
