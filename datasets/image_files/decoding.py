"""Decoding images of any origin, after a check of the size that their header declares.

A few bytes can declare 100,000 x 100,000 pixels, so the one limit on image size is checked here,
against the header, for every file that came from elsewhere. Formats: PNG, JPEG, BMP, TIFF.
"""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.image_files.headers import (
    TIFF_ALPHA,
    TIFF_BITS,
    TIFF_COLOURS,
    TIFF_NOT_MULTIPLIED,
    TIFF_YCBCR,
    ImageError,
    declared_size,
    is_cut_short,
    is_jpeg,
    is_tiff,
    may_have_sign,
    stored_bits,
    stores_colours_apart,
)
from datasets.prepared import MANIFEST

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

MAX_MEGAPIXELS = 64
AS_STORED = 6  # cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR, without importing it


def check_declared_size(content: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[int, int]:
    """Declared (width, height) in pixels.

    Raises ImageError where `content` is not a PNG, JPEG, BMP or TIFF, where its header is cut short,
    where it declares no pixels or more than `max_megapixels` millions, and for a TIFF of several pages.
    """
    width, height = declared_size(content)
    if width < 1 or height < 1:
        raise ImageError(f"the header declares {width} x {height} px")
    if width * height > max_megapixels * 1_000_000:
        raise ImageError(
            f"the header declares {width} x {height} px, over the limit of "
            f"{max_megapixels:g} megapixels (datasets.prepare changes it by --limit megapixels=N)"
        )
    return width, height


def check_megapixels(width: int, height: int, max_megapixels: float) -> None:
    """ImageError for an image to segment that is over the limit."""
    if width * height > max_megapixels * 1_000_000:
        raise ImageError(
            f"{width} x {height} px is over the limit of {max_megapixels:g} megapixels "
            "(--max-megapixels)"
        )


def decode(content: bytes, flags: int, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Decode an image by OpenCV with its `IMREAD_` flags, after `check_declared_size`.

    Raises ImageError as that does, and where the content is damaged, cut short, holds numbers of a
    type that the flags cannot give, colours that OpenCV darkens by their transparency, or colours of more
    than 8 bits one after the other.
    """
    import cv2  # here, so that code which only needs the limits starts without it

    check_declared_size(content, max_megapixels)
    # OpenCV 4 fills the missing part of a JPEG with grey and says nothing
    if is_jpeg(content) and is_cut_short(content):
        raise ImageError("the JPEG is cut short")
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if is_tiff(content):
            _check_tiff_numbers(content, flags, pixels is not None)
    except (cv2.error, MemoryError) as error:
        reason = getattr(error, "err", "out of memory")
        raise ImageError(f"cannot be decoded ({reason})") from None
    if pixels is None:
        raise ImageError("cannot be decoded: damaged or cut short")
    if is_tiff(content):
        _check_tiff(content, flags)
        if pixels.dtype != np.uint8 and stores_colours_apart(content):
            raise ImageError(
                "the TIFF stores its colours one after the other (PlanarConfiguration 2), which is read in 8 bits "
                "only: save it with the colours of each pixel together"
            )
        if pixels.dtype == np.uint16 and 8 < (bits := stored_bits(content)) < 16:
            pixels >>= 16 - bits  # OpenCV spreads them over 16 bits
    return pixels


def _check_tiff_numbers(content: bytes, flags: int, decoded: bool) -> None:
    """ImageError for a TIFF that OpenCV cannot decode with these flags, or whose signs it would lose."""
    import cv2

    in_8_bits = not flags & cv2.IMREAD_ANYDEPTH
    loses_sign = in_8_bits and may_have_sign(content)
    if flags == AS_STORED or (decoded and not loses_sign):
        return
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), AS_STORED)
    if stored is not None and not (decoded and stored.dtype.kind == "u"):
        window = ", or give --window LOW,HIGH" if in_8_bits else ""  # which masks have no use for
        raise ImageError(
            f"holds {stored.dtype} pixels; save it with whole numbers of 8 or 16 bits, without a sign{window}"
        )


def _check_tiff(content: bytes, flags: int) -> None:
    """ImageError for a TIFF that is damaged or transparent, of which OpenCV returns pixels nevertheless.

    A mask may be transparent in part, as long as anything of it is left.
    """
    import cv2

    in_8_bits = not flags & cv2.IMREAD_ANYDEPTH
    is_mask = not in_8_bits and flags != AS_STORED
    try:
        from PIL.TiffImagePlugin import TiffImageFile  # comes with torchvision
    except ImportError:
        raise ImageError(
            "a TIFF needs Pillow, which tells whether it is damaged: pip install pillow"
        ) from None
    try:
        image = TiffImageFile(io.BytesIO(content))
        with image:
            uncompressed = image.info.get("compression") == "raw"
            # of these Pillow misjudges the length
            if not (uncompressed and image.tag_v2.get(TIFF_COLOURS) == TIFF_YCBCR):
                image.load()
            alpha = _alpha_of_colours(image, in_8_bits)
    except OSError as error:
        if "not available" not in str(error):  # a Pillow that was built without this compression
            raise ImageError(f"the TIFF is damaged ({error})") from None
        return
    except Exception:  # of a kind that Pillow does not read, as 16 bits with a sign
        return
    if alpha.size and (alpha.max() == 0 if is_mask else alpha.min() < 255):
        raise ImageError(
            "the TIFF's transparency (alpha channel) would darken its colours; save it without transparency"
        )


def _alpha_of_colours(image: TiffImageFile, in_8_bits: bool) -> np.ndarray:
    """Alpha (N,) of what is not black in a TIFF whose colours OpenCV multiplies by it; of others, none.

    With alpha that is kept apart from the colours, it does so, but for 16 bits that stay 16.
    """
    if image.mode != "RGBA" or image.tag_v2.get(TIFF_ALPHA) != (TIFF_NOT_MULTIPLIED,):
        return np.empty(0, np.uint8)
    if not in_8_bits and image.tag_v2.get(TIFF_BITS) != (8, 8, 8, 8):
        return np.empty(0, np.uint8)
    pixels = np.asarray(image)
    return pixels[..., 3][pixels[..., :3].any(axis=2)]


def read_stored(path: Path) -> tuple[bytes, float]:
    """Content of a file in images/ or masks/, and the size limit that its data set was prepared with.

    ImageError where the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from None
    return content, _recorded_megapixels(path.absolute().parent.parent)


def read_pixels(path: Path, flags: int) -> np.ndarray:
    """`decode` a file in images/ or masks/; ImageError as that and `read_stored`."""
    content, max_megapixels = read_stored(path)
    return decode(content, flags, max_megapixels)


@functools.cache
def _recorded_megapixels(folder: Path) -> float:
    try:
        limit = json.loads((folder / MANIFEST).read_bytes())["max_megapixels"]
        return limit if isinstance(limit, int) and limit > 0 else MAX_MEGAPIXELS
    except (OSError, ValueError, LookupError, TypeError):
        return MAX_MEGAPIXELS
