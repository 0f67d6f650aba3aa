"""A data set that is written beside its place and moved there when it is complete.

`datasets/.<name>.partial/` holds the work in progress, so a run that was killed can be resumed, and
what it left is never taken for a prepared data set. The manifest `dataset.json` is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from datasets.prepared import MANIFEST, METADATA_GROUPS, NOTES, prepared_split_file
from datasets.splits import Split, write_split
from utils.errors import UserError
from utils.files import atomic_write
from utils.locks import try_lock

_PLAN = "plan"
_PARTS = ("images", "masks", "notes")
_PNG_END = b"IEND\xaeB`\x82"


class Staging:
    """The unfinished data set `name`; use through `staged`."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root / f".{name}.partial"
        self.final = root / name

    def begin(self, plan: Iterable[str]) -> bool:
        """Make the folders; True if an earlier run of the same plan is resumed.

        `plan` are lines that determine the outcome. What a run of another plan left is deleted.
        """
        digest = hashlib.sha256("\n".join(plan).encode(errors="surrogateescape")).hexdigest()
        record = self.folder / _PLAN
        resumed = record.is_file() and record.read_text(encoding="utf-8") == digest
        if not resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
        for part in _PARTS:
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        record.write_text(digest, encoding="utf-8")
        return resumed

    def write(self, part: str, name: str, content: bytes) -> None:
        """Write one file whole. It is not synced to disk: `finish` does so for all at once."""
        path = self.folder / part / name
        temporary = path.with_name(f".{name}.tmp")
        temporary.write_bytes(content)
        temporary.replace(path)

    def has_image(self, name: str, size: int | None = None) -> bool:
        """Whether an earlier run wrote the whole image: it has `size` bytes, or is a PNG with its end.

        After a power failure a file may have its name and yet be empty.
        """
        path = self.folder / "images" / name
        try:
            if size is not None:
                return path.stat().st_size == size
            return path.read_bytes().endswith(_PNG_END)
        except FileNotFoundError:
            return False

    def read_mask(self, name: str) -> np.ndarray | None:
        """The foreground (H, W) of a mask that an earlier run wrote; None where it is missing or damaged."""
        path = self.folder / "masks" / name
        content = path.read_bytes() if path.is_file() else b""
        if not content.endswith(_PNG_END):
            return None
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
        return None if pixels is None else pixels > 0

    def write_notes(self, case: str, notes: Sequence[str]) -> None:
        """Keep notes on a case for a run that resumes; to be called before the case is written."""
        if notes:
            self.write("notes", case, "\n".join(notes).encode(errors="backslashreplace"))

    def read_notes(self, case: str) -> list[str]:
        """What `write_notes` kept of a case."""
        path = self.folder / "notes" / case
        return path.read_text(encoding="utf-8").split("\n") if path.is_file() else []

    def finish(
        self,
        split: Split,
        manifest: Mapping[str, Any],
        groups: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> Path:
        """Write split, groups, notes and manifest, make all durable, move the folder to its place."""
        write_split(self.folder / prepared_split_file(self.final).name, split)
        if groups:
            atomic_write(self.folder / METADATA_GROUPS, json.dumps(groups, indent=1) + "\n")
        if notes:
            text = "".join(f"{note}\n" for note in notes)
            atomic_write(self.folder / NOTES, text.encode(errors="backslashreplace"))
        shutil.rmtree(self.folder / "notes")
        (self.folder / _PLAN).unlink()
        os.sync()
        atomic_write(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        self.folder.rename(self.final)
        return self.final


@contextmanager
def staged(root: Path, name: str) -> Iterator[Staging]:
    """The unfinished data set `name`, which only one process at a time may work on."""
    root.mkdir(parents=True, exist_ok=True)
    lock = root / f".{name}.lock"
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(lock.open("w"))
            if not try_lock(file):
                raise UserError(f"another process is preparing {root / name}; wait for it")
            if _lies_at(lock, file):
                break  # otherwise its holder has deleted it, and another process may have made one
        try:
            if (root / name).exists():
                raise UserError(f"another process has prepared {root / name} meanwhile")
            yield Staging(root, name)
        finally:
            lock.unlink(missing_ok=True)


def _lies_at(path: Path, file: IO[str]) -> bool:
    """Whether the open file is the one at `path`, not one that was there before."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
