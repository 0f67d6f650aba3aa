"""The weights that come with the repository do what their cards say."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.phantom import phantom_case
from engine.backends import TorchBackend, find_run
from utils.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PROVIDED = sorted((ROOT / "ckpt" / "provided_models").iterdir())
OTHER_SEED = 11  # no phantom of this seed took part in training


@pytest.mark.parametrize("folder", PROVIDED, ids=lambda folder: folder.name)
def test_a_folder_is_small_and_has_a_card(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} >= {"best_model.safetensors", "config.yaml"}
    card = (folder / "README.md").read_text()
    for part in ("training data", "measured", "limitations", "licence", "not for clinical use"):
        assert part in card
    assert (folder / "best_model.safetensors").stat().st_size < 6e6
    config = load_config(folder / "config.yaml")
    for path in (config.pickle_file_path, config.snapshot_path, Path(config.vae_weights)):
        assert not path.is_absolute(), path


def test_the_weights_trained_on_phantoms_segment_others() -> None:
    backend = TorchBackend(*find_run(ROOT / "ckpt" / "provided_models" / "phantom"))
    size = backend.image_size
    cases = [phantom_case(index, seed=OTHER_SEED) for index in range(14)]
    cases = [case for case in cases if case.kind != "normal"][:12]
    images = [cv2.resize(case.image, (size, size), interpolation=cv2.INTER_AREA) for case in cases]
    masks = [cv2.resize(case.mask, (size, size), interpolation=cv2.INTER_NEAREST) for case in cases]
    batch = np.stack([np.repeat(image[None], 3, axis=0) for image in images]) / np.float32(255)
    found = backend(batch) >= backend.threshold
    dice = [
        2 * np.sum(prediction & (mask > 0)) / (prediction.sum() + (mask > 0).sum())
        for prediction, mask in zip(found, masks, strict=True)
    ]
    assert np.mean(dice) > 0.85
