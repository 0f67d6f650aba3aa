from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

import app
import predict
from datasets.cases import read_image
from datasets.image_files.headers import ImageError
from datasets.image_files.pictures import read_content, read_picture
from datasets.image_files.windowing import parse_window, window_text
from engine.prediction.inputs import Job, find_jobs
from engine.prediction.output_names import unique_names
from engine.prediction.outputs import OutputFolder
from engine.prediction.predict_files import predict_files, read_file
from engine.prediction.segmentation import (
    PredictionOptions,
    Segmentation,
    blending_window,
    orientations,
    segment,
    tile_starts,
    undo_orientation,
)
from tests.cases_on_disk import blob_case, write_data_set
from tests.run_on_disk import ROOT, write_run, write_vae
from utils.errors import UserError
from utils.images import encode_png
from utils.overlay import MASK_COLOUR
from utils.streams import bounded_map

RNG_SEED = 3


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    folder = tmp_path_factory.mktemp("experiment") / "epochs_1"
    write_run(folder, vae)
    return folder


class GreyBackend:
    """Takes the grey value for the probability, so that every answer is known."""

    image_size = 16
    threshold = 0.5
    orientations = 8
    window = None

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.answer = answer or (lambda images: images.mean(1))
        self.origin = {"weights_sha256": "0" * 64}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (3, 16, 16) and images.dtype == np.float32
        return self.answer(images)


