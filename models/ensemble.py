"""Several trained systems as one model, which predicts the mean of their probabilities.

Source: Lakshminarayanan et al. 2017, arXiv 1612.01474.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models.base import SegmentationModel


class Ensemble(SegmentationModel):
    """Trained systems that take the same images; only for prediction.

    Its parts are those of its members, with their numbers: `model_1`, `vae_model_1`, `model_2` and so on.
    """

    def __init__(self, members: Sequence[SegmentationModel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.capturable = all(member.capturable for member in members)

    def parts(self) -> dict[str, nn.Module]:
        return {
            f"{name}_{number}": part
            for number, member in enumerate(self._members(), 1)
            for name, part in member.parts().items()
        }

    def frozen(self) -> dict[str, nn.Module]:
        return self._members()[0].frozen()  # which all members share

    def forward(
        self, image: Tensor, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Mean of the members' probabilities, (B, 1, H, W) float32; TypeError with a mask."""
        if mask is not None:
            raise TypeError("an ensemble has no losses: its members are trained one by one")
        return torch.stack([member(image) for member in self._members()]).mean(0)

    def _members(self) -> list[SegmentationModel]:
        return cast(list[SegmentationModel], list(self.members))
