"""The table of media types, and what is worth compressing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardserve.http import mediatypes
from hardserve.http.mediatypes import UNKNOWN, content_type, is_compressible

SUFFIXES = [suffix for suffixes in mediatypes._SUFFIXES.values() for suffix in suffixes.split()]

TYPES = {
    "a page": ("index.html", "text/html; charset=utf-8"),
    "a style sheet": ("site.css", "text/css; charset=utf-8"),
    "a script has the type of RFC 9239": ("app.js", "text/javascript; charset=utf-8"),
    "so has a module": ("app.mjs", "text/javascript; charset=utf-8"),
    "JSON has no charset": ("data.json", "application/json"),
    "nor has a source map": ("app.js.map", "application/json"),
    "an app's manifest": ("site.webmanifest", "application/manifest+json"),
    "XML says its charset itself": ("sitemap.xml", "application/xml"),
    "a drawing": ("logo.svg", "image/svg+xml"),
    "a text": ("robots.txt", "text/plain; charset=utf-8"),
    "a program is shown, not run": ("run.sh", "text/plain; charset=utf-8"),
    "subtitles": ("film.vtt", "text/vtt; charset=utf-8"),
    "an icon": ("favicon.ico", "image/vnd.microsoft.icon"),
    "a picture": ("photo.jpeg", "image/jpeg"),
    "a new kind of picture": ("photo.avif", "image/avif"),
    "a font": ("sans.woff2", "font/woff2"),
    "a film": ("film.mp4", "video/mp4"),
    "a piece of a film, not TypeScript": ("part.ts", "video/mp2t"),
    "sound": ("song.opus", "audio/ogg"),
    "WebAssembly, which is compiled under this type alone": ("app.wasm", "application/wasm"),
    "YAML": ("openapi.yml", "application/yaml"),
    "a place on a map": ("tracks.geojson", "application/geo+json"),
    "a document": ("paper.pdf", "application/pdf"),
    "the last suffix counts": ("archive.tar.gz", "application/gzip"),
    "in any case": ("PHOTO.JPG", "image/jpeg"),
    "after any name": ("\udcff \u00e9.html", "text/html; charset=utf-8"),
    "several dots": ("jquery..min.js", "text/javascript; charset=utf-8"),
    "a name without a suffix": ("LICENSE", UNKNOWN),
    "a name that ends in a dot": ("page.html.", UNKNOWN),
    "a name that is only a suffix": (".css", UNKNOWN),
    "a dot file with a suffix": (".well.json", "application/json"),
    "no name": ("", UNKNOWN),
    "a suffix that nobody knows": ("x.hardserve", UNKNOWN),
    "a suffix with a blank": ("page.html ", UNKNOWN),
    "a dot in a directory's name": ("v1.css/LICENSE", UNKNOWN),
    "the source of what another server runs": ("index.php", UNKNOWN),
    "what iOS asks for": ("apple-app-site-association", "application/json"),
}


@pytest.mark.parametrize(("name", "expected"), TYPES.values(), ids=TYPES)
def test_the_type_of_a_name(name: str, expected: str) -> None:
    assert content_type(name) == expected


def test_what_websites_serve_is_known() -> None:
    usual = (
        "html css js mjs json map webmanifest xml rss atom svg txt md csv ics vtt srt png jpg jpeg gif webp avif ico "
        "bmp tif heic jxl apng woff woff2 ttf otf eot mp3 ogg oga opus wav flac m4a aac mid weba mp4 m4v webm ogv mov "
        "avi mkv mpg mpeg ts m3u8 mpd pdf zip gz tgz bz2 xz zst 7z rar tar jar apk dmg iso deb rpm whl wasm exe dll "
        "doc docx xls xlsx ppt pptx odt ods odp rtf epub glb gltf obj stl yaml yml toml py sh geojson jsonld ndjson"
    )
    assert not [suffix for suffix in usual.split() if content_type(f"x.{suffix}") == UNKNOWN]


def test_no_suffix_stands_twice() -> None:
    assert len(SUFFIXES) == len(set(SUFFIXES)) > 120
    assert [suffix for suffix in SUFFIXES if suffix != suffix.lower()] == []


def test_every_value_is_one_of_content_type() -> None:
    # RFC 9110 8.3.1, as narrow as RFC 6838 4.2 has it for what is registered.
    value = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]{0,126}(; charset=utf-8)?")
    for suffix in SUFFIXES:
        field = content_type(f"x.{suffix}")
        assert value.fullmatch(field), suffix
        assert field.startswith("text/") == field.endswith("; charset=utf-8"), suffix


@given(stem=st.text(min_size=1, max_size=8), suffix=st.sampled_from(SUFFIXES), upper=st.sets(st.integers(0, 11)))
def test_neither_case_nor_what_is_before_changes_the_type(stem: str, suffix: str, upper: set[int]) -> None:
    mixed = "".join(c.upper() if i in upper else c for i, c in enumerate(suffix))
    assert content_type(f"{stem}.{mixed}") == content_type(f"x.{suffix}")


@given(name=st.text(max_size=64))
def test_any_name_has_a_type(name: str) -> None:
    assert content_type(name) in {*mediatypes._BY_SUFFIX.values(), UNKNOWN}


def test_the_table_of_the_machine_is_not_asked() -> None:
    tree = ast.parse(Path(mediatypes.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "functools"}


COMPRESSIBLE = {
    "pages": "text/html; charset=utf-8",
    "in any case, with blanks": "Text/HTML ;charset=UTF-8",
    "any text": "text/x-whatever",
    "JSON": "application/json",
    "a kind of JSON": "application/problem+json; charset=utf-8",
    "a kind of JSON of somebody's": "application/vnd.example.v2+json",
    "XML": "application/xml",
    "a drawing": "image/svg+xml",
    "a script under its old name": "application/javascript",
    "a manifest": "application/manifest+json",
    "WebAssembly": "application/wasm",
    "a font without compression of its own": "font/ttf",
    "another": "application/vnd.ms-fontobject",
    "a bitmap": "image/bmp",
    "an icon": "image/vnd.microsoft.icon",
    "an icon under its old name": "image/x-icon",
    "lines of JSON": "application/x-ndjson",
}
INCOMPRESSIBLE = {
    "events, which must not wait": "text/event-stream",
    "events with parameters": "Text/Event-Stream; charset=utf-8",
    "a photo": "image/jpeg",
    "a picture": "image/png",
    "a film": "video/mp4",
    "sound": "audio/ogg",
    "a font with compression of its own": "font/woff2",
    "an archive": "application/zip",
    "a document that is an archive": "application/epub+zip",
    "what is compressed as a whole": "application/gzip",
    "what is unknown": UNKNOWN,
    "parts": "multipart/byteranges; boundary=text/html",
    "a type in a parameter": "image/png; x=text/html",
    "nothing": "",
    "half a type": "text",
    "a type longer than any": f"application/{'x' * 300}+json",
}


@pytest.mark.parametrize("media_type", COMPRESSIBLE.values(), ids=COMPRESSIBLE)
def test_what_is_worth_compressing(media_type: str) -> None:
    assert is_compressible(media_type)


@pytest.mark.parametrize("media_type", INCOMPRESSIBLE.values(), ids=INCOMPRESSIBLE)
def test_what_is_not(media_type: str) -> None:
    assert not is_compressible(media_type)


def test_of_our_own_types_all_text_is_compressed_and_nothing_that_moves_or_sounds() -> None:
    for suffix in SUFFIXES:
        field = content_type(f"x.{suffix}")
        kind = field.partition("/")[0]
        if kind in {"text", "audio", "video"}:
            assert is_compressible(field) == (kind == "text"), suffix


def test_what_is_remembered_is_bounded() -> None:
    for i in range(2 * mediatypes._REMEMBERED):
        is_compressible(f"text/x{i}; {'p' * 4096}")
    info = mediatypes._is_compressible.cache_info()
    assert info.maxsize is not None
    assert info.currsize <= info.maxsize <= 1024
