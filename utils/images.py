"""Pixels as image files, and probabilities as pixels of 16 bits."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from utils.errors import UserError

STEPS = 65535  # of a probability in 16 bits


def to_16_bit(values: np.ndarray) -> np.ndarray:
    """Numbers as uint16, 65535 for 1; what lies outside of [0, 1] is cut off."""
    return np.round(np.clip(values, 0, 1) * STEPS).astype(np.uint16)


def from_16_bit(pixels: np.ndarray) -> np.ndarray:
    """The float32 numbers in [0, 1] of which `to_16_bit` made the pixels."""
    return pixels.astype(np.float32) / STEPS


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) BGR, uint8 or uint16, as a PNG; errors as `encode_image`."""
    return encode_image(".png", pixels)


def encode_image(suffix: str, pixels: np.ndarray, parameters: Sequence[int] = ()) -> bytes:
    """Pixels, of colours BGR, as a file of the kind that `suffix` names (.png, .jpg, .webp).

    `parameters` are pairs of OpenCV's IMWRITE_ flags and values. UserError where the format does not
    take such pixels: JPEG holds up to 65500 px a side, WebP 16383, PNG a million.
    """
    try:
        encoded, content = cv2.imencode(suffix, pixels, list(parameters))
    except cv2.error:  # of OpenCV 4; 5 returns False and no content
        encoded = False
    if not encoded:
        raise UserError(
            f"pixels {pixels.shape} {pixels.dtype} (rows first) cannot be written as {suffix[1:]}: the "
            "image is empty or too large for the format, use a smaller one or another format"
        )
    return content.tobytes()
