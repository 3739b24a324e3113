"""The users file and the passwords: what is read, what is refused, whom it lets in, and for how long it remembers."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.security import check_password_hash, generate_password_hash

from hardserve.checks import users as users_module
from hardserve.checks.users import (
    LOOK_EVERY_S,
    MAX_AUTHORIZATION,
    MAX_FILE_BYTES,
    NOBODYS_HASH,
    Authenticator,
    Users,
    UsersFileError,
    hash_problem,
    name_problem,
    parse_basic,
    permission_warnings,
)
from tests.support import PATIENCE_S, switching_often

KEY = b"k" * 32
START = 1000.0
REMEMBER_S = 300.0


def quick(password: str, method: str = "pbkdf2:sha256:1") -> str:
    return generate_password_hash(password, method, 4)


def basic(user: str, password: str, encoding: str = "utf-8") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode(encoding)).decode()


def encoded(credentials: bytes) -> str:
    return "Basic " + base64.b64encode(credentials).decode()


ALICE = basic("alice", "secret")
CLIENT = "192.0.2.1"

# --- the field ---


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        pytest.param("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", ("Aladdin", "open sesame"), id="RFC 7617 2"),
        pytest.param("Basic dGVzdDoxMjPCow==", ("test", "123£"), id="RFC 7617 2.1, in UTF-8"),
        pytest.param(basic("test", "123£", "latin-1"), ("test", "123£"), id="in Latin-1"),
        pytest.param("bAsIc QWxhZGRpbjpvcGVuIHNlc2FtZQ==", ("Aladdin", "open sesame"), id="the scheme in any case"),
        pytest.param("Basic    YTpi", ("a", "b"), id="several spaces"),
        pytest.param("Basic YTpi  ", ("a", "b"), id="spaces behind"),
        pytest.param(basic("a", "b:c:d"), ("a", "b:c:d"), id="a colon belongs to the password"),
        pytest.param(basic("a", ""), ("a", ""), id="an empty password"),
        pytest.param(basic("", "b"), ("", "b"), id="an empty name"),
        pytest.param(basic("", ""), ("", ""), id="both empty"),
        pytest.param(basic("日本", "語"), ("日本", "語"), id="beyond Latin-1"),
        pytest.param("", None, id="nothing"),
        pytest.param("Basic", None, id="the scheme alone"),
        pytest.param("Basic ", None, id="the scheme and a space"),
        pytest.param("BasicYTpi", None, id="no space"),
        pytest.param("Basic\tYTpi", None, id="a tab"),
        pytest.param("Bearer YTpi", None, id="another scheme"),
        pytest.param("Basic YTpi, Basic YTpi", None, id="two in one"),
        pytest.param("Basic YTp", None, id="base64 without its padding"),
        pytest.param("Basic YTpi=", None, id="base64 with padding too much"),
        pytest.param("Basic YTpi====", None, id="base64 with a quad of padding"),
        pytest.param("Basic YTpiY===", None, id="base64 with three of padding"),
        pytest.param("Basic YTo=YTpi", None, id="base64 with padding within"),
        pytest.param("Basic =YTpi", None, id="base64 with padding in front"),
        pytest.param("Basic YT pi", None, id="a space in base64"),
        pytest.param("Basic YT\npi", None, id="a line end in base64"),
        pytest.param("Basic YTpi!", None, id="what is no base64"),
        pytest.param("Basic YTr-_w==", None, id="base64 for addresses"),
        pytest.param("Basic YTpi\xe9", None, id="beyond ASCII"),
        pytest.param(encoded(b"alice"), None, id="no colon"),
        pytest.param(encoded(b"a\0b:c"), None, id="a null in the name"),
        pytest.param(encoded(b"a\r\nb:c"), None, id="a line end in the name"),
        pytest.param(encoded(b"a\x7f:c"), None, id="a delete in the name"),
        pytest.param(encoded("a\x85:c".encode()), None, id="a control character of Unicode in the name"),
        pytest.param(encoded(b"a:b\0c"), None, id="a null in the password"),
        pytest.param(encoded(b"a:b\nc"), None, id="a line end in the password"),
        pytest.param("Basic " + "A" * MAX_AUTHORIZATION, None, id="overlong"),
        pytest.param("Basic " + "A" * 1_000_000, None, id="a megabyte"),
    ],
)
def test_parse_basic(authorization: str, expected: tuple[str, str] | None) -> None:
    assert parse_basic(authorization) == expected


def test_the_longest_field_is_read_and_one_character_more_is_not() -> None:
    longest = encoded(b"a:" + b"b" * 3064)
    longest += " " * (MAX_AUTHORIZATION - len(longest))
    assert parse_basic(longest) == ("a", "b" * 3064)
    assert parse_basic(longest + " ") is None


@given(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=100))
def test_no_field_makes_it_fail(text: str) -> None:
    for authorization in (text, "Basic " + text, encoded(text.encode("latin-1"))):
        parsed = parse_basic(authorization)
        assert parsed is None or ":" not in parsed[0]


# --- the file ---


def test_a_file_with_everything_in_it() -> None:
    data = (
        "# the people of the office\n"
        "\n"
        f"alice:{quick('a')}\r\n"
        f"  bob:{quick('b', 'scrypt:128:8:1')}  \n"
        f"Émilie Dupont:{quick('c', 'pbkdf2:sha512:2')}\n"
        "   # the end"
    )
    users = Users.parse(data.encode(), "users")
    assert len(users) == 3
    assert repr(users) == "<Users 3>"
    for name, password in (("alice", "a"), ("bob", "b"), ("Émilie Dupont", "c")):
        assert users.check(name, password, KEY)
        assert not users.check(name, password + "x", KEY)
        assert not users.check(name, "", KEY)
        assert not users.check(name.upper(), password, KEY), "names are what they are"


HEX32, HEX64 = "0" * 64, "0" * 128
SALT22 = "." * 22


@pytest.mark.parametrize(
    ("hashed", "problem"),
    [
        pytest.param(f"scrypt:32768:8:1$salt${HEX64}", None, id="Werkzeug's default"),
        pytest.param(f"scrypt:131072:8:1$salt${HEX64}", None, id="128 MiB"),
        pytest.param(f"scrypt:262144:8:1$salt${HEX64}", None, id="256 MiB, the most"),
        pytest.param(f"scrypt:524288:8:1$salt${HEX64}", "takes 512 MiB", id="512 MiB"),
        pytest.param(f"scrypt:32768:8:16$salt${HEX64}", "takes 512 MiB, or as long", id="as slow as that"),
        pytest.param(f"scrypt:999999999:8:1$salt${HEX64}", "expected a power of 2", id="N is no power of 2"),
        pytest.param(f"scrypt:1:8:1$salt${HEX64}", "expected a power of 2", id="N is 1"),
        pytest.param(f"scrypt:0:8:1$salt${HEX64}", "expected a power of 2", id="N is 0"),
        pytest.param(f"scrypt:32768:0:1$salt${HEX64}", "r and p of at least 1", id="r is 0"),
        pytest.param(f"scrypt:32768:8:0$salt${HEX64}", "r and p of at least 1", id="p is 0"),
        pytest.param(f"scrypt:65536:1:1$salt${HEX64}", "below 2^(16·r)", id="N too large for r"),
        pytest.param(f"scrypt:16:8:1$salt${HEX64}", "too little for Werkzeug", id="N too small for Werkzeug"),
        pytest.param(f"scrypt:32768:8:1$salt${HEX32}", "found a damaged hash", id="scrypt that was cut"),
        pytest.param(f"scrypt:32768:8:1$${HEX64}", "found a damaged hash", id="scrypt without a salt"),
        pytest.param(f"scrypt:{'9' * 5000}:8:1$salt${HEX64}", "found a damaged hash", id="very many digits"),
        pytest.param(f"scrypt$salt${HEX64}", "found none of these", id="scrypt without factors"),
        pytest.param(f"pbkdf2:sha256:600000$salt${HEX32}", None, id="pbkdf2"),
        pytest.param(f"pbkdf2:sha512:600000$salt${HEX64}", None, id="pbkdf2 of sha512"),
        pytest.param(f"pbkdf2:sha256:10000000$salt${HEX32}", None, id="10 million iterations, the most"),
        pytest.param(f"pbkdf2:sha256:10000001$salt${HEX32}", "10000001 iterations", id="one more"),
        pytest.param(f"pbkdf2:sha256:0$salt${HEX32}", "0 iterations", id="none"),
        pytest.param(f"pbkdf2:sha256:1000$salt${HEX64}", "found a damaged hash", id="the length of another hash"),
        pytest.param(f"pbkdf2:md5:1000$salt${'0' * 32}", "found a damaged hash", id="pbkdf2 of md5"),
        pytest.param(f"$2y$17${SALT22}{'.' * 31}", "bcrypt of cost 17: expected 4 to 16", id="bcrypt that takes long"),
        pytest.param(f"$2y$03${SALT22}{'.' * 31}", "bcrypt of cost 3: expected 4 to 16", id="bcrypt below its least"),
        pytest.param(f"$2x$10${SALT22}{'.' * 31}", "found a damaged hash", id="bcrypt with the sign bug"),
        pytest.param(f"$2y$10${SALT22}{'.' * 30}", "found a damaged hash", id="bcrypt that was cut"),
        pytest.param(f"$2y$10${'.' * 21}9{'.' * 31}", "found a damaged hash", id="bcrypt with an impossible salt"),
        pytest.param("$apr1$nr1B5R8N$WGGkI1VbF8i6qT48Yi//I0", "found Apache's MD5", id="htpasswd -m"),
        pytest.param("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "found SHA-1 without a salt", id="htpasswd -s"),
        pytest.param("$5$xsPJyeJ.740hjKL/$Xv5XWdg", "found SHA-256 of crypt", id="htpasswd -2"),
        pytest.param("$6$8x31MjeiRXZb28jm$Im89vIM", "found SHA-512 of crypt", id="htpasswd -5"),
        pytest.param("$1$salt$hash", "found MD5", id="openssl passwd -1"),
        pytest.param("$argon2id$v=19$m=65536,t=3,p=4$x$y", "found Argon2", id="Argon2"),
        pytest.param("XPR8GyxhWdpeo", "perhaps a plain password", id="htpasswd -d"),
        pytest.param("secret", "perhaps a plain password", id="htpasswd -p"),
        pytest.param("", "perhaps a plain password", id="nothing"),
        pytest.param(f"x scrypt:32768:8:1$salt${HEX64}", "perhaps a plain password", id="something in front"),
    ],
)
def test_which_hashes_are_taken(hashed: str, problem: str | None) -> None:
    found = hash_problem(hashed)
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert problem in found
        assert "salt$0" not in found
        assert not hashed or "$" in found or hashed not in found, "a password is not shown"


@pytest.mark.parametrize("r", [1, 2, 8])
@pytest.mark.parametrize("p", [1, 2, 5])
@pytest.mark.parametrize("n", [2**bits for bits in range(1, 12)])
def test_what_is_taken_werkzeug_can_compute_and_what_is_too_little_it_cannot(n: int, r: int, p: int) -> None:
    method = f"scrypt:{n}:{r}:{p}"
    if hash_problem(f"{method}$salt${HEX64}") is None:
        assert check_password_hash(quick("x", method), "x")
    else:
        with pytest.raises(ValueError, match="memory limit"):
            quick("x", method)


def test_every_problem_of_a_file_is_named_with_its_line_and_no_secret() -> None:
    data = (
        b"alice:$apr1$nr1B5R8N$WGGkI1VbF8i6qT48Yi//I0\n"
        b"# fine\n"
        b"hunter2\n"
        b"bob:hunter2\n"
        b":" + NOBODYS_HASH.encode() + b"\n"
        b"carol:" + NOBODYS_HASH.encode() + b"\n"
        b"d\xe4ve:x\n"
        b"e\x01e:x\n"
        b"carol :" + NOBODYS_HASH.encode() + b"\n"
        b"it's:secret\n"
        b"carol:" + NOBODYS_HASH.encode()
    )
    with pytest.raises(UsersFileError) as caught:
        Users.parse(data, "my users")
    supported = "expected scrypt:N:r:p$salt$hex, pbkdf2:sha256:iterations$salt$hex or bcrypt's $2y$"
    assert caught.value.problems == [
        (
            f'my users:1: "alice": {supported}; found Apache\'s MD5;'
            " `hardserve passwd 'my users' alice` sets a new password"
        ),
        "my users:3: expected name:hash, found no colon",
        (
            f'my users:4: "bob": {supported}; found none of these, perhaps a plain password;'
            " `hardserve passwd 'my users' bob` sets a new password"
        ),
        'my users:5: the name "" is empty',
        "my users:7: this line is not UTF-8",
        'my users:8: the name "e\\U00000001e" has a character that cannot be printed',
        'my users:9: the name "carol " begins or ends with a space',
        (
            f'my users:10: "it\'s": {supported}; found none of these, perhaps a plain password;'
            " `hardserve passwd 'my users' 'it'\"'\"'s'` sets a new password"
        ),
        'my users:11: "carol" is on line 6, too: remove one of them',
    ]
    assert "hunter2" not in str(caught.value)


def test_of_very_many_problems_some_are_named() -> None:
    with pytest.raises(UsersFileError) as caught:
        Users.parse(b"rubbish\n" * 1000, "users")
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and 980 more like these"


@pytest.mark.parametrize("name", ["a", "alice@example.com", "Émilie Dupont", "a#b", "日本", "a/b", "a\\b", '"'])
def test_names_that_are_taken(name: str) -> None:
    assert name_problem(name) is None
    users = Users.parse(f"{name}:{quick('x')}".encode(), "users")
    assert parse_basic(basic(name, "x")) == (name, "x")
    assert users.check(name, "x", KEY)


@pytest.mark.parametrize(
    ("mode", "warning"),
    [
        pytest.param(0o600, [], id="its owner's"),
        pytest.param(0o660, [], id="its group's, too"),
        pytest.param(0o661, [], id="to be run is no harm"),
        pytest.param(0o644, ["everybody on this machine can read 'my users': chmod o= 'my users'"], id="readable"),
        pytest.param(0o602, ["everybody on this machine can change 'my users': chmod o= 'my users'"], id="writable"),
        pytest.param(
            0o666, ["everybody on this machine can read and change 'my users': chmod o= 'my users'"], id="both"
        ),
    ],
)
def test_a_file_that_is_open_to_others_is_warned_of(tmp_path: Path, mode: int, warning: list[str]) -> None:
    path = tmp_path / "users"
    path.write_text("")
    path.chmod(mode)
    expected = [line.replace("'my users'", str(path)) for line in warning]
    assert permission_warnings(str(path), path.stat().st_mode) == expected
    assert Authenticator(str(path), REMEMBER_S).load() == expected


# --- bcrypt ---


def bcrypt_hash(password: bytes) -> str:
    bcrypt = pytest.importorskip("bcrypt")
    hashed: bytes = bcrypt.hashpw(password, bcrypt.gensalt(4))
    return hashed.decode()


@pytest.mark.parametrize("prefix", ["$2y$", "$2b$", "$2a$"])
def test_a_bcrypt_hash_of_any_name(prefix: str) -> None:
    hashed = prefix + bcrypt_hash(b"secret")[4:]
    assert hash_problem(hashed) is None
    users = Users({"alice": hashed})
    assert [users.check("alice", password, KEY) for password in ("secret", "secret ", "")] == [True, False, False]


def test_bcrypt_looks_at_72_bytes_and_no_more_is_no_failure() -> None:
    users = Users({"alice": bcrypt_hash(b"x" * 72)})
    assert users.check("alice", "x" * 73, KEY)
    assert not users.check("alice", "x" * 71, KEY)
    assert not users.check("alice", "é" * 1000, KEY)


def test_without_the_package_a_bcrypt_hash_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    with pytest.raises(UsersFileError) as caught:
        Users.parse(f"alice:$2y$10${SALT22}{'.' * 31}".encode(), "users")
    assert caught.value.problems == [
        (
            "users:1: \"alice\": its bcrypt hash needs a package: pip install 'hardserve[bcrypt]';"
            " `hardserve passwd users alice` sets a new password"
        )
    ]


@pytest.mark.peer
@pytest.mark.parametrize(
    ("flags", "found"),
    [
        pytest.param("-nbBC4", None, id="bcrypt is taken"),
        pytest.param("-nbm", "Apache's MD5", id="MD5 is not"),
        pytest.param("-nbs", "SHA-1 without a salt", id="SHA-1 is not"),
        pytest.param("-nbd", "perhaps a plain password", id="crypt is not"),
        pytest.param("-nbp", "perhaps a plain password", id="no hash is not"),
    ],
)
def test_what_htpasswd_makes(flags: str, found: str | None) -> None:
    htpasswd = shutil.which("htpasswd")
    if htpasswd is None:
        pytest.skip("htpasswd (apache2-utils) is not installed")
    pytest.importorskip("bcrypt")
    flag = ["-nbB", "-C4"] if flags == "-nbBC4" else [flags]
    made = subprocess.run([htpasswd, *flag, "alice", "secret"], capture_output=True, timeout=PATIENCE_S, check=True)
    if found is None:
        users = Users.parse(made.stdout, "users")
        assert users.check("alice", "secret", KEY)
        assert not users.check("alice", "Secret", KEY)
    else:
        with pytest.raises(UsersFileError, match=found):
            Users.parse(made.stdout, "users")


# --- known and unknown ---


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what notes the hash that each check computes, up to its salt."""
    seen: list[str] = []
    compute = check_password_hash

    def note(hashed: str, password: str) -> bool:
        seen.append(hashed.rpartition("$")[0])
        return compute(hashed, password)

    monkeypatch.setattr(users_module, "check_password_hash", note)
    return seen


