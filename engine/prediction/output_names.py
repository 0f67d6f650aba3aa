"""A name for the outputs of each image, from its path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.image_files.pictures import READ_SUFFIXES
from engine.prediction.image_search import FOREIGN_SUFFIXES

NAME_ENDINGS = frozenset((*READ_SUFFIXES, *FOREIGN_SUFFIXES, ".ima"))
LONGEST_NAME = 200  # bytes; file systems take 255, of which endings and temporary names need some


def unique_names(paths: Sequence[Path], given: Mapping[str, Path] | None = None) -> dict[Path, str]:
    """A name for the outputs of each path: its stem, or more of the path where stems are equal.

    A stem is the file's name without an ending that images have (`stem_of`). Tried in this order:
    stem_png, folder_stem, folder_stem_png, and so on upwards; then a number is appended. Names stay
    distinct where upper and lower case count as equal. Names that are `given` to paths stay theirs, and
    the stems of these count as well.
    """
    given = given or {}
    has_name = {path: name for name, path in given.items()}
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in dict.fromkeys((*paths, *has_name)):
        groups[stem_of(path).casefold()].append(path)
    names: dict[Path, str] = {}
    taken = {name.casefold() for name in given}
    # small groups first: a stem that no other path has stays the name
    for group in sorted(groups.values(), key=len):
        for path, name in zip(group, _distinct(group), strict=True):
            if path in has_name:
                names[path] = has_name[path]
                continue
            number, candidate = 2, name
            while candidate.casefold() in taken:
                number, candidate = number + 1, f"{name}_{number}"
            taken.add(candidate.casefold())
            names[path] = candidate
    return {path: names[path] for path in paths}


def _distinct(group: Sequence[Path]) -> list[str]:
    """The shortest names that tell the paths of the group apart, or their stems."""
    absolute = [path.absolute() for path in group]
    for depth in range(1, max(len(path.parts) for path in absolute)):
        for suffix in (False, True):
            names = [_name(path, depth, suffix) for path in absolute]
            if len({name.casefold() for name in names}) == len(names):
                return names
    return [_name(path, 1, False) for path in absolute]


def _name(path: Path, depth: int, suffix: bool) -> str:
    stem = stem_of(path)
    ending = f"_{path.suffix[1:].lower()}" if suffix and stem != path.name else ""
    name = printable("_".join((*path.parts[1:][-depth:-1], stem)) + ending)
    return name.encode()[-LONGEST_NAME:].decode(errors="ignore")


def stem_of(path: Path) -> str:
    """The file's name without the ending of an image format; a UID as a name keeps its last number."""
    return path.stem if path.suffix.lower() in NAME_ENDINGS else path.name


def printable(text: str) -> str:
    """`text` with the replacement character for control characters and for bytes that are not text."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
