"""Multi-level 2D Haar transform of an image: the fixed front of the LiteVAE encoder.

Source: LiteVAE (arXiv 2405.14477), section 3. Level n is the orthonormal transform divided by 2^n,
so that the approximation is the mean over 2^n x 2^n blocks whatever the level.

Shapes: image (B, C, H, W) -> level n (B, 4C, H / 2^n, W / 2^n).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def haar_pyramid(image: Tensor, levels: int = 3) -> list[Tensor]:
    """Haar coefficients of `image` (B, C, H, W), from the finest level to the coarsest.

    H and W are multiples of 2^levels. Each level is (B, 4C, ., .) in the order of PyWavelets'
    `wavedec2`: approximation, horizontal, vertical and diagonal detail, each with the C channels of
    the image. For an image in [0, 1] details lie in [-0.5, 0.5]. No gradient flows to the image.
    """
    pyramid = []
    for _ in range(levels):
        top, bottom = image[..., 0::2, :], image[..., 1::2, :]
        mean, difference = (top + bottom) / 4, (top - bottom) / 4
        image = mean[..., 0::2] + mean[..., 1::2]
        horizontal = difference[..., 0::2] + difference[..., 1::2]
        vertical = mean[..., 0::2] - mean[..., 1::2]
        diagonal = difference[..., 0::2] - difference[..., 1::2]
        pyramid.append(torch.cat([image, horizontal, vertical, diagonal], dim=1))
    return pyramid