def test_each_check_computes_one_hash_whoever_it_is(computed: list[str]) -> None:
    users = Users({"alice": quick("a"), "bob": quick("b", "scrypt:128:8:1")})
    for name, password in (("alice", "a"), ("alice", "x"), ("bob", "b"), ("nobody", "a"), ("", ""), ("a" * 3000, "")):
        computed.clear()
        assert users.check(name, password, KEY) == ((name, password) in {("alice", "a"), ("bob", "b")})
        assert len(computed) == 1


def test_a_name_that_is_not_there_has_always_the_same_hash_and_each_kind_its_share(computed: list[str]) -> None:
    users = Users({"alice": quick("a"), "bob": quick("b", "scrypt:128:8:1")})
    names = [f"nobody{number}" for number in range(200)]
    for key in (KEY, b"another"):
        computed.clear()
        for name in names * 2:
            assert not users.check(name, "a", key)
        first, again = computed[:200], computed[200:]
        assert first == again
        assert 60 < sum(method.startswith("scrypt") for method in first) < 140
    by_other_key = computed[:200]
    computed.clear()
    for name in names:
        users.check(name, "a", KEY)
    assert computed != by_other_key, "nobody outside can tell which"


def test_a_stranger_with_the_password_of_the_user_behind_the_hash_stays_out(computed: list[str]) -> None:
    users = Users({"alice": quick("secret")})
    assert not users.check("nobody", "secret", KEY)
    assert len(computed) == 1, "it did compute alice's"


