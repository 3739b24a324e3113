"""What is installed in other places than this environment: the wheel of this checkout, and what it depends on."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parent.parent
# What setuptools reads. It leaves its own files beside them, and takes what an earlier build left: hence a copy.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "hardserve")
BUILD_LIMIT_S = 60
FETCH_LIMIT_S = 120


def cannot_build() -> str:
    """Return why no wheel can be built, "" when it can: nothing is fetched to build with."""
    try:
        good = int(version("setuptools").partition(".")[0]) >= 77
    except PackageNotFoundError:
        good = False
    return "" if good else "setuptools is missing or older than 77"


def build_wheel(directory: Path) -> Path:
    """Build the wheel of this checkout in `directory`."""
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
        [*command, "--wheel-dir", str(directory), str(source)],
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = directory.glob("*.whl")
    return built


def add_dependencies(target: Path, python: str) -> None:
    """Put what hardserve needs under Python `python` ("3.11") into the site-packages directory `target`.

    From the environment that the tests run in, without the network, if that is of this version; of others, packages may
    have no release in common. `pip check` in the target says whether anything is missing.
    """
    if python == ".".join(platform.python_version_tuple()[:2]):
        _copy_dependencies(target, python)
    else:
        _fetch_dependencies(target, python)


def _copy_dependencies(target: Path, python: str) -> None:
    for needed in _closure("hardserve", python):
        for file in needed.files or ():
            # Not the commands, which name another interpreter.
            if ".." not in file.parts and "__pycache__" not in file.parts:
                copied = target.joinpath(*file.parts)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(needed.locate_file(file)), copied)


def _fetch_dependencies(target: Path, python: str) -> None:
    needed = [text for text in distribution("hardserve").requires or () if "extra ==" not in text]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--only-binary=:all:", f"--python-version={python}", f"--target={target}", *needed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


def _closure(root: str, python: str) -> Iterator[Distribution]:
    """Yield what `root` depends on, without what its extras do."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    seen, left = {root}, [root]
    while left:
        for text in distribution(left.pop()).requires or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if name not in seen and (requirement.marker is None or requirement.marker.evaluate(environment)):
                seen.add(name)
                left.append(name)
                yield distribution(name)
