"""The content codings: what goes in comes out, at once, in blocks, and with filler in between."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardserve.http import encoders
from hardserve.http.encoders import FILLER_MAX, Encoder, available, can_fill, compress

PATIENCE_S = 20.0
REPOSITORY = Path(__file__).parent.parent
CODINGS = ["gzip", "br", "zstd"]
# What each coding can be made with. Which of them are there depends on the machine and on Python.
PACKAGES = {"zlib": "gzip", "brotli": "br", "brotlicffi": "br", "zstandard": "zstd", "compression.zstd": "zstd"}
HERE = [p for p in PACKAGES if importlib.util.find_spec(p.partition(".")[0]) and importlib.util.find_spec(p)]

PAGE = "".join(f"<p>Paragraph {i} says {i * i}, and \u00e9.</p>\n" for i in range(3000)).encode()
WHOLE = b"<!doctype html><meta charset=utf-8><title>all</title>" + PAGE + b"<i>the end</i>"
# Around where the head of a filler changes its length, and the greatest.
FILLERS = [1, 2, 255, 256, 257, 258, 1000, FILLER_MAX]


def need(coding: str) -> None:
    if coding not in available():
        pytest.skip(f"no package for {coding} is installed")


@pytest.fixture(params=CODINGS)
def coding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    need(name)
    return name


def decoder(coding: str) -> Callable[[bytes], bytes]:
    """Return what decodes a stream step by step, over as many frames as there are."""
    if coding == "gzip":
        return zlib.decompressobj(wbits=31).decompress
    if coding == "br":
        reader = importlib.import_module("brotli" if "brotli" in HERE else "brotlicffi").Decompressor()
        # What it has decoded it may give in several parts, although nothing more is needed for them.
        return lambda coded: reader.process(coded) + b"".join(iter(lambda: reader.process(b""), b""))
    frames: Any
    if "zstandard" in HERE:
        zstandard = importlib.import_module("zstandard")
        frames = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
    else:
        frames = importlib.import_module("compression.zstd").ZstdDecompressor()
    return lambda coded: bytes(frames.decompress(coded))


def stream(package: str, *, best: bool = False, filler: int = 0, size: int | None = None) -> Any:
    return encoders._STREAMS[package](best, filler, size)


# --- round trips ---

# What a block repeats, and how often, so that an example can be printed. None is a flush.
Block = tuple[bytes, int]
BLOCKS = st.tuples(st.binary(max_size=9), st.integers(0, 9000)) | st.tuples(st.binary(max_size=300), st.just(1))
STEPS = st.lists(st.none() | BLOCKS, max_size=12)


@pytest.mark.parametrize("package", HERE)
@given(steps=STEPS, last=BLOCKS, filler=st.sampled_from([0, 0, *FILLERS]))
@settings(deadline=None)
def test_any_blocks_decode_to_their_join_and_after_a_flush_to_everything_so_far(
    package: str, steps: list[Block | None], last: Block, filler: int
) -> None:
    coded, decode, so_far, decoded = stream(package, filler=filler), decoder(PACKAGES[package]), b"", b""
    for step in steps:
        if step is None:
            decoded += decode(coded.flush())
            assert decoded == so_far
        else:
            block = step[0] * step[1]
            so_far += block
            decoded += decode(coded.add(block))
    assert decoded + decode(coded.end(last[0] * last[1])) == so_far + last[0] * last[1]


@pytest.mark.parametrize("package", HERE)
@given(block=BLOCKS, best=st.booleans(), filler=st.sampled_from([0, *FILLERS]))
@settings(deadline=None, max_examples=50)
def test_any_body_of_known_size_decodes_to_itself(package: str, block: Block, best: bool, filler: int) -> None:
    body = block[0] * block[1]
    coded = stream(package, best=best, filler=filler, size=len(body)).end(body)
    assert decoder(PACKAGES[package])(coded) == body


@pytest.mark.parametrize("best", [False, True])
def test_at_once(coding: str, best: bool) -> None:
    coded = compress(WHOLE, coding, best=best)
    assert len(coded) < len(WHOLE) / 4
    assert decoder(coding)(coded) == WHOLE
    assert compress(WHOLE, coding, best=best) == coded  # no time or name of a file in it
    assert decoder(coding)(compress(b"", coding, best=best)) == b""


def test_best_is_smaller(coding: str) -> None:
    assert len(compress(WHOLE, coding, best=True)) < len(compress(WHOLE, coding))


def test_a_stream_is_as_small_as_the_whole(coding: str) -> None:
    encoder = Encoder(coding)
    coded = b"".join(encoder.add(WHOLE[i : i + 4096]) for i in range(0, len(WHOLE), 4096)) + encoder.end()
    assert len(coded) < 1.1 * len(compress(WHOLE, coding))


def test_a_flush_without_anything_new_sends_nothing_twice(coding: str) -> None:
    encoder = Encoder(coding)
    encoder.add(PAGE)
    assert encoder.flush()
    assert encoder.flush() == b""


def test_an_encoder_says_how_far_it_is(coding: str) -> None:
    encoder = Encoder(coding)
    given = len(encoder.add(PAGE)) + len(encoder.flush())
    assert repr(encoder) == f"<Encoder {coding}, {len(PAGE)} bytes taken, {given} given>"


def test_many_threads_compress_at_once(coding: str) -> None:
    bodies = [PAGE[i:] for i in range(16)]
    with ThreadPoolExecutor(8) as threads:
        coded = list(threads.map(lambda body: compress(body, coding, filler=300), bodies * 4))
    assert [decoder(coding)(one) for one in coded] == bodies * 4


# --- formats ---


def test_gzip_tells_nothing_about_the_machine() -> None:
    assert compress(b"x", "gzip")[:10] == bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255])
    assert compress(b"x", "gzip", best=True)[:10] == bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 2, 255])


def zstd_window(frame: bytes) -> int:
    """Return the window that a frame asks for (RFC 8878 3.1.1.1)."""
    assert frame[:4] == struct.pack("<L", 0xFD2FB528)
    if frame[4] & 0x20:  # a single segment: the window is the content
        size = {0: "<B", 1: "<H", 2: "<L", 3: "<Q"}[frame[4] >> 6]
        return int(struct.unpack_from(size, frame, 5)[0]) + (256 if size == "<H" else 0)
    exponent, mantissa = frame[5] >> 3, frame[5] & 7
    return (8 + mantissa) << (10 + exponent - 3)


@pytest.mark.parametrize("package", [p for p in HERE if PACKAGES[p] == "zstd"])
@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("size", [1000, 7 << 20, 20 << 20, None])
def test_zstd_asks_no_client_for_more_than_the_8_mib_of_rfc_9659(package: str, best: bool, size: int | None) -> None:
    body = bytes(20 << 20 if size is None else size)
    assert zstd_window(stream(package, best=best, size=size).end(body)) <= 8 << 20


@pytest.mark.parametrize("package", [p for p in HERE if PACKAGES[p] == "br"])
@pytest.mark.parametrize("best", [False, True])
def test_br_asks_no_client_for_more_than_4_mib(package: str, best: bool) -> None:
    coded = stream(package, best=best).end(bytes(20 << 20))
    assert coded[0] & 0xF == 0b1011  # RFC 7932 9.1: 22


# --- filler ---


@pytest.mark.parametrize("best", [False, True])
def test_filler_changes_the_length_by_exactly_what_is_asked(coding: str, best: bool) -> None:
    for body in (b"", b"x", PAGE[:1500]):
        plain = len(compress(body, coding, best=best))
        more = {len(compress(body, coding, best=best, filler=filler)) - filler - plain for filler in FILLERS}
        assert len(more) == 1
        assert more <= set(range(9))


def test_filler_is_random_and_does_not_compress(coding: str) -> None:
    one, other = (compress(b"", coding, filler=4096) for _ in range(2))
    assert one != other
    assert len(zlib.compress(one, 9)) > 4096


def test_a_stream_carries_filler_once(coding: str) -> None:
    lengths = []
    for filler in (1, 1001):
        encoder = Encoder(coding, filler=filler)
        lengths.append(sum(map(len, [encoder.add(PAGE), encoder.flush(), encoder.add(PAGE), encoder.end()])))
    assert lengths[1] - lengths[0] == 1000


@pytest.mark.parametrize("filler", [-1, FILLER_MAX + 1])
def test_too_much_filler_is_refused(coding: str, filler: int) -> None:
    with pytest.raises(ValueError, match="filler"):
        compress(b"", coding, filler=filler)


def test_what_can_be_filled() -> None:
    assert all(can_fill(coding) for coding in available())
    assert not can_fill("identity")


# --- packages ---


@pytest.mark.parametrize("coding", ["identity", "deflate", "GZIP", ""])
def test_a_coding_that_cannot_be_made_is_refused(coding: str) -> None:
    with pytest.raises(ValueError, match="gzip"):
        Encoder(coding)


MISSING = {
    "all are there": ((), ("zstd", "br", "gzip")),
    "one of the packages for br is enough": (("brotli",), ("zstd", "br", "gzip")),
    "so is the other": (("brotlicffi",), ("zstd", "br", "gzip")),
    "none for br": (("brotli", "brotlicffi"), ("zstd", "gzip")),
    "none for zstd": (("zstandard", "_zstd"), ("br", "gzip")),
    "Python alone": (("zstandard", "_zstd", "brotli", "brotlicffi"), ("gzip",)),
}


@pytest.mark.parametrize(("missing", "expected"), MISSING.values(), ids=MISSING)
def test_what_is_available_follows_from_the_packages(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    present = set(PACKAGES) | {"_zstd"}
    monkeypatch.setattr(encoders, "find_spec", lambda name: None if name in missing else name in present)
    packages = encoders._packages.__wrapped__()
    assert tuple(packages) == expected
    assert {PACKAGES[package]: package for package in packages.values()} == packages
    assert not set(missing) & set(packages.values())


def test_nothing_is_imported_before_it_is_needed() -> None:
    script = """if True:
        import json, sys
        from hardserve.http import encoders
        packages = "brotli", "brotlicffi", "zstandard", "compression.zstd"
        before = [name for name in packages if name in sys.modules]
        encoders.available()
        asked = [name for name in packages if name in sys.modules]
        for coding in encoders.available():
            encoders.compress(b"", coding)
        print(json.dumps([before, asked, [name in sys.modules for name in encoders._packages().values()]]))
    """
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_S, cwd=REPOSITORY
    )
    before, asked, used = json.loads(run.stdout)
    assert (before, asked) == ([], [])
    assert all(used)


# --- what others decode ---

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CURL = shutil.which("curl")
BODIES = {f"{coding}-{filler}": (coding, filler) for coding in CODINGS for filler in (0, 1, 257, FILLER_MAX)}


@pytest.mark.peer
@pytest.mark.parametrize(("coding", "filler"), BODIES.values(), ids=BODIES)
def test_the_program_of_each_coding_decodes_it(coding: str, filler: int) -> None:
    need(coding)
    program = shutil.which({"br": "brotli"}.get(coding, coding))
    if program is None:
        pytest.skip(f"no program for {coding} is installed")
    coded = compress(WHOLE, coding, filler=filler)
    run = subprocess.run([program, "-dc"], input=coded, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (run.returncode, run.stderr, run.stdout == WHOLE) == (0, b"", True)


class Coded(BaseHTTPRequestHandler):
    """Answers /br-257 with WHOLE in br with 257 bytes of filler, as a whole, and /stream/br-257 in blocks."""

    protocol_version = "HTTP/1.1"
    plain: ClassVar[dict[str, bytes]] = {}  # what else there is, by name, and not encoded

    def do_GET(self) -> None:
        form, _, name = self.path[1:].rpartition("/")
        if name not in BODIES and name not in self.plain:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        if name in self.plain:
            self.send_header("Content-Length", str(len(self.plain[name])))
            self.end_headers()
            self.wfile.write(self.plain[name])
            return
        coding, filler = BODIES[name]
        self.send_header("Content-Encoding", coding)
        if form == "stream":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for block in self.blocks(coding, filler):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if block else b"")
            self.wfile.write(b"0\r\n\r\n")
        else:
            coded = compress(WHOLE, coding, filler=filler)
            self.send_header("Content-Length", str(len(coded)))
            self.end_headers()
            self.wfile.write(coded)

    @staticmethod
    def blocks(coding: str, filler: int) -> Iterator[bytes]:
        encoder = Encoder(coding, filler=filler)
        for i in range(0, len(WHOLE), 20_000):
            yield encoder.add(WHOLE[i : i + 20_000])
            yield encoder.flush()
        yield encoder.end()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def answering(plain: Mapping[str, bytes] | None = None) -> Iterator[str]:
    handler = type("CodedAndPlain", (Coded,), {"plain": plain or {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)


@pytest.mark.peer
@pytest.mark.skipif(not CURL, reason="curl is not installed")
@pytest.mark.parametrize("form", ["", "stream/"], ids=["whole", "stream"])
@pytest.mark.parametrize("name", BODIES)
def test_curl_decodes_it(name: str, form: str) -> None:
    need(BODIES[name][0])
    with answering() as url:
        command = [str(CURL), "--silent", "--show-error", "--noproxy", "*", "--compressed", f"{url}/{form}{name}"]
        run = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (run.returncode, run.stderr, run.stdout == WHOLE) == (0, b"", True)


# Loads each body, one after the other before the page is complete, and tells how it differs from the plain one.
LOADING = b"""<!doctype html><title>loading</title><script>
function load(name) {
  const request = new XMLHttpRequest()
  request.open("GET", "/" + name, false)
  try { request.send() } catch (error) { return String(error) }
  return request.responseText
}
const plain = load("plain")
for (const name of NAMES)
  document.writeln("[" + name + (load(name) === plain ? " is the same]" : " differs]"))
document.writeln("[" + plain.length + " characters]")
</script>"""


@pytest.mark.peer
@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_chromium_decodes_it(tmp_path: Path) -> None:
    names = [form + name for name, (coding, _) in BODIES.items() if coding in available() for form in ("", "stream/")]
    with answering({"plain": WHOLE, "": LOADING.replace(b"NAMES", json.dumps(names).encode())}) as url:
        command = [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--no-proxy-server"),
            *(f"--user-data-dir={tmp_path}", "--dump-dom", f"{url}/"),
        ]
        run = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False)
    told = re.findall(r"\[((?:[a-z/]+-)?[0-9]+ [a-z ]+)\]", run.stdout)
    assert told == [*(f"{name} is the same" for name in names), f"{len(WHOLE.decode())} characters"], run.stderr
