from __future__ import annotations

import numpy as np
import pytest

from distillation.procedural import MIXTURE, procedural_crops, scene


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return procedural_crops(seed=5, count=240, size=64)


def test_same_seed_gives_the_same_crops(crops: np.ndarray) -> None:
    assert crops.shape == (240, 64, 64, 3)
    assert crops.dtype == np.uint8
    first, again, other = (procedural_crops(seed, 24, 32) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_mixture_holds_masks_greys_and_colours(crops: np.ndarray) -> None:
    is_mask = np.isin(crops, (0, 255)).all(axis=(1, 2, 3))
    is_grey = (crops.max(axis=3) - crops.min(axis=3)).max(axis=(1, 2)) < 8
    assert 0.08 < is_mask.mean() < 0.35
    assert is_grey.mean() > 0.7
    leaves = [scene(np.random.default_rng(seed), "leaves", 64) for seed in range(12)]
    assert 3 < sum(bool((leaf.max(axis=2) - leaf.min(axis=2)).max() > 60) for leaf in leaves) < 10


@pytest.mark.parametrize("family", sorted(MIXTURE))
def test_each_family_draws_a_full_scene(family: str) -> None:
    images = [scene(np.random.default_rng(seed), family, 96) for seed in range(6)]
    for image in images:
        assert image.shape == (96, 96, 3)
        assert image.dtype == np.uint8
    assert max(image.std() for image in images) > 15


def test_masks_are_binary_and_reach_from_empty_to_full() -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([scene(rng, "mask", 64) for _ in range(80)])
    assert set(np.unique(masks)) == {0, 255}
    covered = masks.mean(axis=(1, 2, 3)) / 255
    assert covered.min() == 0
    assert covered.max() == 1
    assert ((covered > 0.02) & (covered < 0.5)).mean() > 0.3


def test_phantom_scenes_vary_as_scans_do() -> None:
    rng = np.random.default_rng(0)
    scenes = [scene(rng, "phantom")[..., 1].astype(float) for _ in range(10)]
    levels = [image.mean() for image in scenes]
    sharpness = [np.abs(np.diff(image, axis=0)).mean() for image in scenes]
    assert np.ptp(levels) > 40
    assert max(sharpness) > 2 * min(sharpness)


def test_crops_are_mirrored_but_never_upside_down(monkeypatch: pytest.MonkeyPatch) -> None:
    slope = np.add.outer(2 * np.arange(64), np.arange(64)).astype(np.uint8)
    monkeypatch.setattr("distillation.procedural.scene", lambda *_: np.dstack([slope] * 3))
    crops = procedural_crops(0, 24, 32)[..., 0].astype(int)
    assert (np.diff(crops, axis=1) == 2).all()
    assert {int(crop[0, 1] - crop[0, 0]) for crop in crops} == {-1, 1}


def test_unknown_family_and_oversized_crop_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'photograph'.*phantom"):
        scene(np.random.default_rng(0), "photograph")
    with pytest.raises(ValueError, match="at most 224"):
        procedural_crops(0, 1, 256)
