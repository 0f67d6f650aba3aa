"""The published training augmentation, one draw of random parameters per sample.

Wave-GMS (arXiv 2510.03216) and GMS (arXiv 2403.18198): flips and quarter turns with probability 0.5
each, colour jitter with 0.2, shift, scale and rotation together with 0.4. Images that are to stay
upright are mirrored only, of all flips and quarter turns.
"""

from __future__ import annotations

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


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


def training_augmentation(keep_upright: bool = False) -> v2.Transform:
    """Transform of `tv_tensors.Image` (uint8) and `tv_tensors.Mask`; images come out in [0, 1].

    With `keep_upright` none is turned upside down or by a quarter. Geometry samples masks by nearest
    neighbour. Random numbers come from torch's global generator.
    """
    other_sides_up = [] if keep_upright else [v2.RandomVerticalFlip(0.5), RandomQuarterTurn(0.5)]
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            *other_sides_up,
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.RandomApply([v2.ColorJitter(0.1, 0.1, 0.1, 0.1)], p=0.2),
            v2.RandomApply(
                [
                    v2.RandomAffine(
                        degrees=20,
                        translate=(0.15, 0.15),
                        scale=(0.9, 1.1),
                        interpolation=v2.InterpolationMode.BILINEAR,
                    )
                ],
                p=0.4,
            ),
        ]
    )


def to_unit_range() -> v2.Transform:
    """Only the conversion of images from uint8 to float in [0, 1]."""
    return v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
