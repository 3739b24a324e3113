"""What must not be in a directory that is served is found, and what may be is not."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from werkzeug.security import generate_password_hash

from hardserve.files import exposure
from hardserve.files.exposure import MAX_ENTRIES, MAX_FINDINGS, AppFiles, exposed
from tests.support import PATIENCE_S

PEM_KEY = b"-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n"
PEM_CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIID\n-----END CERTIFICATE-----\n"
SQLITE = b"SQLite format 3\0" + bytes(84)


def write(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- secrets ---


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        pytest.param(".env", b"", "environment variables", id=".env"),
        pytest.param(".flaskenv", b"", "environment variables", id=".flaskenv"),
        pytest.param(".ENV", b"", "environment variables", id=".env in another case"),
        pytest.param("hardserve.toml", b"", "configuration", id="our configuration"),
        pytest.param("prod.env", b"", "environment variables", id="what ends with .env"),
        pytest.param("Prod.ENV", b"", "environment variables", id="what ends with .ENV"),
        pytest.param(".htpasswd", b"", "password hashes", id=".htpasswd"),
        pytest.param("users", b"# ours\nalice:scrypt:32768:8:1$a$b\n", "password hashes", id="a users file of ours"),
        pytest.param("users.txt", b"alice:$apr1$a$b\n", "password hashes", id="a users file of Apache's"),
        pytest.param("site.htpasswd", b"a:b\nc:{SHA}x=\n", "password hashes", id="a hash in a later line"),
        pytest.param("app.db", SQLITE, "database", id="a database"),
        pytest.param("app.sqlite", SQLITE, "database", id="a .sqlite"),
        pytest.param("APP.SQLITE3", SQLITE, "database", id="a .sqlite3 in capitals"),
        pytest.param("app.db3", SQLITE, "database", id="a .db3"),
        pytest.param("app.s3db", SQLITE, "database", id="a .s3db"),
        pytest.param("backup.sqlite3.bak", SQLITE, "database", id="a backup of one"),
        pytest.param("id_rsa", b"", "private key", id="a key of ssh"),
        pytest.param("id_ed25519", b"", "private key", id="a newer key of ssh"),
        pytest.param("server.key", PEM_KEY, "private key", id="a .key"),
        pytest.param("server.pem", PEM_KEY, "private key", id="a .pem"),
        pytest.param("both.pem", PEM_CERTIFICATE * 100 + PEM_KEY, "private key", id="a key behind certificates"),
        pytest.param("enc.key", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "private key", id="an encrypted key"),
        pytest.param("store.p12", b"", "store of private keys", id="a .p12"),
        pytest.param("store.pfx", b"", "store of private keys", id="a .pfx"),
    ],
)
def test_a_secret_is_found(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    mount = tmp_path / "mount"
    for place in (mount / name, mount / "a/b" / name):
        write(place, data)
        (sentence,) = exposed(mount, app_files=AppFiles())
        assert sentence.startswith(f"{place} is ")
        assert what in sentence
        assert exposed(place, app_files=AppFiles()) == [sentence], "and as a mount of its own"
        place.unlink()
    assert exposed(mount, app_files=AppFiles()) == []


@pytest.mark.parametrize("name", [".git", ".hg", ".svn"])
def test_a_repository_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "config")
    write(tmp_path / "a" / name / "config")
    assert exposed(tmp_path, app_files=AppFiles()) == [
        f"{path} is a repository with all that was ever in it"
        for path in sorted([tmp_path / name, tmp_path / "a" / name])
    ]


def test_a_real_database_and_a_real_users_file(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "real.db") as connection:
        connection.execute("create table t (x)")
    connection.close()
    write(tmp_path / "users", f"alice:{generate_password_hash('x')}\n".encode())
    said = exposed(tmp_path, app_files=AppFiles())
    assert [sentence.split(" is ")[1] for sentence in said] == ["a database", "a file of names and password hashes"]


@pytest.mark.parametrize("beside", ["-wal", "-journal"])
def test_what_stands_beside_a_database_gives_it_away(tmp_path: Path, beside: str) -> None:
    """An encrypted one has no magic."""
    write(tmp_path / "app.db", os.urandom(64))
    assert exposed(tmp_path, app_files=AppFiles()) == []
    write(tmp_path / f"app.db{beside}")
    assert exposed(tmp_path, app_files=AppFiles()) == [f"{tmp_path}/app.db is a database"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("ca.pem", PEM_CERTIFICATE, id="a certificate"),
        pytest.param("talk.key", b"PK\3\4", id="a presentation"),
        pytest.param("Thumbs.db", b"\xd0\xcf\x11\xe0", id="a database of thumbnails"),
        pytest.param("empty.db", b"", id="an empty file"),
        pytest.param("SQLite.txt", SQLITE, id="a database by another name"),
        pytest.param("id_rsa.pub", b"ssh-rsa AAAA", id="a public key"),
        pytest.param("users", b"alice\nbob: a painter\n", id="a list of names"),
        pytest.param("users.txt", b"", id="an empty list of names"),
        pytest.param("page.html.bak", b"<p>", id="a backup of something else"),
        pytest.param("env", b"", id="what is called env"),
        pytest.param("page.html", b"{{ name }}", id="a page that is no template of the app's"),
        pytest.param("keys.html", PEM_KEY, id="a page about keys"),
        pytest.param("example.py", b"import flask\n", id="Python that is not the app's"),
        pytest.param("example.js", b"", id="a script"),
        pytest.param(".gitignore", b"", id="what only begins like .git"),
        pytest.param(".git", b"gitdir: ../x\n", id="a file called .git"),
        pytest.param("environment", b"", id="what only sounds like it"),
        pytest.param(".env.example", b"", id="an example"),
    ],
)
def test_what_only_looks_like_it_is_fine(tmp_path: Path, name: str, data: bytes) -> None:
    path = write(tmp_path / name, data)
    assert exposed(tmp_path, app_files=AppFiles()) == []
    assert exposed(path, app_files=AppFiles()) == []


# --- the app's source ---


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A Flask app as a package, and its folders."""
    for name in ("shop/__init__.py", "shop/views.py", "shop/static/site.css", "shop/static/example.py"):
        write(tmp_path / name)
    for name in ("shop/templates/a.html", "shop/api/__init__.py", "shop/api/v1/__init__.py", "media/a.jpg"):
        write(tmp_path / name)
    for name in ("shop/templates/mails/hello.j2", "shop/templates/art/logo.svg", "shop/media/a.html", "shop/lib/a.py"):
        write(tmp_path / name)
    for name in ("instance/config.py", "instance/uploads/sent.py", "shop/__pycache__/views.cpython-311.pyc"):
        write(tmp_path / name)
    return tmp_path


