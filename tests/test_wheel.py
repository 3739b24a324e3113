"""What is installed: a pure Python wheel with everything in it that the package reads at run time."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "hardserve"
# What setuptools reads. It leaves its own files beside them, and takes what an earlier build left: hence a copy.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "hardserve")


def _setuptools() -> int:
    try:
        return int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return 0


# Nothing is fetched to build with: the build backend is one of the test dependencies.
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(_setuptools() < 77, reason="setuptools is missing or older than 77"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    for name in SOURCES:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(directory), str(source)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_is_pure_python(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    expected = {
        path.relative_to(REPOSITORY).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "hardserve/py.typed" in names
    assert {Path(name).suffix for name in names if name.startswith("hardserve/demo/")} >= {
        ".py",
        ".html",
        ".css",
        ".js",
    }


def test_the_wheel_says_what_it_needs_and_which_command_it_brings(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(texts["METADATA"])
    always = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    names = sorted(re.split(r"[^\w.-]", each)[0] for each in always)
    assert names == ["flask", "limits", "python-dotenv", "waitress"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert "hardserve = hardserve.cli:main" in texts["entry_points.txt"]
    assert "MIT" in texts["LICENSE"]
