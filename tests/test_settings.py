"""The declarations themselves: each is complete, within its own bounds, and cannot be changed."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from hardserve.options import OPTIONS, SECTIONS, TABLES, Option, Table, TableKey
from hardserve.settings import KIB, MIB, FieldValue, Settings
from hardserve.values import parse


def by_key(option: Option) -> str:
    return option.key


@pytest.mark.parametrize("option", OPTIONS, ids=by_key)
def test_a_default_is_a_value_that_the_setting_takes(option: Option) -> None:
    assert parse(option.kind, option.default) == option.default
    assert type(parse(option.kind, option.default)) is type(option.default)


@pytest.mark.parametrize("option", OPTIONS, ids=by_key)
def test_an_example_is_a_value_that_the_setting_takes(option: Option) -> None:
    assert parse(option.kind, option.example) == option.example
    if isinstance(option.kind, FieldValue):
        assert option.example not in option.kind.words  # a message would say the word twice


@pytest.mark.parametrize("option", OPTIONS, ids=by_key)
def test_help_is_one_short_sentence(option: Option) -> None:
    assert option.help.endswith((".", "never."))
    assert option.help[0].isupper()
    assert 10 < len(option.help) <= 100
    assert "\n" not in option.help


KEYS = [pytest.param(table, key, id=f"{table.name}.{key.name}") for table in TABLES for key in table.keys]


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_the_example_of_a_setting_in_a_table_is_a_value_that_it_takes(table: Table, key: TableKey) -> None:
    assert parse(key.about.kind, key.example) == key.example
    assert key.required or parse(key.about.kind, key.example) != key.default
    assert key.required == (key.about.without == "")  # what holds where it is left out is always said


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_help_on_a_setting_in_a_table_is_one_short_sentence(table: Table, key: TableKey) -> None:
    for text in (key.about.help, table.about.help):
        assert text.endswith(".")
        assert text[0].isupper()
        assert 10 < len(text) <= 100
        assert "\n" not in text


def test_the_defaults_are_those_that_the_documentation_promises() -> None:
    settings = Settings()
    assert settings.server.bind == ("127.0.0.1:8000",)  # nobody else's machine until somebody says so
    assert settings.server.drain == 25.0
    assert settings.timeouts.header == 10.0
    assert settings.limits.body == 16 * MIB
    assert settings.limits.header == 64 * KIB
    assert settings.log.access == "stdout"


def test_a_section_has_no_settings_but_those_declared() -> None:
    assert [each.name for each in (*SECTIONS, *TABLES)] == [field.name for field in fields(Settings)]
    assert len({option.key for option in OPTIONS}) == len(OPTIONS)
    for table in TABLES:
        assert [key.name for key in table.keys] == [field.name for field in fields(table.about.type)]


def test_no_table_can_be_taken_for_a_section_or_a_keyword() -> None:
    taken = {section.name for section in SECTIONS} | {option.keyword for option in OPTIONS}
    # `--static /media=uploads` is the short form of [[static]]: what is given tells them apart.
    assert taken & {table.name for table in TABLES} == {"static"}


def test_settings_cannot_be_changed_once_made() -> None:
    settings = Settings()
    with pytest.raises(FrozenInstanceError):
        settings.server.threads = 3  # type: ignore[misc]
    assert replace(settings.server, threads=3).threads == 3