def app_files(app: Path) -> AppFiles:
    return AppFiles(
        [app / "shop/__init__.py", app / "shop/views.py"],
        packages=[app / "shop"],
        templates=[app / "shop/templates"],
        instances=[app / "instance"],
        public=[app / "shop/static"],
    )


def said_of(app: Path, mount: Path) -> list[str]:
    return [sentence.replace(f"{app}/", "") for sentence in exposed(mount, app_files=app_files(app))]


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param("shop/static", id="its static folder, whatever is in there"),
        pytest.param("shop/media", id="one in the package that has no Python, though a page"),
        pytest.param("shop/templates/art", id="one among the templates that has none"),
        pytest.param("instance/uploads", id="one in the instance folder, to which clients may have sent Python"),
        pytest.param("media", id="one beside the package"),
    ],
)
def test_folders_beside_the_source_are_fine(app: Path, folder: str) -> None:
    assert said_of(app, app / folder) == []


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ("shop/lib", "shop/lib/a.py is Python that lies where the app's own does"),
        ("shop/lib/a.py", "shop/lib/a.py is Python that lies where the app's own does"),
        ("shop/__pycache__", "shop/__pycache__ is the app's own source, compiled"),
        (
            "shop/__pycache__/views.cpython-311.pyc",
            "shop/__pycache__/views.cpython-311.pyc is the app's own source, compiled",
        ),
        ("shop/templates", "shop/templates is a folder of the app's templates"),
        ("shop/templates/mails", "shop/templates/mails/hello.j2 is one of the app's templates"),
        ("shop/templates/a.html", "shop/templates/a.html is one of the app's templates"),
        ("instance", "instance is the app's instance folder, which is for its settings and databases"),
        ("instance/config.py", "instance/config.py is Python that lies where the app's own does"),
    ],
)
def test_what_is_the_apps_though_no_module_that_is_loaded(app: Path, mount: str, said: str) -> None:
    assert said_of(app, app / mount) == [said]
    (app / "link").symlink_to(app / mount)
    (said_of_link,) = said_of(app, app / "link")
    assert said_of_link.partition(" is ")[2] == said.partition(" is ")[2]


def test_a_static_folder_that_has_the_source_in_it_is_no_excuse(app: Path) -> None:
    """static_folder="." shows it, but not through us."""
    files = AppFiles([app / "shop/views.py"], packages=[app / "shop"], public=[app / "shop"])
    assert len(exposed(app / "shop", app_files=files)) == 2
    assert len(exposed(app / "shop/lib", app_files=files)) == 1