def test_an_empty_file_lets_nobody_in_and_takes_its_time(computed: list[str]) -> None:
    assert hash_problem(NOBODYS_HASH) is None
    assert not Users({}).check("alice", "", KEY)
    assert computed == ["scrypt:32768:8:1$0000000000000000"]
    assert generate_password_hash("x").startswith("scrypt:32768:8:1$"), "Werkzeug's default is another by now"


# --- remembered ---


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Rig:
    """An authenticator on a file of its own, with a clock to be set."""

    def __init__(self, path: Path, **users: str) -> None:
        self.path = path
        self.clock = Clock()
        self.replace(**users)

    def start(self, remember_s: float = REMEMBER_S, **options: int) -> Rig:
        self.authenticator = Authenticator(str(self.path), remember_s, clock=self.clock, **options)
        assert self.authenticator.load() == []
        return self

    def replace(self, **users: str) -> None:
        """Put another file in the place of the file in one step."""
        self.write("".join(f"{user}:{hashed}\n" for user, hashed in users.items()).encode())

    def write(self, data: bytes) -> None:
        temporary = self.path.with_name("temporary")
        temporary.write_bytes(data)
        temporary.chmod(0o600)
        temporary.replace(self.path)

    def remembered(self, authorization: str) -> str | None:
        return self.authenticator.remembered(authorization, CLIENT, self.clock.now)

    def was_good(self, authorization: str) -> bool:
        return self.authenticator.was_good(authorization, CLIENT, self.clock.now)

    def verify(self, authorization: str) -> str | None:
        return self.authenticator.verify(authorization, CLIENT)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "users", alice=quick("secret"), bob=quick("b")).start()


