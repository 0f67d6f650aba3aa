"""Networks as a user might write them, for `model: tests.own_networks:...`."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.base import SegmentationModel
from models.baseline import Baseline
from models.latent_mapping import ResAttnUNet_DS
from models.losses import LossWeights
from models.tiny_vae import TinyVAE, load_tiny_vae
from models.wave_gms import WaveGMS


def build(in_channels: int, out_channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(8, out_channels, 1),
    )


def of_width(
    in_channels: int, out_channels: int, image_size: int, *, width: int = 8, depth: int = 1
) -> nn.Module:
    hidden = [nn.Conv2d(width, width, 3, padding=1) for _ in range(depth - 1)]
    first = nn.Conv2d(in_channels, width, 3, padding=1)
    return nn.Sequential(first, *hidden, nn.ReLU(), nn.Conv2d(width, out_channels, 1))


RECEIVED: dict[str, object] = {}
"""What `noting` was last called with."""


def noting(**settings: object) -> nn.Module:
    RECEIVED.clear()
    RECEIVED.update(settings)
    return nn.Conv2d(3, 1, 1)


class SquaredError(Baseline):
    loss_names = ("loss", "squares")

    def losses(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        squares = (logits.sigmoid() - mask).square().mean()
        return {"loss": 2 * squares, "squares": squares}


def with_own_loss(**settings: int) -> nn.Module:
    return SquaredError(build(**settings))


def wave_gms(**_: int) -> SegmentationModel:
    """Of the parts of the published one, though they could be others."""
    vae = TinyVAE(load_tiny_vae(Path(__file__).parents[1] / "ckpt" / "tiny_vae"))
    return WaveGMS(vae, ResAttnUNet_DS(ch=16, ch_mult=(1, 1, 1, 1)), LossWeights(align=0.0))


def capturable(**settings: int) -> SegmentationModel:
    system = wave_gms(**settings)
    system.capturable = True
    return system


def of_two_classes(in_channels: int, out_channels: int, image_size: int) -> nn.Module:
    return build(in_channels, 2, image_size)


class Named(nn.Module):
    """Returns its output under a name, as networks of torchvision do."""

    def __init__(self, **_: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.layer(image)}


def without_settings() -> nn.Module:
    return build(3, 1, 32)


def with_option(width: int, **_: int) -> nn.Module:
    return nn.Conv2d(3, 1, width)


def of_one_channel(**_: int) -> nn.Module:
    class Mean(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean(1, keepdim=True)

    return Mean()


class Checking(nn.Module):
    """Looks at the values of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        assert image.min() >= 0
        return self.layer(image)


def checking(**_: int) -> nn.Module:
    return Checking()


class InThreeDimensions(nn.Module):
    """Convolves the channels like a third axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image[:, None]).mean(2)


def in_three_dimensions(**_: int) -> nn.Module:
    return InThreeDimensions()


class WeightedLosses(Baseline):
    """Learns how its two losses weigh, in a parameter that it does not save."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.weights = nn.Parameter(torch.zeros(2))


def weighted_losses(**settings: int) -> nn.Module:
    return WeightedLosses(build(**settings))


class SavedWeights(Baseline):
    """The same, in a module that it saves."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.loss_weights = nn.ParameterList([torch.zeros(2)])

    def parts(self) -> dict[str, nn.Module]:
        return {"model": self.network, "loss_weights": self.loss_weights}


def saved_weights(**settings: int) -> nn.Module:
    return SavedWeights(build(**settings))


class DiceByName(Baseline):
    loss_names = ("loss", "dice")


def dice_by_name(**settings: int) -> nn.Module:
    return DiceByName(build(**settings))


class WithoutTotal(Baseline):
    def losses(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        losses = super().losses(logits, mask)
        return {"seg": losses["seg"], "bce": losses["bce"]}


def without_total(**settings: int) -> nn.Module:
    return WithoutTotal(build(**settings))


class PerPixel(Baseline):
    loss_names = ("loss",)

    def losses(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"loss": (logits - mask).square()}


def per_pixel(**settings: int) -> nn.Module:
    return PerPixel(build(**settings))


class DeepSupervision(nn.Module):
    """Returns two outputs in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        logits = self.layer(image)
        return [logits, logits] if self.training else logits


def deep_supervision(**_: int) -> nn.Module:
    return DeepSupervision()


def with_sigmoid(**settings: int) -> nn.Module:
    return nn.Sequential(build(**settings), nn.Sigmoid())


class NormalisedMean(nn.Module):
    """Batch normalisation of one value per channel and image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image) + image.mean(1, keepdim=True)


def normalised_mean(**_: int) -> nn.Module:
    return NormalisedMean()


class MovingAverage(nn.Module):
    """Replaces its buffer in training, and draws from Python's and NumPy's random numbers."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        self.register_buffer("average", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        if self.training:
            self.average = self.average + random.random() + np.random.rand()  # noqa: NPY002
        return self.layer(image) + self.average


def moving_average(**_: int) -> nn.Module:
    return MovingAverage()


class StochasticDepth(nn.Module):
    """Draws its weights from NumPy's random numbers, and from Python's whether to leave out a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.deeper = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 1, 3, padding=1)
        with torch.no_grad():
            for weight in self.parameters():
                weight += torch.from_numpy(np.random.normal(size=weight.shape))  # noqa: NPY002

    def forward(self, image: Tensor) -> Tensor:
        logits = self.layer(image)
        if self.training and random.random() < 0.5:
            return logits + np.random.normal()  # noqa: NPY002
        return logits + self.deeper(logits)


def stochastic_depth(**_: int) -> nn.Module:
    return StochasticDepth()


class Masked(nn.Module):
    """Attention to itself and the channels before it, by constant masks of -inf."""

    saved: Tensor
    not_saved: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        mask = torch.full((2, 2), -torch.inf).triu(1)
        self.register_buffer("saved", mask)
        self.register_buffer("not_saved", mask.clone(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        shares = self.saved.softmax(1) + self.not_saved.softmax(1)
        return torch.einsum("ij,bjhw->bhw", shares, self.layer(image))[:, None]


def masked(**_: int) -> nn.Module:
    return Masked()


class OnlyOnGpu(nn.Module):
    """As networks of CUDA kernels of their own, such as those of state-space models."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        if not image.is_cuda:
            raise RuntimeError("expected x.is_cuda() to be true")
        return self.layer(image)


def only_on_gpu(**_: int) -> nn.Module:
    return OnlyOnGpu()


def nothing(**_: int) -> None:
    return None


NUMBER = torch.pi
