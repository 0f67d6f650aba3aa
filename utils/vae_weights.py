"""Where `vae_weights` points: a folder on the disk, or what may be an id on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from utils.files import REPOSITORY

FILES = ("config.json", "diffusion_pytorch_model.safetensors")
"""What the folder of a VAE holds, in diffusers' layout."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name


def weights_folder(name: str) -> Path | None:
    """Folder of the VAE's weights, here or in the repository; None where there is none."""
    folders = (Path(name).expanduser(), REPOSITORY / name)
    return next((folder for folder in folders if folder.is_dir()), None)


def may_be_hub_id(name: str) -> bool:
    """Whether it has the form of an id, and its owner is no folder of the repository, such as ckpt."""
    return bool(HUB_ID.fullmatch(name)) and not (REPOSITORY / name).parent.is_dir()