def noise(height: int, width: int, seed: int = RNG_SEED) -> np.ndarray:
    grey = np.random.default_rng(seed).integers(0, 256, (height, width, 1)).astype(np.uint8)
    return np.repeat(grey, 3, axis=2)


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def image(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def picture_folder(folder: Path, count: int = 3, size: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        cv2.imwrite(str(folder / f"scan_{index}.png"), blob_case(index, size)[0])
    return folder


def everything_under(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# From arrays to arrays


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (50, 37), (9, 70), (5, 3), (1, 1), (17, 16)])
def test_tiles_put_every_pixel_back_in_its_place(shape: tuple[int, int], tta: bool) -> None:
    pixels = noise(*shape)
    method = PredictionOptions(tiles=True, overlap=0.5, tta=tta)
    ((key, result),) = segment(GreyBackend(), [("a", pixels)], method, batch_size=5)
    assert key == "a"
    np.testing.assert_allclose(result.probability, pixels[..., 0] / 255, atol=1e-6)
    assert (result.uncertainty is not None) == tta
    if result.uncertainty is not None:
        assert result.uncertainty.shape == shape and result.uncertainty.max() < 1e-6


def test_tiles_cover_and_overlap() -> None:
    for length, (overlap, step) in itertools.product(
        (16, 17, 23, 24, 25, 100), ((0.0, 16), (0.5, 8), (0.75, 4))
    ):
        starts = tile_starts(length, 16, overlap)
        assert starts[0] == 0 and starts[-1] == length - 16
        assert all(0 < b - a <= step for a, b in itertools.pairwise(starts))
        assert len(starts) == 1 + math.ceil((length - 16) / step), "no more than needed"
    window = blending_window(16)
    assert 0 < window[0, 0] < window[8, 8] <= 1
    np.testing.assert_array_equal(window, window[::-1, ::-1])


def test_a_small_image_is_mirrored_to_fill_a_tile() -> None:
    seen = []

    def answer(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return images.mean(1)

    pixels = noise(9, 10)
    method = PredictionOptions(tiles=True)
    list(segment(GreyBackend(answer), [("a", pixels)], method, batch_size=1))
    mirrored = np.pad(pixels[..., 0], ((0, 7), (0, 6)), "symmetric")
    np.testing.assert_allclose(seen[0][0, 0] * 255, mirrored, atol=1e-3)


def test_tiles_blend_smoothly() -> None:
    # each tile answers with a constant of its own; without blending the seams would be jumps
    constants = iter(np.linspace(0, 1, 100))
    backend = GreyBackend(
        lambda images: np.stack([np.full((16, 16), next(constants)) for _ in images])
    )
    ((_, result),) = segment(
        backend, [("a", noise(16, 40))], PredictionOptions(tiles=True), batch_size=8
    )
    jumps = np.abs(np.diff(result.probability, axis=1))
    assert jumps.max() < 0.5 * (1 / 99)


def test_resizing_keeps_the_size_of_the_picture() -> None:
    pixels = np.zeros((30, 80, 3), np.uint8)
    pixels[:, 40:] = 255
    ((_, result),) = segment(GreyBackend(), [("a", pixels)], PredictionOptions(), batch_size=1)
    assert result.probability.shape == (30, 80)
    mask = result.mask(0.5)
    assert not mask[:, :38].any() and mask[:, 42:].all()
    assert result.mask(1.0)[:, 42:].all(), "the threshold itself is foreground"


def test_orientations_are_eight_and_are_undone() -> None:
    square = np.arange(256, dtype=np.float32).reshape(16, 16)
    turned = list(orientations(square))
    assert len({view.tobytes() for view in turned}) == 8
    for index, view in enumerate(turned):
        np.testing.assert_array_equal(undo_orientation(index, view), square)


@pytest.mark.parametrize("tiles", [False, True])
def test_augmentation_gives_mean_and_deviation(tiles: bool) -> None:
    # a model that always sees something on the left, however the picture lies
    left = np.zeros((16, 16), np.float32)
    left[:, :8] = 1
    backend = GreyBackend(lambda images: np.repeat(left[None], len(images), axis=0))
    method = PredictionOptions(tiles=tiles, tta=True)
    ((_, result),) = segment(backend, [("a", noise(16, 16))], method, batch_size=3)
    np.testing.assert_allclose(result.probability, 0.5, atol=1e-6)
    assert result.uncertainty is not None
    np.testing.assert_allclose(result.uncertainty, 0.5, atol=1e-6)


def test_upright_images_are_mirrored_and_not_turned() -> None:
    top = np.zeros((16, 16), np.float32)
    top[:8, :4] = 1  # what the model always sees: something at the top left
    backend = GreyBackend(lambda images: np.repeat(top[None], len(images), axis=0))
    backend.orientations = 2
    pictures = [("a", noise(16, 16))]
    ((_, result),) = segment(backend, pictures, PredictionOptions(tta=True), batch_size=3)
    np.testing.assert_allclose(result.probability, (top + top[:, ::-1]) / 2)
    assert result.uncertainty is not None
    np.testing.assert_allclose(result.uncertainty, (top + top[:, ::-1]) / 2)
    ((_, plain),) = segment(backend, pictures, PredictionOptions(), batch_size=3)
    assert plain.uncertainty is None


def test_batches_change_nothing_and_keep_the_order() -> None:
    pictures = [(index, noise(10 + index, 40 - index, index)) for index in range(7)]
    method = PredictionOptions(tiles=True, tta=True)
    whole = list(segment(GreyBackend(), pictures, method, batch_size=1000))
    assert [key for key, _ in whole] == list(range(7))
    for batch_size in (1, 3, 8):
        for (key, a), (other, b) in zip(
            whole, segment(GreyBackend(), pictures, method, batch_size), strict=True
        ):
            assert key == other
            np.testing.assert_array_equal(a.probability, b.probability)


def test_few_pictures_wait_at_a_time() -> None:
    taken, returned = 0, 0

    def pictures() -> Iterator[tuple[int, np.ndarray]]:
        nonlocal taken
        for index in range(200):
            taken += 1
            assert taken - returned <= 4 + 2 * 3
            yield index, noise(8, 8)

    read = bounded_map(lambda item: item, pictures(), workers=2)
    written = bounded_map(
        lambda item: item, segment(GreyBackend(), read, PredictionOptions(), 4), workers=2
    )
    for _ in written:
        returned += 1
    assert returned == 200


def test_bounded_map_keeps_order_and_raises() -> None:
    assert list(bounded_map(lambda x: x * x, range(50), 3)) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(bounded_map(lambda x: 1 // x, [1, 0, 2], 2))


# Reading


def encoded(pixels: np.ndarray, ending: str = ".png") -> bytes:
    return cv2.imencode(ending, pixels)[1].tobytes()


@pytest.mark.parametrize(
    ("ending", "channels", "depth"),
    [
        *itertools.product((".png", ".tif"), (1, 3, 4), (np.uint8, np.uint16)),
        *itertools.product((".jpg", ".bmp"), (1, 3), (np.uint8,)),
    ],
)
def test_pictures_are_read_as_in_training(
    tmp_path: Path, ending: str, channels: int, depth: type
) -> None:
    shape = (20, 31, channels) if channels > 1 else (20, 31)
    pixels: np.ndarray = (
        np.random.default_rng(0).integers(0, np.iinfo(depth).max, shape).astype(depth)
    )
    path = tmp_path / f"picture{ending}"
    path.write_bytes(encoded(pixels, ending))
    picture = read_picture(path.read_bytes())
    assert picture.pixels.shape == (20, 31, 3) and picture.note == ""
    np.testing.assert_array_equal(picture.pixels, read_image(path))


def test_16_bits_are_scaled_by_a_window() -> None:
    pixels: np.ndarray = np.full((8, 8), 1000, np.uint16)
    pixels[0, 0], pixels[0, 1] = 0, 4000
    content = encoded(pixels)
    dark = read_picture(content)
    assert "no value over 4000" in dark.note and dark.pixels.max() == 15
    auto = read_picture(content, window="auto")
    assert auto.note == "" and auto.pixels[0, :3, 0].tolist() == [0, 255, 64]
    assert read_picture(content, window=(500, 1500)).pixels[0, :3, 0].tolist() == [0, 255, 128]
    bright = read_picture(encoded(np.full((8, 8), 65535, np.uint16)))
    assert bright.note == "" and bright.pixels.min() == 255


def test_images_with_a_note_are_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = picture_folder(tmp_path / "scans", count=2)
    (folder / "dark.png").write_bytes(encoded(np.full((8, 8), 1000, np.uint16)))
    out = tmp_path / "out"
    predict.main(["--run", str(run), str(folder), "--out", str(out)])
    told = capsys.readouterr().out
    assert f"warning: 1 of these images have a note, see {out / 'predictions.csv'}" in told


def test_windows_are_parsed() -> None:
    assert parse_window("auto") == "auto" and parse_window("-100,300.5") == (-100, 300.5)
    for window in (None, "auto", (0, 4096.0), (-0.1, 1234567.5), (1e-9, 1e300)):
        text = window_text(window)
        assert (parse_window(text) if text else None) == window
    assert window_text((0, 4096.0)) == "0,4096"
    for text in ("5", "3,1", "1,1", "a,b", "nan,1", "0,inf", "1,2,3"):
        with pytest.raises(UserError, match="LOW,HIGH"):
            parse_window(text)


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"II*\0" + struct.pack("<IH", 8, 1)
    tiff += struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0) + struct.pack("<I", 0)
    segment_ = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment_) + 2) + segment_ + jpeg[2:]


def test_pictures_are_turned_upright_and_say_so() -> None:
    lying: np.ndarray = np.zeros((24, 40, 3), np.uint8)
    lying[:, :8] = 255
    picture = read_picture(with_orientation(encoded(lying, ".jpg"), 6))
    assert picture.pixels.shape == (40, 24, 3)
    assert picture.pixels[2, 12, 0] > 200 and picture.pixels[30, 12, 0] < 50
    assert "upright" in picture.note


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("ending", [".jpg", ".tif"])
def test_every_orientation_that_is_applied_is_noted(ending: str, tag: int) -> None:
    square = encoded(noise(16, 16), ending)
    if ending == ".jpg":
        turned = with_orientation(square, tag)
    else:  # in place of the tag of separate planes, which is 1 where it lacks
        at = square.index(struct.pack("<HHI", 0x11C, 3, 1))
        turned = square[:at] + struct.pack("<HHIHH", 0x112, 3, 1, tag, 0) + square[at + 12 :]
    changed = bool((read_picture(turned).pixels != read_picture(square).pixels).any())
    assert changed == ("upright" in read_picture(turned).note) == (tag != 1)


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"Hello", "not a PNG"),
        (png_header(100_000, 100_000), "100000 x 100000 px is over the limit of 64 megapixels"),
        (png_header(10, 10), "damaged or cut short"),
        (encoded(noise(50, 50))[:500], "damaged or cut short"),
        (encoded(noise(50, 50), ".jpg")[:-300], "cut short"),
        (encoded(noise(50, 50), ".bmp")[:-300], "cut short"),
        (encoded(np.ones((8, 8), np.float32), ".tif"), "float32 pixels: say which values"),
        (b"II+\0\x08\0\0\0", "a BigTIFF.*save it as an ordinary TIFF"),
        (b"MM\0+\0\x08\0\0", "a BigTIFF"),
    ],
)
def test_unreadable_pictures_say_why(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_picture(content)


def test_dicom_without_its_marker_says_so() -> None:
    content = dicom(RAMP)[132:]
    with pytest.raises(ImageError, match=r"has no DICM marker.*not read as DICOM"):
        read_picture(content, suffix=".DCM")
    with pytest.raises(ImageError, match="not a PNG"):
        read_picture(content, suffix=".png")
    assert read_picture(encoded(noise(4, 4)), suffix=".dcm").pixels.shape == (4, 4, 3)


def test_a_tiff_without_pillow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.TiffImagePlugin", None)
    assert read_picture(encoded(noise(4, 4))).pixels.shape == (4, 4, 3)
    with pytest.raises(ImageError, match=r"a TIFF needs Pillow.*pip install pillow"):
        read_picture(encoded(noise(4, 4), ".tif"))


def paged_tiff(*kinds: int) -> bytes:
    """A TIFF of 8 x 8 px for each kind (NewSubfileType), brighter from page to page."""
    content = b"II*\0" + struct.pack("<I", 8)
    for number, kind in enumerate(kinds, 1):
        at = len(content)
        pixels_at = at + 2 + 12 * 8 + 4
        tags = {254: kind, 256: 8, 257: 8, 258: 8, 262: 1, 273: pixels_at, 278: 8, 279: 64}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
        following = pixels_at + 64 if number < len(kinds) else 0
        content += struct.pack("<H", 8) + entries + struct.pack("<I", following)
        content += bytes([50 * number]) * 64
    return content


def test_a_tiff_of_several_pages_is_refused() -> None:
    assert (read_picture(paged_tiff(0, 1, 5)).pixels == 50).all()
    for kinds in ((0, 0), (0, 1, 2)):
        with pytest.raises(ImageError, match="holds several pages; export one image per file"):
            read_picture(paged_tiff(*kinds))


def test_floats_are_read_by_a_window() -> None:
    pixels: np.ndarray = np.array([[0.0, 0.5, 1.0]], np.float32)
    read = read_picture(encoded(pixels, ".tif"), window=(0, 1)).pixels
    assert read[0, :, 0].tolist() == [0, 128, 255]
    assert read_picture(encoded(pixels * 0, ".tif"), window="auto").pixels.max() == 0
    pixels[0, 1] = np.nan
    with pytest.raises(ImageError, match="not a number"):
        read_picture(encoded(pixels, ".tif"), window="auto")


def test_files_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(30 << 20)  # sparse
    with pytest.raises(ImageError, match="more than 1 megapixels need"):
        read_content(path, max_megapixels=1)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is not a file"):
        read_content(tmp_path / "pipe.png")


# DICOM


def dicom(
    pixels: np.ndarray, photometric: str = "MONOCHROME2", syntax: str = "", **elements: object
) -> bytes:
    """A DICOM file; `syntax` is the UID of its transfer syntax, else explicit VR, little endian."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax or pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = pydicom.uid.UltrasoundImageStorage
    data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.shape[2:] == (3,) else 1
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = 8 * pixels.itemsize
    data.BitsStored = data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for key, value in elements.items():
        if isinstance(value, pydicom.DataElement):  # with a VR of its own
            data.add(value)
        else:
            setattr(data, key, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


RAMP = np.array([[0, 100, 200, 300]], np.uint16)
RANGE = [0, 85, 170, 255]
"""RAMP by its own range."""


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, RANGE),
        ({"photometric": "MONOCHROME1"}, [255, 170, 85, 0]),
        ({"WindowCenter": 150, "WindowWidth": 101}, [0, 1, 255, 255]),
        ({"WindowCenter": [150, 0], "WindowWidth": [101, 9]}, [0, 1, 255, 255]),
        ({"WindowCenter": 150, "WindowWidth": 1}, [0, 0, 255, 255]),
        (
            {"WindowCenter": 150, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"},
            [0, 0, 255, 255],
        ),
        (
            {"WindowCenter": 150, "WindowWidth": 100, "VOILUTFunction": "SIGMOID"},
            [1, 30, 225, 254],
        ),
        ({"BitsStored": 12, "HighBit": 11}, RANGE),
        ({"HighBit": 0}, RANGE),  # wrong, and of no consequence
        # Hounsfield-like: stored 0..300 mean -100..500
        (
            {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 200, "WindowWidth": 401},
            [0, 64, 191, 255],
        ),
    ],
)
def test_dicom_grey_values(elements: dict[str, object], expected: list[int]) -> None:
    content = dicom(RAMP, **elements)  # type: ignore[arg-type]
    np.testing.assert_allclose(read_picture(content).pixels[0, :, 0], expected, atol=1)


@pytest.mark.parametrize("allocated", [np.uint8, np.uint16])
def test_dicom_values_of_8_bits_stay_as_they_are(allocated: type) -> None:
    """In words of 16 bits, too; with a rescaling they are spread."""
    values: np.ndarray = np.array([[3, 25, 100, 127]], allocated)
    content = dicom(values, BitsStored=8, HighBit=7)
    assert read_picture(content).pixels[0, :, 0].tolist() == [3, 25, 100, 127]
    rescaled = dicom(values, BitsStored=8, HighBit=7, RescaleSlope=2, RescaleIntercept=0)
    assert read_picture(rescaled).pixels[0, [0, 3], 0].tolist() == [0, 255]


@pytest.mark.parametrize("window", [None, "auto"])
@pytest.mark.parametrize(
    "elements",
    [
        {"PixelPaddingValue": -2000},
        {"PixelPaddingValue": 63536},  # the same without its sign, as some files have it
        {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1900},
        {"PixelPaddingValue": -1900, "PixelPaddingRangeLimit": -2000},
    ],
    ids=repr,
)
def test_padding_is_not_in_the_own_range_of_a_dicom_file(
    elements: dict[str, int], window: str | None
) -> None:
    pydicom = pytest.importorskip("pydicom")
    given: dict[str, Any] = dict(elements)
    if given["PixelPaddingValue"] > 0:
        given = {"PixelPaddingValue": pydicom.DataElement(0x00280120, "US", 63536)}
    pixels = np.array([[-2000, 0, 100, 300]], np.int16)
    content = dicom(pixels, RescaleSlope=2, RescaleIntercept=7, **given)
    assert read_picture(content, window=window).pixels[0, :, 0].tolist() == [0, 0, 85, 255]
    content = dicom(np.full_like(pixels, -2000), **given)
    assert not read_picture(content, window=window).pixels.any()


def test_a_dicom_table_that_begins_below_zero_may_have_lost_its_sign() -> None:
    """In a file with implicit VR, whose pixels have no sign, nothing says that the descriptor has one."""
    table = table_item(2048, 65536 - 1024, 8, [value >> 3 for value in range(2048)])
    content = dicom(WIDE // 2, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=table)
    assert read_picture(content).pixels[0, :, 0].tolist() == [0, 62, 125, 255]


@pytest.mark.parametrize(("width", "function"), [(0, ""), (-100, ""), (0, "SIGMOID")])
def test_a_dicom_window_without_width_is_refused(width: float, function: str) -> None:
    window = {"WindowCenter": 150, "WindowWidth": width, "VOILUTFunction": function}
    content = dicom(RAMP, **window)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=rf"window has a width of {width}.*--window LOW,HIGH"):
        read_picture(content)
    assert read_picture(content, window="auto").pixels[0, :, 0].tolist() == RANGE


@pytest.mark.parametrize("identity", [{}, {"RescaleSlope": 1, "RescaleIntercept": 0}], ids=repr)
def test_eight_bits_in_dicom_stay_as_they_are(identity: dict[str, object]) -> None:
    content = dicom(np.array([[50, 60, 73]], np.uint8), **identity)  # type: ignore[arg-type]
    assert read_picture(content).pixels[0, :, 0].tolist() == [50, 60, 73]
    windowed = read_picture(content, window=(50, 73)).pixels
    assert windowed[0, :, 0].tolist() == [0, 111, 255]


def test_a_window_replaces_that_of_the_dicom_file() -> None:
    content = dicom(RAMP, WindowCenter=150, WindowWidth=1, RescaleSlope=1, RescaleIntercept=-100)
    read = read_picture(content, window=(-100, 200)).pixels
    assert read[0, :, 0].tolist() == [0, 85, 170, 255]


def test_dicom_colour() -> None:
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 200
    np.testing.assert_array_equal(read_picture(dicom(red, "RGB")).pixels, red)
    ybr = cv2.cvtColor(red, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    back = read_picture(dicom(np.ascontiguousarray(ybr), "YBR_FULL")).pixels
    np.testing.assert_allclose(back, red, atol=2)
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(read_picture(dicom(grey)).pixels[..., 1], grey)


def sequence_of(**elements: object) -> list[Any]:
    """A DICOM sequence of one item."""
    item = pytest.importorskip("pydicom").Dataset()
    for key, value in elements.items():
        setattr(item, key, value)
    return [item]


def table_item(count: int, first: int, bits: int, entries: list[int] | bytes) -> list[Any]:
    from pydicom.dataelem import DataElement

    (item,) = sequence_of()
    item.add(DataElement(0x00283002, "SS" if first < 0 else "US", [count, first, bits]))
    item.add(DataElement(0x00283006, "OW" if isinstance(entries, bytes) else "US", entries))
    return [item]


WIDE = np.array([[0, 1000, 2000, 4095]], np.uint16)
"""Of 12 bits, more than an index of 8 bits holds."""
WORDS = np.arange(65536).astype("<u2")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (lambda: (4096, 0, 8, [value >> 4 for value in range(4096)]), [0, 62, 125, 255]),
        (lambda: (4096, 0, 8, bytes(value >> 4 for value in range(4096))), [0, 62, 125, 255]),
        (lambda: (4096, 0, 12, list(range(4096))), [0, 62, 125, 255]),
        (lambda: (4096, 0, 16, WORDS[::16].tobytes()), [0, 62, 125, 255]),
        (lambda: (0, 0, 16, WORDS.tobytes()), [0, 4, 8, 16]),
        (lambda: (3, 999, 8, [10, 20, 30]), [10, 20, 30, 30]),
        (lambda: (1001, -1000, 8, [10] * 1000 + [20]), [20, 20, 20, 20]),
    ],
    ids=["8 bits", "packed", "12 bits", "words", "65536 entries", "offset", "negative offset"],
)
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_dicom_tables(kind: str, table: Callable[[], tuple[Any, ...]], expected: list[int]) -> None:
    pytest.importorskip("pydicom")
    item = table_item(*table())
    elements: dict[str, Any] = {kind: item}
    content = dicom(WIDE, BitsStored=12, HighBit=11, **elements)
    window = None if kind == "VOILUTSequence" else (0, 2 ** item[0].LUTDescriptor[2] - 1)
    read = read_picture(content, window=window).pixels
    np.testing.assert_allclose(read[0, :, 0], expected, atol=1)


def palette(count: int, bits: int, data: bytes, **others: object) -> dict[str, Any]:
    """The elements of a palette of three equal tables."""
    segmented = "Segmented" if others.pop("segmented", False) else ""
    elements: dict[str, Any] = {"photometric": "PALETTE COLOR", **others}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [count, 0, bits]
        elements[f"{segmented}{colour}PaletteColorLookupTableData"] = data
    return elements


HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024}
SOFT_TISSUE = {"WindowCenter": 40, "WindowWidth": 400}


def functional_groups(rescale: dict[str, Any], window: dict[str, Any]) -> list[Any]:
    return sequence_of(
        PixelValueTransformationSequence=sequence_of(**rescale),
        FrameVOILUTSequence=sequence_of(**window),
    )


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        (
            lambda: {
                "PerFrameFunctionalGroupsSequence": sequence_of(),
                "SharedFunctionalGroupsSequence": functional_groups(HOUNSFIELD, SOFT_TISSUE),
            },
            [0, 128, 255, 255],
        ),
        (
            lambda: {
                "PerFrameFunctionalGroupsSequence": functional_groups(HOUNSFIELD, SOFT_TISSUE),
                "SharedFunctionalGroupsSequence": functional_groups({}, {"WindowCenter": 0}),
            },
            [0, 128, 255, 255],
        ),
        (
            lambda: {
                "PerFrameFunctionalGroupsSequence": functional_groups(HOUNSFIELD, SOFT_TISSUE),
                "SharedFunctionalGroupsSequence": functional_groups(
                    {"RescaleSlope": 2, "RescaleIntercept": 0},
                    {"WindowCenter": 240, "WindowWidth": 400},
                ),
            },
            [0, 128, 255, 255],
        ),
        (
            lambda: {
                **HOUNSFIELD,
                "WindowCenter": 240,
                "WindowWidth": 400,
                "SharedFunctionalGroupsSequence": functional_groups({}, SOFT_TISSUE),
            },
            [0, 0, 128, 255],
        ),
    ],
    ids=["shared", "per frame", "per frame first", "data set first"],
)
def test_dicom_functional_groups(
    elements: Callable[[], dict[str, Any]], expected: list[int]
) -> None:
    pixels = np.array([[864, 1064, 1264, 4000]], np.uint16)
    read = read_picture(dicom(pixels, NumberOfFrames=1, **elements())).pixels
    np.testing.assert_allclose(read[0, :, 0], expected, atol=1)


@pytest.mark.parametrize(
    "empty",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": 2, "RescaleIntercept": None},
        {"WindowCenter": None, "WindowWidth": None},
        {"VOILUTSequence": []},
    ],
    ids=repr,
)
def test_empty_dicom_elements_count_as_absent(empty: dict[str, Any]) -> None:
    np.testing.assert_array_equal(read_picture(dicom(RAMP, **empty)).pixels[0, :, 0], RANGE)


def compressed(frame: bytes, rows: int, columns: int, syntax: str) -> bytes:
    """A grey DICOM file around the frame."""
    pydicom = pytest.importorskip("pydicom")
    uid = getattr(pydicom.uid, syntax)
    pixels = np.zeros((rows, columns), np.uint8)
    content = pydicom.encaps.encapsulate([frame])
    return dicom(pixels, syntax=uid, PixelData=content)


def grey_jpeg(ending: str, height: int, width: int) -> bytes:
    """A JPEG, or a JPEG 2000 by itself or in the boxes of a JP2 file."""
    from PIL import Image

    file = io.BytesIO()
    kind = "JPEG" if ending == ".jpg" else "JPEG2000"
    picture = Image.fromarray(noise(height, width)[..., 0])
    picture.save(file, kind, **({} if kind == "JPEG" else {"no_jp2": ending == ".j2k"}))
    return file.getvalue()


@pytest.mark.parametrize(
    ("ending", "syntax"),
    [(".jpg", "JPEGBaseline8Bit"), (".j2k", "JPEG2000Lossless"), (".jp2", "JPEG2000Lossless")],
)
def test_compressed_dicom_is_of_the_size_in_its_header(ending: str, syntax: str) -> None:
    pytest.importorskip("PIL")
    read = read_picture(compressed(grey_jpeg(ending, 20, 31), 20, 31, syntax)).pixels
    np.testing.assert_allclose(read, noise(20, 31), atol=60 if ending == ".jpg" else 0)
    for rows, columns in ((31, 20), (10, 62), (8, 8)):
        with pytest.raises(ImageError, match="frame declares 31 x 20 px, the file's Columns x R"):
            read_picture(compressed(grey_jpeg(ending, 20, 31), rows, columns, syntax))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"rubbish!", "neither a JPEG nor"),
        (b"\xff\xd8\xff\xd9", "without frame header"),
        (b"\xff\xd8\xff\xf7\0\x0b\x08\0\x09\0\x05", "declares 5 x 9 px"),  # JPEG-LS
        (b"\xff\x4f\xff\x51\0\x2f", "cut short"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\0ftyp", "without codestream"),
    ],
)
def test_a_damaged_frame_header_in_dicom(frame: bytes, message: str) -> None:
    pytest.importorskip("PIL")
    with pytest.raises(ImageError, match=message):
        read_picture(compressed(frame, 8, 8, "JPEGBaseline8Bit"))


def test_dicom_decoders_to_install_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pydicom = pytest.importorskip("pydicom")
    content = compressed(b"\xff\xd8\xff\xd9", 8, 8, "JPEGLosslessSV1")
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLosslessSV1)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(ImageError, match=r"JPEG Lossless.*: pip install pylibjpeg pylibjpeg-lib"):
        read_picture(content)


INDICES = np.array([[0, 100, 200, 255]], np.uint8)
ALL_256 = np.arange(256, dtype=np.uint8)
LINE = np.array([0, 2, 0, 257, 1, 254, 65535], "<u2")
"""A segmented palette: entries 0 and 257, then 254 on a line to 65535."""
REPEATED = np.array([0, 1, 0, 1, 127, 32639, 2, 1, 6, 0, 1, 1, 65535], "<u2")
"""0, a line of 127 to 32639, the same line again from where it ended, and 65535."""


@pytest.mark.parametrize(
    ("pixels", "elements", "expected"),
    [
        (INDICES, palette(256, 8, ALL_256.tobytes()), [0, 100, 200, 255]),
        (INDICES, palette(256, 8, ALL_256.astype("<u2").tobytes()), [0, 100, 200, 255]),
        (INDICES, palette(256, 8, (ALL_256 * np.uint16(257)).tobytes()), [0, 100, 200, 255]),
        (INDICES, palette(256, 16, (ALL_256 * np.uint16(256)).tobytes()), [0, 100, 200, 255]),
        (WIDE, palette(4096, 8, bytes(i >> 4 for i in range(4096))), [0, 62, 125, 255]),
        (
            INDICES,
            palette(256, 8, ALL_256.tobytes(), AlphaPaletteColorLookupTableData=ALL_256.tobytes()),
            [0, 100, 200, 255],
        ),
        (INDICES, palette(256, 16, LINE.tobytes(), segmented=True), [0, 100, 200, 255]),
        (INDICES, palette(256, 16, REPEATED.tobytes(), segmented=True), [0, 100, 127, 255]),
    ],
    ids=["packed", "words", "both halves", "16 bits", "4096", "alpha", "segmented", "repeated"],
)
def test_dicom_palettes(pixels: np.ndarray, elements: dict[str, Any], expected: list[int]) -> None:
    read = read_picture(dicom(pixels, **elements)).pixels
    assert read.shape == (1, 4, 3) and read[0, :, 2].tolist() == expected


def test_a_dicom_palette_in_big_endian() -> None:
    pydicom = pytest.importorskip("pydicom")
    words = (ALL_256 * np.uint16(256)).astype(">u2").tobytes()
    content = dicom(INDICES, syntax=pydicom.uid.ExplicitVRBigEndian, **palette(256, 16, words))
    assert read_picture(content).pixels[0, :, 0].tolist() == [0, 100, 200, 255]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda: dicom(np.zeros((2, 4, 6), np.uint8), Rows=4, Columns=6, NumberOfFrames=0),
            r"\(2, 4, 6\) uint8 when decoded, expected one frame of 4 rows x 6 columns",
        ),
        (
            lambda: dicom(INDICES, **palette(256, 16, bytes(256))),
            "has 128 entries, it declares 256",
        ),
        (lambda: dicom(INDICES, **palette(256, 17, bytes(512))), "entries of 17 bits"),
        (lambda: dicom(INDICES, **palette(9, 16, LINE.tobytes(), segmented=True)), "256 entries"),
        (lambda: dicom(RAMP, NumberOfFrames=30), "30 frames"),
        (
            lambda: dicom(RAMP << 4, BitsStored=12, HighBit=15),
            "bits 4 to 15 .*expected bits 0 to 11",
        ),
        (lambda: dicom(RAMP, Rows=60_000, Columns=60_000), "over the limit"),
        (lambda: dicom(RAMP)[:-5], "cannot be decoded"),
        (lambda: dicom(RAMP)[:160], "cannot be read|without an image"),
        (
            lambda: dicom(RAMP).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"),
            "deflated",
        ),
    ],
)
def test_unreadable_dicom_says_why(change: Callable[[], bytes], message: str) -> None:
    pytest.importorskip("pydicom")
    with pytest.raises(ImageError, match=message):
        read_picture(change())


def test_dicom_without_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    content = dicom(RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match="pip install 'pydicom"):
        read_picture(content)


# Which pictures, and their names


def test_names_are_unique() -> None:
    def named(*paths: str) -> list[str]:
        return list(unique_names([Path(path) for path in paths]).values())

    assert named("/d/a/x.png", "/d/b/y.png") == ["x", "y"]
    assert named("/d/a/x.png", "/d/b/x.png", "/d/b/y.png") == ["a_x", "b_x", "y"]
    assert named("/d/x.png", "/d/x.jpg") == ["x_png", "x_jpg"]
    assert named("/1/a/x.png", "/2/a/x.png") == ["1_a_x", "2_a_x"]
    assert named("/d/x.png", "/d/X.PNG") == ["x", "X_2"]
    assert named("/d/a/x.png", "/d/b/x.png", "/d/a_x.png") == ["a_x_2", "b_x", "a_x"]
    assert named("/d/1.2.840.77", "/d/1.2.840.78.DCM") == ["1.2.840.77", "1.2.840.78"]
    assert named("/a/1.2.77", "/b/1.2.77", "/a/I1.IMA") == ["a_1.2.77", "b_1.2.77", "I1"]
    assert named("/d/bad\nname\udcff.png") == [
        "bad\N{REPLACEMENT CHARACTER}name\N{REPLACEMENT CHARACTER}"
    ]
    long = named("/a/" + "é" * 120 + ".png", "/b/" + "é" * 120 + ".png")
    assert len(set(long)) == 2 and all(len(name.encode()) <= 202 for name in long)


def test_files_folders_and_patterns_are_found(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "in", 2)
    picture_folder(folder / "deep", 1)
    out = picture_folder(folder / "out" / "masks", 2).parent
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "IM0001").write_bytes(bytes(128) + b"DICM")
    (folder / "1.2.840.113619.2.55.1").write_bytes(bytes(128) + b"DICM")
    (folder / "README").write_bytes(b"no DICOM")
    os.mkfifo(folder / "pipe")  # which would be waited for

    def found(*inputs: object, recursive: bool = False) -> list[str]:
        jobs = find_jobs([str(text) for text in inputs], recursive, out)
        return [str(job.path.relative_to(folder)) for job in jobs]

    uid = "1.2.840.113619.2.55.1"
    assert found(folder) == [uid, "IM0001", "scan_0.png", "scan_1.png"]
    assert found(folder, recursive=True) == [
        uid,
        "IM0001",
        "scan_0.png",
        "scan_1.png",
        "deep/scan_0.png",
    ]
    assert found(folder / "*_1.png", folder / "scan_1.png") == ["scan_1.png"]
    assert found(folder / "**" / "scan_0.png") == ["deep/scan_0.png", "scan_0.png"]
    out = folder  # predictions lie among the pictures
    picture_folder(folder / "masks", 1)
    everything = [uid, "IM0001", "scan_0.png", "scan_1.png", "deep/scan_0.png"]
    assert found(folder, recursive=True) == [
        *everything,
        "out/masks/scan_0.png",
        "out/masks/scan_1.png",
    ]
    assert "masks/scan_0.png" not in found(folder / "**" / "*.png")
    assert found(folder / "masks" / "scan_0.png"), "a file that is named is taken"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"no images(.|\n)*--recursive(.|\n)*none\.png: no such"):
        find_jobs([str(empty), str(tmp_path / "none.png")], False, out)
    # folders that a pattern matches are searched like those that are named
    assert found(folder / "d*") == ["deep/scan_0.png"]
    matched = [file for file in found(folder / "*") if file not in ("README", "notes.txt", "pipe")]
    assert matched == [uid, "IM0001", "deep/scan_0.png", "scan_0.png", "scan_1.png"]
    with pytest.raises(UserError, match=r"empt\*: no images .* in the folders that match"):
        find_jobs([str(tmp_path / "empt*")], False, out)
    with pytest.raises(UserError, match=r"aaa: cannot be read: File name too long"):
        find_jobs(["a" * 256], False, out)


def test_predictions_of_another_run_are_no_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = picture_folder(tmp_path / "scans", 2), tmp_path / "scans" / "second"
    for earlier, kind in itertools.product(("first", "second"), ("masks", "overlays")):
        picture_folder(folder / earlier / kind, 2)
        (folder / earlier / "predictions.csv").touch()
    picture_folder(folder / "study" / "masks", 1)  # of a data set

    def found(*inputs: object, recursive: bool = False) -> list[str]:
        caplog.clear()
        jobs = find_jobs([str(text) for text in inputs], recursive, out)
        return [str(job.path.relative_to(folder)) for job in jobs]

    told = [f"predictions of predict.py skipped in {folder / 'first'}"]
    scans = ["scan_0.png", "scan_1.png"]
    assert found(folder, recursive=True) == [*scans, "study/masks/scan_0.png"]
    assert caplog.messages == told
    assert sorted(found(folder / "**" / "*.png")) == [*scans, "study/masks/scan_0.png"]
    assert caplog.messages == told
    assert found(folder) == scans and not caplog.messages
    named = folder / "first" / "masks" / "scan_0.png"
    assert found(named) == ["first/masks/scan_0.png"], "a file that is named is taken"
    with pytest.raises(UserError, match=r"it matches none; predictions .* skipped in .*first$"):
        found(folder / "first" / "masks" / "*.png")


def test_folders_of_predictions_among_the_inputs_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the shell writes `scans/*` where `--out` and an earlier one lie in it."""
    folder = picture_folder(tmp_path / "scans", 2)
    first, out = folder / "first", folder / "second"
    for earlier in (first, out):
        picture_folder(earlier / "masks", 2)
        (earlier / "predictions.csv").touch()
    scans = [folder / "scan_0.png", folder / "scan_1.png"]
    for recursive in (False, True):
        jobs = find_jobs([str(path) for path in (first, *scans, out)], recursive, out)
        assert [job.path for job in jobs] == scans
        assert caplog.messages == [f"predictions of predict.py skipped in {first}"]
        caplog.clear()
    for alone in (first, out):
        with pytest.raises(UserError, match=f"{alone}: no images"):
            find_jobs([str(alone)], False, out)
    picture_folder(out, 1)  # where the images and their predictions share a folder
    assert len(find_jobs([str(out)], False, out)) == 1


def dicom_of_class(uid: str) -> bytes:
    """The first bytes of a DICOM file."""
    padded = uid.encode() + b"\0" * (len(uid) % 2)
    version = struct.pack("<HH2sHI2s", 2, 1, b"OB", 0, 2, b"\0\1")
    group = version + struct.pack("<HH2sH", 2, 2, b"UI", len(padded)) + padded
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(group))
    return bytes(128) + b"DICM" + length + group