def test_what_one_client_has_proved_says_nothing_to_another(rig: Rig) -> None:
    assert rig.verify(ALICE) == "alice"
    assert rig.remembered(ALICE) == "alice"
    assert rig.authenticator.remembered(ALICE, "198.51.100.7", rig.clock.now) is None
    assert not rig.authenticator.was_good(ALICE, "198.51.100.7", rig.clock.now)


def test_good_credentials_are_remembered_and_bad_ones_are_not(rig: Rig, computed: list[str]) -> None:
    assert rig.remembered(ALICE) is None
    assert not rig.was_good(ALICE)
    assert rig.verify(ALICE) == "alice"
    assert rig.remembered(ALICE) == "alice"
    assert rig.was_good(ALICE)
    assert rig.verify(ALICE) == "alice"
    assert len(computed) == 1, "and no other hash is computed for them"
    for wrong in (basic("alice", "Secret"), basic("bob", "secret"), basic("nobody", "secret")):
        for _ in range(2):
            assert rig.verify(wrong) is None
            assert rig.remembered(wrong) is None
    assert len(computed) == 7, "one for each that was wrong, each time"
    assert repr(rig.authenticator) == f"<Authenticator {rig.path}, 2 users, 1 remembered>"


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param("", id="nothing"),
        pytest.param("Bearer x", id="another scheme"),
        pytest.param("Basic \xff", id="beyond ASCII"),
        pytest.param("Basic " + "A" * 10_000, id="overlong"),
    ],
)
def test_what_is_no_basic_is_nobody_and_costs_no_hash(rig: Rig, computed: list[str], authorization: str) -> None:
    assert rig.remembered(authorization) is None
    assert not rig.was_good(authorization)
    assert rig.verify(authorization) is None
    assert rig.remembered(authorization) is None
    assert computed == []


