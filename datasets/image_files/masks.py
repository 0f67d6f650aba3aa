"""What is foreground in a mask file, and whether the mask can belong to an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.image_files.decoding import decode, read_stored
from datasets.image_files.headers import (
    ImageError,
    is_jpeg,
    orientation,
    stored_bits,
    zero_is_white,
)
from utils.errors import listed

MAX_ASPECT_DIFFERENCE = 0.01
MAX_CLASS = 31
"""Up to this greatest value, a mask of more than two values is taken to number objects or classes."""
CLASS_SQUARE = 5
"""Side in pixels of a square of one value that no smoothed edge fills."""
JPEG_ERROR = 4
"""By how much a JPEG of one value may miss black or white."""
JPEG_CUT = "JPEG, whose edges are blurred; cut at half of its range of values"
JPEG_LABELS = (
    "JPEG, which keeps values only nearly, so --any-label and --label also take pixels beside the edges, or "
    "miss some: leave them out, or save the masks as PNG from their source"
)
"""What is said of a mask file that is a JPEG of more than two values."""


def read_binary_mask(path: Path) -> tuple[np.ndarray, str | None]:
    """`decode_mask` of a file in a data set's masks/; ImageError as that and `read_stored`."""
    return decode_mask(*read_stored(path))


def decode_mask(
    content: bytes,
    max_megapixels: float,
    any_label: bool = False,
    labels: Sequence[int] = (),
    refuse_classes: bool = False,
) -> tuple[np.ndarray, str | None]:
    """Foreground and note of a mask file, as `binary_mask`.

    Raises ImageError as that and `decode`, and where the alpha channel contradicts the colours: these have no
    foreground, or some that is transparent. With `refuse_classes`, also where a lossless mask seems to
    number objects or classes, and neither `any_label` nor `labels` says which are foreground, or where
    two of its colours have one grey value, which is then no sign of either.
    """
    grey = _grey(content, max_megapixels, any_label)
    if grey.dtype == np.uint16 and zero_is_white(content) and not (any_label or labels):
        grey = (1 << stored_bits(content)) - 1 - grey  # as OpenCV does at 8 bits
    if is_jpeg(content) and not (any_label or labels):
        grey = _without_jpeg_error(grey)
    mask, note = binary_mask(grey, any_label, labels)
    if is_jpeg(content):
        if (note or any_label or labels) and np.unique(grey).size > 2:
            note = JPEG_LABELS if any_label or labels else JPEG_CUT
    elif refuse_classes and not any_label:
        _refuse_merged_colours(content, grey, max_megapixels)
        if note:
            _refuse_classes(grey)
    if note and _is_drawn_in_one_colour(grey):
        note = None
    alpha = _alpha(content, max_megapixels)
    if alpha is None:
        return mask, note
    opaque = alpha > (0 if any_label or labels else int(alpha.max()) // 2)
    if opaque.any() and not opaque.all():
        # the tag of orientation does not turn the alpha channel
        as_stored = _grey(content, max_megapixels, any_label, cv2.IMREAD_IGNORE_ORIENTATION)
        drawn, _ = binary_mask(as_stored, any_label, labels)
        if not drawn.any() or (drawn & ~opaque).any():
            raise ImageError(
                "the mask's transparency (alpha channel) shows another shape than its colours; "
                "flatten it to grey of 0 and 255, without transparency"
            )
    return mask, note


def _without_jpeg_error(grey: np.ndarray) -> np.ndarray:
    """Black or white for a JPEG that is nearly so everywhere, as an empty or full mask of low quality."""
    low, high = int(grey.min()), int(grey.max())
    if low == high and 1 < high <= JPEG_ERROR:
        return np.zeros_like(grey)
    if low == high >= 255 - JPEG_ERROR:
        return np.full_like(grey, 255)
    return grey


def mask_values(content: bytes, max_megapixels: float) -> list[int]:
    """The values of a mask file, those that `labels` of `decode_mask` are compared with."""
    return np.unique(_grey(content, max_megapixels, any_label=False)).tolist()


def value_range(content: bytes, max_megapixels: float) -> tuple[int, int]:
    """The least and the greatest of `mask_values`."""
    grey = _grey(content, max_megapixels, any_label=False)
    return int(grey.min()), int(grey.max())


def _grey(content: bytes, max_megapixels: float, any_label: bool, flags: int = 0) -> np.ndarray:
    """A mask file's colours as grey (H, W), decoded with these further flags."""
    flags |= cv2.IMREAD_ANYDEPTH
    pixels = None if any_label else decode(content, cv2.IMREAD_GRAYSCALE | flags, max_megapixels)
    if pixels is None or (pixels.dtype.kind != "f" and not pixels.any()):
        # grey rounds the darkest colours to 0: labels of 1 in one channel, or of a dark palette
        pixels = decode(content, cv2.IMREAD_COLOR | flags, max_megapixels).max(axis=2)
    if not pixels.any() and _hides_labels(content):
        raise ImageError(
            "the mask's palette gives all of its labels one colour, so nothing can be seen of them; save the "
            "labels as grey values"
        )
    return pixels


def _hides_labels(content: bytes) -> bool:
    """Whether several entries of a PNG's palette are used in a picture that shows only one colour."""
    if not content.startswith(b"\x89PNG") or content[25] != 3:
        return False
    from PIL import PngImagePlugin  # here, since predicting without PyTorch may lack it

    # unlike Image.open, it has no limit on pixels beside that of `decode`
    with PngImagePlugin.PngImageFile(io.BytesIO(content)) as picture:
        low, high = picture.getextrema()
    return low != high


def _alpha(content: bytes, max_megapixels: float) -> np.ndarray | None:
    """The alpha channel (H, W) of a file that `decode` reads, None where it has none."""
    if is_jpeg(content):
        return None
    # the masks that preparation writes, PNG without transparency, are decoded once only
    if content.startswith(b"\x89PNG"):
        before_pixels = content[: content.find(b"IDAT")]
        if not before_pixels[25] & 4 and b"tRNS" not in before_pixels:
            return None
    pixels = decode(content, cv2.IMREAD_UNCHANGED, max_megapixels)
    return pixels[..., 3] if pixels.ndim == 3 and pixels.shape[2] == 4 else None


def _is_drawn_in_one_colour(grey: np.ndarray) -> bool:
    """Whether a mask (H, W) holds 0 and one other value that is no small number, as red and palettes give."""
    values = np.unique(grey)
    return len(values) == 2 and values[0] == 0 and values[1] > MAX_CLASS


def _refuse_classes(grey: np.ndarray) -> None:
    """ImageError where the values of a mask (H, W) seem to number objects or classes.

    So does a value between the least and the greatest where these are small, or where it fills a square.
    Smoothed edges do neither; values next to the least or the greatest are taken for these, unless one
    next to the least fills a square in a mask of few values, as 1 does beside an ignored border of 255.
    """
    values = np.unique(grey)
    low, high = int(values[0]), int(values[-1])
    near = (high - low) // 64
    between = values[(values > low + near) & (values < high - near)]
    ignored = ""
    if high > MAX_CLASS:
        filled = np.unique(grey[_is_flat(grey)])
        between = np.intersect1d(between, filled)
        if len(values) <= MAX_CLASS and low in filled:
            small = filled[(filled > low) & (filled <= low + near)]
            between = np.union1d(between, small)
            if small.size and high == np.iinfo(grey.dtype).max:
                ignored = f", if {high} marks what is to be ignored"
    if between.size:
        raise ImageError(
            f"the mask holds the values {listed(map(str, values), 10)}, expected 0 and one other; of objects or "
            "classes, say which are foreground: --any-label (all above 0) or --label N (only these values), "
            f"for example --label {values[1]}{ignored}"
        )


def _refuse_merged_colours(content: bytes, grey: np.ndarray, max_megapixels: float) -> None:
    """ImageError where two colours of a mask, each filling a square, are one value in its `grey`.

    Smoothed edges fill none; colours that differ by a few values only are taken for one, but for dark ones.
    """
    if content.startswith(b"\x89PNG") and not content[25] & 2:  # without colours
        return
    colours = decode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, max_megapixels)
    flat = _is_flat(colours)
    changes = (colours[:, 1:] != colours[:, :-1]).any(axis=2)
    flat[:, 1:] &= changes | ~flat[:, :-1]  # one of each run
    drawn, first = np.unique(colours[flat], axis=0, return_index=True)
    values, most = grey[flat][first], int(grey.max())
    near = most // 64 if most > MAX_CLASS else 0
    for value in np.unique(values):
        alike = drawn[values == value].astype(int)
        if (np.ptp(alike, axis=0) > near).any():
            names = listed((str(tuple(colour[::-1].tolist())) for colour in alike), 5)
            raise ImageError(
                f"the mask draws with several colours, {names} in red, green and blue, that are all the grey value "
                f"{value}, expected one of its own for each; save the classes as grey values, or give --any-label, "
                "by which all but black is foreground"
            )