def test_what_is_skipped_in_folders_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = picture_folder(tmp_path / "in", 1)
    images, storage = ("IM1", "seg.dcm"), "1.2.840.10008.5.1.4.1.1."
    others = {
        "DICOMDIR": "1.2.840.10008.1.3.10",
        "SR": storage + "88.33",
        "pr.dcm": storage + "11.1",
    }
    for name, uid in {**others, "IM1": storage + "6.1", "seg.dcm": storage + "66.4"}.items():
        (folder / name).write_bytes(dicom_of_class(uid))
    for name in ("a.gif", "b.WEBP", "c.webp", "notes.txt", ".hidden.gif"):
        (folder / name).write_bytes(b"other")

    def found(*inputs: Path) -> list[str]:
        return [job.path.name for job in find_jobs(list(map(str, inputs)), False, tmp_path / "out")]

    assert found(folder, folder) == [*images[:1], "scan_0.png", *images[1:]]
    assert caplog.messages == [
        "3 DICOM objects without pixels skipped (reports, DICOMDIR)",
        "3 files of other formats skipped (.gif, .webp): convert to PNG",
    ]
    caplog.clear()
    named = [folder / "SR", folder / "a.gif"]
    assert found(*named) == ["SR", "a.gif"] and not caplog.messages, "they will fail"
    assert len(found(folder, *named)) == 5 and "2 files of other" in caplog.messages[1]
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.jp2").touch()
    with pytest.raises(
        UserError, match=r"in this folder; 1 file of another format sk.*\.jp2\).*PNG; --rec"
    ):
        found(only)
    for name in ("a.mhd", "a.nhdr", "a.nii", "b.NII.GZ", "notes.gz"):
        (only / name).touch()
    with pytest.raises(UserError, match=r"5 files.*\(\.jp2, \.mhd, \.nhdr, \.nii, \.nii\.gz\)"):
        found(only)


