"""Files that a training starts from, by their hashes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from utils.config import Config
from utils.errors import UserError
from utils.files import REPOSITORY, sha256
from utils.vae_weights import FILES, may_be_hub_id, weights_folder


def vae_file(vae_weights: str) -> Path | None:
    """The file of the VAE's weights; None where they are not in a folder here, such as those of a hub id."""
    folder = weights_folder(vae_weights)
    file = folder / FILES[1] if folder else None
    return file if file and file.is_file() else None


def vae_sha256(config: Config) -> str | None:
    """Hash of the file of the VAE's weights; None where it is not here, and for models without a VAE."""
    file = vae_file(config.vae_weights) if config.is_wave_gms else None
    return sha256_of(file) if file else None


def check_weights(config: Config, where: str) -> None:
    """UserError where the folder of the VAE's weights, the file of initial weights or one of the teachers is
    missing.

    What may be an id on the Hugging Face hub (`owner/name`) is let through, unless `owner` is a folder of the
    repository, such as ckpt.
    """
    name = config.vae_weights
    if config.is_wave_gms and not may_be_hub_id(name) and weights_folder(name) is None:
        raise UserError(f"{where}: vae_weights: there is no folder {name} here or in {REPOSITORY}")
    if config.init_weights and not config.init_weights.is_file():
        raise UserError(f"{where}: init_weights: there is no file {config.init_weights}")
    for teacher in config.teachers:
        if not teacher.is_file():
            raise UserError(f"{where}: teachers: there is no file {teacher}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read again only when it has changed: reports are written after every trial."""
    status = path.stat()
    return _sha256_at(path, status.st_mtime_ns, status.st_size)


@cache
def _sha256_at(path: Path, modified: int, size: int) -> str:
    return sha256(path)
