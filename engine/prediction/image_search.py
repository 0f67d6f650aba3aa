"""The images that one file, folder or glob pattern names, and what is passed over there."""

from __future__ import annotations

import glob
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from datasets.catalogue import DICOM_SUFFIXES
from datasets.image_files.dicom import HEAD_BYTES, is_without_pixels
from datasets.image_files.pictures import READ_SUFFIXES, is_dicom
from engine.prediction.folder_layout import OUTPUT_FOLDERS, is_used

FOREIGN_SUFFIXES = (
    *(".avif", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jxl", ".mha", ".mhd", ".nhdr"),
    *(".nii", ".nii.gz", ".nrrd", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga", ".webp"),
)
"""Of images in formats that are not read."""
IMAGE, NO_PIXELS = "image", "DICOM without pixels"
SETTING = re.compile(r"[A-Za-z_]\w*=")  # how a key of the config is set for train.py and valid.py


class ImageSearch:
    """What one file, folder or glob pattern gives.

    Files are kept by their place, the path without links on the way to them, as a folder can be reached in
    several ways.

    Args:
        named: the file, folder or pattern.
        recursive: search the subfolders, too.
        out: where predictions go, without links; it is not searched as a subfolder.
        resolve: a folder without links on the way to it, remembered over all searches.

    Attributes:
        images: the path of each image, as it is named or found.
        skipped: what other files in folders are: NO_PIXELS, or the ending of another format.
        predicted: folders other than `out` whose predictions are passed over.
        unreadable: the path of each folder that cannot be read, with the reason.
        is_only_predictions: whether it is a folder of predictions without other images.
    """

    def __init__(
        self, named: str, recursive: bool, out: Path, resolve: Callable[[Path], Path]
    ) -> None:
        self.named, self.recursive, self.out, self.resolve = named, recursive, out, resolve
        self.images: dict[Path, Path] = {}
        self.skipped: dict[Path, str] = {}
        self.predicted: set[Path] = set()
        self.unreadable: list[str] = []
        self.is_pattern = False
        self.matches: list[Path] = []
        path = Path(named)
        try:
            path.stat()
            self.matches = [path]
        except (FileNotFoundError, NotADirectoryError):
            self.is_pattern = True
            self.matches = self._matches()
        except OSError as error:
            self.unreadable.append(f"{named}: cannot be read: {error.strerror}")
        for match in self.matches:
            if match.is_dir():
                self._search(match)
            else:
                self.images.setdefault(self._place(match), match)
        self.is_only_predictions = not self.images and is_used(path)
        if self.is_only_predictions and (place := resolve(path)) != out:
            self.predicted.add(place)

    def nothing_found(self) -> str:
        """The problem, for the user, where there is no image; empty where something is unreadable."""
        if self.images or self.unreadable:
            return ""
        told = (*lines_on_predictions(self.predicted), *lines_on_skipped(self.skipped.values()))
        passed_over = "".join(f"; {line}" for line in told)
        if not self.matches:
            is_setting = SETTING.match(self.named)
            hint = f". A key of the config is changed by --set {self.named}" if is_setting else ""
            return (
                f"{self.named}: no such file, and as a pattern it matches none{passed_over}{hint}"
            )
        searched = "the folders that match" if self.is_pattern else "this folder"
        hint = "" if self.recursive else "; --recursive includes subfolders"
        endings = " ".join(READ_SUFFIXES)
        return f"{self.named}: no images ({endings}) in {searched}{passed_over}{hint}"

    def _matches(self) -> list[Path]:
        """The files and folders that the pattern matches, without earlier predictions."""
        found = sorted(glob.glob(self.named, recursive=True))  # noqa: PTH207 - absolute patterns too
        return [
            path
            for path in map(Path, found)
            if (path.is_file() and not self._is_prediction(path.resolve().parent))
            or (path.is_dir() and not self._is_prediction(path.resolve()))
        ]

    def _search(self, folder: Path) -> None:
        """Add the files of a folder and, if `recursive`, of its subfolders to `images` or `skipped`."""
        for parent, names in self._folders_in(folder):
            for name in sorted(names):
                if name.startswith("."):
                    continue
                file = parent / name
                kind = kind_of(file)
                if kind == IMAGE:
                    self.images.setdefault(self._place(file), file)
                elif kind:
                    self.skipped[self._place(file)] = kind

    def _folders_in(self, folder: Path) -> Iterator[tuple[Path, list[str]]]:
        """The folder and, if `recursive`, its subfolders, each once, with the names of their files."""

        def note(error: OSError) -> None:
            self.unreadable.append(f"{error.filename}: cannot be read: {error.strerror}")

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
                    if self.recursive
                    and not name.startswith(".")
                    and (place := (parent / name).resolve()) != self.out
                    and not self._is_prediction(place)
                )
                waiting.extend(parent / name for name in folders if (parent / name).is_symlink())

    def _place(self, file: Path) -> Path:
        """The path without links on the way to the file; a link to a file is a file of its own."""
        return self.resolve(file.parent) / file.name

    def _is_prediction(self, folder: Path) -> bool:
        """Whether predictions go to the folder or are there; `predicted` gets its parent, unless `out`."""
        if folder.name not in OUTPUT_FOLDERS.values():
            return False
        if folder.parent != self.out and is_used(folder.parent):
            self.predicted.add(folder.parent)
        return folder.parent == self.out or folder.parent in self.predicted


def lines_on_skipped(kinds: Collection[str]) -> list[str]:
    """How many files in folders are not predicted, and why, by their kinds as `kind_of` tells them."""
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


def lines_on_predictions(folders: Collection[Path]) -> list[str]:
    """In which folders predictions are skipped."""
    if not folders:
        return []
    others = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
    return [f"predictions of predict.py skipped in {min(folders)}{others}"]


def kind_of(path: Path) -> str:
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


def _head(path: Path) -> bytes:
    """The first bytes of a file, none where it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            return b""
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""
