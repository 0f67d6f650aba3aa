"""Procedural crops and the teacher's answers to them, computed once and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distillation.procedural import procedural_crops
from distillation.scores import decode, encode
from models.vae import DOWNSAMPLING, LATENT_CHANNELS
from utils.checkpoints import weights_sha256
from utils.files import atomic_write
from utils.runs import writing_to


@dataclass
class Pool:
    """Chunks of crops with the teacher's latents and, for the decoder, its outputs.

    Each is computed when it is first asked for, and again where its file is damaged or of another shape.
    """

    folder: Path
    teacher: Any
    seed: int
    """Chunk i is drawn from `seed` + i, so that seeds next to each other share most of their chunks."""
    size: int = 64
    """Side of a crop in pixels."""
    chunk: int = 1024
    """Crops per chunk."""

    @cached_property
    def teacher_sha256(self) -> str:
        """SHA-256 of the teacher's weights; the names of the files carry its first characters."""
        return weights_sha256(self.teacher)

    def latents(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Crops (N, S, S, 3) uint8 and teacher latents (N, 4, S/8, S/8) float32 of a chunk."""
        path, side = self._path("latents", index), self.size // DOWNSAMPLING
        shapes: dict[str, tuple[int, ...]] = {
            "crops": (self.chunk, self.size, self.size, 3),
            "latents": (self.chunk, LATENT_CHANNELS, side, side),
        }
        chunk = _load(path, shapes)
        if chunk is None:
            crops = procedural_crops(self.seed + index, self.chunk, self.size)
            chunk = {"crops": crops, "latents": encode(self.teacher, crops, batch=32)}
            _save(path, chunk)
        return chunk["crops"], chunk["latents"]

    def outputs(self, index: int) -> np.ndarray:
        """The teacher's decoding of its own latents, (N, 3, S, S) float16 in [-1, 1]."""
        path = self._path("outputs", index)
        chunk = _load(path, {"outputs": (self.chunk, 3, self.size, self.size)})
        if chunk is None:
            decoded = decode(self.teacher, self.latents(index)[1], batch=32)
            chunk = {"outputs": decoded.clamp(-1, 1).half().numpy()}
            _save(path, chunk)
        return chunk["outputs"]

    def window(self, last: int, chunks: int, with_outputs: bool) -> list[np.ndarray]:
        """Crops, latents and, if asked for, outputs of chunk `last` and those before it."""
        indices = range(max(0, last - chunks + 1), last + 1)
        columns: list[list[np.ndarray]] = [
            list(column) for column in zip(*map(self.latents, indices), strict=True)
        ]
        if with_outputs:
            columns.append([self.outputs(index) for index in indices])
        return [np.concatenate(column) for column in columns]

    def _path(self, what: str, index: int) -> Path:
        origin = f"{self.teacher_sha256[:12]}_{self.seed}"
        return self.folder / f"{what}_{origin}_{self.size}_{self.chunk}_{index:04d}.npz"


def _load(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
    """Arrays of a chunk by name; None where the file is absent or unusable, so that it is drawn."""
    if not path.exists():
        return None
    try:
        with np.load(path) as data:
            chunk = {name: data[name] for name in shapes}
    except Exception as error:  # damaged bytes make the reader raise errors of every kind
        print(f"{path} cannot be read ({error}); it is drawn again")
        return None
    found = {name: array.shape for name, array in chunk.items()}
    if found != shapes:
        print(f"{path} holds arrays of shape {found}, expected {shapes}; it is drawn again")
        return None
    return chunk


def _save(path: Path, chunk: dict[str, np.ndarray]) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **chunk)  # type: ignore[arg-type]

    with writing_to(path.parent):
        atomic_write(path, write)
