"""Lookup tables of a DICOM file: modality and VOI tables for grey values, palettes for colour.

They are looked up here, as pydicom's functions compute places in the type of the entries, where they
can overflow. Source: DICOM PS3.3, C.11.1.1 and C.11.2.1.1 (modality, VOI), C.7.6.3.1.5 and 6 (palette),
C.7.9.2 (segmented palette).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.image_files.headers import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2  # segments of a palette


@dataclass(frozen=True)
class LookupTable:
    """Entries for `first`, `first` + 1 and so on; other values take the first or the last entry."""

    first: int
    bits: int  # of an entry, by the file: 1 to 16
    entries: np.ndarray  # (N,) uint8 or uint16

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The entries for an array of numbers, which are rounded; of the same shape."""
        places = np.rint(values.astype(np.float64) - self.first)
        return self.entries[np.clip(places, 0, len(self.entries) - 1).astype(np.int64)]


def grey_table(item: Dataset, little_endian: bool) -> LookupTable:
    """The table in an item of ModalityLUTSequence or VOILUTSequence; ImageError where it is damaged."""
    count, first, bits = _descriptor(item.LUTDescriptor)
    return LookupTable(first, bits, _entries(item.LUTData, count, bits, little_endian))


def look_up_palette(indices: np.ndarray, data: Dataset, little_endian: bool) -> np.ndarray:
    """(H, W, 3) uint8 of the stored indices (H, W): the upper 8 bits of red, green and blue.

    ImageError where the palette is damaged; KeyError where there is none.
    """
    # the standard has one descriptor for the three
    count, first, bits = _descriptor(data["RedPaletteColorLookupTableDescriptor"].value)
    channels = []
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        if name in data:
            entries = _entries(data[name].value, count, bits, little_endian)
        else:
            segments = data[f"Segmented{name}"].value
            entries = _expanded(_words(segments, little_endian), count, bits)
        # over 8 bits in spite of the descriptor: files that hold 8 bits in the upper half or in both
        used = 16 if bits == 8 and entries.max() > 255 else bits
        table = LookupTable(first, used, (entries >> max(0, used - 8)).astype(np.uint8))
        channels.append(table(indices))
    return np.stack(channels, axis=-1)


def _descriptor(value: Sequence[int]) -> tuple[int, int, int]:
    """Number of entries (0 stands for 65536), first value, bits of an entry."""
    count, first, bits = (int(number) for number in value)
    if not 1 <= bits <= 16:
        raise ImageError(f"the DICOM lookup table has entries of {bits} bits, expected 1 to 16")
    return count % 65536 or 65536, first, bits


def _words(data: Any, little_endian: bool) -> np.ndarray:
    """LUT data as (N,) uint16: bytes (VR OW) in the file's byte order, or numbers (VR US)."""
    if isinstance(data, bytes):
        padded = data + bytes(len(data) % 2)
        return np.frombuffer(padded, "<u2" if little_endian else ">u2").astype(np.uint16)
    return np.atleast_1d(np.asarray(data, np.int64)).astype(np.uint16)


def _entries(data: Any, count: int, bits: int, little_endian: bool) -> np.ndarray:
    """(count,) entries: one a word, or two a word where 8 bits or fewer are packed."""
    words = _words(data, little_endian)
    if len(words) < count and bits <= 8:
        words = _bytes(words)
    if len(words) < count:
        raise ImageError(f"the DICOM lookup table has {len(words)} entries, it declares {count}")
    return words[:count]


def _bytes(words: np.ndarray) -> np.ndarray:
    """The bytes of words in the order of their entries: the lower one is first."""
    return words.astype("<u2").view(np.uint8)


def _expanded(words: np.ndarray, count: int, bits: int) -> np.ndarray:
    """(count,) uint16, the entries of a segmented palette.

    Its segments are: (0, n, n entries); (1, n, end), n entries on a line from the last entry to `end`;
    and (2, n, offset), the n segments from that byte on once more. ImageError where they give another
    number of entries than `count`.
    """
    code = (_bytes(words) if bits <= 8 else words).tolist()
    size = 1 if bits <= 8 else 2
    entries: list[int] = []

    def expand(at: int) -> int:
        """Add the discrete or linear segment at a place; returns the place behind it."""
        kind, length = code[at : at + 2]
        if length == 0 or len(entries) > count:  # repeats could go on for ever
            raise ImageError(
                f"the DICOM palette does not give the {count} entries that it declares"
            )
        if kind == _DISCRETE:
            entries.extend(code[at + 2 : at + 2 + length])
            return at + 2 + length
        if kind != _LINEAR or not entries:
            raise ImageError("the DICOM palette has a segment that is not defined there")
        line = np.linspace(entries[-1], code[at + 2], length + 1)[1:]
        entries.extend(np.rint(line).astype(int).tolist())
        return at + 3

    at = 0
    while at + 1 < len(code) and len(entries) < count:
        if code[at] != _INDIRECT:
            at = expand(at)
            continue
        repeated, words_of_offset = code[at + 1], code[at + 2 : at + 2 + 4 // size]
        source = sum(word << 8 * size * n for n, word in enumerate(words_of_offset)) // size
        for _ in range(repeated):
            source = expand(source)
        at += 2 + 4 // size
    if len(entries) != count:
        raise ImageError(f"the DICOM palette has {len(entries)} entries, it declares {count}")
    return np.array(entries, np.uint16)
