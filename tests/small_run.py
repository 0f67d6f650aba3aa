"""The arguments of a small training run, for tests."""

from __future__ import annotations

from pathlib import Path

from tests.cases_on_disk import write_data_set

ROOT = Path(__file__).resolve().parents[1]


def arguments(tmp_path: Path, vae: Path, *overrides: str, out: str = "run") -> list[str]:
    """Arguments of train.py and valid.py: two epochs of three steps at 32 px, into `tmp_path/out`."""
    split = tmp_path / "blobs" / "blobs_train_test_names.json"
    if not split.exists():
        write_data_set(tmp_path, train=9, test=3, size=32)
    settings = {
        "pickle_file_path": split,
        "snapshot_path": tmp_path / out,
        "vae_weights": vae,
        "image_size": 32,
        "batch_size": 2,
        "epochs": 2,
        "warmup_epochs": 1,
        "num_workers": 0,
        "val_fraction": 0.2,
    }
    settings |= dict(override.split("=", 1) for override in overrides)
    base = ["--config", str(ROOT / "configs" / "base.yaml")]
    return [*base, *(f"{key}={value}" for key, value in settings.items())]