def _is_flat(pixels: np.ndarray) -> np.ndarray:
    """Where a picture (H, W) or (H, W, C) has one value in the square around the pixel, as bool (H, W)."""
    square = np.ones((CLASS_SQUARE, CLASS_SQUARE), np.uint8)
    numbers = pixels if pixels.dtype in (np.uint8, np.uint16) else pixels.astype(np.float32)
    same = cv2.erode(numbers, square) == cv2.dilate(numbers, square)
    return same if same.ndim == 2 else same.all(axis=2)


def binary_mask(
    grey: np.ndarray, any_label: bool = False, labels: Sequence[int] = ()
) -> tuple[np.ndarray, str | None]:
    """Foreground of a mask (H, W) as bool, and a note if it held more than 0 and one other value.

    Masks of 0/1 and 0/255 (0/65535 at 16 bits) are taken as they are, others are thresholded at half
    of their range; with `any_label`, all that is above 0 is foreground, with `labels`, these values are.
    Raises ImageError for floating-point values, which do not tell their range, and for one value everywhere
    that is none of these.
    """
    if grey.dtype.kind == "f":
        raise ImageError(
            f"the mask holds {grey.dtype} values, expected whole numbers; "
            "save it as PNG of 8 bits, 0 and 255"
        )
    if any_label:
        return grey > 0, None
    if labels:
        return np.isin(grey, labels), None
    low, high = int(grey.min()), int(grey.max())
    full = np.iinfo(grey.dtype).max
    # np.isin takes three times as long as reading the file
    if high <= 1 or ((grey == 0) | (grey == full)).all():
        return grey > 0, None
    if low == high:
        raise ImageError(
            f"the mask holds the value {high} everywhere, expected 0/1 or 0/{full}, so foreground and background "
            "cannot be told apart: save it with these values, or prepare with --any-label (all above 0 is "
            "foreground) or --label N"
        )
    note = (
        f"values from {low} to {high}, expected 0/1 or 0/{full}; cut at half of that range "
        "(numbered objects or classes: prepare with --any-label or --label N)"
    )
    return grey >= (low + high) / 2, note


