"""What the headers of image files declare, read without decoding: size, orientation, kind of numbers.

Formats: PNG, JPEG, BMP, TIFF; of JPEG-LS and JPEG 2000 the size. A header may come from anyone, so
nothing in it is trusted to be there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Set

from utils.errors import UserError

_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_LS_FRAME = 0xF7
_JPEG_2000_START = b"\xff\x4f\xff\x51"  # of the codestream: SOC, then SIZ
_JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
_JPEG_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9)}
_TIFF_KIND, _TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION = 254, 256, 257, 274
TIFF_COLOURS, _TIFF_ZERO_IS_WHITE, TIFF_YCBCR = 262, 0, 6
TIFF_BITS, TIFF_ALPHA, TIFF_NOT_MULTIPLIED = 258, 338, 2
_TIFF_NUMBERS, _TIFF_UNSIGNED = 339, 1
_TIFF_CHANNELS, _TIFF_PLANES, _TIFF_APART = 277, 284, 2
_TIFF_TAGS = (
    _TIFF_KIND,
    _TIFF_WIDTH,
    _TIFF_HEIGHT,
    TIFF_COLOURS,
    _TIFF_ORIENTATION,
    _TIFF_NUMBERS,
    _TIFF_CHANNELS,
    _TIFF_PLANES,
    TIFF_BITS,
)
_TIFF_SHORT = 3  # a type: 16 bits
_TIFF_DIRECTORIES = 16  # that are looked at, as a hostile file can chain any number
_TIFF_NO_PAGE = 0b101  # bits of the kind: a smaller copy, a transparency mask


class ImageError(UserError):
    """An image file that is not decoded, and why."""


class UnknownFormatError(ImageError):
    """A file that is no PNG, JPEG, BMP or TIFF by its first bytes."""


def is_jpeg(content: bytes) -> bool:
    return content.startswith(b"\xff\xd8")


def is_tiff(content: bytes) -> bool:
    return content.startswith((b"II", b"MM"))


def declared_size(content: bytes) -> tuple[int, int]:
    """Declared (width, height) in pixels of a PNG, JPEG, BMP or TIFF.

    Raises ImageError where it is none of these, where its header is cut short, and for a TIFF of several
    pages.
    """
    try:
        return _size(content)
    except (struct.error, IndexError):
        raise ImageError("the image header is cut short") from None


def _size(content: bytes) -> tuple[int, int]:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return struct.unpack_from(">II", content, 16)
    if is_jpeg(content):
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


def jpeg_family_size(content: bytes) -> tuple[int, int]:
    """Declared (width, height) in pixels of a JPEG, JPEG-LS or JPEG 2000, as compressed DICOM holds.

    Raises ImageError where `content` is none of these, or where its header is cut short.
    """
    try:
        if is_jpeg(content):
            return _jpeg_size(content, _JPEG_FRAMES | {_JPEG_LS_FRAME})
        if content.startswith((_JPEG_2000_START, _JP2_START)):
            return _jpeg_2000_size(content)
    except (struct.error, IndexError):
        raise ImageError("the JPEG header is cut short") from None
    raise ImageError("neither a JPEG nor a JPEG-LS or JPEG 2000")


def is_cut_short(jpeg: bytes) -> bool:
    """Whether no end marker follows the pixels.

    It is looked for behind the start of the first scan, as a thumbnail before that has an end marker of
    its own; it need not be the last bytes, as a film may follow.
    """
    try:
        scans = [at for marker, at in _jpeg_segments(jpeg) if marker == _JPEG_SCAN]
    except (struct.error, IndexError):
        return True
    return not scans or jpeg.find(b"\xff\xd9", scans[0]) < 0


def orientation(content: bytes) -> int:
    """The orientation tag of an image, 1 to 8, by which decoders turn it upright; 1 where it has none."""
    tag = _tags(content).get(_TIFF_ORIENTATION, 1)
    return tag if 1 <= tag <= 8 else 1


def zero_is_white(content: bytes) -> bool:
    """Whether this is a TIFF whose least value is white.

    OpenCV inverts these, except stored ones of more than 8 bits.
    """
    return is_tiff(content) and _tags(content).get(TIFF_COLOURS) == _TIFF_ZERO_IS_WHITE


def may_have_sign(tiff: bytes) -> bool:
    """False only where a TIFF declares all its numbers to be unsigned integers."""
    return _tags(tiff).get(_TIFF_NUMBERS, _TIFF_UNSIGNED) != _TIFF_UNSIGNED


def stores_colours_apart(content: bytes) -> bool:
    """Whether this is a TIFF that stores one colour after the other, not those of each pixel together."""
    tags = _tags(content) if is_tiff(content) else {}
    return tags.get(_TIFF_CHANNELS, 1) > 1 and tags.get(_TIFF_PLANES) == _TIFF_APART


def stored_bits(tiff: bytes) -> int:
    """Bits of a number in a TIFF, of its first channel."""
    return _tags(tiff).get(TIFF_BITS, 1)


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
    if not is_jpeg(content):
        return 0
    mark = b"Exif\0\0"
    starts = [at + 2 for _, at in _jpeg_segments(content) if content.startswith(mark, at + 2)]
    return starts[0] + len(mark)


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
    """The tags named above, as far as a directory holds them, and its end, which links the next.

    Of several values, such as the bits of each channel, the first.
    """
    (entries,) = struct.unpack_from(order + "H", content, directory)
    tags = {}
    for entry in range(entries):
        at = directory + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(order + "HHI", content, at)
        if tag not in _TIFF_TAGS:
            continue
        place = at + 8
        if kind == _TIFF_SHORT and count > 2:  # they do not fit in here
            (place,) = struct.unpack_from(order + "I", content, place)
        (tags[tag],) = struct.unpack_from(
            order + ("H" if kind == _TIFF_SHORT else "I"), content, place
        )
    return tags, directory + 2 + 12 * entries