def test_a_folder_for_both_pages_and_static_files_is_public(app: Path) -> None:
    """As what a front-end's build has written, of which Flask renders the one page."""
    write(app / "dist/index.html")
    files = AppFiles(templates=[app / "dist"], public=[app / "dist"])
    assert exposed(app / "dist", app_files=files) == []
    write(app / "build/static/index.html")
    files = AppFiles(templates=[app / "build"], public=[app / "build/static"])
    assert exposed(app / "build/static", app_files=files) == []
    assert len(exposed(app / "build", app_files=files)) == 1


def test_templates_beside_everything_else_take_nothing_along(app: Path) -> None:
    """template_folder=".": then a page that was uploaded is none of them."""
    write(app / "media/page.html")
    files = AppFiles([write(app / "app.py")], roots=[app], templates=[app])
    assert exposed(app / "media", app_files=files) == []
    assert len(exposed(app, app_files=files)) == 2


@pytest.mark.parametrize("folder", [".", "shop", "shop/static/..", "link"])
def test_a_folder_with_the_source_is_not(app: Path, folder: str) -> None:
    (app / "link").symlink_to("shop")
    assert said_of(app, app / folder) == [
        "shop is the folder that the app's own source is in",
        *(["instance is the app's instance folder, which is for its settings and databases"] if folder == "." else []),
        "shop/templates is a folder of the app's templates",
        *(["shop/__init__.py is the app's own source"] if folder != "." else []),
        f"{2 if folder == '.' else 1} more files in it are the app's own source",
    ]


