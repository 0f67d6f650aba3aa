"""The scores of an epoch in training: Dice and IoU on the device, nothing written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from datasets.loading import Sample
from models.losses import dice_and_iou

if TYPE_CHECKING:
    from engine.cuda_graphs import Predictor


@torch.inference_mode()
def mean_scores(
    predict: Predictor, loader: Iterable[Sample], threshold: float
) -> tuple[float, float]:
    """Mean Dice and mean IoU over the loader's cases, each counted once across all processes."""
    model, accelerator = predict.system, predict.accelerator
    model.eval()
    scores = []
    for batch in loader:
        probability = predict(batch["image"])
        case_scores = torch.stack(dice_and_iou(probability, batch["mask"], threshold), dim=1)
        scores.append(accelerator.gather_for_metrics(case_scores))
    model.train()
    dice, iou = torch.cat(scores).mean(0).tolist()
    return dice, iou
