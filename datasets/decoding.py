"""Decoding images of any origin, after a check of the size that their header declares.

A few bytes can declare 100,000 x 100,000 pixels, so the one limit on image size is checked here,
against the header, for every file that came from elsewhere. Formats: PNG, JPEG, BMP, TIFF.
"""

from __future__ import annotations

import functools
import io
import json
import struct
from collections.abc import Iterator, Set
from pathlib import Path

import numpy as np

from datasets.prepared import MANIFEST
from utils.errors import UserError

MAX_MEGAPIXELS = 64
AS_STORED = 6  # cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR, without importing it

_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_LS_FRAME = 0xF7
_JPEG_2000_START = b"\xff\x4f\xff\x51"  # of the codestream: SOC, then SIZ
_JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}
_TIFF_KIND, _TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION = 254, 256, 257, 274
_TIFF_COLOURS, _TIFF_ZERO_IS_WHITE, _TIFF_YCBCR = 262, 0, 6
_TIFF_NUMBERS, _TIFF_UNSIGNED = 339, 1
_TIFF_TAGS = (
    _TIFF_KIND,
    _TIFF_WIDTH,
    _TIFF_HEIGHT,
    _TIFF_COLOURS,
    _TIFF_ORIENTATION,
    _TIFF_NUMBERS,
)
_TIFF_DIRECTORIES = 16  # that are looked at, as a hostile file can chain any number
_TIFF_NO_PAGE = 0b101  # bits of the kind: a smaller copy, a transparency mask


class ImageError(UserError):
    """An image file that is not decoded, and why."""


class UnknownFormatError(ImageError):
    """A file that is no PNG, JPEG, BMP or TIFF by its first bytes."""


