"""Warnings of the preparation, and what it says of the cases that it has written, or refuses in them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from datasets.catalogue import DatasetSpec
from datasets.image_files.masks import JPEG_CUT, JPEG_LABELS
from datasets.splits import Split, cases_by_group
from utils.errors import UserError, listed

NOTES_SHOWN = 5
FEW_GROUPS = 5
"""A split that is drawn is warned of where it tests on fewer groups."""


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def report_groups(group_of: Mapping[str, str], split: Split, drawn: bool) -> None:
    """Say how many groups each part has; of a split that was not given, warn where few are tested on."""
    parts = {"train": split.beside_val, "val": split.val, "test": split.test}
    groups = {part: len(cases_by_group(names, group_of)) for part, names in parts.items() if names}
    line = "groups: " + ", ".join(f"{count} in {part}" for part, count in groups.items())
    if drawn and groups["test"] < FEW_GROUPS:
        warn(
            f"{line}. Scores on under {FEW_GROUPS} groups (patients, lesions) tell little of others; prepare more "
            "of them, or name more for testing by --splits FILE"
        )
    else:
        print(line)


def check_labels(spec: DatasetSpec, held: Set[int]) -> None:
    """UserError where no label of `spec` is among the values that masks hold, a warning where not all are."""
    missing = [label for label in spec.labels if label not in held]
    if not missing:
        return
    several = len(missing) > 1
    which = f"label{'s' if several else ''} {', '.join(map(str, missing))} occur{'' if several else 's'}"
    found = f"{which} in no mask; they hold {listed(map(str, sorted(held)), 20)}"
    if len(missing) == len(spec.labels):
        raise UserError(
            f"{spec.name} is not prepared: {found}. Give --label with values that are foreground"
        )
    warn(found)


def refuse_background_of_one(spec: DatasetSpec, ranges: Sequence[tuple[int, int]]) -> None:
    """UserError where masks hold 1 everywhere, which is the least value of others, so perhaps background.

    `ranges` are the least and the greatest value of masks.
    """
    above = [high for low, high in ranges if low == 1 < high]
    if above and (ones := ranges.count((1, 1))):
        labels = ",".join(map(str, sorted(set(above))))
        raise UserError(
            f"{spec.name} is not prepared: {ones} masks hold the value 1 everywhere, {len(above)} others values from 1 "
            f"to {max(above)}, expected 0 for the background. If 1 is the background, give --label {labels}, or save "
            "the masks as 0 and 255; if it is foreground, give --any-label"
        )


def warn_of_odd_files(notes: Sequence[str], listed_in: Path) -> None:
    """Say how many masks JPEG has blurred, and name some of the other files that have a note."""
    for kind in (JPEG_CUT, JPEG_LABELS):
        if blurred := sum(note.endswith(kind) for note in notes):
            warn(f"{blurred} masks are {kind}")
    if odd := [note for note in notes if not note.endswith((JPEG_CUT, JPEG_LABELS))]:
        shown = listed(odd, NOTES_SHOWN, separator="\n  ")
        warn(f"{len(odd)} odd files, listed in {listed_in}:\n  {shown}")


def report_masks(areas: Sequence[float], own: bool) -> None:
    """Say how many masks are empty or full and how large they are; of own data, warn where that is odd."""
    empty, median = sum(area == 0 for area in areas), float(np.median(areas))
    full = sum(area == 1 for area in areas)
    line = (
        f"masks: {empty} of {len(areas)} empty{f', {full} full' if full else ''}; "
        f"median foreground {100 * median:.1f} % of the image"
    )
    if own and empty > len(areas) / 2:
        warn(f"{line}. Are these the masks of the images?")
    elif own and median > 0.5:
        warn(f"{line}. Are the masks inverted? The brighter part is taken for foreground")
    else:
        print(line)
