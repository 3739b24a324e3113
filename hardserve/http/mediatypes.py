"""Which media type a file has by its name, and which types are worth compressing. Pure, any thread.

The table is ours, so that a site is the same on every machine: the `mimetypes` module reads the operating system's,
which may be missing, old, or say that JavaScript is plain text. The types are those registered with IANA today; where
there is none, or no browser knows it, the one that everybody uses. Nothing is guessed from content.
"""

from __future__ import annotations

from functools import lru_cache

UNKNOWN = "application/octet-stream"

# The suffixes of each type, without the dot. Plain text is what a person should see rather than download, and no
# browser may run. Not in here, deliberately: what is run by some server and would show its source (php, jsp), and
# "br", which has no type of its own.
_SUFFIXES = {
    # RFC 9239 took text/javascript back, also for modules.
    "text/javascript": "js mjs",
    "text/html": "html htm",
    "text/css": "css",
    "text/plain": "txt text log ini conf cfg py sh bash rb pl lua c h cc cpp hpp rs go java kt sql rst tex diff patch",
    "text/markdown": "md markdown",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "text/calendar": "ics",
    "text/vcard": "vcf",
    "text/vtt": "vtt",
    "text/wgsl": "wgsl",
    "application/x-subrip": "srt",
    # Source maps are JSON by their specification (ECMA-426).
    "application/json": "json map topojson",
    "application/ld+json": "jsonld",
    "application/geo+json": "geojson",
    "application/manifest+json": "webmanifest",
    "application/x-ndjson": "ndjson jsonl",
    "application/yaml": "yaml yml",  # RFC 9512
    "application/toml": "toml",
    "application/xml": "xml xsd",
    "application/xslt+xml": "xsl xslt",
    "application/xhtml+xml": "xhtml xht",
    "application/rss+xml": "rss",
    "application/atom+xml": "atom",
    "application/gpx+xml": "gpx",
    "application/vnd.google-earth.kml+xml": "kml",
    "application/vnd.google-earth.kmz": "kmz",
    # images
    "image/png": "png",
    "image/apng": "apng",
    "image/jpeg": "jpg jpeg jpe jfif",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/heif": "heif",
    "image/jxl": "jxl",
    "image/svg+xml": "svg",
    # The registered one. Browsers look at an icon's content and take it under this name and image/x-icon alike.
    "image/vnd.microsoft.icon": "ico cur",
    "image/bmp": "bmp",
    "image/tiff": "tif tiff",
    # fonts (RFC 8081)
    "font/woff": "woff",
    "font/woff2": "woff2",
    "font/ttf": "ttf",
    "font/otf": "otf",
    "font/collection": "ttc",
    "application/vnd.ms-fontobject": "eot",
    # sound
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg oga opus",  # RFC 7845 9; audio/opus is for RTP
    "audio/wav": "wav",  # audio/vnd.wave is the registered one, which browsers do not play
    "audio/flac": "flac",
    "audio/mp4": "m4a",
    "audio/aac": "aac",
    "audio/midi": "mid midi",
    "audio/webm": "weba",
    "audio/matroska": "mka",
    # moving pictures
    "video/mp4": "mp4 m4v",
    "video/webm": "webm",
    "video/ogg": "ogv",
    "video/quicktime": "mov",
    "video/x-msvideo": "avi",
    "video/matroska": "mkv",  # RFC 9559
    "video/mpeg": "mpg mpeg",
    "video/mp2t": "ts m2ts",
    "video/3gpp": "3gp",
    "video/iso.segment": "m4s",
    "application/vnd.apple.mpegurl": "m3u8",
    "application/dash+xml": "mpd",
    # archives and packages; svgz is one too, for who serves it as it is, without a Content-Encoding
    "application/gzip": "gz tgz svgz",
    "application/zip": "zip whl",
    "application/x-bzip2": "bz2",
    "application/x-xz": "xz",
    "application/zstd": "zst",
    "application/x-7z-compressed": "7z",
    "application/vnd.rar": "rar",
    "application/x-tar": "tar",
    "application/java-archive": "jar",
    "application/vnd.android.package-archive": "apk",
    "application/x-apple-diskimage": "dmg",
    "application/vnd.efi.iso": "iso",
    "application/vnd.debian.binary-package": "deb",
    "application/x-rpm": "rpm",
    # programs; a browser compiles WebAssembly while it arrives under this type alone
    "application/wasm": "wasm",
    "application/vnd.microsoft.portable-executable": "exe dll",
    UNKNOWN: "bin",
    # documents
    "application/pdf": "pdf",
    "application/rtf": "rtf",
    "application/epub+zip": "epub",
    "application/msword": "doc",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.oasis.opendocument.spreadsheet": "ods",
    "application/vnd.oasis.opendocument.presentation": "odp",
    "application/vnd.sqlite3": "sqlite sqlite3",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apple.pkpass": "pkpass",
    "message/rfc822": "eml",
    # models
    "model/gltf+json": "gltf",
    "model/gltf-binary": "glb",
    "model/obj": "obj",
    "model/mtl": "mtl",
    "model/stl": "stl",
    "model/vnd.usdz+zip": "usdz",
}


