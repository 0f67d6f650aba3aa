"""What a result depends on besides config and data: versions, commit, hardware."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from typing import Any

from utils.files import REPOSITORY

RECORDED_PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "accelerate",
    "safetensors",
    "segmentation-models-pytorch",
    "timm",
    "numpy",
    "opencv-python-headless",
    "scipy",
)


def describe_environment() -> dict[str, Any]:
    """Versions, commit and hardware: what else a result depends on."""
    import torch

    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with `+changes` where tracked files differ; None outside of git."""
    try:
        described = subprocess.run(
            [
                "git",
                "-C",
                str(REPOSITORY),
                "describe",
                "--always",
                "--abbrev=40",
                "--dirty=+changes",
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
