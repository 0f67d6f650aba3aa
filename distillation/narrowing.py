"""A narrow network that starts from a wide one of the same layout.

Each channel of the narrow network follows one channel of the wide one. Which channels, and the
weights between them, come from example inputs, layer by layer, as in channel pruning by
reconstruction (He, Zhang, Sun 2017, "Channel pruning for accelerating very deep neural networks").
Layouts: the layers of `AutoencoderTiny`'s encoder and decoder.

Shapes: activation (N, C, H, W), convolution weight (O, C, 3, 3).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn


def shrink(wide: nn.Sequential, narrow: nn.Sequential, x: Tensor) -> None:
    """Set the narrow network's weights from the wide one's, on example input `x` (N, C, H, W).

    In each layer, the channels are followed that explain most of what the next layers see. The narrow
    weights come from a ridge regression of the wide activations on the narrow network's own input, so
    that errors of earlier layers are corrected rather than passed on.
    """
    followed = torch.arange(x.shape[1])
    wide_x = narrow_x = x
    with torch.no_grad():
        for depth, (big, small) in enumerate(zip(wide, narrow, strict=True)):
            if isinstance(big, nn.Conv2d) and isinstance(small, nn.Conv2d):
                wide_x = big(wide_x)
                followed = _span(wide_x, _readers(wide[depth + 1 :]), small.out_channels)
                _refit(small, narrow_x, wide_x[:, followed])
                narrow_x = small(narrow_x)
            elif isinstance(big, AutoencoderTinyBlock):
                wide_x, narrow_x = _shrink_block(big, small, wide_x, narrow_x, followed)
            else:
                wide_x, narrow_x = big(wide_x), small(narrow_x)


def _shrink_block(
    big: Any, small: Any, wide_x: Tensor, narrow_x: Tensor, followed: Tensor
) -> tuple[Tensor, Tensor]:
    """Both outputs of a residual block, whose skip makes the output follow the input's channels."""
    wide_inner, narrow_inner = wide_x, narrow_x
    for i in (0, 2):
        before = big.conv[i](wide_inner)
        wide_inner = before.relu()
        chosen = _span(wide_inner, [big.conv[i + 2].weight], small.conv[i].out_channels)
        _refit(small.conv[i], narrow_inner, before[:, chosen])
        narrow_inner = small.conv[i](narrow_inner).relu()
    wide_sum = big.conv[4](wide_inner) + wide_x
    _refit(small.conv[4], narrow_inner, wide_sum[:, followed] - narrow_x)
    return wide_sum.relu(), (small.conv[4](narrow_inner) + narrow_x).relu()


def _readers(layers: nn.Sequential) -> list[Tensor]:
    """Weights that read the channels just written, up to and with the next convolution, which mixes them."""
    weights: list[Tensor] = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            return [*weights, layer.weight]
        if isinstance(layer, AutoencoderTinyBlock):
            weights.append(cast(Tensor, layer.conv[0].weight))
    return weights


def _span(activation: Tensor, readers: list[Tensor], count: int) -> Tensor:
    """Indices of the `count` channels that explain most of what `readers` (O, C, 3, 3) see.

    Greedy column selection on the covariance of the channels, each scaled by its outgoing weight.
    """
    channels = activation.shape[1]
    if count == channels:
        return torch.arange(channels)
    samples = activation.transpose(0, 1).flatten(1)
    samples = samples[:, :: max(samples.shape[1] // 50_000, 1)].double()
    scale = torch.stack([w.double().square().sum((0, 2, 3)) for w in readers]).sum(0).sqrt()
    residual = torch.cov(samples) * scale[:, None] * scale
    chosen: list[int] = []
    for _ in range(count):
        gain = residual.square().sum(0) / residual.diagonal().clamp_min(1e-12)
        gain[residual.diagonal() < 1e-9] = 0
        gain[chosen] = -1
        best = int(gain.argmax())
        column = residual[:, best] / residual[best, best].clamp_min(1e-12).sqrt()
        residual = residual - column[:, None] * column
        chosen.append(best)
    return torch.tensor(chosen)


def _refit(conv: nn.Conv2d, x: Tensor, target: Tensor) -> None:
    """Set a 3x3 convolution's weights to the ridge regression of `target` on its input `x`."""
    per_image = max(30_000 // len(x), 1)
    rng = torch.Generator().manual_seed(0)
    rows, values = [], []
    for one, wanted in zip(x.split(16), target.split(16), strict=True):
        patches = nn.functional.unfold(one, 3, padding=1, stride=conv.stride)
        chosen = torch.randint(patches.shape[2], (min(per_image, patches.shape[2]),), generator=rng)
        rows.append(patches[:, :, chosen].transpose(1, 2).flatten(0, 1))
        values.append(wanted.flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1))
    a, b = torch.cat(rows).double(), torch.cat(values).double()
    if conv.bias is not None:
        a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
    gram = a.T @ a
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=a.dtype)
    solution = torch.linalg.solve(gram + ridge, a.T @ b).T.float()
    if conv.bias is not None:
        conv.bias.copy_(solution[:, -1])
        solution = solution[:, :-1]
    conv.weight.copy_(solution.reshape(conv.weight.shape))
