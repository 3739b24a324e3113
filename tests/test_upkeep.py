"""When certificates are looked at, and that a look that takes long holds up nobody."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hardserve.tls import upkeep
from hardserve.tls.store import SETTLE_S, CertificateStore, Success
from hardserve.tls.upkeep import Renew, Upkeep, tell
from tests.certs import Authority
from tests.support import PATIENCE_S
from tests.test_http import eventually


class Loop:
    """What an Upkeep asks of a loop, turned by hand."""

    def __init__(self) -> None:
        self.posted: list[Callable[[float], None]] = []
        self.planned: list[tuple[float, Callable[[float], None]]] = []

    def post(self, action: Callable[[float], None]) -> None:
        self.posted.append(action)

    def plan(self, at: float, action: Callable[[float], None]) -> None:
        self.planned.append((at, action))


def kept(directory: Path, renew: Renew | None = None, *, days: float = 89) -> tuple[Upkeep, Loop]:
    pair = Authority().leaf("a.example", not_before_s=-100 * 86400, not_after_s=days * 86400).write(directory)
    store = CertificateStore([pair])
    store.load(time.time())
    loop = Loop()
    return Upkeep(store, loop.post, loop.plan, renew=renew), loop


def test_it_looks_again_and_again(tmp_path: Path) -> None:
    upkept, loop = kept(tmp_path)
    upkept.begin(100.0)
    ((at, again),) = loop.planned
    assert at == 100.0 + upkeep.LOOK_S
    again(at)
    assert [each[0] for each in loop.planned] == [at, at + upkeep.LOOK_S]
    upkept.stop(time.monotonic() + PATIENCE_S)


def test_a_look_that_is_asked_for_is_posted(tmp_path: Path) -> None:
    upkept, loop = kept(tmp_path)
    upkept.look()
    (action,) = loop.posted
    action(0.0)
    upkept.stop(time.monotonic() + PATIENCE_S)


def test_an_end_that_is_near_is_said_once_a_day_at_most(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    upkept, _ = kept(tmp_path, days=2.5)
    for number in range(3):
        upkept.begin(float(number))
        eventually(lambda: "expires in 2 days" in caplog.text)
    upkept.stop(time.monotonic() + PATIENCE_S)
    assert caplog.text.count("expires in 2 days") == 1


def test_a_success_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is called when there is a warning is not called for a renewal."""
    caplog.set_level(logging.INFO, "hardserve.tls")
    authority = Authority()
    files = authority.leaf("a.example").write(tmp_path)
    store = CertificateStore([files])
    store.load(time.time())
    loop = Loop()
    upkept = Upkeep(store, loop.post, loop.plan, renew=lambda _: [Success("a new one was made"), "it was late"])
    authority.leaf("b.example").write(tmp_path)
    upkept._look()
    files.certificate.unlink()
    authority.leaf("b.example").write(tmp_path, "other")
    tell(store.reload(time.time()) + store.reload(time.time() + SETTLE_S))
    said = [(record.levelname, record.getMessage().partition(" in ")[0]) for record in caplog.records]
    replaced = [record.levelname for record in caplog.records if "was replaced: for b.example" in record.getMessage()]
    assert replaced == ["INFO"]
    assert ("INFO", "a new one was made") in said
    assert ("WARNING", "it was late") in said
    assert ("WARNING", "what is now") in said
    upkept.stop(time.monotonic() + PATIENCE_S)


def test_what_is_our_own_is_renewed_once_a_day_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times: list[float] = []

    def renew(now: float) -> list[str]:
        times.append(now)
        return ["a new one was made"]

    upkept, _ = kept(tmp_path, renew)
    said = upkept._find(1e9) + upkept._find(1e9 + 3600) + upkept._find(1e9 + 86_400)
    assert times == [1e9, 1e9 + 86_400]
    assert said.count("a new one was made") == 2


def test_looks_that_hang_do_not_pile_up(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    def renew(_now: float) -> list[str]:
        entered.set()
        assert release.wait(PATIENCE_S)
        return []

    upkept, _ = kept(tmp_path, renew)
    upkept.begin(0.0)
    assert entered.wait(PATIENCE_S)
    for number in range(100):
        upkept.begin(float(number))
    assert "1 waiting" in repr(upkept)
    release.set()
    upkept.stop(time.monotonic() + PATIENCE_S)


def test_a_bug_of_ours_is_told_and_the_next_look_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def renew(_now: float) -> list[str]:
        raise ValueError("on purpose")

    upkept, _ = kept(tmp_path, renew)
    upkept.begin(0.0)
    eventually(lambda: "on purpose" in caplog.text)
    assert upkept._find(time.time()) == []
    upkept.stop(time.monotonic() + PATIENCE_S)
