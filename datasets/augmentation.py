"""Training augmentation, one draw of random parameters per sample: `augment` in the config.

The published one, of Wave-GMS (arXiv 2510.03216) and GMS (arXiv 2403.18198): flips and quarter turns with
probability 0.5 each, colour jitter with 0.2, shift, scale and rotation together with 0.4. There is also a
stronger one. With `keep_upright`, mirroring left to right is the only flip or turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from datasets.own_augmentation import OwnAugmentation

Augmentation = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]
"""From image (3, S, S) and mask (1, S, S), uint8, to the image as float32 in [0, 1] and the mask. Random
numbers come from torch's global generator."""


def augmentation_named(
    augment: bool | str, *, keep_upright: bool, image_size: int
) -> Augmentation | None:
    """What `augment` of the config means: True the published one, False none, or a name.

    `keep_upright` is for those in here; one of the user's own does as it was written. Raises UserError for
    one that cannot be used.
    """
    if augment is False:
        return None
    if augment is True:
        return published_augmentation(keep_upright)
    if augment == "strong":
        return strong_augmentation(keep_upright)
    return OwnAugmentation(augment, image_size)


class RandomQuarterTurn(v2.Transform):
    """With probability `p`, turn by 90, 180 or 270 degrees, without interpolation."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        turned = torch.rand(()) < self.p
        return {"turns": int(torch.randint(1, 4, ())) if turned else 0}

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        return tv_tensors.wrap(torch.rot90(inpt, params["turns"], (-2, -1)), like=inpt)


class RandomGamma(v2.Transform):
    """Raise intensities in [0, 1] to a power between the two of `gamma`."""

    def __init__(self, gamma: tuple[float, float]) -> None:
        super().__init__()
        self.gamma = gamma

    def make_params(self, flat_inputs: list[Any]) -> dict[str, float]:
        return {"gamma": float(torch.empty(()).uniform_(*self.gamma))}

    def transform(self, inpt: Any, params: dict[str, float]) -> Any:
        return self._call_kernel(v2.functional.adjust_gamma, inpt, params["gamma"])


def published_augmentation(keep_upright: bool = False) -> v2.Transform:
    """Flips, quarter turns, colour jitter and affine changes as published; masks are sampled by nearest
    neighbour. With `keep_upright` no image is turned upside down or by a quarter.
    """
    return v2.Compose(
        [
            *_flips_and_turns(keep_upright),
            to_unit_range(),
            v2.RandomApply([v2.ColorJitter(0.1, 0.1, 0.1, 0.1)], p=0.2),
            v2.RandomApply([_affine(scale=(0.9, 1.1))], p=0.4),
        ]
    )


def strong_augmentation(keep_upright: bool = False) -> v2.Transform:
    """The same with larger changes of scale and intensity, with blur and noise.

    Scale, brightness, contrast, gamma and blur vary as in the code of nnU-Net v2 (Isensee et al., Nature
    Methods 18, 2021), the first three more often; rotation and shift as published.
    """
    return v2.Compose(
        [
            *_flips_and_turns(keep_upright),
            to_unit_range(),
            v2.RandomApply([_affine(scale=(0.7, 1.4))], p=0.6),
            v2.RandomApply([v2.ColorJitter(0.25, 0.25, 0.1, 0.1)], p=0.3),
            v2.RandomApply([RandomGamma((0.7, 1.5))], p=0.3),
            v2.RandomApply([v2.GaussianBlur(5, sigma=(0.5, 1.0))], p=0.2),
            v2.RandomApply([v2.GaussianNoise(sigma=0.05)], p=0.2),
        ]
    )


def _flips_and_turns(keep_upright: bool) -> list[v2.Transform]:
    other_sides_up = [] if keep_upright else [v2.RandomVerticalFlip(0.5), RandomQuarterTurn(0.5)]
    return [v2.RandomHorizontalFlip(0.5), *other_sides_up]


def _affine(scale: tuple[float, float]) -> v2.Transform:
    return v2.RandomAffine(
        degrees=20,
        translate=(0.15, 0.15),
        scale=scale,
        interpolation=v2.InterpolationMode.BILINEAR,
    )


def to_unit_range() -> v2.Transform:
    """Only the conversion of images from uint8 to float in [0, 1]."""
    return v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
