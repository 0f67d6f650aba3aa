"""A DICOM single frame as 8-bit RGB, through pydicom (optional).

Source: DICOM PS3.3, C.7.6.3 (pixels), C.7.6.16 (functional groups), C.11.1 (modality LUT: rescale),
C.11.2 (VOI LUT: window); PS3.4, B.5 (SOP classes); PS3.10, 7.1 (the first bytes of a file).
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.image_files.decoding import check_megapixels
from datasets.image_files.dicom_tables import grey_table, look_up_palette
from datasets.image_files.headers import ImageError, jpeg_family_size
from datasets.image_files.windowing import Window, scale_to_8_bit

if TYPE_CHECKING:
    from pydicom import Dataset

DEFLATED = b"1.2.840.10008.1.2.1.99"
DECODERS = "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
"""Packages by which pydicom reads every kind of JPEG."""
_SOP_CLASS = struct.pack("<HH2s", 0x0002, 0x0002, b"UI")
_WITHOUT_PIXELS = re.compile(
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.((9|11|88|104)\..+|66|66\.[1235]|67|481\.[35]))"
)
"""Classes of DICOMDIR, waveforms, presentation states, reports, documents, raw data, registrations, and of
structures and plans of radiotherapy."""
HEAD_BYTES = 512  # of a file, which hold what `is_without_pixels` looks for
LONGEST_REASON = 300  # characters of what pydicom says


def is_without_pixels(head: bytes) -> bool:
    """Whether the first bytes of a DICOM file say that its class of objects has no pixels, as reports."""
    at = head.find(_SOP_CLASS, 132)
    if at < 0 or len(head) < at + 8:
        return False
    (length,) = struct.unpack_from("<H", head, at + 6)
    uid = head[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii", "replace")
    return _WITHOUT_PIXELS.fullmatch(uid) is not None


def read_dicom(content: bytes, max_megapixels: float, window: Window = None) -> np.ndarray:
    """(H, W, 3) uint8 of the one frame.

    Grey values are rescaled, then windowed: by `window`, in rescaled units; else by the first window
    or table in the file; else from the least value to the greatest without padding, except that 8-bit
    values which rescaling leaves unchanged are taken as they are. MONOCHROME1 is inverted. Colour (RGB, YBR,
    palette) keeps its upper 8 bits. In enhanced objects, the functional groups are read too.

    Raises ImageError where pydicom or a decoder is not installed, where there are several frames, no
    pixels or unreadable ones, pixels in other than the lower bits, or of another size or number of
    colours than the header has, and for a size over the limit.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImageError("DICOM needs pydicom: pip install 'pydicom>=3.0,<4'") from error

    if DEFLATED in content:  # it inflates on opening, to any size
        raise ImageError("DICOM with the deflated transfer syntax is not read: convert it first")
    try:
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        frames = int(header.get("NumberOfFrames") or 1)
        rows, columns, allocated, stored, high = (
            int(header.get(name) or 0)
            for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit")
        )
    except Exception as error:  # damaged bytes make pydicom raise errors of every kind
        raise ImageError("the DICOM header cannot be read") from error
    if not rows or not columns:
        raise ImageError("DICOM without an image (no Rows and Columns)")
    if frames > 1:
        raise ImageError(f"DICOM with {frames} frames: only single frames are read, export one")
    check_megapixels(columns, rows, max_megapixels)
    # the standard has the values in the lower bits (PS3.5, 8.1.1), and pydicom looks for them there
    if 0 < stored < allocated and 0 < high != stored - 1:
        raise ImageError(
            f"the DICOM pixels are in bits {high + 1 - stored} to {high} (HighBit {high}), expected "
            f"bits 0 to {stored - 1}: export it again"
        )
    try:
        data = pydicom.dcmread(io.BytesIO(content))
        if data.file_meta.TransferSyntaxUID.is_encapsulated:
            _check_frame(data, rows, columns)
        pixels = _pixels(data, window)
    except ImageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise ImageError(f"the DICOM pixels cannot be decoded: {reason}") from error
    if pixels.shape != (rows, columns, 3) or pixels.dtype != np.uint8:
        raise ImageError(
            f"the DICOM pixels are {pixels.shape} {pixels.dtype} when decoded, expected one frame of "
            f"{rows} rows x {columns} columns, grey or of three colours: export it again"
        )
    return pixels


