"""What is installed: a pure Python wheel with everything in it that the package reads at run time."""

from __future__ import annotations

import re
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.wheels import build_wheel, cannot_build

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "hardserve"
# Nothing is fetched to build with: the build backend is one of the test dependencies.
pytestmark = [pytest.mark.peer, pytest.mark.skipif(bool(cannot_build()), reason=cannot_build() or "it can be built")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


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
