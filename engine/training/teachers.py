"""Learning from the predictions of trained models beside the masks: `teachers` in the config.

Source: Hinton et al. 2015, arXiv 1503.02531, which puts what an ensemble knows into one network. Here the
teachers' mean probability is mixed into the masks, so that every loss learns from both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datasets.cases import DataSet
from engine.runs.trained_run import find_run, load_system
from engine.training.initial_weights import check_saw_no_test_case
from models.base import SegmentationModel
from models.ensemble import Ensemble
from utils.config import Config
from utils.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("wavegms")


class Teachers:
    """Trained models, frozen, that predict the augmented images of each batch.

    Args:
        systems: the models; they need not have the network of the one that learns.
        share: what part of a mask is theirs, from 0 to 1.
    """

    def __init__(
        self, systems: Sequence[SegmentationModel], share: float, accelerator: Accelerator
    ) -> None:
        self.ensemble = Ensemble(systems).to(accelerator.device).eval().requires_grad_(False)
        self.share, self.accelerator = share, accelerator

    @torch.no_grad()
    def mixed_into(self, mask: Tensor, image: Tensor) -> Tensor:
        """What is learned in place of `mask` (B, 1, S, S): values in [0, 1], `share` of them the mean
        probability that the teachers give `image` (B, 3, S, S).
        """
        with self.accelerator.autocast():
            taught = self.ensemble(image)
        return mask.lerp(taught.to(mask.dtype), self.share)


def load_teachers(config: Config, data_set: DataSet, accelerator: Accelerator) -> Teachers | None:
    """The teachers that the config names; None without any.

    UserError where the checkpoint of one, or the config beside it, is missing or does not fit, where it
    cannot take images of this size, or was trained on cases of this test split. A warning where one is given
    images of an orientation or a size that it has not seen.
    """
    if not config.teachers:
        return None
    systems = []
    for checkpoint in config.teachers:
        if not checkpoint.is_file():
            raise UserError(
                f"teachers: no checkpoint at {checkpoint}: name those of trained models"
            )
        if not checkpoint.with_name("config.yaml").is_file():
            raise UserError(
                f"teachers: {checkpoint.parent} is not the folder of a run: it has no config.yaml. Put that of the run "
                f"that wrote {checkpoint.name} beside it"
            )
        run = find_run(checkpoint.parent, weights=checkpoint)
        check_saw_no_test_case(checkpoint, data_set, "teachers")
        if run.config.keep_upright and config.augment is not False and not config.keep_upright:
            log.warning(
                "the teacher %s has only seen upright images, and this training turns them: set keep_upright=true",
                checkpoint,
            )
        if run.config.image_size != config.image_size:
            log.warning(
                "the teacher %s was trained at %d px, and is given images of %d px",
                checkpoint,
                run.config.image_size,
                config.image_size,
            )
        systems.append(load_system(run.config, checkpoint))
        _try_out(systems[-1], checkpoint, config.image_size)
    return Teachers(systems, config.teacher_share, accelerator)


@torch.no_grad()
def _try_out(system: SegmentationModel, checkpoint: Path, image_size: int) -> None:
    """UserError where the teacher cannot predict an image of this size."""
    try:
        system(torch.zeros(1, 3, image_size, image_size))
    except (UserError, RuntimeError) as error:
        raise UserError(
            f"teachers: {checkpoint} cannot predict images of {image_size} px ({error}): set image_size to one that "
            "it can, or leave it out"
        ) from error
