"""Which images to predict, and a name for each."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.prediction.image_search import ImageSearch, lines_on_predictions, lines_on_skipped
from engine.prediction.output_names import printable, unique_names
from utils.errors import UserError

log = logging.getLogger("wavegms")


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
    out, resolve = out.resolve(), functools.cache(Path.resolve)
    searches = [ImageSearch(text, recursive, out, resolve) for text in inputs]
    paths: dict[Path, Path] = {}  # by their place
    for search in searches:
        for place, path in search.images.items():
            paths.setdefault(place, path)
    problems: list[str] = []
    for search in searches:
        problems += search.unreadable
        if (problem := search.nothing_found()) and not (search.is_only_predictions and paths):
            problems.append(problem)
    if problems:
        raise UserError("nothing to predict:\n  " + "\n  ".join(problems))
    skipped = {place: kind for search in searches for place, kind in search.skipped.items()}
    kinds = [kind for place, kind in skipped.items() if place not in paths]
    predicted = {folder for search in searches for folder in search.predicted}
    for line in (*lines_on_skipped(kinds), *lines_on_predictions(predicted)):
        log.warning("%s", line)
    return [Job(name, path) for path, name in unique_names(list(paths.values())).items()]
