"""Writing the cases of a source into an unfinished data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
from tqdm import tqdm

from datasets.cases import MAX_LISTED_PROBLEMS
from datasets.catalogue import DICOM_SUFFIXES, DatasetSpec
from datasets.image_files.decoding import AS_STORED, decode
from datasets.image_files.headers import is_jpeg, orientation
from datasets.image_files.masks import (
    AS_STORED_HINT,
    aspect_ratio_differs,
    decode_mask,
    mask_values,
    may_fit_as_stored,
    value_range,
)
from datasets.image_files.pictures import read_picture
from datasets.image_files.windowing import Window, dark_note, may_be_dark
from datasets.preparation.archives import Limits, Member
from datasets.preparation.layouts import SourceCase
from datasets.preparation.staging import Staging
from datasets.splits import quoted
from utils.errors import UserError, listed
from utils.images import encode_png
from utils.machine import available_cores

LISTED_ALIKE = 3
"""So many cases with one reason each have a line; more have one together."""
_FILE_NAME = re.compile(r"\S*\.[A-Za-z]\w{1,4}\b")


@dataclass
class Written:
    """What is known of cases that were written."""

    notes: list[str] = field(default_factory=list)
    """On odd files."""
    areas: list[float] = field(default_factory=list)
    """Foreground of each mask as a part of it, 0 to 1."""
    values: set[int] = field(default_factory=set)
    """What masks hold, where labels say which values are foreground."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """Least and greatest value of odd and of full masks, where nothing says which values are foreground."""


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
            written.values |= one.values
            written.ranges += one.ranges
    finally:
        pool.shutdown(cancel_futures=True)
    return written


def write_case(spec: DatasetSpec, case: SourceCase, staging: Staging, limits: Limits) -> Written:
    """Write image and mask: the image as it is, the union of the masks as PNG of 0 and 255.

    A DICOM file, and with `window` in `spec` any image, becomes PNG of 8 bits.

    Notes are on a 16-bit image that is nearly black, on one that a tag turns upright, perhaps
    without its mask, on masks with odd values (see `binary_mask`), and on full ones of own data,
    the same ones where an earlier run has written the case. Raises UserError where a file cannot be
    decoded, the aspect ratios of image and mask differ by over 1 %, or the masks differ in size.
    """
    image = case.image.read()
    as_png = spec.window is not None or case.image.suffix in DICOM_SUFFIXES
    image_name = case.name + (".png" if as_png else case.image.suffix)
    mask_name = spec.mask_stem(case.name) + ".png"
    size = None if as_png else len(image)
    earlier = staging.read_mask(mask_name) if staging.has_image(image_name, size) else None
    if earlier is not None:
        noted = staging.read_notes(case.name)
        return _written(spec, case, limits, noted, float(earlier.mean()))
    if as_png:
        pixels = _in_8_bits(case.image, image, spec.window, limits)
        written = encode_png(pixels)
    else:
        pixels = _decoded(case.image, image, cv2.IMREAD_COLOR, limits)
        written = image
    notes: list[str] = []
    may_be = not as_png and may_be_dark(pixels)
    if may_be and (dark := dark_note(_decoded(case.image, image, AS_STORED, limits))):
        notes.append(f"{case.image}: {dark}; spread its values over 0 to 65535, or give --window")
    height, width = pixels.shape[:2]
    union, odd_masks = _united_mask(spec, case, (height, width), orientation(image), limits)
    notes += odd_masks
    if union.all() and not spec.archives:
        notes.append(f"{case.image}: all of it is foreground")
    staging.write_notes(case.name, notes)
    staging.write("images", image_name, written)
    staging.write("masks", mask_name, encode_png(union.astype(np.uint8) * 255))
    return _written(spec, case, limits, notes, float(union.mean()))


def _written(
    spec: DatasetSpec, case: SourceCase, limits: Limits, notes: list[str], area: float
) -> Written:
    """What is known of a case that this run or an earlier one has written."""
    values, ranges = _values(spec, case, limits), list[tuple[int, int]]()
    if (notes or area == 1) and not (spec.archives or spec.any_label or spec.labels):
        contents = (file.read() for file in case.masks)
        ranges = [value_range(c, limits.megapixels) for c in contents if not is_jpeg(c)]
    return Written(notes, [area], values, ranges)


def _united_mask(
    spec: DatasetSpec, case: SourceCase, size: tuple[int, int], tag: int, limits: Limits
) -> tuple[np.ndarray, list[str]]:
    """Union (H, W) of the case's masks as bool, and the notes on them.

    `size` (H, W) is that of the image, `tag` its orientation. UserError as `write_case` raises it.
    """
    masks: list[np.ndarray] = []
    notes = []
    as_stored = False
    for file in case.masks:
        mask, odd, tag_of_mask = _read_mask(spec, file, limits)
        if odd:
            notes.append(f"{file}: {odd}")
        mask_size = (mask.shape[0], mask.shape[1])
        fits = may_fit_as_stored(tag, size, tag_of_mask, mask_size)
        if aspect_ratio_differs(size, mask_size):
            raise UserError(
                f"the mask {file} has {mask.shape[1]} x {mask.shape[0]} px, "
                f"the image {size[1]} x {size[0]}{AS_STORED_HINT if fits else ''}"
            )
        as_stored = as_stored or fits
        if masks and masks[0].shape != mask.shape:
            raise UserError(f"the mask {file} differs in size from the case's other masks")
        masks.append(mask)
    if as_stored:
        notes.append(
            f"{case.image}: turned upright by its orientation tag; was the mask drawn on the upright image?"
        )
    return np.logical_or.reduce(masks), notes


def _values(spec: DatasetSpec, case: SourceCase, limits: Limits) -> set[int]:
    """The values of the case's masks where `spec` has labels, otherwise none."""
    if not spec.labels:
        return set()
    return {v for file in case.masks for v in mask_values(file.read(), limits.megapixels)}


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


def _in_8_bits(file: Member, content: bytes, window: Window, limits: Limits) -> np.ndarray:
    """An image as prediction reads it, (H, W, 3) BGR or (H, W) where it is grey."""
    try:
        pixels = read_picture(content, limits.megapixels, window, file.suffix).pixels
    except UserError as error:
        reason = str(error).replace("--max-megapixels", "--limit megapixels=N")  # as it is here
        raise UserError(f"{file}: {reason}") from None
    grey = pixels[..., 0]
    return grey if (pixels == grey[..., None]).all() else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)


def _decoded(file: Member, content: bytes, flags: int, limits: Limits) -> np.ndarray:
    try:
        return decode(content, flags, limits.megapixels)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def listed_problems(name: str, problems: Mapping[str, str], other_way: str) -> str:
    """All problems as one message; `other_way` is what to do where they cannot be fixed.

    Many cases whose reasons differ in the names of files alone are one line.
    """
    alike: dict[str, list[str]] = {}
    for case, problem in sorted(problems.items()):
        alike.setdefault(_FILE_NAME.sub("", problem), []).append(case)
    lines = []
    for cases in alike.values():
        if len(cases) > LISTED_ALIKE:
            lines.append(f"{len(cases)} cases, {quoted(cases, 3)}, the first: {problems[cases[0]]}")
        else:
            lines += [f"{case}: {problems[case]}" for case in cases]
    return (
        f"{name} is not prepared, {len(problems)} problem(s):\n  "
        + listed(lines, MAX_LISTED_PROBLEMS, separator="\n  ")
        + f"\nFix these in the source or {other_way}, then run this again"
    )
