"""Small archives in the layouts in which the data sets are published."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.prepare import main
from utils.entry import exit_from


def prepare(arguments: Sequence[str]) -> object:
    """Exit code of `python -m datasets.prepare` with these arguments, in this process."""
    with pytest.raises(SystemExit) as stop:
        exit_from(lambda: main(arguments))
    return stop.value.code


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def jpg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def turned(pixels: np.ndarray, tag: int, suffix: str = ".jpg") -> bytes:
    """An image file with an orientation tag; `pixels` are stored as they are."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(pixels).save(file, Image.registered_extensions()[suffix], exif=exif)
    return file.getvalue()


def bmp(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".bmp", pixels)[1].tobytes()


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """(height, width, 3) uint8, different for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def square(row: int, column: int, side: int = 6, height: int = 24, width: int = 32) -> np.ndarray:
    """(height, width) uint8, 255 in a square and 0 elsewhere."""
    mask = np.zeros((height, width), np.uint8)
    mask[row : row + side, column : column + side] = 255
    return mask


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def busi_files(benign: int = 6, malignant: int = 3, normal: int = 2) -> dict[str, bytes]:
    """BUSI's layout; `benign (2)` has three masks."""
    top = "Dataset_BUSI_with_GT"
    files = {}
    kinds = {"benign": benign, "malignant": malignant, "normal": normal}
    for order, (kind, count) in enumerate(kinds.items()):
        for number in range(1, count + 1):
            stem = f"{top}/{kind}/{kind} ({number})"
            mask = square(2, number) if kind != "normal" else np.zeros((24, 32), np.uint8)
            files[f"{stem}.png"] = png(picture(100 * order + number))
            files[f"{stem}_mask.png"] = png(mask)
    files[f"{top}/benign/benign (2)_mask_1.png"] = png(square(15, 20))
    files[f"{top}/benign/benign (2)_mask_2.png"] = png(square(17, 22))
    return files
