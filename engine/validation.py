"""Scoring a model on cases while it trains: Dice and IoU on the device, nothing written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from datasets.loading import Sample

if TYPE_CHECKING:
    from engine.cuda_graphs import Predictor


def dice_and_iou(
    probability: torch.Tensor, mask: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice and IoU per case: (B, 1, S, S) twice -> (B,) twice; both 1 where both masks are empty."""
    predicted, truth = probability >= threshold, mask > 0.5
    shared = (predicted & truth).sum((1, 2, 3)).double()
    total = predicted.sum((1, 2, 3)).double() + truth.sum((1, 2, 3)).double()
    empty = total == 0
    dice = torch.where(empty, 1.0, 2 * shared / total.clamp_min(1))
    iou = torch.where(empty, 1.0, shared / (total - shared).clamp_min(1))
    return dice, iou


@torch.inference_mode()
def validate(predict: Predictor, loader: Iterable[Sample], threshold: float) -> tuple[float, float]:
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
