"""The index of a git repository, for tests that have no git."""

from __future__ import annotations

from collections.abc import Sequence


def git_index(names: Sequence[str], version: int, *, extension: bytes = b"") -> bytes:
    """Write an index as git does (gitformat-index(5)), without the hashes that nobody looks at."""
    data, before = b"DIRC" + version.to_bytes(4) + len(names).to_bytes(4), b""
    for text in sorted(names):
        name = text.encode()
        entry = bytes(60) + len(name).to_bytes(2)
        if version == 4:
            kept = next(
                (at for at, pair in enumerate(zip(before, name, strict=False)) if len(set(pair)) > 1), len(before)
            )
            entry += bytes([len(before) - kept]) + name[kept:] + b"\0"
        else:
            entry += name + b"\0"
            entry += bytes(-len(entry) % 8)
        data, before = data + entry, name
    return data + extension + bytes(20)
