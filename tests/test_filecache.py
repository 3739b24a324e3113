"""What is kept of files is bounded, and what is asked for stays."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hardserve.files.cache import Cache
from hardserve.files.entries import ENTRY_BYTES, Entry, Representation
from hardserve.files.mounts import Mount
from hardserve.files.tree import Tree
from hardserve.http.conditions import Validators

MOUNT = Mount("/m", Tree("/nonexistent", follow_symlinks=False))


def representation(size: int) -> Representation:
    return Representation("identity", (), (size, 0, 0, 0), Validators("", 0), "", "", b"", b"", bytes(size))


def entry(size: int = 0) -> Entry:
    return Entry(MOUNT, representations=(representation(size),))


def test_what_is_put_is_there_until_it_is_discarded() -> None:
    cache = Cache(100_000)
    one = entry()
    assert cache.get("/a") is None
    cache.put("/a", one)
    assert cache.get("/a") is one
    cache.discard("/a")
    cache.discard("/a")
    assert cache.get("/a") is None
    assert repr(cache) == "<Cache 0 entries, 0/100000 bytes>"


def test_the_oldest_goes_first() -> None:
    cache = Cache(3 * (ENTRY_BYTES + 1000))
    for name in ("/a", "/b", "/c"):
        cache.put(name, entry(900))
    cache.put("/d", entry(900))
    assert [name for name in ("/a", "/b", "/c", "/d") if cache.get(name)] == ["/b", "/c", "/d"]


def test_what_was_used_is_passed_over_once() -> None:
    cache = Cache(3 * (ENTRY_BYTES + 1000))
    used = entry(900)
    used.used = True
    cache.put("/used", used)
    for name in ("/b", "/c", "/d"):
        cache.put(name, entry(900))
    assert cache.get("/used") is used
    assert cache.get("/b") is None
    assert not used.used
    for name in ("/e", "/f", "/g"):
        cache.put(name, entry(900))
    assert cache.get("/used") is None


def test_who_asks_for_everything_once_does_not_push_out_what_everybody_asks_for() -> None:
    cache = Cache(10 * (ENTRY_BYTES + 1000))
    hot = {f"/hot{number}": entry(900) for number in range(5)}
    for name, each in hot.items():
        cache.put(name, each)
    for number in range(1000):
        for each in hot.values():
            each.used = True
        cache.put(f"/once{number}", entry(900))
    assert all(cache.get(name) is each for name, each in hot.items())


def test_what_is_larger_than_all_of_it_is_not_kept_and_pushes_out_nothing() -> None:
    cache = Cache(10_000)
    cache.put("/small", entry())
    cache.put("/large", entry(20_000))
    assert cache.get("/large") is None
    assert cache.get("/small") is not None


def test_one_that_has_grown_too_large_goes() -> None:
    cache = Cache(10_000)
    growing = entry(5000)
    cache.put("/growing", growing)
    growing.representations += (representation(5000),)
    cache.put("/growing", growing)
    assert cache.get("/growing") is None
    assert cache._bytes == 0


def test_one_that_has_grown_counts_as_what_it_is_now() -> None:
    cache = Cache(20_000)
    growing = entry(5000)
    cache.put("/growing", growing)
    before = cache._bytes
    growing.representations += (representation(3000),)
    cache.put("/growing", growing)
    assert cache._bytes == before + 3000
    assert cache.get("/growing") is growing


def test_long_paths_of_nothing_count() -> None:
    """A client may make up paths of 8 KiB that are all not there."""
    cache = Cache(100_000)
    for number in range(100):
        cache.put("/" + "x" * 8000 + str(number), Entry(MOUNT))
    assert len(cache._entries) <= 100_000 // 16_000


def test_without_memory_nothing_is_kept() -> None:
    cache = Cache(0)
    cache.put("/a", Entry(MOUNT))
    assert cache.get("/a") is None


class Uses(RuleBasedStateMachine):
    """Whatever is done with it, the count is that of what is there, and within its bound."""

    NAMES = st.sampled_from([f"/{name}" for name in "abcdefgh"])

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache(4 * ENTRY_BYTES + 3000)

    @rule(name=NAMES, size=st.integers(0, 12_000))
    def put(self, name: str, size: int) -> None:
        made = entry(size)
        self.cache.put(name, made)
        # What was put last is there, unless it cannot be, or all the others were used since they were looked at.
        fits = made.cost + 2 * len(name) <= self.cache._max_bytes
        assert self.cache.get(name) in ((made, None) if fits else (None,))

    @rule(name=NAMES)
    def use(self, name: str) -> None:
        found = self.cache.get(name)
        if found is not None:
            found.used = True

    @rule(name=NAMES, size=st.integers(0, 5000))
    def grow(self, name: str, size: int) -> None:
        found = self.cache.get(name)
        if found is not None:
            found.representations += (representation(size),)
            self.cache.put(name, found)

    @rule(name=NAMES)
    def discard(self, name: str) -> None:
        self.cache.discard(name)
        assert self.cache.get(name) is None

    @invariant()
    def counts(self) -> None:
        cache = self.cache
        assert cache._bytes == sum(cache._costs.values()) <= cache._max_bytes
        assert cache._costs.keys() == cache._entries.keys()
        assert all(cache._costs[name] == each.cost + 2 * len(name) for name, each in cache._entries.items())


TestUses = Uses.TestCase
TestUses.settings = settings(max_examples=50, deadline=None)
