"""Contact sheets: what belongs to which image, and labels that stay whole where it matters."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.checks.contact_sheets import CELL, Files, contact_sheet, near_duplicate_sheet
from datasets.checks.near_duplicates import NearDuplicate


@pytest.fixture
def landscape(tmp_path: Path) -> tuple[Path, Path]:
    """A grey image twice as wide as high, and an empty mask."""
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    cv2.imwrite(str(image), np.full((50, 100, 3), 90, np.uint8))
    cv2.imwrite(str(mask), np.zeros((50, 100), np.uint8))
    return image, mask


def test_a_landscape_image_stands_on_its_label(landscape):
    sheet = contact_sheet({"case_1": landscape})
    is_image = (sheet == 90).all(-1)[:, 0]
    assert np.flatnonzero(is_image).tolist() == list(range(CELL // 2, CELL))
    assert (sheet[CELL:] > 0).any(), "no label"


def test_the_least_certain_pairs_across_train_and_test_come_first(tmp_path: Path) -> None:
    files = {}
    for grey, name in zip(range(40, 160, 20), "abcdef", strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((50, 50), grey, np.uint8))
        cv2.imwrite(str(tmp_path / f"{name}_mask.png"), np.zeros((50, 50), np.uint8))
        files[name] = tmp_path / f"{name}.png", tmp_path / f"{name}_mask.png"
    duplicates = [
        NearDuplicate(first, second, correlation, overlap=1.0, inliers=50)
        for first, second, correlation in (("a", "b", 0.91), ("c", "d", 0.99), ("e", "f", 0.95))
    ]
    sheet = near_duplicate_sheet(files, duplicates, test={"d", "e"})
    greys = sheet[CELL // 2, CELL // 2 :: CELL + 4, 0]
    assert greys[:6].tolist() == [120, 140, 80, 100, 40, 60]


def test_long_names_keep_their_end_and_their_part(landscape):
    long = "WWWWWWWW_series_0003_with_a_long_name_slice_"
    first, second, other = f"{long}001", f"{long}002", f"{long}003"
    files: Files = dict.fromkeys((first, second, other), landscape)

    def sheet(second: str, test: set[str]) -> np.ndarray:
        duplicate = NearDuplicate(first, second, 0.9, overlap=1.0, inliers=50)
        return near_duplicate_sheet(files, [duplicate], test)[:, : 2 * (CELL + 4)]

    assert (sheet(second, {first}) != sheet(second, {first, second})).any(), "train or test?"
    assert (sheet(second, {first}) != sheet(other, {first})).any(), "slice 2 or 3?"
    assert not sheet(second, {first})[CELL:, -4:].any(), "the label is cut"
