"""Learning is shown, not hoped for: the whole model fits a handful of images."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import train
from tests.cases_on_disk import write_data_set

ROOT = Path(__file__).resolve().parents[1]


def test_overfits_a_handful_of_images(tmp_path: Path) -> None:
    split = write_data_set(tmp_path, train=16, test=4, size=48)
    for index in range(4, 16):  # four images, four times per epoch: fewer epochs, which cost time
        for kind in ("images", "masks"):
            folder = split.parent / kind
            shutil.copyfile(folder / f"case_{index % 4}.png", folder / f"case_{index}.png")
    settings = [
        f"pickle_file_path={split}",
        f"snapshot_path={tmp_path / 'run'}",
        f"vae_weights={ROOT / 'ckpt' / 'tiny_vae'}",
        "select_on=test",
        "augment=false",
        "image_size=48",
        "batch_size=4",
        "epochs=26",
        "warmup_epochs=0.75",
        "validate_every=26",
        "num_workers=0",
    ]
    train.main(["--config", str(ROOT / "configs" / "base.yaml"), *settings])
    with (tmp_path / "run" / "epochs_26" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["train_dice"]) < 0.5
    assert float(rows[-1]["train_dice"]) >= 0.9
