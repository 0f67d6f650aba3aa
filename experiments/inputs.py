"""Files that a training starts from, by their hashes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from utils.config import Config
from utils.files import sha256
from utils.vae_weights import FILES, weights_folder


def vae_file(vae_weights: str) -> Path | None:
    """The file of the VAE's weights; None where they are not in a folder here, such as those of a hub id."""
    folder = weights_folder(vae_weights)
    file = folder / FILES[1] if folder else None
    return file if file and file.is_file() else None


def vae_sha256(config: Config) -> str | None:
    """Hash of the file of the VAE's weights; None where it is not here, and for models without a VAE."""
    file = vae_file(config.vae_weights) if config.is_wave_gms else None
    return sha256_of(file) if file else None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read again only when it has changed: reports are written after every trial."""
    status = path.stat()
    return _sha256_at(path, status.st_mtime_ns, status.st_size)


@cache
def _sha256_at(path: Path, modified: int, size: int) -> str:
    return sha256(path)
