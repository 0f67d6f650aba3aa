"""Where the repository lies, and writing files so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


def atomic_write(path: Path, content: bytes | memoryview | str | Callable[[Path], None]) -> None:
    """Write `content` to `path` through a temporary neighbour that is flushed, synced and renamed.

    `content` is bytes, text (UTF-8) or a function that writes the file it is given. The old file
    stays whole until the new one is; on an error the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # random, as processes of two hosts that share the disk may have the same number
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def try_to_write(folder: Path) -> None:
    """OSError where nothing can be written into the folder; one that is new is not left behind."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        probe.write(b"x")  # a full disk may still take an empty file
    with suppress(OSError):  # another process may have made a folder in it meanwhile
        for each in missing:
            each.rmdir()


def joined_sha256(hashes: Iterable[str]) -> str:
    """Hexadecimal SHA-256 that changes where one of the `hashes` does, or their order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds; {} where there is none that can be read, or it holds another thing."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