def look_in_between(rig: Rig) -> None:
    """Have the file looked at, as anybody's request does."""
    rig.verify("")


def test_they_are_remembered_for_so_long_and_not_longer_by_being_used(rig: Rig, computed: list[str]) -> None:
    rig.verify(ALICE)
    for _ in range(int(REMEMBER_S / 1.5) - 1):
        rig.clock.now += 1.5
        look_in_between(rig)
        assert rig.remembered(ALICE) == "alice"
    assert len(computed) == 1
    rig.clock.now = START + REMEMBER_S - 0.001
    look_in_between(rig)
    assert rig.remembered(ALICE) == "alice"
    rig.clock.now = START + REMEMBER_S
    assert rig.remembered(ALICE) is None
    assert not rig.was_good(ALICE)
    assert rig.verify(ALICE) == "alice"
    assert len(computed) == 2
    assert rig.remembered(ALICE) == "alice"


def test_when_the_last_look_is_too_old_a_check_looks_and_computes_no_hash(rig: Rig, computed: list[str]) -> None:
    rig.verify(ALICE)
    rig.clock.now += LOOK_EVERY_S
    assert rig.remembered(ALICE) == "alice"
    rig.clock.now += 0.001
    assert rig.remembered(ALICE) is None
    assert rig.was_good(ALICE), "so they are no guess"
    assert rig.verify(ALICE) == "alice"
    assert rig.remembered(ALICE) == "alice"
    assert len(computed) == 1