def _check_frame(data: Dataset, rows: int, columns: int) -> None:
    """ImageError where a compressed frame has no decoder, or another size than Rows x Columns.

    Decoders trust the frame's own header, which can declare any size.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder
    from pydicom.uid import RLELossless

    syntax = data.file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        raise ImageError(
            f"no decoder for DICOM pixels as {syntax.name}: pip install {DECODERS}, or export the image "
            "without compression"
        )
    if syntax == RLELossless:  # declares no size of its own
        return
    # by these tables pydicom could decode another frame than the one that is checked
    for table in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        data.pop(table, None)
    width, height = jpeg_family_size(get_frame(data.PixelData, 0, number_of_frames=1))
    if (width, height) != (columns, rows):
        raise ImageError(
            f"the compressed DICOM frame declares {width} x {height} px, the file's Columns x Rows are "
            f"{columns} x {rows}: export it again"
        )


def _pixels(data: Dataset, window: Window) -> np.ndarray:
    stored = data.pixel_array
    photometric = data.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        return look_up_palette(stored, data, _is_little_endian(data))
    if stored.ndim == 3:  # pydicom has converted YBR to RGB
        return (stored >> max(0, data.BitsStored - 8)).astype(np.uint8)

    grey = _windowed(stored, data, window)
    if photometric == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2)


def _is_little_endian(data: Dataset) -> bool:
    return bool(data.file_meta.TransferSyntaxUID.is_little_endian)


def _rescaled(stored: np.ndarray, data: Dataset) -> np.ndarray:
    """(H, W) in rescaled units, such as Hounsfield's."""
    for place in _places(data, "PixelValueTransformationSequence"):
        if place.get("ModalityLUTSequence"):
            return grey_table(place.ModalityLUTSequence[0], _is_little_endian(data))(stored)
        if _has(place, "RescaleSlope", "RescaleIntercept"):
            return stored * float(place.RescaleSlope) + float(place.RescaleIntercept)
    return stored


def _windowed(stored: np.ndarray, data: Dataset, window: Window) -> np.ndarray:
    """(H, W) uint8, 0 at the low end of the window."""
    values, padding = _rescaled(stored, data), _padding(stored, data)
    if window is not None:
        return scale_to_8_bit(values.astype(np.float32), window, padding)
    for place in _places(data, "FrameVOILUTSequence"):
        if place.get("VOILUTSequence"):
            table = grey_table(place.VOILUTSequence[0], _is_little_endian(data))
            if table.first >= 1 << 15 and values.min() < 0:  # read without its sign
                table = replace(table, first=table.first - (1 << 16))
            return scale_to_8_bit(table(values).astype(np.float32), (0, 2**table.bits - 1))
        if _has(place, "WindowCenter", "WindowWidth"):
            return _apply_window(values.astype(np.float64), place)
    has_8_bits = data.BitsStored == 8 and stored.dtype.kind == "u"
    if has_8_bits and np.array_equal(values, stored):
        return stored.astype(np.uint8)
    return scale_to_8_bit(values.astype(np.float32), "auto", padding)


def _padding(stored: np.ndarray, data: Dataset) -> np.ndarray | None:
    """Where stored values only fill up the frame (PS3.3, C.7.5.1.1.2); None where the file names none."""
    if not _has(data, "PixelPaddingValue"):
        return None
    names = ["PixelPaddingValue"]
    names += ["PixelPaddingRangeLimit"] if _has(data, "PixelPaddingRangeLimit") else []
    # some files write a value below 0 as one without a sign
    ends = np.array([int(data[name].value) for name in names]).astype(stored.dtype)
    return (stored >= ends.min()) & (stored <= ends.max())


def _places(data: Dataset, macro: str) -> Iterator[Dataset]:
    """Where the elements of a functional group may be, in order of precedence.

    First the data set itself; in enhanced objects then the sequence `macro` in the groups of the one
    frame, and in those that all frames share.
    """
    yield data
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in data.get(groups) or ():
            yield from group.get(macro) or ()


def _has(data: Dataset, *names: str) -> bool:
    """Whether all these elements are there and hold a value."""
    return all(name in data and not data[name].is_empty for name in names)


def _apply_window(values: np.ndarray, data: Dataset) -> np.ndarray:
    """The first window of the file by its function: LINEAR, LINEAR_EXACT or SIGMOID.

    ImageError where its width is one that the standard does not allow.
    """
    centre, width = _first(data.WindowCenter), _first(data.WindowWidth)
    function = str(data.get("VOILUTFunction") or "LINEAR").upper()
    exact = function in ("SIGMOID", "LINEAR_EXACT")
    if not (width > 0 if exact else width >= 1):
        raise ImageError(
            f"its window has a width of {width:g}, expected {'more than 0' if exact else 'at least 1'}: give one "
            "by --window LOW,HIGH or --window auto"
        )
    if function == "SIGMOID":
        scaled = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    elif function == "LINEAR_EXACT":
        scaled = (values - centre) / width + 0.5
    elif width > 1:
        scaled = (values - (centre - 0.5)) / (width - 1) + 0.5
    else:  # width 1 is a threshold
        scaled = (values > centre - 0.5).astype(np.float64)
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _first(value: Any) -> float:
    """A DICOM number, or the first of several."""
    try:
        return float(value)
    except TypeError:
        return float(value[0])
