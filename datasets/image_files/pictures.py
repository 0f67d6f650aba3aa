"""Any image file as 8-bit RGB, with the pixels that training would read from the same file.

Formats: PNG, JPEG, BMP and TIFF, grey or colour, with alpha (dropped, but see `decode`) or 16 bits,
turned as their orientation tag says; DICOM single frames. The declared size is checked before
anything is decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.catalogue import DICOM_SUFFIXES, IMAGE_SUFFIXES
from datasets.image_files.decoding import (
    AS_STORED,
    MAX_MEGAPIXELS,
    check_declared_size,
    check_megapixels,
    decode,
)
from datasets.image_files.dicom import read_dicom
from datasets.image_files.headers import (
    ImageError,
    UnknownFormatError,
    orientation,
    stores_colours_apart,
    zero_is_white,
)
from datasets.image_files.windowing import Window, dark_note, may_be_dark, scale_to_8_bit

READ_SUFFIXES = (*IMAGE_SUFFIXES, *DICOM_SUFFIXES)
BYTES_A_PIXEL = 8  # RGBA in 16 bits, the most that an uncompressed file needs
HEADER_BYTES = 16 << 20


@dataclass(frozen=True)
class Picture:
    """An image as the model sees it, upright."""

    pixels: np.ndarray  # (H, W, 3) uint8, RGB
    note: str = ""  # what a reader of its mask should know


def read_content(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
    """The bytes of an image file; ImageError where it cannot be read, or no allowed image is so large."""
    limit = int(max_megapixels * 1_000_000 * BYTES_A_PIXEL) + HEADER_BYTES
    try:
        if not path.is_file():
            raise ImageError("is not a file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise ImageError(
            f"has over {limit >> 20} MiB, more than {max_megapixels:g} megapixels need"
        )
    return content


def is_dicom(content: bytes) -> bool:
    return content[128:132] == b"DICM"


def read_picture(
    content: bytes,
    max_megapixels: float = MAX_MEGAPIXELS,
    window: Window = None,
    suffix: str = "",
) -> Picture:
    """Decode the content of an image file; `suffix`, the ending of its name, is for a message only.

    Images of more than 8 bits are scaled to 8 by `window`. Without one, DICOM is scaled by the window
    in the file, and others as in training, where 16 bits lose their lower 8.

    Raises ImageError, which names no path, where the content is empty, not an image or damaged,
    declares more than `max_megapixels` millions of pixels, or needs a window.
    """
    if not content:
        raise ImageError("is empty (0 bytes)")
    if is_dicom(content):
        return Picture(read_dicom(content, max_megapixels, window))

    try:
        width, height = check_declared_size(content, math.inf)
    except UnknownFormatError as error:
        if suffix.lower() not in DICOM_SUFFIXES:
            raise
        raise ImageError(
            "has no DICM marker (bytes 129 to 132), so it is not read as DICOM: save it as a DICOM file "
            "with the preamble of 128 bytes"
        ) from error
    check_megapixels(width, height, max_megapixels)  # names another option than `decode` would
    in_8_bits = window is None and stores_colours_apart(content)  # of more it cannot be decoded
    flags = cv2.IMREAD_COLOR if in_8_bits else AS_STORED
    pixels = decode(content, flags, max_megapixels)
    notes = []
    if orientation(content) != 1:  # OpenCV applies the tag
        notes.append("turned upright by its orientation tag, and so are its mask and maps")
    if pixels.dtype == np.uint16 and window is None:
        dark = dark_note(pixels)
        pixels = decode(content, cv2.IMREAD_COLOR, max_megapixels)  # rounds as training does
        if dark and may_be_dark(pixels):
            notes.append(f"{dark}; --window auto spreads its own range")
    elif pixels.dtype != np.uint8:
        pixels = scale_to_8_bit(pixels, window)
        if zero_is_white(content):
            pixels = 255 - pixels
    conversion = cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB
    return Picture(cv2.cvtColor(pixels, conversion), "; ".join(notes))
