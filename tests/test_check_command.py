"""What `hardserve check` looks at besides the app (files, git, keys), and how it says what it has found."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import UsageError

from hardserve import check
from hardserve.audit import certfindings, secretfindings
from hardserve.audit.findings import Check, Finding, Severity
from hardserve.audit.reach import reach_of
from hardserve.audit.strength import why_short, why_weak
from hardserve.audit.tracked import is_open, is_tracked
from hardserve.cert import Holding, Renewal
from hardserve.configfiles import DotEnv
from hardserve.options import from_keywords, resolve
from hardserve.tls.policy import PairFiles
from tests.gitindex import git_index

REPOSITORY = Path(__file__).parent.parent
APP = """\
from flask import Flask

app = Flask(__name__)
"""

# --- files ---


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user of this machine gets to; pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        if not all(os.stat(parent).st_mode & 0o001 for parent in Path(name).parents):
            pytest.skip("temporary directories are closed here")
        yield Path(name)


def test_a_file_is_open_if_all_above_it_are(open_directory: Path) -> None:
    inner = open_directory / "inner"
    inner.mkdir(0o755)
    file = inner / ".env"
    file.touch(0o644)
    file.chmod(0o644)
    assert is_open(file)
    file.chmod(0o640)
    assert not is_open(file)
    file.chmod(0o644)
    inner.chmod(0o700)
    assert not is_open(file)
    assert not is_open(inner / "missing")


def test_a_file_with_secrets_that_everybody_can_read(open_directory: Path) -> None:
    (open_directory / ".env").write_text("SECRET_KEY=0123\nGREETING=hello\nSTORE=redis://:pw@localhost/0\n")
    (open_directory / ".env").chmod(0o644)
    (open_directory / ".flaskenv").write_text("FLASK_APP=app\n")
    resolved = resolve(environ={}, dotenv=DotEnv.find(open_directory, {}), directory=open_directory)
    files = list(check._secret_files(resolved, open_directory))
    (finding,) = secretfindings.file_findings(files)
    assert (finding.check.id, finding.evidence) == ("secret-file-open", ".env has SECRET_KEY, STORE")
    assert finding.fix == "chmod o= .env, which is to belong to the user that the app runs as"


@pytest.mark.parametrize("version", [2, 3, 4])
def test_what_git_tracks_is_read_from_its_index(tmp_path: Path, version: int) -> None:
    git = tmp_path / ".git"
    git.mkdir()
    (git / "config").write_text("[core]\n")
    (git / "index").write_bytes(git_index([".env", "app.py", "shop/settings.py", "shop/views.py"], version))
    assert is_tracked(tmp_path / ".env") is True
    assert is_tracked(tmp_path / "shop" / "views.py") is True
    assert is_tracked(tmp_path / "shop" / "local.py") is False
    (git / "index").write_bytes(git_index([".env"], version, extension=b"link" + (20).to_bytes(4) + bytes(20)))
    assert is_tracked(tmp_path / ".env") is None, "the rest is in another file"
    (git / "index").write_bytes(b"DIRC\0\0\0\x02\0\0\0\x63")
    assert is_tracked(tmp_path / ".env") is None
    (git / "index").unlink()
    assert is_tracked(tmp_path / ".env") is None


def test_a_file_in_no_repository_is_not_known(tmp_path: Path) -> None:
    if any((parent / ".git").exists() for parent in tmp_path.parents):
        pytest.skip("temporary files are in a repository here")
    assert is_tracked(tmp_path / "app.py") is None


@pytest.mark.peer
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("version", [2, 4])
def test_git_itself_writes_what_is_read(tmp_path: Path, version: int) -> None:
    def git(*arguments: str, directory: Path = tmp_path) -> None:
        subprocess.run(["git", *arguments], cwd=directory, check=True, capture_output=True)

    git("init", "-q")
    git("config", "index.version", str(version))
    for name in ("app.py", "shop/a.py", "shop/ab.py", "shop/b.py", "x" * 140 + ".py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    git("add", ".")
    (tmp_path / "shop" / "late.py").touch()
    for name in ("app.py", "shop/a.py", "shop/ab.py", "shop/b.py", "x" * 140 + ".py"):
        assert is_tracked(tmp_path / name) is True, name
    assert is_tracked(tmp_path / "shop" / "late.py") is False
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    git("worktree", "add", "-q", str(tmp_path / "other"))
    assert is_tracked(tmp_path / "other" / "shop" / "ab.py") is True
    assert is_tracked(tmp_path / "other" / "new.py") is False


def test_a_ca_that_refuses_again_and_again_is_found(tmp_path: Path) -> None:
    settings = from_keywords(tls_domain=["shop.example.org"], acme_agree="on", tls_hsts="1h")
    files = PairFiles(tmp_path / "certificate.pem", tmp_path / "key.pem")

    def told(failures: int) -> list[Finding]:
        holding = Holding("acme", files, renewal=Renewal(0.0, "again", failures, "rejected by the CA"))
        return list(certfindings.certificate_findings(settings, reach_of(settings), (), [holding]))

    assert told(2) == []
    (finding,) = told(3)
    assert (finding.check.id, finding.evidence) == ("certificate-renewal-fails", "3 times in a row: rejected by the CA")


# --- keys ---


@pytest.mark.parametrize(
    "key",
    [
        "dev", "changeme", "change-me", "CHANGE_ME_IN_PRODUCTION", "secret!", "supersecretkey", "SuperSecretKey123",
        "s3cr3t", "you-will-never-guess", "hard to guess string", "a" * 64, "0123456789abcdef" * 2,
        "12345678901234567890", "shop-secret-key", b'_5#y2L"F4Q8z\n\xec]/', "",
    ],
)  # fmt: skip
def test_a_key_that_is_no_secret_is_weak(key: str | bytes) -> None:
    if key:
        assert why_weak(key, ["shop"])
    assert why_weak(key, ["shop"]) or why_short(key)


def test_keys_that_are_random_are_neither_weak_nor_short() -> None:
    chance = random.Random(7)  # so that it is the same keys each time
    for _ in range(300):
        data = chance.randbytes(32)
        keys: list[str | bytes] = [data, data[:16], data.hex(), data[:16].hex(), str(uuid.UUID(bytes=data[:16]))]
        keys += [base64.b64encode(data).decode(), base64.urlsafe_b64encode(data[:12]).decode()]
        assert [(why_weak(key), why_short(key)) for key in keys] == [("", "")] * len(keys), keys
    assert not why_weak("correct-horse-battery-staple-tile-lamp-orbit")


# --- the checks, and the command ---


def test_every_check_has_an_id_of_its_own_and_says_what_it_is() -> None:
    checks = check.all_checks()
    names = [each.id for each in checks]
    assert len(set(names)) == len(names) > 50
    for each in checks:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", each.id), each.id
        assert each.title
        assert each.why
        assert each.fix
        for text in (each.title, each.why, each.fix):
            assert "\n" not in text
            assert not text.endswith("."), text


def test_the_readme_has_every_check_as_the_command_lists_it() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    missing = [line for line in check.as_table().splitlines() if line not in readme]
    assert not missing, "`hardserve check --list` has what README.md lacks:\n" + "\n".join(missing)


def some(severity: Severity, evidence: str = "seen here") -> Finding:
    return Check(f"a-{severity.name.lower()}", severity, "something is wrong", "it matters", "mend").found(
        evidence, "mend it"
    )


def test_findings_are_said_the_worst_first_and_counted() -> None:
    told = [some(Severity.ERROR, "one\n\ttwo \x1b[2J"), some(Severity.NOTE)]
    assert check.in_words(told) == (
        "error a-error: something is wrong\n"
        "  seen  one\n"
        "        \\ttwo \\x1b[2J\n"
        "  why   it matters\n"
        "  fix   mend it\n"
        "\n"
        "note a-note: something is wrong\n"
        "  seen  seen here\n"
        "  why   it matters\n"
        "  fix   mend it\n"
        "\n"
        "1 error, 1 note"
    )
    assert check.in_words([]) == "nothing found"
    assert check.in_words([], 2) == "nothing found (2 ignored)"
    assert check.in_words([some(Severity.WARNING)] * 2).endswith("\n\n2 warnings")
    assert check.in_words(told, colour=True).startswith("\x1b[1merror a-error\x1b[0m: ")


def test_as_json_they_are_a_list_of_objects() -> None:
    assert json.loads(check.in_json([some(Severity.WARNING, "here")])) == [
        {
            "id": "a-warning",
            "severity": "warning",
            "title": "something is wrong",
            "evidence": "here",
            "fix": "mend it",
        }
    ]
    assert json.loads(check.in_json([])) == []


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("plain-htp", "did you mean plain-http?"),
        ("certificate", "certificate-"),
        ("nothing-like-it", "hardserve check --list has all"),
    ],
)
def test_an_id_that_is_none_is_usage_and_close_ones_are_named(wrong: str, meant: str, tmp_path: Path) -> None:
    resolved = resolve(environ={}, directory=tmp_path)
    with pytest.raises(UsageError) as caught:
        check.check_command(None, resolved, directory=tmp_path, as_json=False, ignore=["plain-http", wrong])
    assert wrong in caught.value.message
    assert meant in caught.value.message


def run(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HARDSERVE_", "FLASK_"))}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), kept.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "hardserve", "check", *arguments],
        cwd=directory,
        env={**kept, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# What this box may be found to have, and no app is to blame for.
OF_BOXES = {each.id for module in (check.box, check.service) for each in module.CHECKS}


def ignoring_the_box() -> list[str]:
    return [word for each in sorted(OF_BOXES) for word in ("--ignore", each)]


def test_the_command_says_what_is_found_and_its_exit_code_how_bad_it_is(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "hardserve.toml").write_text('[proxy]\ntrusted = ["loopback"]\n')
    quiet = run(*ignoring_the_box(), directory=tmp_path)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout.splitlines()[-1].startswith("nothing found")
    # A program that reads this need not know what the app prints, nor wait for its threads.
    thread = "import threading\nthreading.Thread(target=threading.Event().wait).start()\nprint('imported')\n"
    (tmp_path / "app.py").write_text(f"{APP}app.testing = True\n{thread}")
    loud = run("app:app", *ignoring_the_box(), directory=tmp_path)
    assert loud.returncode == 1
    assert loud.stdout.startswith("warning testing-on: the app believes that it is being tested\n  seen  TESTING of")
    assert "\n\n1 warning" in loud.stdout
    assert "\x1b" not in loud.stdout
    debugging = ("--ignore=testing-on", "--log-level=debug")
    noted = run("app:app", "--json", *debugging, *ignoring_the_box(), directory=tmp_path)
    assert (noted.returncode, [each["id"] for each in json.loads(noted.stdout)]) == (0, ["log-debug"])
