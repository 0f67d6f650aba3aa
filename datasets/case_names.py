"""Names of cases: file names without extension, in one Unicode form."""

from __future__ import annotations

import re
import unicodedata

from datasets.catalogue import DICOM_SUFFIXES, IMAGE_SUFFIXES


def nfc(name: str) -> str:
    """`name` in Unicode form NFC, whichever it has; macOS and its zips write `ä` as two characters."""
    return unicodedata.normalize("NFC", name)


def without_extension(name: str) -> str:
    """The name of a case from that of its file, which may also be without extension."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot + extension.lower() in (*IMAGE_SUFFIXES, *DICOM_SUFFIXES) else name


def joined_path(path: str, parts: int = 0) -> str:
    """The folders and the name in a path, or the last `parts` of these, joined by `_`, in Unicode NFC."""
    names = [each for each in re.split(r"[/\\]", nfc(path)) if each not in ("", ".")]
    return "_".join(names[-parts:])


def name_problem(name: object) -> str | None:
    """Why `name` is not a plain file stem, or None if it is one."""
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not text"
    if not name:
        return "is empty"
    if name in (".", "..") or "/" in name or "\\" in name:
        return "is a path, not a file name"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "holds a control character"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return "is longer than 200 bytes" if len(encoded) > 200 else None
