"""Procedural crops and the teacher's answers to them, computed once and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets.procedural import procedural_crops
from distillation.scores import decode, encode
from engine.provenance import weights_sha256
from utils.files import atomic_write


@dataclass
class Pool:
    """Chunks of crops with the teacher's latents and, for the decoder, its outputs."""

    folder: Path
    teacher: Any
    seed: int
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
        path = self._path("latents", index)
        if not path.exists():
            crops = procedural_crops(self.seed + index, self.chunk, self.size)
            _save(path, crops=crops, latents=encode(self.teacher, crops, batch=32))
        with np.load(path) as data:
            return data["crops"], data["latents"]

    def outputs(self, index: int) -> np.ndarray:
        """The teacher's decoding of its own latents, (N, 3, S, S) float16 in [-1, 1]."""
        path = self._path("outputs", index)
        if not path.exists():
            decoded = decode(self.teacher, self.latents(index)[1], batch=32)
            _save(path, outputs=decoded.clamp(-1, 1).half().numpy())
        with np.load(path) as data:
            return data["outputs"]

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


def _save(path: Path, **arrays: np.ndarray) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    atomic_write(path, write)