AS_STORED_HINT = (
    "; it fits the image as stored, which an orientation tag turns upright: draw the mask on the upright "
    "image, or remove the tag"
)


def may_fit_as_stored(
    image_tag: int, image: tuple[int, int], mask_tag: int, mask: tuple[int, int]
) -> bool:
    """Whether a mask may have been drawn on its image as stored, before the tag of the image turns
    it upright.

    Tags are those of `datasets.image_files.headers.orientation`, sizes (H, W) as decoded.
    """
    stored = image[::-1] if image_tag >= 5 else image
    return image_tag > 1 and mask_tag == 1 and not aspect_ratio_differs(stored, mask)


def files_may_fit_as_stored(
    image: Path, image_size: tuple[int, int], mask: Path, mask_size: tuple[int, int]
) -> bool:
    """`may_fit_as_stored` of two files, whose tags it reads."""
    image_tag, mask_tag = (orientation(path.read_bytes()) for path in (image, mask))
    return may_fit_as_stored(image_tag, image_size, mask_tag, mask_size)


def aspect_ratio_differs(image: tuple[int, int], mask: tuple[int, int]) -> bool:
    """Whether two sizes differ in width over height by more than 1 %; both (H, W), or both (W, H).

    Such a mask belongs to another image, or was cropped.
    """
    ratio = (image[0] * mask[1]) / (image[1] * mask[0])
    return max(ratio, 1 / ratio) > 1 + MAX_ASPECT_DIFFERENCE
