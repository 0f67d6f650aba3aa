"""Writing the cases of a source into an unfinished data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
from tqdm import tqdm

from datasets.archives import Limits, Member
from datasets.cases import MAX_LISTED_PROBLEMS
from datasets.catalogue import DatasetSpec
from datasets.decoding import AS_STORED, decode
from datasets.image_headers import orientation
from datasets.layouts import SourceCase
from datasets.masks import AS_STORED_HINT, aspect_ratio_differs, decode_mask, may_fit_as_stored
from datasets.staging import Staging
from datasets.windowing import dark_note, may_be_dark
from utils.errors import UserError, listed
from utils.images import encode_png
from utils.machine import available_cores


@dataclass
class Written:
    """What is known of cases that were written."""

    notes: list[str] = field(default_factory=list)
    """On odd files."""
    areas: list[float] = field(default_factory=list)
    """Foreground of each mask as a part of it, 0 to 1."""


def write_cases(
    spec: DatasetSpec,
    cases: Sequence[SourceCase],
    staging: Staging,
    limits: Limits,
    problems: dict[str, str],
) -> Written:
    """Write all cases with a pool of threads; adds to `problems`."""
    written = Written()

    def write(case: SourceCase) -> tuple[str, str | None, Written]:
        try:
            return case.name, None, write_case(spec, case, staging, limits)
        except UserError as error:
            return case.name, str(error), Written()

    pool = ThreadPoolExecutor(available_cores())
    try:
        done = pool.map(write, cases)
        for name, problem, one in tqdm(
            done, f"preparing {spec.name}", len(cases), unit="case", disable=None
        ):
            if problem:
                problems[name] = problem
            written.notes += one.notes
            written.areas += one.areas
    finally:
        pool.shutdown(cancel_futures=True)
    return written


def write_case(spec: DatasetSpec, case: SourceCase, staging: Staging, limits: Limits) -> Written:
    """Copy the image as it is and write the union of the masks as PNG of 0 and 255.

    Notes are on a 16-bit image that is nearly black, on one that a tag turns upright, perhaps
    without its mask, and on masks with odd values (see `binary_mask`), the same ones where an
    earlier run has written the case. Raises UserError where a file cannot be decoded, the aspect
    ratios of image and mask differ by over 1 %, or the masks differ in size.
    """
    image = case.image.read()
    image_name = case.name + case.image.suffix
    mask_name = spec.mask_stem(case.name) + ".png"
    if staging.has("images", image_name, len(image)) and staging.has("masks", mask_name):
        union = staging.read_mask(mask_name)
        return Written(staging.read_notes(case.name), [float(union.mean())])
    pixels = _decoded(case.image, image, cv2.IMREAD_COLOR, limits)
    height, width = pixels.shape[:2]
    masks: list[np.ndarray] = []
    notes = []
    if may_be_dark(pixels) and (dark := dark_note(_decoded(case.image, image, AS_STORED, limits))):
        notes.append(f"{case.image}: {dark}; spread its values over 0 to 65535")
    as_stored = False
    for file in case.masks:
        mask, odd, tag = _read_mask(spec, file, limits)
        if odd:
            notes.append(f"{file}: {odd}")
        mask_size = (mask.shape[0], mask.shape[1])
        fits = may_fit_as_stored(orientation(image), (height, width), tag, mask_size)
        if aspect_ratio_differs((height, width), mask_size):
            raise UserError(
                f"the mask {file} has {mask.shape[1]} x {mask.shape[0]} px, "
                f"the image {width} x {height}{AS_STORED_HINT if fits else ''}"
            )
        as_stored = as_stored or fits
        if masks and masks[0].shape != mask.shape:
            raise UserError(f"the mask {file} differs in size from the case's other masks")
        masks.append(mask)
    if as_stored:
        notes.append(
            f"{case.image}: turned upright by its orientation tag; was the mask drawn on the upright image?"
        )
    union = np.logical_or.reduce(masks)
    staging.write_notes(case.name, notes)
    staging.write("images", image_name, image)
    staging.write("masks", mask_name, encode_png(union.astype(np.uint8) * 255))
    return Written(notes, [float(union.mean())])


def _read_mask(
    spec: DatasetSpec, file: Member, limits: Limits
) -> tuple[np.ndarray, str | None, int]:
    """Foreground of a mask (H, W) as bool, a note if it held odd values, and its orientation tag."""
    content = file.read()
    try:
        mask, odd = decode_mask(
            content,
            limits.megapixels,
            spec.any_label,
            spec.labels,
            refuse_classes=not spec.archives,  # what the published sets hold is known
        )
        return mask, odd, orientation(content)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _decoded(file: Member, content: bytes, flags: int, limits: Limits) -> np.ndarray:
    try:
        return decode(content, flags, limits.megapixels)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def listed_problems(name: str, problems: Mapping[str, str], other_way: str) -> str:
    """All problems as one message; `other_way` is what to do where they cannot be fixed."""
    lines = [f"{case}: {problem}" for case, problem in sorted(problems.items())]
    return (
        f"{name} is not prepared, {len(lines)} problem(s):\n  "
        + listed(lines, MAX_LISTED_PROBLEMS, separator="\n  ")
        + f"\nFix these in the source or {other_way}, then run this again"
    )