def test_a_setting_among_the_inputs_is_told_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"threshold=0\.3: no such file.*by --set threshold=0\.3"):
        find_jobs(["threshold=0.3"], False, tmp_path)
    with pytest.raises(UserError, match=r"as a pattern it matches none$"):
        find_jobs(["folder/a=3.png"], False, tmp_path)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scandir = picture_folder(tmp_path / "in", 1), os.scandir
    locked = picture_folder(folder / "locked", 1)

    def refused(path: Path) -> object:
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert len(find_jobs([str(folder)], False, tmp_path / "out")) == 1
    for named in (folder, locked):
        with pytest.raises(UserError) as caught:
            find_jobs([str(named)], True, tmp_path / "out")
        problems = str(caught.value).splitlines()[1:]
        assert problems == [f"  {locked}: cannot be read: Permission denied"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "in", 1)
    picture_folder(folder / "real", 1)
    picture_folder(tmp_path / "elsewhere" / "deep", 1)
    (folder / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder / "real")
    (folder / "real" / "up").symlink_to(folder)
    (folder / "none").symlink_to(tmp_path / "missing")
    (folder / "out").symlink_to(picture_folder(tmp_path / "out", 1))

    def found(recursive: bool) -> list[str]:
        jobs = find_jobs([str(folder)], recursive, tmp_path / "out")
        return [str(job.path.relative_to(folder)) for job in jobs]

    assert found(recursive=False) == ["scan_0.png"]
    linked = "elsewhere/deep/scan_0.png"
    assert found(recursive=True) == ["scan_0.png", "real/scan_0.png", linked]

    (folder / "real" / "same.png").symlink_to("scan_0.png")  # a name of its own, a mask of its own
    ways = [folder / "again", folder / "real" / ".." / "real", folder / "again" / "scan_0.png"]
    jobs = find_jobs([str(way) for way in ways], False, tmp_path / "out")
    assert [job.path for job in jobs] == [ways[0] / "same.png", ways[0] / "scan_0.png"]


