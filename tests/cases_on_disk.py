"""Small data sets written to a temporary folder, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np


def blob_case(index: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A noisy grey image with a dark ellipse, and its mask: (size, size) uint8 twice."""
    rng = np.random.default_rng(index)
    mask = np.zeros((size, size), np.uint8)
    centre = rng.integers(size * 3 // 8, size * 5 // 8, 2).tolist()
    axes = rng.integers(size // 8, size // 4, 2).tolist()
    cv2.ellipse(mask, centre, axes, float(rng.integers(0, 180)), 0, 360, 255, -1)
    image = rng.normal(150, 12, (size, size)) - 0.35 * mask
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_data_set(
    root: Path, train: int = 10, test: int = 3, size: int = 64, name: str = "blobs"
) -> Path:
    """Write `root/<name>/` as preparation does; returns the split file."""
    folder = root / name
    names = [f"case_{i}" for i in range(train + test)]
    for index, case in enumerate(names):
        image, mask = blob_case(index, size)
        for kind, pixels in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / f"{case}.png"), pixels)
    split = folder / f"{name}_train_test_names.json"
    split.write_text(
        json.dumps({"train": {"name_list": names[:train]}, "test": {"name_list": names[train:]}})
    )
    return split
