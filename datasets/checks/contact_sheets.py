"""Images to look at: random cases with their masks outlined, and near-duplicates side by side.

`files` give each case's image and mask by name; results are (H, W, 3) BGR.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.checks.near_duplicates import NearDuplicate
from datasets.image_files.decoding import read_pixels
from datasets.image_files.masks import read_binary_mask
from utils.files import atomic_write
from utils.images import encode_png
from utils.overlay import draw_outline

CASES = 30
NEAR_DUPLICATES = 60
CELL = 200
"""Side of one image in pixels."""
FONT_SCALE = 0.4
OUTLINE = (0, 220, 255)  # BGR, yellow

Files = Mapping[str, tuple[Path, Path]]


def contact_sheet(files: Files) -> np.ndarray:
    """Random cases with their masks outlined."""
    chosen = random.Random(0).sample(sorted(files), min(CASES, len(files)))
    return _grid([_labelled(_outlined(*files[name]), name) for name in chosen], columns=6)


def near_duplicate_sheet(
    files: Files, duplicates: Sequence[NearDuplicate], test: set[str]
) -> np.ndarray:
    """Pairs side by side: those across train and test first, of these the least certain first."""

    def order(duplicate: NearDuplicate) -> tuple[bool, float]:
        return (duplicate.first in test) == (duplicate.second in test), duplicate.correlation

    cells = []
    for duplicate in sorted(duplicates, key=order)[:NEAR_DUPLICATES]:
        pair = []
        for name in (duplicate.first, duplicate.second):
            part = "test" if name in test else "train"
            pair.append(_labelled(_outlined(*files[name]), name, f" ({part})"))
        cells.append(np.hstack(pair))
    return _grid(cells, columns=4)


def write_sheet(path: Path, sheet: np.ndarray) -> None:
    atomic_write(path, encode_png(sheet))


def _outlined(image_path: Path, mask_path: Path) -> np.ndarray:
    image = _fitted(read_pixels(image_path, cv2.IMREAD_COLOR))
    mask, _ = read_binary_mask(mask_path)
    size = (image.shape[1], image.shape[0])
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    draw_outline(image, small, OUTLINE, thickness=1)
    return image


def _fitted(image: np.ndarray) -> np.ndarray:
    scale = CELL / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _labelled(image: np.ndarray, name: str, part: str = "") -> np.ndarray:
    """The image in a cell (CELL + 20, CELL + 4, 3), standing on its label."""
    cell = np.zeros((CELL + 20, CELL + 4, 3), np.uint8)
    height, width = image.shape[:2]
    cell[CELL - height : CELL, :width] = image
    label = _fitting(name, part)
    cv2.putText(cell, label, (2, CELL + 14), cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, (255, 255, 255))
    return cell


def _fitting(name: str, part: str) -> str:
    """Name and part; of a name too wide for the cell only the end, which tells slices apart."""
    label = name + part
    while name and _text_width(label) > CELL:
        name = name[1:]
        label = f"...{name}{part}"
    return label


def _text_width(text: str) -> int:
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, thickness=1)[0][0]


def _grid(cells: Sequence[np.ndarray], columns: int) -> np.ndarray:
    if not cells:
        return _labelled(np.zeros((1, 1, 3), np.uint8), "none")
    blank = np.zeros_like(cells[0])
    padded = [*cells, *[blank] * (-len(cells) % columns)]
    rows = [np.hstack(padded[at : at + columns]) for at in range(0, len(padded), columns)]
    return np.vstack(rows)