def test_with_no_time_to_remember_each_is_computed(tmp_path: Path, computed: list[str]) -> None:
    rig = Rig(tmp_path / "users", alice=quick("secret")).start(0.0)
    for _ in range(3):
        assert rig.verify(ALICE) == "alice"
        assert rig.remembered(ALICE) is None
    assert len(computed) == 3
    assert "0 remembered" in repr(rig.authenticator)


def test_past_so_many_the_one_goes_that_was_checked_longest_ago(tmp_path: Path) -> None:
    names = [f"user{number}" for number in range(4)]
    rig = Rig(tmp_path / "users", **{name: quick("x") for name in names}).start(max_remembered=3)
    a, b, c, d = (basic(name, "x") for name in names)
    for authorization in (a, b, c):
        rig.verify(authorization)
    rig.remembered(a)
    rig.verify(d)
    assert [rig.remembered(each) for each in (a, b, c, d)] == [None, "user1", "user2", "user3"]
    assert "3 remembered" in repr(rig.authenticator)


def test_one_that_is_checked_again_is_the_newest(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "users", a=quick("x"), b=quick("x"), c=quick("x")).start(max_remembered=2)
    a, b, c = (basic(name, "x") for name in "abc")
    rig.verify(a)
    rig.clock.now += REMEMBER_S
    for authorization in (b, a, c):
        rig.verify(authorization)
    assert [rig.remembered(each) for each in (a, b, c)] == ["a", None, "c"]


def test_no_password_is_kept(rig: Rig) -> None:
    password = "correct horse battery staple"
    rig.replace(alice=quick(password))
    rig.clock.now += 2
    authorization = basic("alice", password)
    assert rig.verify(authorization) == "alice"
    kept = repr(rig.authenticator._good) + repr(vars(rig.authenticator))
    for secret in (password, authorization.split()[1], hashlib.sha256(authorization.encode()).hexdigest()):
        assert secret not in kept
    assert hashlib.sha256(authorization.encode()).digest() not in rig.authenticator._good


def test_two_processes_do_not_remember_under_the_same_key(rig: Rig) -> None:
    other = Rig(rig.path, alice=quick("secret")).start()
    rig.verify(ALICE)
    other.verify(ALICE)
    assert set(rig.authenticator._good).isdisjoint(other.authenticator._good)


# --- the file changes ---


def later(rig: Rig) -> None:
    """Let the time pass after which a change is in force."""
    rig.clock.now += LOOK_EVERY_S + 0.001


