"""The losses of Wave-GMS and the Dice coefficient that training shows.

Source: Wave-GMS (arXiv 2510.03216), section 2; GMS (arXiv 2403.18198), section 2.3.

Shapes: latents (B, 4, h, w); probability and mask (B, 1, H, W), both in [0, 1]. Results are scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5


@dataclass(frozen=True)
class LossWeights:
    """Factors of the three losses; the config's keys are `w_rec`, `w_dice` and `align_loss`.

    Attributes:
        rec: of latent matching.
        dice: of segmentation.
        align: of the alignment of encoder and frozen VAE; 0 leaves it out.
    """

    rec: float = 1.0
    dice: float = 1.0
    align: float = 1.0


def latent_matching_loss(heads: Sequence[Tensor], target: Tensor) -> Tensor:
    """Sum over the heads of the mean squared error to the latent of the mask."""
    return torch.stack([F.mse_loss(head, target) for head in heads]).sum()


def dice_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """One less the soft Dice of each sample (1e-5 added above and below), mean over the batch."""
    overlap = (probability * mask).sum(dim=(1, 2, 3))
    size = probability.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3))
    return 1 - ((2 * overlap + SMOOTH) / (size + SMOOTH)).mean()


def alignment_loss(sample: Tensor, target: Tensor) -> Tensor:
    """0.9 of (1 - cosine of each position's 4-vectors), mean, and 0.1 of the smooth L1 distance."""
    cosine = F.cosine_similarity(sample, target, dim=1)
    return 0.9 * (1 - cosine).mean() + 0.1 * F.smooth_l1_loss(sample, target)


@torch.no_grad()
def hard_dice(probability: Tensor, mask: Tensor, threshold: float = 0.5) -> Tensor:
    """Dice of `probability >= threshold`, mean over the batch; 1 where both masks are empty."""
    prediction, truth = probability >= threshold, mask >= 0.5
    overlap = (prediction & truth).sum(dim=(1, 2, 3))
    size = prediction.sum(dim=(1, 2, 3)) + truth.sum(dim=(1, 2, 3))
    return torch.where(size > 0, 2 * overlap / size.clamp(min=1), 1.0).mean()