# The program


def test_a_folder_of_mixed_pictures(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = picture_folder(tmp_path / "in", 2, 40)
    colour = cv2.cvtColor(blob_case(5, 90)[0], cv2.COLOR_GRAY2BGRA)[:50]
    cv2.imwrite(str(folder / "colour.tif"), colour)
    lying = with_orientation(encoded(blob_case(6, 64)[0][:24], ".jpg"), 6)
    (folder / "lying.jpg").write_bytes(lying)
    (folder / "broken.png").write_bytes(b"rubbish")
    out = tmp_path / "out"

    code = predict.main(["--run", str(run), str(folder), "--out", str(out), "--tta"])
    assert code == 1
    said = capsys.readouterr().out
    assert "4 of 5 images predicted" in said and "broken.png: not a PNG" in said

    rows = rows_of(out)
    assert list(rows) == ["broken", "colour", "lying", "scan_0", "scan_1"]
    sizes = {"colour": (50, 90), "lying": (64, 24), "scan_0": (40, 40), "scan_1": (40, 40)}
    for name, (height, width) in sizes.items():
        mask = image(out / "masks" / f"{name}.png")
        steps = image(out / "probabilities" / f"{name}.png")
        spread = image(out / "uncertainties" / f"{name}.png")
        overlay = image(out / "overlays" / f"{name}.jpg")
        assert mask.shape == steps.shape == spread.shape == overlay.shape[:2] == (height, width)
        assert set(np.unique(mask)) <= {0, 255} and steps.dtype == spread.dtype == np.uint16
        np.testing.assert_array_equal(mask > 0, steps >= 32768)
        row = rows[name]
        assert (row["width"], row["height"]) == (str(width), str(height))
        assert int(row["area_pixels"]) == (mask > 0).sum()
        assert float(row["area_percent"]) == pytest.approx(100 * (mask > 0).mean(), abs=1e-3)
        assert float(row["mean_uncertainty"]) == pytest.approx(spread.mean() / 65535, abs=1e-4)
        assert row["status"] == "ok"
    assert sum(int(rows[name]["area_pixels"]) for name in sizes) > 0
    assert rows["broken"]["status"] == "failed" and rows["broken"]["file"].endswith("broken.png")
    assert "upright" in rows["lying"]["message"]
    assert not list(out.glob("*/broken*")) and not list(out.rglob("*.tmp"))
    assert not (out / "predictions.partial.csv").exists()


@pytest.mark.parametrize(("tta", "keep_upright"), [(False, False), (True, False), (True, True)])
def test_masks_are_those_of_validation(
    tmp_path: Path, run: Path, tta: bool, keep_upright: bool
) -> None:
    from datasets.cases import open_data_set
    from engine.device import make_accelerator
    from engine.runs.trained_run import load_system
    from engine.validation.case_predictions import predict_cases
    from engine.validation.options import EvaluationOptions
    from utils.config import load_config

    data_set = open_data_set(write_data_set(tmp_path, train=1, test=3, size=50))
    for path in (data_set.test[0].image, data_set.test[0].mask):
        cv2.imwrite(str(path), image(path)[:37])  # of odd and unequal sides
    config = load_config(run / "config.yaml")
    system = load_system(config, run / "best_model.pth")
    how = EvaluationOptions(config.image_size, 2, "native", tta, keep_upright)
    accelerator = make_accelerator("fp32", 1, False)
    expected = list(predict_cases(system, data_set.test, how, accelerator))
    out = tmp_path / "out"
    pictures = [str(case.image) for case in data_set.test]
    options = [*(["--tta"] if tta else []), "--set", f"keep_upright={str(keep_upright).lower()}"]
    command = ["--run", str(run), *pictures, "--out", str(out), "--batch-size", "2", *options]
    assert predict.main(command) == 0
    for prediction, height in zip(expected, (37, 50, 50), strict=True):
        steps = image(out / "probabilities" / f"{prediction.case.name}.png")
        assert steps.shape == (height, 50)
        np.testing.assert_allclose(steps / 65535, prediction.probability, atol=2e-5)


def test_options_reach_the_files(tmp_path: Path, run: Path) -> None:
    picture = picture_folder(tmp_path / "in", 1, 70) / "scan_0.png"
    command = ["--run", str(run), str(picture), "--out"]
    low, high, tiles = (tmp_path / name for name in ("low", "high", "tiles"))
    assert predict.main([*command, str(low), "--threshold", "0.05", "--overlay", "none"]) == 0
    assert predict.main([*command, str(high), "--threshold", "0.99", "--overlay", "png"]) == 0
    assert predict.main([*command, str(tiles), "--tiles", "--overlap", "0.25"]) == 0
    assert rows_of(low)["scan_0"]["area_percent"] == "100.0000"
    assert rows_of(high)["scan_0"]["area_percent"] == "0.0000"
    assert not (low / "overlays").exists() and (high / "overlays" / "scan_0.png").is_file()
    probability = [
        image(out / "probabilities" / "scan_0.png").astype(float) for out in (low, high, tiles)
    ]
    np.testing.assert_array_equal(probability[0], probability[1])
    assert np.abs(probability[0] - probability[2]).max() > 100
    assert json.loads((tiles / "settings.json").read_text())["overlap"] == 0.25


def test_overlays_colour_the_mask_and_nothing_else(tmp_path: Path) -> None:
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 200
    probability = np.zeros((20, 20), np.float32)
    probability[5:15, 5:15] = 1
    folder = OutputFolder(tmp_path, {}, "png", tta=False, threshold=0.5)
    folder.write(Job("a", tmp_path / "a.png"), red, "", Segmentation(probability, None))
    overlay = image(tmp_path / "overlays" / "a.png")[..., ::-1]
    assert overlay[0, 0].tolist() == [200, 0, 0] and overlay[5, 5].tolist() == [*MASK_COLOUR]


@pytest.mark.parametrize("fails", [False, True])
def test_no_file_of_an_earlier_prediction_stays_beside_a_new_one(
    tmp_path: Path, fails: bool
) -> None:
    grey, flat = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)
    jobs = [Job(name, tmp_path / f"{name}.png") for name in "ab"]
    before = OutputFolder(tmp_path, {}, "jpg", tta=True, threshold=0.5)
    for job in jobs:
        before.write(job, grey, "", Segmentation(flat, flat))
    kept = set(tmp_path.glob("*/b.*"))
    assert len(kept) == 4
    now = OutputFolder(tmp_path, {}, "png", tta=False, threshold=0.5)
    if fails:
        now.fail(jobs[0], "damaged")
    else:
        now.write(jobs[0], grey, "", Segmentation(flat, None))
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/a.*")}
    written = {"masks/a.png", "probabilities/a.png", "overlays/a.png"}
    assert found == (set() if fails else written)
    assert set(tmp_path.glob("*/b.*")) == kept


