"""Augmentations as a user might write them, for `augment: tests.own_augmentations:...`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

Augment = Callable[[Any, Any], Any]


def mirrored(image_size: int, *, p: float = 0.5) -> Augment:
    """With torchvision, which is given its own types; images stay uint8."""
    return v2.RandomHorizontalFlip(p)


def shifted(image_size: int) -> Augment:
    """With a function, which draws from all three global generators and holds what cannot be pickled."""

    def shift(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        down = random.randrange(image_size)
        right = int(np.random.randint(image_size))  # noqa: NPY002
        moved = [torch.roll(each, (down, right), (-2, -1)) for each in (image, mask)]
        return moved[0].float() / 255 * torch.rand(()), moved[1]

    return shift


def erased_in_place(image_size: int) -> Augment:
    def erase(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        start = random.randrange(image_size)
        image[:, start : start + 4] = 0
        mask.numpy()[:, start : start + 4] = 0
        return image, mask

    return erase


def darkened(image_size: int) -> Augment:
    generator = np.random.default_rng()  # not seeded by anybody
    return lambda image, mask: ((image / 255 * generator.random()).float(), mask)


def fails_on_black(image_size: int) -> Augment:
    return lambda image, mask: (image / (255 if image.any() else 0), mask)


def nothing(image_size: int) -> None:
    """Forgot to return it."""


def returning(image_size: int, *, what: str) -> Augment:
    """What cannot be used."""
    results: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "image alone": lambda image, mask: image,
        "three": lambda image, mask: (image, mask, mask),
        "array": lambda image, mask: (image.numpy(), mask),
        "cropped": lambda image, mask: (image[:, 1:, 1:], mask[:, 1:, 1:]),
        "flat mask": lambda image, mask: (image, mask[0]),
        "standardised": lambda image, mask: ((image / 255 - 0.5) / 0.25, mask),
        "nan": lambda image, mask: (image / 255 * float("nan"), mask),
        "255": lambda image, mask: (image.float(), mask),
        "soft mask": lambda image, mask: (image, mask * 0.5),
    }
    return results[what]


def overshooting(image_size: int) -> Augment:
    return lambda image, mask: (image.as_subclass(Tensor) / 255 * 1.001 - 0.0005, mask)


def keeping_types(image_size: int) -> Augment:
    def check(image: object, mask: object) -> tuple[object, object]:
        assert isinstance(image, tv_tensors.Image) and image.dtype == torch.uint8
        assert isinstance(mask, tv_tensors.Mask) and mask.dtype == torch.uint8
        assert image.shape == (3, image_size, image_size) and mask.max() <= 1
        return image, mask

    return check
