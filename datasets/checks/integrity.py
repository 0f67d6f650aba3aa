"""Checks of a prepared data set: counts, sizes, masks, duplicates, leaks.

`check_data_set` looks at every file and writes into `<data set>/check/`:

    report.json              everything that was counted, and what is wrong
    same_source_groups.json  images that show the same source, and how that is known
    contact_sheet.png        random cases with their masks outlined
    near_duplicates.png      near-duplicates side by side, those across train and test first

A test case leaks when train holds another image of its group. Images are in one group when they are
linked, directly or through others, by a lesion or patient in the metadata that the data set was
prepared with, or as near-duplicates.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.cases import own_split_file, spec_of
from datasets.catalogue import DatasetSpec, find_case
from datasets.checks.contact_sheets import contact_sheet, near_duplicate_sheet, write_sheet
from datasets.checks.leaks import SameSourceGroups, grouped_with_train, same_source_file
from datasets.checks.near_duplicates import (
    ImageFeatures,
    NearDuplicate,
    find_near_duplicates,
    image_features,
    working_size,
)
from datasets.checks.report import CheckReport, Counts, DuplicateCounts, Leaks, Masks, Sizes, Spread
from datasets.image_files.decoding import AS_STORED, read_pixels
from datasets.image_files.headers import ImageError
from datasets.image_files.masks import (
    aspect_ratio_differs,
    files_may_fit_as_stored,
    read_binary_mask,
)
from datasets.image_files.windowing import dark_note, may_be_dark
from datasets.prepared import MANIFEST, read_metadata_groups
from datasets.splits import Split, cases_by_group, read_split
from scoring.groups import connected
from utils.files import atomic_write
from utils.machine import available_cores

AREA_BINS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
"""Lesion area as a part of the image; edges of the histogram."""


@dataclass(frozen=True)
class Inspected:
    """One case after both its files were read; sizes are (width, height) in pixels."""

    name: str
    image: Path
    mask: Path
    size: tuple[int, int]
    mask_size: tuple[int, int]
    area: float
    """Foreground as a part of the mask, 0 to 1."""
    dark: str | None
    """What `dark_note` says of the image."""
    odd_values: str | None
    """What `binary_mask` says of the mask."""
    features: ImageFeatures


def check_data_set(folder: Path) -> CheckReport:
    """Check the data set in `folder`, write `check/` there and return the report.

    The data set may have been prepared here or be laid out as published. Problems of single files
    are part of the report. Raises UserError where there is no data set, and SplitError where its
    split cannot be used.
    """
    split_file = own_split_file(folder)
    spec = spec_of(split_file)
    split = read_split(split_file)
    inspected, problems = _inspect_all(spec, folder, split)
    duplicates = find_near_duplicates(
        [case.name for case in inspected],
        [case.features for case in inspected],
        lambda index: working_size(read_pixels(inspected[index].image, cv2.IMREAD_GRAYSCALE)),
    )
    groups = _same_source_groups(folder, duplicates)
    report: CheckReport = {
        **_counts(spec, folder, split, inspected),
        **_sizes(inspected),
        **_masks(split, inspected),
        "problems": problems,
        # preparing has asked already, and has turned the masks that had a tag
        "turned_images": None if (folder / MANIFEST).is_file() else _turned_images(inspected),
        "dark_images": {case.name: case.dark for case in inspected if case.dark},
        "blank_images": [case.name for case in inspected if case.features.blank],
        "near_duplicates": _duplicate_counts(split, duplicates, read_metadata_groups(folder)),
        "leaks": _leaks(split, groups),
    }
    check = folder / "check"
    atomic_write(check / "report.json", json.dumps(report, indent=1) + "\n")
    atomic_write(same_source_file(folder), json.dumps(groups, indent=1) + "\n")
    files = {case.name: (case.image, case.mask) for case in inspected}
    write_sheet(check / "contact_sheet.png", contact_sheet(files))
    write_sheet(
        check / "near_duplicates.png", near_duplicate_sheet(files, duplicates, set(split.test))
    )
    return report


def _inspect_all(
    spec: DatasetSpec, folder: Path, split: Split
) -> tuple[list[Inspected], dict[str, str]]:
    names = sorted({*split.train, *split.test})

    def inspect(name: str) -> Inspected | str:
        try:
            return _inspect(spec, folder, name)
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(available_cores()) as pool:
        results = list(
            tqdm(pool.map(inspect, names), "reading cases", len(names), unit="case", disable=None)
        )
    inspected = [result for result in results if isinstance(result, Inspected)]
    named = zip(names, results, strict=True)
    return inspected, {name: result for name, result in named if isinstance(result, str)}


def _inspect(spec: DatasetSpec, folder: Path, name: str) -> Inspected:
    image, mask = find_case(spec, folder, name)
    if image is None or mask is None:
        missing = " and ".join(
            part for part, path in (("image", image), ("mask", mask)) if path is None
        )
        raise ImageError(f"no {missing}")
    reading = image
    try:
        grey = read_pixels(image, cv2.IMREAD_GRAYSCALE)
        dark = dark_note(read_pixels(image, AS_STORED)) if may_be_dark(grey) else None
        reading = mask
        foreground, odd = read_binary_mask(mask)
    except ImageError as error:
        raise ImageError(f"{reading.name}: {error}") from None
    return Inspected(
        name=name,
        image=image,
        mask=mask,
        size=(grey.shape[1], grey.shape[0]),
        mask_size=(foreground.shape[1], foreground.shape[0]),
        area=float(foreground.mean()),
        dark=dark,
        odd_values=odd,
        features=image_features(working_size(grey)),
    )


def _turned_images(inspected: Sequence[Inspected]) -> list[str]:
    """Images that a tag turns upright, while their mask may be drawn on the image as stored."""
    return [
        case.name
        for case in inspected
        if files_may_fit_as_stored(case.image, case.size[::-1], case.mask, case.mask_size[::-1])
    ]


def _counts(
    spec: DatasetSpec, folder: Path, split: Split, inspected: Sequence[Inspected]
) -> Counts:
    used = {path for name in split.train + split.test for path in find_case(spec, folder, name)}
    expected = None if spec.train is None else {"train": spec.train, "test": spec.test}
    return {
        "name": folder.name,
        "train": len(split.train),
        "test": len(split.test),
        "published": expected,
        "readable": len(inspected),
        "files_of_no_case": sorted(
            f"{part}/{path.name}"
            for part in ("images", "masks")
            if (folder / part).is_dir()
            for path in (folder / part).iterdir()
            if path not in used
        ),
    }


def _sizes(inspected: Sequence[Inspected]) -> Sizes:
    widths, heights = (
        zip(*(case.size for case in inspected), strict=True) if inspected else ((), ())
    )
    return {
        "width": _spread(widths),
        "height": _spread(heights),
        "size_differs": [
            f"{case.name}: image {case.size[0]} x {case.size[1]}, "
            f"mask {case.mask_size[0]} x {case.mask_size[1]}"
            for case in inspected
            if case.size != case.mask_size
        ],
        "aspect_differs": [
            case.name for case in inspected if aspect_ratio_differs(case.size, case.mask_size)
        ],
    }


def _spread(values: Sequence[int]) -> Spread:
    if not values:
        return {}
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _masks(split: Split, inspected: Sequence[Inspected]) -> Masks:
    areas = {case.name: case.area for case in inspected}
    return {
        "odd_mask_values": {case.name: case.odd_values for case in inspected if case.odd_values},
        "empty_masks": [case.name for case in inspected if case.area == 0],
        "full_masks": [case.name for case in inspected if case.area == 1],
        "area_bins": AREA_BINS,
        "area_histogram": {
            part: np.histogram([areas[n] for n in names if n in areas], AREA_BINS)[0].tolist()
            for part, names in (("train", split.train), ("test", split.test))
        },
    }


def _same_source_groups(folder: Path, duplicates: Sequence[NearDuplicate]) -> SameSourceGroups:
    of_metadata = read_metadata_groups(folder)
    by_metadata = cases_by_group(of_metadata, of_metadata)
    pairs = [(names[0], name) for names in by_metadata for name in names[1:]]
    pairs += [(duplicate.first, duplicate.second) for duplicate in duplicates]
    return {
        "by": "metadata and near-duplicates" if of_metadata else "near-duplicates",
        "groups": connected(pairs),
        "near_duplicates": [asdict(duplicate) for duplicate in duplicates],
    }


def _duplicate_counts(
    split: Split, duplicates: Sequence[NearDuplicate], of_metadata: Mapping[str, str]
) -> DuplicateCounts:
    test = set(split.test)
    where = Counter(
        ("within_train", "across", "within_test")[
            (duplicate.first in test) + (duplicate.second in test)
        ]
        for duplicate in duplicates
    )
    return {
        "pairs": len(duplicates),
        "identical": sum(duplicate.inliers == 0 for duplicate in duplicates),
        "within_train": where["within_train"],
        "within_test": where["within_test"],
        "across": where["across"],
        "against_metadata": sum(
            {duplicate.first, duplicate.second} <= of_metadata.keys()
            and of_metadata[duplicate.first] != of_metadata[duplicate.second]
            for duplicate in duplicates
        ),
    }


def _leaks(split: Split, groups: SameSourceGroups) -> Leaks:
    leaked = sorted(grouped_with_train(split, groups["groups"]))
    return {
        "by": groups["by"],
        "test_cases": len(leaked),
        "part_of_test": round(len(leaked) / len(split.test), 4),
        "names": leaked,
    }
