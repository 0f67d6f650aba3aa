"""The interface that training, validation and checkpoints expect of a model.

Shapes: image (B, 3, H, W) in [0, 1], mask (B, 1, H, W) in {0, 1}.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.vae import DOWNSAMPLING
from utils.errors import UserError


class SegmentationModel(nn.Module):
    """Network and losses together: an image to a probability, or with its mask to the losses.

    Attributes:
        loss_names: keys of the losses that `forward` returns, the total first.
        noise_probability: how often a training sample gets noise; else its noise is zero.
        capturable: whether CUDA graphs may replay its passes: they never wait for the GPU, draw no
            random numbers and change nothing but what they return.
    """

    loss_names: tuple[str, ...] = ("loss",)
    noise_probability: float = 0.0
    capturable: bool = False

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Shape of one sample's noise; (0, 0, 0) for a model that takes none."""
        return (0, 0, 0)

    def batch_shapes(self, count: int, image_size: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of image, mask and noise of a training batch of `count` cases."""
        side = image_size
        return (
            (count, 3, side, side),
            (count, 1, side, side),
            (count, *self.latent_shape(side)),
        )

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The trainable parts, in order, by their names in published checkpoints."""

    def frozen(self) -> dict[str, nn.Module]:
        """The parts that are never trained, by a name to print."""
        return {}

    @abstractmethod
    def forward(
        self, image: Tensor, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Probability (B, 1, H, W), or with a mask the losses and `dice`, all float32.

        The losses are scalars under `loss_names`; "dice", without gradient, is the mean Dice at
        threshold 0.5. `noise` (B, *latent_shape) is standard normal; None stands for zeros.
        """


def check_image_size(height: int, width: int, multiple: int = DOWNSAMPLING) -> None:
    """Raise UserError unless both sides are positive multiples of `multiple`."""
    for side in (height, width):
        if side % multiple or side <= 0:
            below, above = side // multiple * multiple, (side // multiple + 1) * multiple
            nearest = f"{below} or {above}" if below > 0 else f"{max(above, multiple)}"
            raise UserError(
                f"image size {side} is not divisible by {multiple}; the nearest that are: {nearest}"
            )


def has_batch_norm(system: SegmentationModel) -> bool:
    """Whether the network keeps running statistics, which fit the weights that they were taken with."""
    return any(isinstance(module, _BatchNorm) for module in system.modules())