def _field(media_type: str) -> str:
    """Return the value of Content-Type. JSON has no charset (RFC 8259 11), and XML says it itself (RFC 7303 3)."""
    return f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type


_BY_SUFFIX = {suffix: _field(media_type) for media_type, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
# What iOS asks for, by a name that has no suffix, and takes as JSON alone.
_BY_NAME = {"apple-app-site-association": "application/json"}

# RFC 6838 4.2: neither half of a type is longer than 127 characters. What an app says after them is not remembered.
_TYPE_MAX = 255
_REMEMBERED = 256

_COMPRESSIBLE = frozenset(
    {
        "application/json",
        "application/x-ndjson",
        "application/jsonl",
        "application/json-seq",
        "application/xml",
        "application/xml-dtd",
        "application/javascript",
        "application/x-javascript",
        "application/ecmascript",
        "application/yaml",
        "application/x-yaml",
        "application/toml",
        "application/rtf",
        "application/sql",
        "application/graphql",
        "application/x-sh",
        "application/x-subrip",
        "application/x-www-form-urlencoded",
        "application/vnd.apple.mpegurl",
        "application/x-mpegurl",
        "application/wasm",
        "application/vnd.ms-fontobject",
        "application/x-font-ttf",
        "application/x-font-otf",
        "application/x-font-opentype",
        "application/font-sfnt",
        "font/ttf",
        "font/otf",
        "font/sfnt",
        "font/opentype",
        "font/collection",
        "image/bmp",
        "image/x-ms-bmp",
        "image/x-icon",
        "image/vnd.microsoft.icon",
        "message/rfc822",
        "model/obj",
        "model/mtl",
        "model/stl",
    }
)
# RFC 6838 4.2.8: what the rest of the type is written in. "+zip" and "+gzip" are compressed.
_COMPRESSIBLE_SUFFIXES = ("+json", "+xml", "+yaml", "+json-seq")


def content_type(name: str) -> str:
    """Return the value of Content-Type for a file of this name, "application/octet-stream" if it tells nothing.

    The last suffix counts, in any case. A name that is nothing but a suffix (".css") has none.
    """
    stem, _, suffix = name.rpartition(".")
    if stem:
        return _BY_SUFFIX.get(suffix.lower(), UNKNOWN)
    return _BY_NAME.get(name, UNKNOWN)


def is_compressible(content_type: str) -> bool:
    """Whether a body of this type, with or without parameters, is worth compressing.

    Not events (text/event-stream), deliberately: they must not wait for one another. Not what is compressed already,
    and not what is unknown. Remembers the latest 256 answers.
    """
    return _is_compressible(content_type[:_TYPE_MAX])


@lru_cache(maxsize=_REMEMBERED)
def _is_compressible(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip(" \t").lower()
    if media_type.startswith("text/"):
        return media_type != "text/event-stream"
    return media_type in _COMPRESSIBLE or media_type.endswith(_COMPRESSIBLE_SUFFIXES)
