"""What is an app's own is told from where its modules are, and from its settings."""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpbin
import jinja2
import pytest
from flask import Blueprint, Flask

from hardserve.loader.sources import AppSource, source_of

Load = Callable[..., None]


def middleware(app: Any) -> Any:
    def call(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    return call


class Middleware:
    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)


def write(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import modules from the test's directory, and forget them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def load(*names: str) -> None:
        for name in names:
            importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")) or name.startswith("ours"):
            del sys.modules[name]


def below(tmp_path: Path, paths: Any) -> list[str]:
    return sorted(str(path.relative_to(tmp_path)) for path in paths if path.is_relative_to(tmp_path))


def test_a_package_is_the_apps_with_all_that_was_loaded_from_it(tmp_path: Path, load: Load) -> None:
    for name in ("ours/__init__.py", "ours/web/__init__.py", "ours/web/views.py", "ours/models.py", "ours/lib/deep.py"):
        write(tmp_path / name)
    write(tmp_path / "ours/not_loaded.py")
    write(tmp_path / "beside.py")
    load("ours.web.views", "ours.models", "ours.lib.deep", "beside")
    source = source_of(Flask("ours.web.views"))
    assert below(tmp_path, source.files) == [
        "ours/__init__.py",
        "ours/lib/deep.py",
        "ours/models.py",
        "ours/web/__init__.py",
        "ours/web/views.py",
    ]
    assert below(tmp_path, source.packages) == ["ours", "ours/web"]
    assert below(tmp_path, source.roots) == []


def test_a_package_without_an_init_is_one_too(tmp_path: Path, load: Load) -> None:
    write(tmp_path / "ours/app.py")
    load("ours.app")
    assert below(tmp_path, source_of(Flask("ours.app")).packages) == ["ours"]


def test_beside_a_module_the_others_are_the_apps_as_far_as_they_are_loaded(tmp_path: Path, load: Load) -> None:
    for name in ("ours_app.py", "ours_models.py", "ours_lib/a.py", "not_loaded.py"):
        write(tmp_path / name)
    installed = "env/lib/python3/site-packages/ours_dependency.py"
    write(tmp_path / installed)
    load("ours_app", "ours_models", "ours_lib.a")
    sys.path.insert(0, str((tmp_path / installed).parent))
    try:
        load("ours_dependency")
    finally:
        del sys.path[0]
    source = source_of(Flask("ours_app"))
    assert below(tmp_path, source.files) == ["ours_app.py", "ours_lib/a.py", "ours_models.py"]
    assert (below(tmp_path, source.packages), below(tmp_path, source.roots)) == ([], ["."])


def test_an_installed_app_is_its_package_and_not_what_is_beside_it(tmp_path: Path, load: Load) -> None:
    installed = tmp_path / "lib/site-packages"
    for name in ("ours_package/__init__.py", "ours_package/views.py", "ours_single.py", "ours_other.py"):
        write(installed / name)
    sys.path.insert(0, str(installed))
    try:
        load("ours_package.views", "ours_single", "ours_other")
    finally:
        del sys.path[0]
    source = source_of(Flask("ours_package"))
    assert below(installed, source.files) == ["ours_package/__init__.py", "ours_package/views.py"]
    source = source_of(Flask("ours_single"))
    assert below(installed, source.files) == ["ours_single.py"]
    assert below(installed, source.roots) == []


def test_python_itself_is_nobodys(tmp_path: Path) -> None:
    """Whatever the root path: it may be "/" in a container."""
    source = source_of(Flask("ours", root_path="/"))
    assert Path(json.__file__) not in source.files
    assert Path(pytest.__file__) not in source.files
    assert Path(__file__) in source.files


def test_a_module_is_not_asked_for_what_it_would_have_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    monkeypatch.setitem(sys.modules, "ours_lazy", Lazy("ours_lazy"))
    monkeypatch.setitem(sys.modules, "ours_none", None)  # type: ignore[arg-type]
    assert source_of(Flask("ours_lazy", root_path=str(tmp_path))).files == []
    assert source_of(Flask("ours_none", root_path=str(tmp_path))).files == []


def test_templates_instance_and_static_folders(tmp_path: Path) -> None:
    app = Flask("ours", root_path=str(tmp_path / "app"), instance_path=str(tmp_path / "instance"))
    app.register_blueprint(
        Blueprint("b", "ours", root_path=str(tmp_path / "b"), template_folder="../pages", static_folder="files")
    )
    app.register_blueprint(Blueprint("without", "ours", root_path=str(tmp_path / "c")))
    source = source_of(app)
    assert below(tmp_path, source.templates) == ["app/templates", "pages"]
    assert below(tmp_path, source.instances) == ["instance"]
    assert below(tmp_path, source.public) == ["app/static", "b/files"]


def test_templates_of_a_loader_of_the_apps_own(tmp_path: Path) -> None:
    app = Flask("ours", root_path=str(tmp_path), template_folder=None)
    assert source_of(app).templates == []
    files = jinja2.FileSystemLoader([tmp_path / "one", tmp_path / "two"])
    app.jinja_loader = jinja2.ChoiceLoader([jinja2.DictLoader({}), jinja2.ChoiceLoader([files])])  # type: ignore[misc]
    assert below(tmp_path, source_of(app).templates) == ["one", "two"]
    around: Any = jinja2.ChoiceLoader([])
    around.loaders = [around] * 100
    app.jinja_loader = around  # type: ignore[misc]
    assert source_of(app).templates == []


def test_the_modules_of_an_app_are_its_source() -> None:
    files = source_of(httpbin.app).files
    assert Path(httpbin.core.__file__) in files  # where its views are
    assert all(file.is_file() for file in files)


def test_the_modules_of_blueprints_and_of_what_is_around_the_app_are_too() -> None:
    app = Flask(httpbin.__name__)
    app.register_blueprint(Blueprint("bp", __name__))
    assert {Path(httpbin.__file__), Path(__file__)} <= set(source_of(app).files)
    assert Path(__file__) in source_of(middleware(app)).files
    assert Path(__file__) in source_of(Middleware(app)).files


@pytest.mark.parametrize("app", [middleware(lambda e, s: []), Middleware(None)], ids=["function", "object"])
def test_an_app_of_another_framework_has_a_module_too(app: object) -> None:
    source = source_of(app)
    assert Path(__file__) in source.files
    assert Path(__file__).parent in source.packages


@pytest.mark.parametrize(
    ("key", "value", "file"),
    [
        ("SQLALCHEMY_DATABASE_URI", "sqlite:///shop.db", "instance/shop.db"),
        ("SQLALCHEMY_DATABASE_URI", "sqlite+pysqlite:///shop.db?timeout=3", "instance/shop.db"),
        ("SQLALCHEMY_DATABASE_URI", "sqlite:///old.db", "old.db"),
        ("SQLALCHEMY_DATABASE_URI", "sqlite:///not-made-yet.db", "instance/not-made-yet.db"),
        ("DATABASE_URL", "sqlite:///{}/a%20b.db", "a b.db"),
        ("DATABASE_URL", "sqlite:///file:{}/shop.db?mode=ro&uri=true", "shop.db"),
        ("DATABASE", "{}/shop.sqlite", "shop.sqlite"),
        ("DATABASE", "old.db", "old.db"),
        ("DATABASE", Path("old.db"), "old.db"),
        ("SQLALCHEMY_BINDS", {"users": "sqlite:///shop.db"}, "instance/shop.db"),
        ("SQLALCHEMY_BINDS", {"users": {"url": "sqlite:///shop.db", "echo": True}}, "instance/shop.db"),
        ("DATABASE_URL", "postgresql://user:secret@db/shop", None),
        ("SQLALCHEMY_DATABASE_URI", "sqlite://", None),
        ("SQLALCHEMY_DATABASE_URI", "sqlite:///:memory:", None),
        ("DATABASE", ":memory:", None),
        ("DATABASE", {"name": "shop"}, None),
        ("DATABASE", None, None),
    ],
)
def test_databases_in_files_are_found_from_the_configuration(
    tmp_path: Path, key: str, value: Any, file: str | None
) -> None:
    (tmp_path / "instance").mkdir()
    for name in ("instance/shop.db", "old.db"):
        sqlite3.connect(tmp_path / name).close()
    app = Flask("shop", root_path=str(tmp_path), instance_path=str(tmp_path / "instance"))
    app.config[key] = value.format(tmp_path) if isinstance(value, str) else value
    assert source_of(app).files == ([] if file is None else [tmp_path / file])


@pytest.mark.parametrize("app", [object(), None, 3], ids=["no app", "none", "a number"])
def test_what_is_no_app_has_no_source(app: object) -> None:
    assert source_of(app) == AppSource([], [], [], [], [], [])
