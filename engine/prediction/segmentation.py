"""From images of any size to probabilities of the same size, batch by batch.

An image is resized to the model's square, or cut into overlapping tiles of it that are blended.
With test-time augmentation each square goes through the model in its eight orientations (four
quarter turns, each also mirrored), or in two, as it is and mirrored, if the model is for upright
images; the outputs are turned back, their mean is the probability and their standard deviation the
uncertainty (Wang et al. 2019, arXiv 1807.07356).

Shapes: image (H, W, 3) uint8, square (S, S, 3) uint8, probability (H, W) float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

import cv2
import numpy as np

from datasets.cases import resize_image
from engine.prediction.backends import SquareModel

T = TypeVar("T")
HELD_PIXELS = 64_000_000  # of images that wait for their batch to fill


@dataclass(frozen=True)
class PredictionOptions:
    """How an image goes through the model."""

    tiles: bool = False
    """Cut into squares at its own resolution, rather than resized to one."""
    overlap: float = 0.5
    """Fraction of a tile's side that the next one also covers, in [0, 1)."""
    tta: bool = False
    """Average over the orientations that the model is for."""


@dataclass(frozen=True)
class Segmentation:
    """The model's output for an image, at the image's size."""

    probability: np.ndarray  # (H, W) float32; not finite where the model's output was not
    uncertainty: np.ndarray | None  # (H, W) float32 in [0, 0.5], with test-time augmentation

    def mask(self, threshold: float) -> np.ndarray:
        return self.probability >= threshold


def segment(
    backend: SquareModel,
    pictures: Iterable[tuple[T, np.ndarray]],
    method: PredictionOptions,
    batch_size: int,
) -> Iterator[tuple[T, Segmentation]]:
    """Segment the images in their order, each with the key that came with it.

    Squares of several images share a batch. It is run when it is full, or once the images that wait
    for it exceed HELD_PIXELS, so that memory stays bounded.
    """
    squares: list[np.ndarray] = []
    owners: list[_ImageInProgress[T]] = []  # of the squares

    def run_batch() -> Iterator[tuple[T, Segmentation]]:
        images = np.stack(squares).transpose(0, 3, 1, 2).astype(np.float32) / 255
        for image, probability in zip(owners, backend(images), strict=True):
            image.add(probability)
            if image.complete:
                yield image.key, image.canvas.result()
        squares.clear()
        owners.clear()

    held = 0
    for key, pixels in pictures:
        canvas = _canvas(pixels, backend.image_size, method)
        image = _ImageInProgress(key, canvas, backend.orientations if method.tta else 1)
        for square in image.squares():
            squares.append(square)
            owners.append(image)
            if len(squares) == batch_size:
                yield from run_batch()
                held = 0
        held += pixels.shape[0] * pixels.shape[1]
        if squares and held > HELD_PIXELS:
            yield from run_batch()
            held = 0
    if squares:
        yield from run_batch()


def orientations(square: np.ndarray) -> Iterator[np.ndarray]:
    """The eight orientations of (S, S, ...), from the upright one on: quarter turns, each as it is and
    mirrored.
    """
    for turns in range(4):
        turned = np.rot90(square, turns)
        yield turned
        yield turned[:, ::-1]