def age(path: Path, seconds: float = 3600) -> None:
    """Have the file look as if it had been written long ago."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


@pytest.mark.parametrize("settled", [pytest.param(True, id="of old"), pytest.param(False, id="just written")])
@pytest.mark.parametrize(
    ("change", "alice", "others"),
    [
        pytest.param(lambda rig: rig.replace(alice=quick("new"), bob=quick("b")), False, True, id="another password"),
        pytest.param(lambda rig: rig.replace(bob=quick("b")), False, True, id="taken out"),
        pytest.param(lambda rig: rig.replace(), False, False, id="nobody is left"),
        pytest.param(lambda rig: rig.path.write_text(f"bob:{quick('b')}\n"), False, True, id="written in place"),
        pytest.param(
            lambda rig: rig.write(rig.path.read_bytes() + f"carol:{quick('c')}\n".encode()), True, True, id="one more"
        ),
        pytest.param(lambda rig: rig.write(b"# hello\n" + rig.path.read_bytes()), True, True, id="a comment"),
        pytest.param(age, True, True, id="another time and nothing else"),
    ],
)
def test_a_change_is_in_force_after_a_second(
    tmp_path: Path, settled: bool, change: Callable[[Rig | Path], object], alice: bool, others: bool
) -> None:
    rig = Rig(tmp_path / "users", alice=quick("secret"), bob=quick("b"))
    if settled:
        age(rig.path)
    rig.start()
    rig.verify(ALICE)
    change(rig.path if change is age else rig)
    assert rig.remembered(ALICE) == rig.verify(ALICE) == "alice", "the file is not looked at all the time"
    later(rig)
    assert rig.remembered(ALICE) is None
    assert (rig.verify(basic("bob", "b")) == "bob") == others, "the look that counts for all"
    assert (rig.remembered(ALICE) == "alice") == alice
    assert (rig.verify(ALICE) == "alice") == alice


def test_a_file_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "users", alice=quick("secret"))
    age(rig.path)
    before = rig.path.stat()
    rig.start()
    rig.verify(ALICE)
    rig.path.write_text(f"alice:{quick('other')}\n")
    os.utime(rig.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = rig.path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    later(rig)
    assert rig.verify(ALICE) is None
    assert rig.verify(basic("alice", "other")) == "alice"


def test_a_file_that_changes_within_a_tick_of_the_kernel_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With its time left out, as if that had not moved: what was just written is read again to be sure."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(users_module, "_signature", lambda status: (status.st_size,))
    rig = Rig(tmp_path / "users", alice=quick("secret")).start()
    for _ in range(3):
        later(rig)
        assert rig.verify(ALICE) == "alice"
    assert caplog.records == [], "and read again is not changed"
    rig.replace(alice=quick("other"))
    later(rig)
    assert rig.verify(ALICE) is None


def test_a_file_that_stays_as_it_is_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path / "users", alice=quick("secret"))
    age(rig.path)
    rig.start()
    opened: list[object] = []
    open_ = os.open

    def note(path: str, *arguments: int) -> int:
        opened.append(path)
        return open_(path, *arguments)

    monkeypatch.setattr(os, "open", note)
    for _ in range(5):
        later(rig)
        assert rig.verify(ALICE) == "alice"
    assert opened == []
    rig.replace(alice=quick("other"))
    opened.clear()
    later(rig)
    assert rig.verify(ALICE) is None
    assert opened == [str(rig.path)]


def test_a_password_that_comes_back_is_good_again(rig: Rig) -> None:
    good = rig.path.read_bytes()
    rig.verify(ALICE)
    rig.replace(alice=quick("other"))
    later(rig)
    assert rig.verify(ALICE) is None
    rig.write(good)
    later(rig)
    assert rig.verify(ALICE) == "alice"


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        pytest.param(lambda rig: rig.path.unlink(), "No such file or directory", id="is gone"),
        pytest.param(lambda rig: (rig.path.unlink(), rig.path.mkdir()), "Is a directory", id="is a directory"),
        pytest.param(
            lambda rig: (rig.path.unlink(), os.mkfifo(rig.path)), "this is no regular file", id="is a named pipe"
        ),
        pytest.param(lambda rig: rig.write(b"#" * (MAX_FILE_BYTES + 1)), "larger than 1 MiB", id="is too large"),
        pytest.param(lambda rig: rig.write(b"# x\n\nalice:secret"), ':3: "alice": expected scrypt', id="is malformed"),
    ],
)
def test_a_file_that_went_bad_changes_nothing_and_is_told_once(
    rig: Rig, caplog: pytest.LogCaptureFixture, spoil: Callable[[Rig], object], problem: str
) -> None:
    caplog.set_level(logging.INFO)
    good = rig.path.read_bytes()
    rig.verify(ALICE)
    spoil(rig)
    for _ in range(3):
        later(rig)
        assert rig.verify(ALICE) == "alice"
        assert rig.remembered(ALICE) == "alice"
        assert rig.verify(basic("bob", "b")) == "bob"
        assert rig.verify(basic("alice", "x")) is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("hardserve.checks", logging.ERROR)
    said = record.getMessage()
    assert said.startswith(f"users file: {rig.path}:")
    assert problem in said
    assert "; still using the one read at " in said
    assert "secret" not in said
    assert repr(rig.authenticator) == f"<Authenticator {rig.path}, 2 users, 2 remembered, file unusable since>"

    caplog.clear()
    if rig.path.is_dir():
        rig.path.rmdir()
    rig.write(good)
    later(rig)
    assert rig.verify(ALICE) == "alice"
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "unusable" not in repr(rig.authenticator)
    caplog.clear()
    spoil(rig)
    later(rig)
    rig.verify(ALICE)
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "told again when it happens again"


def test_a_bad_file_that_is_bad_in_another_way_is_told_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for data in (b"rubbish", b"rubbish", b"\nrubbish", b"\nrubbish"):
        rig.write(data)
        later(rig)
        rig.verify(ALICE)
    assert [record.getMessage().split(":")[2] for record in caplog.records] == ["1", "2"]


def test_a_bad_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "users"
    with pytest.raises(UsersFileError) as caught:
        Authenticator(str(path), REMEMBER_S).load()
    assert caught.value.problems == [f"{path}: No such file or directory"]
    path.write_text("rubbish\nalice:\n")
    with pytest.raises(UsersFileError) as caught:
        Authenticator(str(path), REMEMBER_S).load()
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["1", "2"]


def test_the_file_is_found_when_the_app_changes_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rig = Rig(Path("users"), alice=quick("secret")).start()
    rig.replace(alice=quick("other"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    later(rig)
    assert rig.verify(basic("alice", "other")) == "alice"


# --- threads ---


def test_a_disk_that_hangs_keeps_one_check_and_no_other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.verify(ALICE)
    stat_, hanging, gate = os.stat, threading.Event(), threading.Event()

    def hang(path: object, **options: bool) -> os.stat_result:
        if path == str(rig.path):
            hanging.set()
            assert gate.wait(PATIENCE_S)
        return stat_(path, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "stat", hang)
    later(rig)
    verdicts: list[str | None] = []
    stuck = threading.Thread(target=lambda: verdicts.append(rig.verify(ALICE)), daemon=True)
    stuck.start()
    assert hanging.wait(PATIENCE_S)
    try:
        assert rig.verify(ALICE) == "alice"
        assert rig.verify(basic("bob", "b")) == "bob"
        assert rig.verify(basic("bob", "x")) is None
        assert rig.remembered(ALICE) is None, "what has not been looked at for so long does not count by itself"
        assert rig.was_good(ALICE)
    finally:
        gate.set()
        stuck.join(PATIENCE_S)
    assert verdicts == ["alice"]
    assert rig.remembered(ALICE) == "alice"


def test_who_is_let_in_while_the_file_is_rewritten_and_threads_take_turns(tmp_path: Path) -> None:
    """alice's password changes all the time, steady's never does, and nobody is not in any file."""
    steady = quick("steady")
    rig = Rig(tmp_path / "users", alice=quick("0"), steady=steady).start(max_remembered=4)
    rig.clock.now = START
    stopping = threading.Event()
    wrong: list[object] = []
    checked = [0] * 4

    def check(number: int) -> None:
        chosen = random.Random(number)
        while not stopping.is_set() and not wrong:
            try:
                password = str(chosen.randrange(40))
                outcomes = (
                    rig.verify(basic("steady", "steady")) == "steady",
                    rig.verify(basic("steady", password)) is None,
                    rig.verify(basic("nobody", "steady")) is None,
                    rig.verify(basic("alice", "steady")) is None,
                    rig.verify(basic("alice", password)) in (None, "alice"),
                    rig.remembered(basic("steady", "steady")) in (None, "steady"),
                    rig.remembered(basic("steady", password)) is None,
                )
                if not all(outcomes):
                    wrong.append(outcomes)
            except BaseException as error:
                wrong.append(error)
            checked[number] += 1

    threads = [threading.Thread(target=check, args=(number,), daemon=True) for number in range(4)]
    with switching_often():
        for thread in threads:
            thread.start()
        for number in range(1, 40):
            before = list(checked)
            rig.replace(alice=quick(str(number)), steady=steady)
            later(rig)
            until = time.monotonic() + PATIENCE_S
            # Each of them has gone round at least once with this file.
            while not wrong and any(now < was + 2 for now, was in zip(checked, before, strict=True)):
                assert time.monotonic() < until, checked
                threading.Event().wait(0.001)
        stopping.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert wrong == []
    later(rig)
    assert [rig.verify(basic("alice", str(number))) for number in range(40)] == [None] * 39 + ["alice"]
    assert len(rig.authenticator._good) <= 4
