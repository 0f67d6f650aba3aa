"""The losses of Wave-GMS, and the Dice coefficient and IoU that training shows and is chosen by.

Source: Wave-GMS (arXiv 2510.03216), section 2; GMS (arXiv 2403.18198), section 2.3. The focal Tversky loss
is that of Abraham and Khan (arXiv 1810.07842), section 3.1. The overlap is the minimum of probability
and mask (Wang et al., arXiv 2303.16296, section 3), for masks of 0 and 1 their product; so for soft masks,
too, each loss is smallest where the prediction equals the mask.

Shapes: latents (B, 4, h, w); probability and mask (B, 1, H, W), both in [0, 1]. Results are scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5
TVERSKY_MISSED = 0.7  # weight of missed foreground; that of false foreground is the rest to 1
TVERSKY_POWER = 0.75  # 1 / gamma, with the paper's gamma of 4/3

LatentLoss = Literal["mse", "l1"]
"""Distance between the latents of heads and mask: mean squared (as published) or mean absolute error."""


@dataclass(frozen=True)
class LossWeights:
    """Factors of the losses, by the names that they have in a run's history; the config's keys are
    `w_rec`, `w_dice`, `w_tversky`, `align_loss` and `head_weights`.

    Attributes:
        lm: of latent matching.
        seg: of the Dice loss.
        align: of the alignment of encoder and frozen VAE; 0 leaves it out.
        tversky: of the focal Tversky loss, which the published recipe does not have; 0 leaves it out.
        heads: of the heads `level2`, `level1` and `out` within each of the losses above, except the
            alignment; a head of weight 0 is not decoded in training. That of `out` is above 0.
    """

    lm: float = 1.0
    seg: float = 1.0
    align: float = 1.0
    tversky: float = 0.0
    heads: tuple[float, float, float] = (1.0, 1.0, 1.0)


def latent_matching_loss(
    heads: Sequence[Tensor], target: Tensor, weights: Sequence[float], kind: LatentLoss = "mse"
) -> Tensor:
    """Weighted sum over the heads of their mean squared (or absolute) error to the mask's latent."""
    distance = {"mse": F.mse_loss, "l1": F.l1_loss}[kind]
    return weighted_sum([distance(head, target) for head in heads], weights)


def dice_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """One less the soft Dice of each sample (1e-5 added above and below), mean over the batch."""
    overlap = torch.minimum(probability, mask).sum(dim=(1, 2, 3))
    size = probability.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3))
    return 1 - ((2 * overlap + SMOOTH) / (size + SMOOTH)).mean()


def focal_tversky_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """(1 - Tversky index)^0.75 of each sample, mean over the batch.

    Missed foreground weighs 0.7 in the index, false foreground 0.3. The power's gradient has no bound
    where the index approaches 1, so the loss is constant from 1 - 1e-5 on. An empty mask has loss 0
    (but for that bound) with an empty prediction, else 1.
    """
    overlap = torch.minimum(probability, mask).sum(dim=(1, 2, 3))
    missed = F.relu(mask - probability).sum(dim=(1, 2, 3))
    false = F.relu(probability - mask).sum(dim=(1, 2, 3))
    wrong = TVERSKY_MISSED * missed + (1 - TVERSKY_MISSED) * false
    share = (wrong / (overlap + wrong + SMOOTH)).clamp(min=SMOOTH)
    return share.pow(TVERSKY_POWER).mean()


MASK_LOSSES = {"seg": dice_loss, "tversky": focal_tversky_loss}
"""Losses of a decoded head, by the names of their weights: (probability, mask) -> scalar."""


def weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of scalars, each times its weight."""
    terms = [weight * value for value, weight in zip(values, weights, strict=True)]
    return torch.stack(terms).sum()


def alignment_loss(sample: Tensor, target: Tensor) -> Tensor:
    """0.9 of (1 - cosine of each position's 4-vectors), mean, and 0.1 of the smooth L1 distance."""
    cosine = F.cosine_similarity(sample, target, dim=1)
    return 0.9 * (1 - cosine).mean() + 0.1 * F.smooth_l1_loss(sample, target)


def dice_and_iou(probability: Tensor, mask: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Dice and IoU of `probability >= threshold` per case, float64 (B,); 1 where both masks are empty."""
    predicted, truth = probability >= threshold, mask > 0.5
    shared = (predicted & truth).sum((1, 2, 3)).double()
    total = predicted.sum((1, 2, 3)).double() + truth.sum((1, 2, 3)).double()
    empty = total == 0
    dice = torch.where(empty, 1.0, 2 * shared / total.clamp_min(1))
    iou = torch.where(empty, 1.0, shared / (total - shared).clamp_min(1))
    return dice, iou


def hard_dice(probability: Tensor, mask: Tensor) -> Tensor:
    """The Dice that training shows: at threshold 0.5, mean over the batch, float32, without gradient."""
    dice, _ = dice_and_iou(probability, mask, threshold=0.5)
    return dice.float().mean()
