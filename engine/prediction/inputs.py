"""Which images to predict, and a name for each."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.catalogue import DICOM_SUFFIXES
from datasets.image_files.dicom import HEAD_BYTES, is_without_pixels
from datasets.image_files.pictures import READ_SUFFIXES, is_dicom
from engine.prediction.folder_layout import OUTPUT_FOLDERS, is_used
from utils.errors import UserError

log = logging.getLogger("wavegms")
FOREIGN_SUFFIXES = (
    *(".avif", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jxl", ".mha", ".mhd", ".nhdr"),
    *(".nii", ".nii.gz", ".nrrd", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga", ".webp"),
)
"""Of images in formats that are not read."""
IMAGE, NO_PIXELS = "image", "DICOM without pixels"
NAME_ENDINGS = frozenset((*READ_SUFFIXES, *FOREIGN_SUFFIXES, ".ima"))
SETTING = re.compile(r"[A-Za-z_]\w*=")  # how a key of the config is set for train.py and valid.py
LONGEST_NAME = 200  # bytes; file systems take 255, of which endings and temporary names need some


@dataclass(frozen=True)
class Job:
    """An image to predict; its outputs are called `name`."""

    name: str
    path: Path

    @property
    def file(self) -> str:
        """The path as text for people and tables."""
        return printable(str(self.path))


def find_jobs(inputs: Sequence[str], recursive: bool, out: Path) -> list[Job]:
    """The images that files, folders and glob patterns name, each once, under unique names.

    Folders, named or matched by a pattern, give their files with a known ending and DICOM files under
    any name, sorted by name. Skipped: hidden files, `out`, and earlier predictions in it; with a warning,
    predictions in other folders, DICOM objects without pixels and images of other formats. A folder of
    predictions may be named beside other inputs, as a shell's `*` does. Linked folders come last; no folder
    counts twice. UserError lists inputs that do not exist or hold no image, and folders that cannot be read.
    """
    out = out.resolve()
    problems: list[str] = []
    only_predictions: list[str] = []  # problems where there is nothing else
    predicted: set[Path] = set()  # other folders than `out` that predictions are skipped in
    paths: dict[Path, Path] = {}  # by their place, as a folder can be reached in several ways
    skipped: dict[Path, str] = {}  # the same way; as `_kind` tells them
    place_of = functools.cache(Path.resolve)
    for text in inputs:
        passed_over: set[Path] = set()
        try:
            Path(text).stat()
            matches, holder = [Path(text)], "this folder"
        except (FileNotFoundError, NotADirectoryError):
            matches, holder = _matches(text, out, passed_over), "the folders that match"
        except OSError as error:
            problems.append(f"{text}: cannot be read: {error.strerror}")
            continue
        images: list[Path] = []
        unreadable: list[str] = []
        others: dict[Path, str] = {}
        for path in matches:
            if path.is_dir():
                for file in _files_in(path, recursive, out, unreadable, passed_over):
                    kind = _kind(file)
                    if kind == IMAGE:
                        images.append(file)
                    elif kind:
                        others[place_of(file.parent) / file.name] = kind
            else:
                images.append(path)
        problems += unreadable
        if not images and is_used(Path(text)) and place_of(Path(text)) != out:
            passed_over.add(place_of(Path(text)))
        lines = (*_predicted_lines(passed_over), *_skipped_lines(others.values()))
        told = "".join(f"; {line}" for line in lines)
        if not matches:
            hint = (
                f". A key of the config is changed by --set {text}" if SETTING.match(text) else ""
            )
            problems.append(f"{text}: no such file, and as a pattern it matches none{told}{hint}")
        elif not images and not unreadable:
            hint = "" if recursive else "; --recursive includes subfolders"
            problem = f"{text}: no images ({' '.join(READ_SUFFIXES)}) in {holder}{told}{hint}"
            (only_predictions if is_used(Path(text)) else problems).append(problem)
        skipped |= others
        predicted |= passed_over
        for path in images:
            paths.setdefault(place_of(path.parent) / path.name, path)
    if not paths:
        problems += only_predictions
    if problems:
        raise UserError("nothing to predict:\n  " + "\n  ".join(problems))
    # one that is named, too, is not skipped
    kinds = [kind for place, kind in skipped.items() if place not in paths]
    for line in (*_skipped_lines(kinds), *_predicted_lines(predicted)):
        log.warning("%s", line)
    return [Job(name, path) for path, name in unique_names(list(paths.values())).items()]


def _skipped_lines(kinds: Collection[str]) -> list[str]:
    """How many files in folders are not predicted, and why, by their kinds as `_kind` tells them."""
    endings = sorted(kind for kind in kinds if kind != NO_PIXELS)
    lines = []
    if objects := len(kinds) - len(endings):
        plural = "s" if objects > 1 else ""
        lines.append(f"{objects} DICOM object{plural} without pixels skipped (reports, DICOMDIR)")
    if endings:
        files = (
            "1 file of another format"
            if len(endings) == 1
            else f"{len(endings)} files of other formats"
        )
        names = ", ".join(dict.fromkeys(endings))
        lines.append(f"{files} skipped ({names}): convert to PNG")
    return lines


def _predicted_lines(folders: Collection[Path]) -> list[str]:
    """In which folders predictions are skipped."""
    if not folders:
        return []
    others = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
    return [f"predictions of predict.py skipped in {min(folders)}{others}"]


def _matches(pattern: str, out: Path, predicted: set[Path]) -> list[Path]:
    """The files and folders that a pattern matches, without earlier predictions."""
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns too
    return [
        path
        for path in map(Path, found)
        if (path.is_file() and not _is_prediction(path.resolve().parent, out, predicted))
        or (path.is_dir() and not _is_prediction(path.resolve(), out, predicted))
    ]


def _files_in(
    folder: Path, recursive: bool, out: Path, unreadable: list[str], predicted: set[Path]
) -> Iterator[Path]:
    for parent, files in _folders_in(folder, recursive, out, unreadable, predicted):
        yield from (parent / name for name in sorted(files) if not name.startswith("."))


def _kind(path: Path) -> str:
    """IMAGE for a file to predict, NO_PIXELS, its ending for an image of another format, '' for others."""
    ending = path.suffix.lower()
    if ending in READ_SUFFIXES and ending not in DICOM_SUFFIXES:
        return IMAGE
    head = _head(path)
    if is_dicom(head):
        return NO_PIXELS if is_without_pixels(head) else IMAGE
    if ending in DICOM_SUFFIXES:
        return IMAGE
    return next((each for each in FOREIGN_SUFFIXES if path.name.lower().endswith(each)), "")


def _folders_in(
    folder: Path, recursive: bool, out: Path, unreadable: list[str], predicted: set[Path]
) -> Iterator[tuple[Path, list[str]]]:
    """The folder and, if `recursive`, its subfolders, each once, with the names of their files.

    Those that cannot be read are added to `unreadable`, with the reason.
    """

    def note(error: OSError) -> None:
        unreadable.append(f"{error.filename}: cannot be read: {error.strerror}")

    seen: set[Path] = set()
    waiting = deque([folder])  # links come last, so that a folder is named by its own path
    while waiting:
        for text, folders, files in os.walk(waiting.popleft(), onerror=note):
            parent = Path(text)
            if (place := parent.resolve()) in seen:
                folders.clear()
                continue
            seen.add(place)
            yield parent, files
            folders[:] = sorted(
                name
                for name in folders
                if recursive
                and not name.startswith(".")
                and (place := (parent / name).resolve()) != out
                and not _is_prediction(place, out, predicted)
            )
            waiting.extend(parent / name for name in folders if (parent / name).is_symlink())


def _is_prediction(folder: Path, out: Path, predicted: set[Path]) -> bool:
    """Whether predictions go to the folder, or are there; then `predicted` gets its parent, unless `out`."""
    if folder.name not in OUTPUT_FOLDERS.values():
        return False
    if folder.parent != out and is_used(folder.parent):
        predicted.add(folder.parent)
    return folder.parent == out or folder.parent in predicted


def _head(path: Path) -> bytes:
    """The first bytes of a file, none where it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            return b""
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


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
