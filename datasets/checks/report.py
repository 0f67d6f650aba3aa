"""What a check of a data set finds: the content of its report.json, and the same as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from utils.errors import listed


class Counts(TypedDict):
    """How many cases there are, and files that belong to none."""

    name: str
    train: int
    test: int
    published: dict[str, int | None] | None
    """Cases in the published split, if there is one: "train" and "test"."""
    readable: int
    files_of_no_case: list[str]


class Spread(TypedDict, total=False):
    """Least, middle and greatest of some lengths in pixels; empty where there are none."""

    min: int
    median: float
    max: int


class Sizes(TypedDict):
    """Sizes of the images, and the cases whose mask has another size or another shape."""

    width: Spread
    height: Spread
    size_differs: list[str]
    aspect_differs: list[str]


class Masks(TypedDict):
    """Odd masks, and how large the lesions are."""

    odd_mask_values: dict[str, str]
    empty_masks: list[str]
    full_masks: list[str]
    area_bins: tuple[float, ...]
    area_histogram: dict[str, list[int]]
    """Masks in each bin, for "train" and "test"."""


class DuplicateCounts(TypedDict):
    """Numbers of pairs of near-duplicates."""

    pairs: int
    identical: int
    within_train: int
    within_test: int
    across: int
    against_metadata: int
    """Pairs of which the metadata has the two as different lesions or patients."""


class Leaks(TypedDict):
    """Test cases whose group has a member in train."""

    by: str
    test_cases: int
    part_of_test: float
    names: list[str]


class CheckReport(Counts, Sizes, Masks):
    """Content of report.json."""

    problems: dict[str, str]
    """Why a case cannot be used, by name."""
    turned_images: list[str] | None
    """Images that an orientation tag turns upright, and whose mask may not have been turned.

    None for a data set prepared here, as preparing asks (notes.txt) and turns the masks.
    """
    dark_images: dict[str, str]
    blank_images: list[str]
    """Images of one value throughout, which are taken for no duplicates."""
    near_duplicates: DuplicateCounts
    leaks: Leaks


def format_report(report: CheckReport) -> str:
    """The report in a few lines, names cut off after the first ones."""
    leaks, duplicates = report["leaks"], report["near_duplicates"]
    published = report["published"]
    question = "turned upright by a tag, was the mask drawn on the upright image?"
    turned = report["turned_images"]
    lines = [
        f"{report['name']}: {report['train']} train, {report['test']} test"
        + (f" (published {published['train']}, {published['test']})" if published else ""),
        f"  sizes: width {_range(report['width'])}, height {_range(report['height'])}",
        *_finding("unusable cases", [f"{n}: {p}" for n, p in report["problems"].items()]),
        *_finding("files of no case in the split", report["files_of_no_case"]),
        *_finding("images of 16 bits, nearly black to the model", list(report["dark_images"])),
        *_finding("blank images", report["blank_images"]),
        *([] if turned is None else _finding(question, turned)),
        *_finding("mask and image of different size", report["size_differs"]),
        *_finding("different aspect ratio, training would stop", report["aspect_differs"]),
        *_finding("masks with other values than 0 and 255", list(report["odd_mask_values"])),
        *_finding("empty masks", report["empty_masks"]),
        *_finding("full masks", report["full_masks"]),
        f"  lesion area, part of the image: {_histogram(report)}",
        f"  near-duplicates: {duplicates['pairs']} pairs "
        f"({duplicates['identical']} with identical pixels), "
        f"{duplicates['within_train']} within train, {duplicates['within_test']} within test, "
        f"{duplicates['across']} across, {duplicates['against_metadata']} against the metadata",
        f"  leaks: {leaks['test_cases']} of {report['test']} test cases "
        f"({leaks['part_of_test']:.1%}) share a group with train, by {leaks['by']}",
    ]
    return "\n".join(lines)


def _range(spread: Spread) -> str:
    return f"{spread['min']} to {spread['max']}, median {spread['median']:g}" if spread else "-"


def _finding(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return [f"  {title}: none"]
    return [f"  {title}: {len(items)} ({listed(items, 5, separator='; ')})"]


def _histogram(report: CheckReport) -> str:
    counts = np.sum(list(report["area_histogram"].values()), axis=0)
    edges = report["area_bins"]
    return ", ".join(
        f"{low:.1%}-{high:.1%}: {count}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    )