def test_the_folder_it_is_started_in(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(app)
    assert exposed(Path(), app_files=AppFiles([Path("shop/views.py")])) == [
        f"{app}/shop/views.py is the app's own source"
    ]


def test_a_module_is_found_where_its_folder_is_not_told(app: Path) -> None:
    (said,) = exposed(app / "shop", app_files=AppFiles([app / "shop/views.py"]))
    assert said == f"{app}/shop/views.py is the app's own source"


def test_a_module_that_is_a_mount_itself(app: Path) -> None:
    assert said_of(app, app / "shop/views.py") == ["shop/views.py is the app's own source"]
    assert said_of(app, app / "shop/static/example.py") == []


@pytest.mark.parametrize("folder", ["shop/api", "shop/api/v1"])
def test_a_package_of_the_apps_that_is_not_imported_yet(app: Path, folder: str) -> None:
    assert said_of(app, app / folder) == [f"{folder} is a package of the app's, with its source"]


def test_a_package_beside_a_module_of_the_apps_that_is_not_imported_yet(app: Path) -> None:
    files = AppFiles(roots=[app / "shop"])
    assert exposed(app / "shop/api/v1", app_files=files) == [
        f"{app}/shop/api/v1 is a package of the app's, with its source"
    ]
    assert exposed(app / "shop/lib", app_files=files) == []


def test_a_package_that_is_not_the_apps(app: Path) -> None:
    write(app / "shop/static/examples/__init__.py")
    write(app / "media/examples/__init__.py")
    assert said_of(app, app / "shop/static/examples") == []
    assert said_of(app, app / "media/examples") == []


def test_a_mount_that_is_the_source_by_a_link(app: Path) -> None:
    (app / "views-link.py").symlink_to("shop/views.py")
    assert said_of(app, app / "views-link.py") == ["shop/views.py is the app's own source"]


def test_a_hard_link_is_the_same_file(app: Path) -> None:
    os.link(app / "shop/views.py", app / "copy.py")
    assert said_of(app, app / "copy.py") == ["shop/views.py is the app's own source"]


def test_many_modules_are_told_shortly(tmp_path: Path) -> None:
    modules = [write(tmp_path / f"{number}.py") for number in range(10)]
    said = exposed(tmp_path, app_files=AppFiles(modules))
    assert said == [
        *(f"{tmp_path}/{number}.py is the app's own source" for number in range(3)),
        "7 more files in it are the app's own source",
    ]


# --- bounds, and whatever a directory may hold ---


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("nothing", id="what is not there"),
        pytest.param("file/below", id="below a file"),
        pytest.param("x" * 300, id="a name that is too long"),
        pytest.param("a\0b", id="NUL"),
        pytest.param("loop", id="a link to itself"),
        pytest.param("fifo", id="a FIFO"),
    ],
)
def test_what_cannot_be_looked_at_is_no_finding(tmp_path: Path, path: str) -> None:
    write(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    assert exposed(tmp_path / path, app_files=AppFiles([Path("/nothing/app.py")])) == []


def test_an_app_file_that_is_nowhere(tmp_path: Path) -> None:
    """It may be in an archive, or have been removed since it was imported."""
    strange = [Path("a\0b"), tmp_path / ("x" * 300), tmp_path.parent / "gone/app.py"]
    write(tmp_path / "file")
    assert exposed(tmp_path / "file", app_files=AppFiles(strange)) == []
    assert exposed(tmp_path, app_files=AppFiles([tmp_path / "app.zip/app.py"])) == [
        f"{tmp_path}/app.zip/app.py is the app's own source"
    ]


def test_a_fifo_or_a_directory_with_such_a_name_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.pem", "a.db", ".env", "users"):
        os.mkfifo(tmp_path / name)
    for name in ("b.pem", "b.db", "id_rsa"):
        (tmp_path / name).mkdir()
    said: list[list[str]] = []
    thread = threading.Thread(target=lambda: said.append(exposed(tmp_path, app_files=AppFiles())), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert said == [[]]


def unreadable(directory: Path) -> list[str]:
    """Return what is said of `directory` by somebody who is not root."""
    if os.geteuid():
        return exposed(directory, app_files=AppFiles())
    os.seteuid(65_534)
    try:
        return exposed(directory, app_files=AppFiles())
    finally:
        os.seteuid(0)


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    for place in (tmp_path, *tmp_path.parents):
        if "pytest" in str(place):
            place.chmod(0o755)
    write(tmp_path / "closed/a.pem", PEM_KEY)
    write(tmp_path / "open/a.pem", PEM_KEY)
    write(tmp_path / "b.pem", PEM_KEY).chmod(0)
    (tmp_path / "closed").chmod(0)
    try:
        assert unreadable(tmp_path) == [f"{tmp_path}/open/a.pem is a private key"]
        assert unreadable(tmp_path / "closed") == []
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_links_to_directories_and_hidden_directories_are_not_entered(tmp_path: Path) -> None:
    write(tmp_path / "mount/.hidden/id_rsa")
    write(tmp_path / "outside/id_rsa")
    (tmp_path / "mount/link").symlink_to(tmp_path / "outside")
    (tmp_path / "mount/around").symlink_to(".")
    assert exposed(tmp_path / "mount", app_files=AppFiles()) == []
    write(tmp_path / "mount/.well-known/id_rsa")
    assert exposed(tmp_path / "mount", app_files=AppFiles()) == [
        f"{tmp_path}/mount/.well-known/id_rsa is a private key"
    ]


def test_findings_are_told_up_to_a_number(tmp_path: Path) -> None:
    for number in range(MAX_FINDINGS + 5):
        write(tmp_path / f"{number:02}" / "id_rsa")
    said = exposed(tmp_path, app_files=AppFiles())
    assert len(said) == MAX_FINDINGS + 1
    assert said[-1] == "there is more of this kind"


def test_a_name_cannot_pass_for_another_line_of_the_log(tmp_path: Path) -> None:
    for name in ("a\nb.p12", "\udcff.p12"):
        write(tmp_path / name)
    said = exposed(tmp_path, app_files=AppFiles())
    assert len(said) == 2
    assert all(sentence.isprintable() for sentence in said)
    assert all("\\" in sentence for sentence in said)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the names that are read."""
    count = 0
    entries = exposure._entries

    def counted(*args: object) -> object:
        nonlocal count
        for entry in entries(*args):  # type: ignore[arg-type]
            count += 1
            yield entry

    monkeypatch.setattr(exposure, "_entries", counted)
    return lambda: count


def test_no_more_names_are_read_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked_at: Callable[[], int]
) -> None:
    assert MAX_ENTRIES == 20_000
    monkeypatch.setattr(exposure, "MAX_ENTRIES", 400)
    for directory in range(30):
        for number in range(30):
            write(tmp_path / str(directory) / str(number))
    assert exposed(tmp_path, app_files=AppFiles()) == []
    assert looked_at() == 400


def test_one_large_directory_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure, "MAX_ENTRIES", 400)
    for number in range(1_000):
        write(tmp_path / "uploads" / str(number))
    write(tmp_path / "zoo/a/b/id_rsa")
    assert exposed(tmp_path, app_files=AppFiles()) == [f"{tmp_path}/zoo/a/b/id_rsa is a private key"]


def test_well_known_names_are_found_among_any_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure, "MAX_ENTRIES", 0)
    write(tmp_path / ".env")
    assert len(exposed(tmp_path, app_files=AppFiles())) == 1


def test_so_many_files_are_read_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure, "MAX_READ", 3)
    for number in range(10):
        write(tmp_path / f"{number}.pem", PEM_KEY)
    assert len(exposed(tmp_path, app_files=AppFiles())) == 3


def test_a_real_key_of_openssl(tmp_path: Path) -> None:
    key = tmp_path / "tls/privkey.pem"
    key.parent.mkdir()
    try:
        subprocess.run(
            ["openssl", "genpkey", "-algorithm", "ED25519", "-out", str(key)],
            check=True,
            capture_output=True,
            timeout=30,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not there")
    assert exposed(tmp_path, app_files=AppFiles()) == [f"{key} is a private key"]