def check_declared_size(content: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[int, int]:
    """Declared (width, height) in pixels.

    Raises ImageError where `content` is not a PNG, JPEG, BMP or TIFF, where its header is cut short,
    where it declares no pixels or more than `max_megapixels` millions, and for a TIFF of several pages.
    """
    try:
        width, height = _declared_size(content)
    except (struct.error, IndexError):
        raise ImageError("the image header is cut short") from None
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


def jpeg_family_size(content: bytes) -> tuple[int, int]:
    """Declared (width, height) in pixels of a JPEG, JPEG-LS or JPEG 2000, as compressed DICOM holds.

    Raises ImageError where `content` is none of these, or where its header is cut short.
    """
    try:
        if content.startswith(b"\xff\xd8"):
            return _jpeg_size(content, _JPEG_FRAMES | {_JPEG_LS_FRAME})
        if content.startswith((_JPEG_2000_START, _JP2_START)):
            return _jpeg_2000_size(content)
    except (struct.error, IndexError):
        raise ImageError("the JPEG header is cut short") from None
    raise ImageError("neither a JPEG nor a JPEG-LS or JPEG 2000")


def decode(content: bytes, flags: int, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Decode an image by OpenCV with its `IMREAD_` flags, after `check_declared_size`.

    Raises ImageError as that does, and where the content is damaged, cut short, or holds numbers of a
    type that the flags cannot give.
    """
    import cv2  # here, so that code which only needs the limits starts without it

    check_declared_size(content, max_megapixels)
    # OpenCV 4 fills the missing part of a JPEG with grey and says nothing
    if content[:2] == b"\xff\xd8" and _is_cut_short(content):
        raise ImageError("the JPEG is cut short")
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if content[:2] in (b"II", b"MM"):
            _check_tiff_numbers(content, flags, pixels is not None)
    except (cv2.error, MemoryError) as error:
        reason = getattr(error, "err", "out of memory")
        raise ImageError(f"cannot be decoded ({reason})") from None
    if pixels is None:
        raise ImageError("cannot be decoded: damaged or cut short")
    if content[:2] in (b"II", b"MM"):
        _check_tiff(content)
    return pixels


def _check_tiff_numbers(content: bytes, flags: int, decoded: bool) -> None:
    """ImageError for a TIFF of which OpenCV gives no pixels by these flags, or such without their sign."""
    import cv2

    in_8_bits = not flags & cv2.IMREAD_ANYDEPTH
    perhaps_signed = (
        in_8_bits and _tags(content).get(_TIFF_NUMBERS, _TIFF_UNSIGNED) != _TIFF_UNSIGNED
    )
    if flags == AS_STORED or (decoded and not perhaps_signed):
        return
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), AS_STORED)
    if stored is not None and not (decoded and stored.dtype.kind == "u"):
        raise ImageError(
            f"holds {stored.dtype} pixels; save it with whole numbers of 8 or 16 bits, without a sign"
        )


def _check_tiff(content: bytes) -> None:
    """ImageError for a damaged TIFF, of which OpenCV returns pixels nevertheless."""
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
            if not (uncompressed and image.tag_v2.get(_TIFF_COLOURS) == _TIFF_YCBCR):
                image.load()
    except OSError as error:
        if "not available" not in str(error):  # a Pillow that was built without this compression
            raise ImageError(f"the TIFF is damaged ({error})") from None
    except Exception:  # of a kind that Pillow does not read, as 16 bits with a sign
        return


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


def orientation(content: bytes) -> int:
    """The orientation tag of an image, 1 to 8, by which `decode` turns it upright; 1 where it has none."""
    tag = _tags(content).get(_TIFF_ORIENTATION, 1)
    return tag if 1 <= tag <= 8 else 1


def zero_is_white(content: bytes) -> bool:
    """Whether this is a TIFF whose least value is white.

    OpenCV inverts these, except AS_STORED ones of more than 8 bits.
    """
    return (
        content[:2] in (b"II", b"MM") and _tags(content).get(_TIFF_COLOURS) == _TIFF_ZERO_IS_WHITE
    )


def _tags(content: bytes) -> dict[int, int]:
    """The tags of an image as `_tiff_directory` gives them, empty where it has none."""
    try:
        block = content[_exif_start(content) :]
        order = {b"II": "<", b"MM": ">"}[block[:2]]
        (directory,) = struct.unpack_from(order + "I", block, 4)
        return _tiff_directory(block, order, directory)[0]
    except (struct.error, LookupError, ValueError):
        return {}


def _exif_start(content: bytes) -> int:
    """Where the tags of an image begin, laid out as a TIFF; ValueError where it has none."""
    if content.startswith(b"\x89PNG"):
        return content.index(b"eXIf") + 4
    if not content.startswith(b"\xff\xd8"):
        return 0
    mark = b"Exif\0\0"
    starts = [at + 2 for _, at in _jpeg_segments(content) if content.startswith(mark, at + 2)]
    return starts[0] + len(mark)


@functools.cache
def _recorded_megapixels(folder: Path) -> float:
    try:
        limit = json.loads((folder / MANIFEST).read_bytes())["max_megapixels"]
        return limit if isinstance(limit, int) and limit > 0 else MAX_MEGAPIXELS
    except (OSError, ValueError, LookupError, TypeError):
        return MAX_MEGAPIXELS


def _declared_size(content: bytes) -> tuple[int, int]:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return struct.unpack_from(">II", content, 16)
    if content.startswith(b"\xff\xd8"):
        return _jpeg_size(content)
    if content.startswith(b"BM"):
        (header_size,) = struct.unpack_from("<I", content, 14)
        if header_size == 12:
            return struct.unpack_from("<HH", content, 18)
        width, height = struct.unpack_from("<ii", content, 18)
        return abs(width), abs(height)  # a negative height means rows from top to bottom
    if content[:4] in (b"II*\0", b"MM\0*"):
        return _tiff_size(content)
    if content[:4] in (b"II+\0", b"MM\0+"):
        raise ImageError("a BigTIFF, which is not read: save it as an ordinary TIFF")
    raise UnknownFormatError("not a PNG, JPEG, BMP or TIFF image")


def _jpeg_size(content: bytes, frames: Set[int] = _JPEG_FRAMES) -> tuple[int, int]:
    for marker, at in _jpeg_segments(content):
        if marker in frames:
            height, width = struct.unpack_from(">HH", content, at + 3)
            return width, height
    raise ImageError("a JPEG without frame header")


def _jpeg_2000_size(content: bytes) -> tuple[int, int]:
    at = 0
    while not content.startswith(_JPEG_2000_START, at):  # the boxes of a JP2 file
        (length,) = struct.unpack_from(">I", content, at)
        if content[at + 4 : at + 8] == b"jp2c":
            at += 16 if length == 1 else 8
            length = 0
        elif length < 8:
            raise ImageError("a JPEG 2000 without codestream")
        at += length
    right, bottom, left, top = struct.unpack_from(">4I", content, at + 8)
    return right - left, bottom - top


def _is_cut_short(jpeg: bytes) -> bool:
    """Whether no end marker follows the pixels.

    It is looked for behind the start of the first scan, as a thumbnail before that has an end marker of
    its own; it need not be the last bytes, as a film may follow.
    """
    try:
        scans = [at for marker, at in _jpeg_segments(jpeg) if marker == _JPEG_SCAN]
    except (struct.error, IndexError):
        return True
    return not scans or jpeg.find(b"\xff\xd9", scans[0]) < 0


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment and the place behind it, up to the first scan or the end."""
    at = 2
    while (at := content.find(b"\xff", at)) >= 0:  # as libjpeg does, skip what is not a marker
        while content[at] == 0xFF:
            at += 1
        marker = content[at]
        at += 1
        yield marker, at
        if marker in (_JPEG_END, _JPEG_SCAN):
            return
        if marker not in _JPEG_WITHOUT_LENGTH:
            at += struct.unpack_from(">H", content, at)[0]


def _tiff_size(content: bytes) -> tuple[int, int]:
    """Size of the first page; ImageError where another one follows that is not its thumbnail."""
    order = "<" if content.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(order + "I", content, 4)
    tags, end = _tiff_directory(content, order, directory)
    if _has_page(content, order, end):
        raise ImageError("holds several pages; export one image per file")
    return tags.get(_TIFF_WIDTH, 0), tags.get(_TIFF_HEIGHT, 0)


def _has_page(content: bytes, order: str, link: int) -> bool:
    """Whether a full page is in the chain of directories that starts at `link`, as far as it can be read."""
    for _ in range(_TIFF_DIRECTORIES):
        try:
            (directory,) = struct.unpack_from(order + "I", content, link)
            if directory == 0:
                return False
            tags, link = _tiff_directory(content, order, directory)
        except struct.error:
            return False
        if not tags.get(_TIFF_KIND, 0) & _TIFF_NO_PAGE:
            return True
    return False


def _tiff_directory(content: bytes, order: str, directory: int) -> tuple[dict[int, int], int]:
    """The tags named above, as far as a directory holds them, and its end, which links the next."""
    (entries,) = struct.unpack_from(order + "H", content, directory)
    tags = {}
    for entry in range(entries):
        at = directory + 2 + 12 * entry
        tag, kind = struct.unpack_from(order + "HH", content, at)
        if tag in _TIFF_TAGS:
            (tags[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), content, at + 8)
    return tags, directory + 2 + 12 * entries