def test_window_and_limit_reach_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.prediction.backends.open_backend", lambda _: GreyBackend())
    dark = np.full((40, 40), 1000, np.uint16)
    dark[:, 20:] = 4000
    cv2.imwrite(str(tmp_path / "a.png"), dark)
    command = ["--run", "r", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--overwrite"]
    brightest = []
    for more in ([], ["--window", "1000,4000"]):
        assert predict.main([*command, *more]) == 0
        brightest.append(int(image(tmp_path / "out" / "probabilities" / "a.png").max()))
    assert brightest[0] < 6000 and brightest[1] > 60000
    assert predict.main([*command, "--max-megapixels", "0.001"]) == 1
    assert "over the limit of 0.001 megapixels" in capsys.readouterr().out


def test_resume_goes_on_where_it_stopped(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = picture_folder(tmp_path / "in", 5)
    command = ["--run", str(run), str(folder), "--batch-size", "1", "--workers", "1", "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert predict.main([*command, str(whole)]) == 0

    from engine.prediction.backends import TorchBackend

    call, calls = TorchBackend.__call__, [0]

    def killed(self, images):
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return call(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(TorchBackend, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            predict.main([*command, str(parts)])
    assert not (parts / "predictions.csv").exists()
    journal = parts / "predictions.partial.csv"
    done = journal.read_text().count("\n") - 1
    assert 0 < done < 5
    # what a kill in the middle of writing leaves
    journal.write_text(journal.read_text() + "scan_4,torn")
    (parts / "masks" / ".scan_4.png.1.tmp").write_bytes(b"half")
    # files that vanished are made again
    first = journal.read_text().split("\n")[1].split(",")[0]
    (parts / "overlays" / f"{first}.jpg").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(
            "engine.prediction.backends.open_backend", lambda _: pytest.fail("loaded the model")
        )
        with pytest.raises(UserError, match="already holds predictions"):
            predict.main([*command, str(parts)])
    calls[0] = -100
    with monkeypatch.context() as patch:
        patch.setattr(TorchBackend, "__call__", killed)
        assert predict.main([*command, str(parts), "--resume"]) == 0
    assert calls[0] == -100 + 5 - done + 1
    assert everything_under(parts) == everything_under(whole)

    # nothing to do, and a changed setting is refused
    assert predict.main([*command, str(parts), "--resume"]) == 0
    with pytest.raises(UserError, match=r"tta: False in the folder, True now"):
        predict.main([*command, str(parts), "--resume", "--tta"])
    with pytest.raises(UserError, match="weights_sha256"):
        other = tmp_path / "other" / "epochs_1"
        write_run(other, run_vae(run), "seed=5")
        predict.main([*command, str(parts), "--resume", "--weights", str(other / "best_model.pth")])
    with pytest.raises(UserError, match="Tiny-VAE decoder sha256"):
        vae = write_vae(tmp_path / "other_vae", seed=1)
        predict.main([*command, str(parts), "--resume", "--set", f"vae_weights={vae}"])
    assert predict.main([*command, str(parts), "--overwrite"]) == 0


def test_a_table_of_before_is_not_that_of_a_run_that_goes_on(tmp_path: Path) -> None:
    folder, out = picture_folder(tmp_path / "in", 2), tmp_path / "out"
    jobs = find_jobs([str(folder)], False, out)
    assert fake_run(out, jobs, resume=False) == ["scan_0", "scan_1"]
    assert len(output_folder(out, {"weights_sha256": "0"}).open(jobs, False, True)) == 2
    assert not (out / "predictions.csv").exists(), "it would name masks that are being replaced"
    assert (out / "predictions.partial.csv").exists()


def test_a_window_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "engine.prediction.backends.open_backend", lambda _: pytest.fail("loaded the model")
    )
    pictures = str(picture_folder(tmp_path / "in", 1))
    with pytest.raises(UserError, match="a window is `auto` or LOW,HIGH"):
        predict.main(["--run", "r", pictures, "--out", str(tmp_path / "out"), "--window", "7"])
    assert not (tmp_path / "out").exists()


def test_resume_mixes_no_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.prediction.backends.open_backend", lambda _: GreyBackend())
    pictures = str(picture_folder(tmp_path / "in", 1))
    command = ["--run", "r", pictures, "--out", str(tmp_path / "out"), "--resume", "--window"]
    assert predict.main([*command, "0,300"]) == 0
    with pytest.raises(UserError, match="window: 0,300 in the folder, 0,400 now"):
        predict.main([*command, "0,400"])


def test_resume_mixes_no_sizes_of_the_input(tmp_path: Path, run: Path) -> None:
    pictures, out = picture_folder(tmp_path / "in", 1), tmp_path / "out"
    command = ["--run", str(run), str(pictures), "--out", str(out), "--resume"]
    assert predict.main(command) == 0
    with pytest.raises(UserError, match="image_size: 32 in the folder, 40 now"):
        predict.main([*command, "--set", "image_size=40"])


def test_resume_mixes_no_orientations(tmp_path: Path, run: Path) -> None:
    pictures, out = picture_folder(tmp_path / "in", 1), tmp_path / "out"
    command = ["--run", str(run), str(pictures), "--out", str(out), "--tta", "--resume"]
    assert predict.main(command) == 0
    with pytest.raises(UserError, match="orientations: 8 in the folder, 2 now"):
        predict.main([*command, "--set", "keep_upright=true"])


def test_resume_mixes_no_precisions(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, out = picture_folder(tmp_path / "in", 1), tmp_path / "out"
    command = ["--run", str(run), str(pictures), "--out", str(out)]
    assert predict.main(command) == 0
    assert json.loads((out / "settings.json").read_text())["precision"] == "fp32"
    before = everything_under(out)
    monkeypatch.setattr("engine.device.resolved_precision", lambda _: "bf16")  # as on a GPU
    with pytest.raises(UserError, match="precision: fp32 in the folder, bf16 now"):
        predict.main([*command, "--resume"])
    assert everything_under(out) == before


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--resume"]])
def test_masks_of_a_data_set_are_spared(tmp_path: Path, run: Path, options: list[str]) -> None:
    """A folder with images/ and masks/ may be taken for a place to write to."""
    images = picture_folder(tmp_path / "study" / "images", 2)
    (images / "scan_1.png").write_bytes(b"damaged")
    masks = picture_folder(tmp_path / "study" / "masks", 2)
    before = {path: path.read_bytes() for path in masks.iterdir()}
    with pytest.raises(UserError, match=r"is no prediction of an earlier run.*--out"):
        predict.main(["--run", str(run), str(images), "--out", str(masks.parent), *options])
    assert {path: path.read_bytes() for path in masks.iterdir()} == before


def output_folder(folder: Path, settings: dict[str, Any] | None = None) -> OutputFolder:
    return OutputFolder(
        folder, settings or {"weights_sha256": "0"}, "jpg", tta=False, threshold=0.5
    )


def test_files_of_other_programs_are_spared(tmp_path: Path) -> None:
    theirs = tmp_path / "project" / ".draft.tmp"
    theirs.parent.mkdir()
    theirs.touch()
    output_folder(tmp_path).open([], resume=False, overwrite=False)
    assert theirs.exists()
    for content in ('{"theme": "dark"}', "[1]", "{}", "half"):
        settings = tmp_path / "theirs" / "settings.json"
        settings.parent.mkdir(exist_ok=True)
        settings.write_text(content)
        with pytest.raises(UserError, match=r"settings\.json is not of an earlier run.*--out"):
            output_folder(settings.parent).open([], resume=False, overwrite=True)
        assert settings.read_text() == content
    # what a run leaves that was killed at once
    settings.write_text('{"weights_sha256": "1"}')
    output_folder(settings.parent).open([], resume=False, overwrite=False)


def test_hidden_files_are_no_masks_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / ".DS_Store").touch()
    output_folder(tmp_path).open([], resume=False, overwrite=False)
    assert (tmp_path / "settings.json").is_file()


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match=r"lies a file.*name another folder by --out"):
            output_folder(folder).open([], resume=False, overwrite=False)


def test_a_folder_that_cannot_be_made_is_told_before_the_model_is_loaded(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("engine.prediction.backends.open_backend", never)
    command = ["--run", str(run), str(picture_folder(tmp_path / "in", 1)), "--out"]
    with pytest.raises(
        UserError, match=r"cannot write to /proc/q/r: .*another folder by --out"
    ) as no:
        predict.main([*command, "/proc/q/r"])
    assert "--resume" not in str(no.value), "there is nothing to continue"
    new = tmp_path / "new" / "out"
    with pytest.raises(AssertionError, match="loaded"):
        predict.main([*command, str(new)])
    assert not new.parent.exists(), "what was tried is not left behind"


def run_vae(run: Path) -> Path:
    from utils.config import load_config

    return Path(load_config(run / "config.yaml").vae_weights)


def test_resume_tries_failed_ones_again(tmp_path: Path, run: Path) -> None:
    folder = picture_folder(tmp_path / "in", 2)
    good = (folder / "scan_1.png").read_bytes()
    (folder / "scan_1.png").write_bytes(good[:100])
    command = ["--run", str(run), str(folder), "--out", str(tmp_path / "out")]
    assert predict.main(command) == 1
    (folder / "scan_1.png").write_bytes(good)
    assert predict.main([*command, "--resume"]) == 0
    assert rows_of(tmp_path / "out")["scan_1"]["status"] == "ok"


def test_resume_predicts_replaced_images_again(tmp_path: Path, run: Path) -> None:
    folder, out = picture_folder(tmp_path / "in", 2), tmp_path / "out"
    command = ["--run", str(run), str(folder), "--out", str(out)]
    assert predict.main(command) == 0
    before = everything_under(out)
    other, mask = folder / "scan_1.png", out / "masks" / "scan_1.png"
    cv2.imwrite(str(other), blob_case(7, 50)[0])
    changed = mask.stat().st_mtime
    os.utime(other, (changed - 1, changed - 1))
    assert predict.main([*command, "--resume"]) == 0
    assert everything_under(out) == before
    os.utime(other, (changed + 1, changed + 1))
    assert predict.main([*command, "--resume"]) == 0
    assert rows_of(out)["scan_1"]["width"] == "50" and image(mask).shape == (50, 50)
    name = "masks/scan_0.png"
    assert everything_under(out)[name] == before[name]
    # an image that is gone keeps its row
    other.unlink()
    other.symlink_to("gone.png")
    assert predict.main([*command, "--resume"]) == 0
    assert rows_of(out)["scan_1"]["status"] == "ok" and mask.exists()


def test_resume_after_a_table_was_saved_by_another_program(tmp_path: Path) -> None:
    folder, out = picture_folder(tmp_path / "in", 2), tmp_path / "out"
    jobs = find_jobs([str(folder)], False, out)

    def resume() -> list[str]:
        return [job.name for job in output_folder(out).open(jobs, resume=True, overwrite=False)]

    first = output_folder(out)
    first.open(jobs, resume=False, overwrite=False)
    read = partial(read_file, max_megapixels=1, window=None)
    for row in predict_files(jobs, read, GreyBackend(), PredictionOptions(), first, 2, 1):
        first.add(row)
    first.close(jobs)
    table = out / "predictions.csv"
    content = table.read_text()
    table.write_bytes(content.replace("\n", "\r\n").encode("utf-8-sig"))
    assert resume() == []
    partial_table = out / "predictions.partial.csv"
    assert partial_table.read_text() == content
    partial_table.write_text(content.replace(",", ";"))
    with pytest.raises(UserError, match=r"partial\.csv has no columns name, file.*--overwrite"):
        resume()
    (out / "settings.json").write_text("[1]")
    with pytest.raises(UserError, match=r"settings\.json cannot be read.*--overwrite"):
        resume()


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_run_in_the_folder_is_refused(tmp_path: Path, resume: bool) -> None:
    folder, out = picture_folder(tmp_path / "in", 2), tmp_path / "out"
    jobs = find_jobs([str(folder)], False, out)
    first = output_folder(out, {"weights_sha256": "0"})
    first.open(jobs, resume=False, overwrite=False)
    for each in (out / "predictions.partial.csv", out / "settings.json"):
        assert each.is_file()
    with pytest.raises(
        UserError, match=r"another run of predict\.py writes into .*out: wait.*--out"
    ):
        fake_run(out, jobs, resume=resume)
    read = partial(read_file, max_megapixels=1, window=None)
    for row in predict_files(jobs, read, GreyBackend(), PredictionOptions(), first, 2, 1):
        first.add(row)
    first.close(jobs)
    assert files_of(out) == {"scan_0": "in", "scan_1": "in"}
    assert fake_run(out, jobs, resume=True) == []


def test_resume_with_other_inputs_keeps_what_is_there(tmp_path: Path, run: Path) -> None:
    first, second = picture_folder(tmp_path / "a", 2), picture_folder(tmp_path / "b", 1)
    out = tmp_path / "out"
    command = ["--run", str(run), "--out", str(out), "--overlay", "none"]
    assert predict.main([*command, str(first)]) == 0
    before = everything_under(out)
    (second / "scan_0.png").rename(second / "other.png")
    assert predict.main([*command, str(second), "--resume"]) == 0
    assert list(rows_of(out)) == ["scan_0", "scan_1", "other"]
    after = everything_under(out)
    assert {name: after[name] for name in before if "/" in name} == {
        name: content for name, content in before.items() if "/" in name
    }


def fake_run(out: Path, jobs: list[Job], resume: bool, **settings: object) -> list[str]:
    """Predict the jobs by a made-up model; the names of those that were not done."""
    folder = output_folder(out, {"weights_sha256": "0", **settings})
    to_do = folder.open(jobs, resume=resume, overwrite=not resume)
    read = partial(read_file, max_megapixels=1, window=None)
    for row in predict_files(to_do, read, GreyBackend(), PredictionOptions(), folder, 2, 1):
        folder.add(row)
    folder.close(jobs)
    return [job.name for job in to_do]


def files_of(out: Path) -> dict[str, str]:
    """Of each row its name and the folder of its image; its mask is there, and no other."""
    rows = rows_of(out)
    assert {path.stem for path in (out / "masks").iterdir()} == set(rows)
    return {name: Path(row["file"]).parent.name for name, row in rows.items()}


def test_resume_follows_a_folder_that_grows(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"

    def resume(*inputs: Path) -> list[str]:
        jobs = find_jobs(list(map(str, inputs)), True, out)
        return fake_run(out, jobs, resume=True)

    picture_folder(folder / "p1", 1)
    assert resume(folder) == ["scan_0"]
    picture_folder(folder / "p2", 1)
    assert resume(folder) == ["p2_scan_0"] and resume(folder) == []
    picture_folder(folder / "p3", 1)
    assert resume(folder / "p3") == ["p3_scan_0"], "the others need not be given"
    assert resume(folder) == [] == resume(folder / "p1" / ".." / "p2")
    assert files_of(out) == {"scan_0": "p1", "p2_scan_0": "p2", "p3_scan_0": "p3"}


def test_overwriting_some_images_keeps_the_rows_of_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("p1", "p2"):
        picture_folder(folder / name, 1)
    (folder / "damaged.png").touch()

    def overwrite(*inputs: Path, **settings: object) -> list[str]:
        jobs = find_jobs(list(map(str, inputs)), True, out)
        return fake_run(out, jobs, False, **settings)

    overwrite(folder / "p1")
    assert files_of(out) == {"scan_0": "p1"}
    own = out / "masks" / "own.png"
    own.write_bytes(b"mine")
    overwrite(folder)
    assert "1 file in " in caplog.text and "names, such as own.png" in caplog.text
    assert own.read_bytes() == b"mine"
    own.unlink()
    caplog.clear()
    assert not list(out.glob("*/scan_0.*")), "the image has another name now"
    (folder / "p1" / "scan_0.png").write_bytes((folder / "p2" / "scan_0.png").read_bytes())
    before = rows_of(out)
    assert overwrite(folder / "p1") == ["p1_scan_0"]
    assert {**rows_of(out), "p1_scan_0": {}} == {**before, "p1_scan_0": {}}

    unchanged = everything_under(out)
    refused = r"holds 1 prediction of other images by other settings \(threshold: None in the folder, 0\.9 now\)"
    with pytest.raises(UserError, match=refused + r".*give all images again, or name another"):
        overwrite(folder / "p1", threshold=0.9)
    (out / "settings.json").write_text("half")
    with pytest.raises(UserError, match=r"settings \(settings\.json cannot be read\)"):
        overwrite(folder / "p1")
    (out / "settings.json").write_bytes(unchanged["settings.json"])
    assert everything_under(out) == unchanged and not caplog.messages
    overwrite(folder, threshold=0.9)
    assert set(rows_of(out)) == set(before)


@pytest.mark.parametrize("resume", [False, True])
def test_images_are_known_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    folder, out = picture_folder(tmp_path / "data" / "scans", 2), tmp_path / "out"

    def predict_in(directory: Path, text: str, **settings: object) -> list[str]:
        monkeypatch.chdir(directory)
        return fake_run(out, find_jobs([text], True, out), resume, **settings)

    done = [] if resume else ["scan_0", "scan_1"]
    predict_in(folder.parent, "scans")
    before = rows_of(out)
    assert before["scan_0"]["file"] == "scans/scan_0.png"
    assert predict_in(folder.parent, "scans") == done and rows_of(out) == before
    assert predict_in(tmp_path, "data/scans") == done
    assert predict_in(folder, "scan_1.png") == done[1:], "the row of scan_0 is of another directory"
    assert predict_in(tmp_path, "data") == done
    assert files_of(out) == dict.fromkeys(("scan_0", "scan_1"), "scans")
    if not resume:
        assert predict_in(tmp_path, "data/scans", threshold=0.9) == done

    # where the folders move together, relative paths stay true
    moved = tmp_path / "moved"
    shutil.rmtree(out)
    predict_in(tmp_path, "data/scans")
    moved.mkdir()
    folder.parent.rename(moved / "data")
    assert predict_in(moved, "data/scans") == done and set(files_of(out)) == {"scan_0", "scan_1"}

    # a folder from before the directory was recorded
    settings = json.loads((out / "settings.json").read_text())
    assert settings.pop("directory") == str(moved)
    (out / "settings.json").write_text(json.dumps(settings))
    assert predict_in(moved, "data/scans") == done and set(files_of(out)) == {"scan_0", "scan_1"}


def test_resume_keeps_the_failed_rows_of_others(tmp_path: Path) -> None:
    first, second, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    picture_folder(first, 1)
    picture_folder(second, 2)
    (first / "bad.png").write_bytes(b"half")
    fake_run(out, find_jobs([str(first)], True, out), True)
    before = rows_of(out)
    assert before["bad"]["status"] == "failed"
    assert fake_run(out, find_jobs([str(second / "scan_1.png")], True, out), True) == ["scan_1"]
    assert list(rows_of(out)) == ["bad", "scan_0", "scan_1"]
    assert {name: rows_of(out)[name] for name in before} == before
    assert fake_run(out, find_jobs([str(first)], True, out), True) == ["bad"], "it is tried again"


def test_a_row_that_a_kill_cut_in_its_note_is_not_done(tmp_path: Path) -> None:
    folder, out = picture_folder(tmp_path / "in", 2), tmp_path / "out"
    jobs = find_jobs([str(folder)], False, out)
    fake_run(out, jobs, resume=False)
    table = out / "predictions.csv"
    whole = table.read_text()
    assert whole.endswith(",ok,\n")
    table.unlink()
    (out / "predictions.partial.csv").write_text(whole[:-1] + "turned upr")
    assert fake_run(out, jobs, resume=True) == ["scan_1"]
    assert table.read_text() == whole


def test_of_many_failures_the_first_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed = [{"file": f"{number}.png", "message": "damaged"} for number in range(23)]
    predict.log_failures(failed, tmp_path / "predictions.csv")
    assert len(caplog.messages) == 20 + 2 and caplog.messages[1] == "  0.png: damaged"
    assert caplog.messages[-1] == f"  and 3 more, see {tmp_path / 'predictions.csv'}"


def test_an_image_that_is_gone_and_other_settings(tmp_path: Path) -> None:
    folder, out = picture_folder(tmp_path / "in", 2), tmp_path / "out"
    fake_run(out, find_jobs([str(folder)], True, out), False)
    (folder / "scan_0.png").unlink()
    jobs = find_jobs([str(folder)], True, out)
    with pytest.raises(UserError, match=r"delete .*out, or .*--out; .*scan_0\.png does not exist"):
        fake_run(out, jobs, False, threshold=0.9)
    assert set(rows_of(out)) == {"scan_0", "scan_1"}
    fake_run(out, jobs, False)
    assert set(rows_of(out)) == {"scan_0", "scan_1"}


def test_overwriting_where_the_table_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = picture_folder(tmp_path / "in", 2), tmp_path / "out"
    fake_run(out, find_jobs([str(folder)], True, out), False)
    table = out / "predictions.csv"
    table.write_text(table.read_text().replace("status", "state"))
    fake_run(out, find_jobs([str(folder / "scan_0.png")], True, out), False, threshold=0.9)
    assert caplog.messages[0] == (
        f"the rows of {table} cannot be read: predictions of other images in {out} stay without rows"
    )
    assert set(rows_of(out)) == {"scan_0"} and (out / "masks" / "scan_1.png").exists()


def test_a_changed_table_leads_nowhere_else(tmp_path: Path) -> None:
    folder, out = picture_folder(tmp_path / "in", 1), tmp_path / "out"
    jobs = find_jobs([str(folder)], False, out)
    for resume in (False, True):
        fake_run(out, jobs, False)
        table, elsewhere = out / "predictions.csv", tmp_path / "x.png"
        table.write_text(table.read_text().replace("\nscan_0,", "\n../../x,"))
        elsewhere.write_bytes(b"mine")
        fake_run(out, jobs, resume)
        assert elsewhere.read_bytes() == b"mine" and list(rows_of(out)) == ["scan_0"]


@pytest.mark.parametrize("writes_before", [0, 4, 7])
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, writes_before: int
) -> None:
    folder = picture_folder(tmp_path / "in", 4)
    out = tmp_path / "out"
    command = ["--run", str(run), str(folder), "--batch-size", "1", "--out", str(out)]
    write, left = Path.write_bytes, [writes_before]

    def full(self: Path, data: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        advice = "--resume" if writes_before else "Nothing was predicted: name another folder"
        with pytest.raises(UserError, match=f"No space left on device.*{advice}"):
            predict.main(command)
    assert not list(out.rglob("*.tmp")) and not (out / "predictions.csv").exists()
    for path in out.glob("*/*.*"):
        assert image(path).shape[:2] == (40, 40)
    assert predict.main([*command, "--resume"]) == 0
    assert {row["status"] for row in rows_of(out).values()} == {"ok"}


def test_a_nan_output_fails_its_picture_alone(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.prediction.backends import TorchBackend

    call = TorchBackend.__call__

    def poisoned(self, images):
        result = call(self, images).copy()
        result[0, 3, 3] = np.nan
        return result

    monkeypatch.setattr(TorchBackend, "__call__", poisoned)
    out = tmp_path / "out"
    folder = picture_folder(tmp_path / "in", 4)
    command = ["--run", str(run), str(folder), "--batch-size", "2", "--out", str(out)]
    assert predict.main(command) == 1
    rows = rows_of(out)
    assert [row["status"] for row in rows.values()] == ["failed", "ok", "failed", "ok"]
    assert "not a number" in rows["scan_0"]["message"]
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["scan_1.png", "scan_3.png"]


@pytest.mark.parametrize("returned", [(False, ()), None], ids=["OpenCV 5", "OpenCV 4"])
def test_an_image_too_long_for_its_overlay_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: object
) -> None:
    encode, side = cv2.imencode, 65_501

    def limited(suffix: str, pixels: np.ndarray, *others: object) -> object:
        if suffix != ".jpg" or max(pixels.shape) < side:
            return encode(suffix, pixels, *others)
        if returned is None:
            raise cv2.error("Maximum supported image dimension is 65500 pixels")
        return returned

    monkeypatch.setattr(cv2, "imencode", limited)
    folder = picture_folder(tmp_path / "in", 1)
    cv2.imwrite(str(folder / "long.png"), np.zeros((1, side), np.uint8))
    jobs = find_jobs([str(folder)], False, tmp_path)
    out = OutputFolder(tmp_path / "out", {}, "jpg", tta=False, threshold=0.5)
    out.open(jobs, resume=False, overwrite=False)
    read = partial(read_file, max_megapixels=1, window=None)
    rows = list(
        predict_files(jobs, read, GreyBackend(), PredictionOptions(), out, batch_size=2, workers=1)
    )
    assert {row["name"]: row["status"] for row in rows} == {"long": "failed", "scan_0": "ok"}
    assert rows[0]["message"].startswith(f"pixels (1, {side}, 3) uint8 (rows first) cannot be writ")
    assert not list((tmp_path / "out").glob("*/long*"))


def test_png_keeps_pixels_and_names_those_it_cannot_hold() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (3, 5)).astype(np.uint16)
    content = np.frombuffer(encode_png(pixels), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(content, cv2.IMREAD_UNCHANGED), pixels)
    for shape in ((0, 5), (1, 1_000_001)):
        with pytest.raises(UserError, match=re.escape(f"pixels {shape} uint8")):
            encode_png(np.zeros(shape, np.uint8))


def test_unusable_models_are_refused(tmp_path: Path, run: Path) -> None:
    picture = str(picture_folder(tmp_path / "in", 1) / "scan_0.png")
    rest = [picture, "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"no config\.yaml"):
        predict.main(["--run", str(tmp_path), *rest])
    with pytest.raises(UserError, match=r"no checkpoint at .*--weights.* model_weight="):
        predict.main(["--run", str(run), "--weights", str(tmp_path / "none.pth"), *rest])
    other = tmp_path / "other" / "epochs_1"
    write_run(other, run_vae(run), "vae_model=tiny_vae", "guidance_method=wavelet")
    with pytest.raises(UserError, match="does not fit this model"):
        predict.main(["--run", str(run), "--weights", str(other / "best_model.pth"), *rest])
    with pytest.raises(UserError, match="--weights goes with"):
        predict.main(["--onnx", "model.onnx", "--weights", str(run / "best_model.pth"), *rest])
    with pytest.raises(UserError, match="nothing to predict"):
        predict.main(["--run", str(run), str(tmp_path / "nothing"), *rest[1:]])
    assert not (tmp_path / "out").exists()


def test_config_and_weights_replace_a_run(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(picture_folder(tmp_path / "in", 1) / "scan_0.png")
    model = ["--config", str(run / "config.yaml"), "--weights", str(run / "best_model.pth")]
    assert predict.main([*model, picture, "--out", str(tmp_path / "a")]) == 0
    assert predict.main(["--run", str(run), picture, "--out", str(tmp_path / "b")]) == 0
    assert everything_under(tmp_path / "a") == everything_under(tmp_path / "b")

    capsys.readouterr()
    other = tmp_path / "project"  # of another program, with a config of its own
    other.mkdir()
    (other / "config.yaml").write_text("learning_rate: 0.1")
    model[3] = str(shutil.copy(run / "best_model.pth", other))
    assert predict.main([*model, picture, "--out", str(tmp_path / "c")]) == 0
    assert everything_under(tmp_path / "c") == everything_under(tmp_path / "b")
    said = capsys.readouterr().out
    assert re.search(r"not known how these weights(.|\n)*unknown key", said)


def test_keys_of_another_machine_can_be_changed(tmp_path: Path, run: Path) -> None:
    picture = str(picture_folder(tmp_path / "in", 1) / "scan_0.png")
    config = tmp_path / "config.yaml"
    lines = (run / "config.yaml").read_text().splitlines()
    elsewhere = ["vae_weights: /scratch/vae" if "vae_weights" in line else line for line in lines]
    config.write_text("\n".join(elsewhere))
    model = ["--config", str(config), "--weights", str(run / "best_model.pth")]
    with pytest.raises(UserError, match="/scratch/vae"):
        predict.main([*model, picture, "--out", str(tmp_path / "a")])
    changed = ["--set", f"vae_weights={run_vae(run)}", "--set", "threshold=0.4"]
    assert predict.main([*model, *changed, picture, "--out", str(tmp_path / "a")]) == 0
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert settings["threshold"] == 0.4
    with pytest.raises(UserError, match="--set goes with --run or --config"):
        predict.main(["--onnx", "x.onnx", *changed, picture, "--out", str(tmp_path / "b")])


def test_too_little_memory_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("models.wave_gms.WaveGMS.forward", too_large)
    pictures = str(picture_folder(tmp_path / "in", count=2))
    with pytest.raises(UserError, match=r"out of memory with 2 images of .*--batch-size N"):
        predict.main(["--run", str(run), pictures, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "option",
    [
        ["--threshold", "1.5"],
        ["--overlap", "1", "--tiles"],
        ["--overlap", "0.25"],  # without tiles
        ["--batch-size", "0"],
        ["--workers", "0"],
        ["--max-megapixels", "inf"],
    ],
)
def test_options_out_of_range(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict.main(["--run", "x", "y", "--out", "z", *option])
    assert re.search(f"{option[0]}( must be|: expected) ", capsys.readouterr().err)


def test_inputs_may_follow_options(tmp_path: Path) -> None:
    command = ["--run", "R", "a.png", "--out", str(tmp_path / "o"), "--window", "-160,240", "b.png"]
    arguments = predict.parse_arguments([*command, "--tta", "image_size=256"])
    assert arguments.inputs == ["a.png", "b.png", "image_size=256"]
    assert arguments.tta and arguments.window == (-160, 240)
    (tmp_path / "a.png").touch()
    rest = [str(tmp_path / "a.png"), "--out", str(tmp_path / "o"), "image_size=256"]
    with pytest.raises(UserError, match="is changed by --set image_size=256"):
        predict.main(["--run", "R", *rest])


@pytest.mark.parametrize("program", [predict, app], ids=["predict", "app"])
def test_a_window_may_begin_below_0(program: ModuleType) -> None:
    rest = ["scan.png", "--out", "out"] if program is predict else []
    for text, window in (("-160,240", (-160, 240)), ("-.5,1", (-0.5, 1))):
        arguments = program.parse_arguments(["--run", "run", "--window", text, *rest])
        assert arguments.window == window


def test_help_and_errors_need_no_torch() -> None:
    code = (
        "import sys, predict\n"
        "try: predict.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "not for clinical use" in result.stdout


def test_the_network_gets_red_first() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    backend = GreyBackend(lambda images: images[:, 0])
    ((_, result),) = segment(backend, [("a", red)], PredictionOptions(), batch_size=1)
    assert (result.probability == 1).all()


def test_uncertainty_is_blended_over_tiles() -> None:
    left = np.zeros((16, 16), np.float32)
    left[:, :8] = 1  # half of the orientations see a pixel as foreground
    backend = GreyBackend(lambda images: np.repeat(left[None], len(images), axis=0))
    method = PredictionOptions(tiles=True, tta=True)
    ((_, result),) = segment(backend, [("a", noise(30, 50))], method, batch_size=3)
    assert result.uncertainty is not None
    np.testing.assert_allclose(result.uncertainty, 0.5, atol=1e-5)
