"""What is foreground in a mask file, and whether the mask can belong to an image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from datasets.decoding import ImageError, read_pixels

MAX_ASPECT_DIFFERENCE = 0.01


def read_binary_mask(path: Path) -> tuple[np.ndarray, str | None]:
    """`binary_mask` of a file in a data set's masks/; ImageError as that and `read_pixels`."""
    return binary_mask(read_pixels(path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH))


def binary_mask(grey: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Foreground of a mask (H, W) as bool, and a note if it held more than 0 and one other value.

    Masks of 0/1 and 0/255 (0/65535 at 16 bits) are taken as they are, others are thresholded at half
    of their range. Raises ImageError for floating-point values, which do not tell their range.
    """
    if grey.dtype.kind == "f":
        raise ImageError(
            f"the mask holds {grey.dtype} values, expected whole numbers; "
            "save it as PNG of 8 bits, 0 and 255"
        )
    low, high = int(grey.min()), int(grey.max())
    full = np.iinfo(grey.dtype).max
    if high <= 1 or np.isin(grey, (0, full)).all():
        return grey > 0, None
    note = f"values from {low} to {high}, expected 0/1 or 0/{full}; cut at half of that range"
    if low == high:
        return np.zeros(grey.shape, bool), note
    return grey >= (low + high) / 2, note


def aspect_ratio_differs(image: tuple[int, int], mask: tuple[int, int]) -> bool:
    """Whether two sizes differ in width over height by more than 1 %; both (H, W), or both (W, H).

    Such a mask belongs to another image, or was cropped.
    """
    ratio = (image[0] * mask[1]) / (image[1] * mask[0])
    return max(ratio, 1 / ratio) > 1 + MAX_ASPECT_DIFFERENCE
