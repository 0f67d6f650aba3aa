"""Several trained runs as one model, which predicts the mean of their probabilities.

Source: Lakshminarayanan et al. 2017, arXiv 1612.01474.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from engine.averaging import check_common, fingerprint
from engine.training_record import (
    ENSEMBLE_RUNS,
    averaged_run_count,
    data_trained_on,
    ensemble_run_count,
)
from models.base import SegmentationModel
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.config import Config


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


def gather_ensemble(runs: Sequence[tuple[Config, Path]]) -> tuple[Ensemble, dict[str, str]]:
    """The ensemble of trained runs, and metadata for its file: the number of runs.

    UserError
    - if the runs differ in network, split, how the checkpoint was chosen, or the data that their initial
      weights were trained on;
    - if a run is named twice, or is itself a mean of runs or an ensemble.
    """
    from engine.trained_run import load_system

    first = runs[0]
    data = data_trained_on(first[1])
    members: list[SegmentationModel] = []
    seen: dict[str, Path] = {}
    for config, checkpoint in runs:
        if averaged_run_count(checkpoint) > 1 or ensemble_run_count(checkpoint) > 1:
            raise UserError(f"{checkpoint} is itself made of several runs; name runs of train.py")
        check_common(first, (config, checkpoint), same_start=False)
        if data_trained_on(checkpoint) != data:
            raise UserError(
                f"{checkpoint} and the first run started from weights that were trained on different data, and the "
                "ensemble could not tell which cases it has seen: name runs of one kind of start"
            )
        member = load_system(config, checkpoint)
        other = seen.setdefault(fingerprint(member), checkpoint)
        if other is not checkpoint:
            raise UserError(f"{checkpoint} holds the same weights as {other}: name each run once")
        members.append(member)
    return Ensemble(members), {ENSEMBLE_RUNS: str(len(members))}
