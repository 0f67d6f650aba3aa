"""From more than 8 bits a pixel to 8, by a window: which values become black and which white."""

from __future__ import annotations

import math

import numpy as np

from datasets.image_files.headers import ImageError
from utils.errors import UserError

Window = tuple[float, float] | str | None
"""Values that become black and white: (low, high), "auto" for an image's own range, or None."""
DARK_16_BIT = 8192
"""A 16-bit image whose values are all below this is nearly black to the model."""


def may_be_dark(pixels: np.ndarray) -> bool:
    """By the pixels decoded to 8 bits: whether `dark_note` may have something to say of the image."""
    return int(pixels.max()) <= DARK_16_BIT >> 8


def dark_note(stored: np.ndarray) -> str | None:
    """A note on 16-bit pixels whose upper 8 bits hold next to nothing; None for any others."""
    if stored.dtype != np.uint16 or stored.max() >= DARK_16_BIT:
        return None
    return f"16 bits, but no value over {stored.max()}: nearly black to the model"


def parse_window(text: str) -> Window:
    """`auto` or `LOW,HIGH`; UserError for anything else."""
    if text == "auto":
        return text
    try:
        low, high = (float(value) for value in text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise UserError(f"a window is `auto` or LOW,HIGH with LOW below HIGH, got {text!r}")
    return low, high


def window_text(window: Window) -> str:
    """A window as `parse_window` reads it, '' for none."""
    if window is None or isinstance(window, str):
        return window or ""
    return ",".join(f"{v:g}" if float(f"{v:g}") == v else repr(v) for v in window)


def scale_to_8_bit(
    pixels: np.ndarray, window: Window, ignored: np.ndarray | None = None
) -> np.ndarray:
    """Map `window` to 0..255 and clip; 8-bit pixels are returned as they are.

    An image's own range leaves out its `ignored` pixels, bool of the same shape, unless these are all.
    Raises ImageError for other pixels without a window, and for values that are not finite.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if window is None:
        raise ImageError(
            f"has {pixels.dtype} pixels: say which values are black and white by --window LOW,HIGH "
            "or --window auto"
        )
    if not np.isfinite(pixels).all():
        raise ImageError("has pixels that are not a number")
    if isinstance(window, str):
        counted = pixels if ignored is None or ignored.all() else pixels[~ignored]
        low, high = float(counted.min()), float(counted.max())
    else:
        low, high = window
    scaled = (pixels.astype(np.float32) - low) * (255 / (high - low)) if high > low else pixels * 0
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