def undo_orientation(index: int, square: np.ndarray) -> np.ndarray:
    """Undo the orientation that `orientations` yields at `index`."""
    return np.rot90(square[:, ::-1] if index % 2 else square, -(index // 2))


class _Canvas(Protocol):
    """Cuts an image into squares for the model, and assembles their outputs."""

    count: int
    """Number of squares."""

    def squares(self) -> Iterator[np.ndarray]:
        """The squares (S, S, 3), in order."""

    def place(self, index: int, probability: np.ndarray, uncertainty: np.ndarray | None) -> None:
        """Take the outputs (S, S) for the square of this number."""

    def result(self) -> Segmentation:
        """The outputs at the size of the image, once all are placed."""


class _ResizedCanvas:
    """One square: the image, resized."""

    def __init__(self, pixels: np.ndarray, side: int) -> None:
        self.height, self.width = pixels.shape[:2]
        self.count = 1
        self._pixels = pixels
        self._side = side
        self._maps: tuple[np.ndarray, np.ndarray | None]

    def squares(self) -> Iterator[np.ndarray]:
        yield resize_image(self._pixels, self._side, self._side)

    def place(self, index: int, probability: np.ndarray, uncertainty: np.ndarray | None) -> None:
        self._maps = probability, uncertainty

    def result(self) -> Segmentation:
        probability, uncertainty = self._maps
        return Segmentation(
            self._resized(probability), None if uncertainty is None else self._resized(uncertainty)
        )

    def _resized(self, values: np.ndarray) -> np.ndarray:
        if values.shape == (self.height, self.width):
            return values
        return cv2.resize(values, (self.width, self.height), interpolation=cv2.INTER_LINEAR)


class _TiledCanvas:
    """Overlapping squares, weighted towards their centres; a small image is padded by mirroring.

    The uncertainty is blended like the probability: an upper bound of the blend's own uncertainty.
    """

    def __init__(self, pixels: np.ndarray, side: int, overlap: float) -> None:
        self.height, self.width = pixels.shape[:2]
        self._pixels: np.ndarray = pixels
        self._side = side
        below, right = max(0, side - self.height), max(0, side - self.width)
        if below or right:
            self._pixels = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REFLECT)
        padded_height, padded_width = self._pixels.shape[:2]
        self._corners = [
            (top, left)
            for top in tile_starts(padded_height, side, overlap)
            for left in tile_starts(padded_width, side, overlap)
        ]
        self.count = len(self._corners)
        self._window = blending_window(side)
        self._weight = np.zeros((padded_height, padded_width), np.float32)
        self._probability = np.zeros_like(self._weight)
        self._uncertainty: np.ndarray | None = None

    def squares(self) -> Iterator[np.ndarray]:
        for top, left in self._corners:
            yield self._pixels[top : top + self._side, left : left + self._side]

    def place(self, index: int, probability: np.ndarray, uncertainty: np.ndarray | None) -> None:
        top, left = self._corners[index]
        area = np.s_[top : top + self._side, left : left + self._side]
        self._weight[area] += self._window
        self._probability[area] += self._window * probability
        if uncertainty is not None:
            if self._uncertainty is None:
                self._uncertainty = np.zeros_like(self._weight)
            self._uncertainty[area] += self._window * uncertainty

    def result(self) -> Segmentation:
        own = np.s_[: self.height, : self.width]
        weight = self._weight[own]
        return Segmentation(
            self._probability[own] / weight,
            None if self._uncertainty is None else self._uncertainty[own] / weight,
        )


def _canvas(pixels: np.ndarray, side: int, method: PredictionOptions) -> _Canvas:
    if method.tiles:
        return _TiledCanvas(pixels, side, method.overlap)
    return _ResizedCanvas(pixels, side)


def tile_starts(length: int, side: int, overlap: float) -> list[int]:
    """Evenly spaced starts of tiles that cover `length` >= `side`; neighbours share `overlap` or more."""
    step = max(1, int(side * (1 - overlap)))
    steps = -(-(length - side) // step)
    return [round(index * (length - side) / max(1, steps)) for index in range(steps + 1)]


def blending_window(side: int) -> np.ndarray:
    """Weights (side, side) in (0, 1], a squared sine along each axis."""
    ramp = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    return np.outer(ramp, ramp).astype(np.float32)


class _ImageInProgress(Generic[T]):
    """One image on its way through the model: squares go out, and outputs come back, in one order."""

    def __init__(self, key: T, canvas: _Canvas, orientation_count: int) -> None:
        self.key = key
        self.canvas = canvas
        self._placed = 0
        self._outputs: list[np.ndarray] = []
        self._expected = orientation_count  # of each square

    @property
    def complete(self) -> bool:
        return self._placed == self.canvas.count

    def squares(self) -> Iterator[np.ndarray]:
        for square in self.canvas.squares():
            yield from islice(orientations(square), self._expected)

    def add(self, probability: np.ndarray) -> None:
        self._outputs.append(undo_orientation(len(self._outputs), probability))
        if len(self._outputs) < self._expected:
            return
        if self._expected == 1:
            self.canvas.place(self._placed, self._outputs[0], None)
        else:
            outputs = np.stack(self._outputs)
            self.canvas.place(self._placed, outputs.mean(0), outputs.std(0))
        self._outputs.clear()
        self._placed += 1
