"""Less common TIFFs, as images and as masks."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from datasets.image_files.decoding import decode
from datasets.image_files.headers import ImageError
from datasets.image_files.masks import decode_mask
from datasets.image_files.pictures import read_picture
from datasets.image_files.windowing import scale_to_8_bit


def raw_tiff(shape: tuple[int, int], data: list[bytes], bits: int, samples: int = 1) -> bytes:
    """An uncompressed TIFF of (height, width) in one strip, or in one for each channel."""
    colours, planes = (1 if samples == 1 else 2), (1 if len(data) == 1 else 2)
    tags = {
        **{256: [shape[1]], 257: [shape[0]], 258: [bits] * samples, 259: [1], 262: [colours]},
        **{273: [0] * len(data), 277: [samples], 278: [shape[0]]},
        **{279: [len(part) for part in data], 284: [planes]},
    }
    end = 8 + 2 + 12 * len(tags) + 4
    pixels_at = end + sum(4 * len(values) for values in tags.values())
    tags[273] = [pixels_at + sum(map(len, data[:index])) for index in range(len(data))]
    directory, outside = struct.pack("<H", len(tags)), b""
    for tag, values in tags.items():
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"<{len(values)}{letter}", *values)
        if len(packed) > 4:
            packed, outside = struct.pack("<I", end + len(outside)), outside + packed
        directory += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + outside
    return head.ljust(pixels_at, b"\0") + b"".join(data)


def test_a_tiff_of_colours_one_after_the_other_is_read_in_8_bits_or_refused() -> None:
    """OpenCV returns what lay in memory for more bits."""
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (12, 16, 3)).astype(np.uint16)
    apart = [pixels[..., channel].tobytes() for channel in range(3)]
    deep = raw_tiff((12, 16), apart, 16, 3)
    together = raw_tiff((12, 16), [pixels.tobytes()], 16, 3)
    np.testing.assert_array_equal(read_picture(deep).pixels, read_picture(together).pixels)
    flat = [(pixels[..., channel] >> 8).astype(np.uint8).tobytes() for channel in range(3)]
    flat_pixels = read_picture(raw_tiff((12, 16), flat, 8, 3), window="auto").pixels
    np.testing.assert_array_equal(flat_pixels, pixels >> 8)
    message = "PlanarConfiguration 2.*read in 8 bits only: save it with"
    with pytest.raises(ImageError, match=message):
        read_picture(deep, window="auto")
    with pytest.raises(ImageError, match=message):
        decode_mask(deep, 1)
    for flags in (cv2.IMREAD_GRAYSCALE, cv2.IMREAD_COLOR):
        with pytest.raises(ImageError, match=message):
            decode(deep, flags | cv2.IMREAD_ANYDEPTH)


def packed(values: np.ndarray, bits: int) -> bytes:
    """Numbers of so many bits each, without any between them."""
    text = "".join(f"{value:0{bits}b}" for value in values.ravel())
    return int(text, 2).to_bytes(len(text) // 8, "big")


@pytest.mark.parametrize(("bits", "samples"), [(12, 1), (10, 1), (12, 3)])
def test_packed_values_of_a_tiff_are_those_that_a_window_names(bits: int, samples: int) -> None:
    values = np.array([0, 1000, 500, 250, 0, 1 << 9, 700, 100]).repeat(samples)
    content = raw_tiff((1, 8), [packed(values, bits)], bits, samples)
    read = read_picture(content, window=(0, 1000)).pixels
    expected = scale_to_8_bit(values.reshape(1, 8, -1).astype(np.float32), (0, 1000))
    np.testing.assert_array_equal(read, np.broadcast_to(expected, read.shape))


def with_0_as_white(content: bytes) -> bytes:
    black_is_0, white_is_0 = (struct.pack("<HHIH", 262, 3, 1, kind) for kind in (1, 0))
    assert content.count(black_is_0) == 1
    return content.replace(black_is_0, white_is_0)


@pytest.mark.parametrize("depth", [np.uint16, np.float32])
def test_a_tiff_in_which_0_is_white_is_inverted(depth: type) -> None:
    content = cv2.imencode(".tif", np.array([[0, 2000, 4000]], depth))[1].tobytes()
    ramp = with_0_as_white(content)
    assert read_picture(ramp, window="auto").pixels[0, :, 0].tolist() == [255, 127, 0]
    assert read_picture(ramp, window=(0, 65535)).pixels[0, :, 0].tolist() == [255, 247, 239]
    if depth is np.uint16:
        bright = read_picture(ramp)
        assert bright.note == "" and bright.pixels.min() == 240


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_mask_in_which_0_is_white_is_inverted(bits: int) -> None:
    shown = np.zeros((8, 8), bool)
    shown[2:5, 1:4] = True
    drawn = np.where(shown, 0, (1 << bits) - 1)
    data = drawn.astype(f"<u{bits // 8}").tobytes() if bits % 8 == 0 else packed(drawn, bits)
    mask, note = decode_mask(with_0_as_white(raw_tiff((8, 8), [data], bits)), 1)
    np.testing.assert_array_equal(mask, shown)
    assert note is None


def test_numbered_labels_are_those_that_the_file_holds() -> None:
    """Whatever shows 0 as white: a label has no brightness."""
    labels = np.zeros((8, 8), "<u2")
    labels[:4], labels[6] = 1, 2
    content = with_0_as_white(raw_tiff((8, 8), [labels.tobytes()], 16))
    np.testing.assert_array_equal(decode_mask(content, 1, any_label=True)[0], labels > 0)
    np.testing.assert_array_equal(decode_mask(content, 1, labels=(2,))[0], labels == 2)
