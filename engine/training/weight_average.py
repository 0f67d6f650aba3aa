"""The exponential moving average of the weights in training."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.base import SegmentationModel


class WeightAverage:
    """The average of the weights of `system` that are trained: decay * average + (1 - decay) * weights.

    Attributes:
        system: a copy with the average, and after each update with the buffers of the trained parts, such as
            running statistics. What is not trained, a frozen VAE above all, takes no memory of its own: it is
            that of the original.
        count: updates so far; the first takes the weights as they are.
    """

    def __init__(self, system: SegmentationModel, decay: float) -> None:
        in_parts = {id(buffer) for buffer in _buffers(system)}
        shared = [
            *(weight for weight in system.parameters() if not weight.requires_grad),
            *(buffer for buffer in system.buffers() if id(buffer) not in in_parts),
        ]
        # what deepcopy finds in its memo, it takes for copied
        self.system = deepcopy(system, {id(tensor): tensor for tensor in shared})
        self.count = 0
        self._original = system
        self._average = _trained(self.system)
        self._weights = _trained(system)
        self._take_in = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step, without waiting for a GPU."""
        if self.count:
            self._take_in(self._average, self._weights, self.count)
        else:
            _copy(self._average, self._weights)
        _copy(_buffers(self.system), _buffers(self._original))
        self.count += 1


def _trained(system: SegmentationModel) -> list[torch.Tensor]:
    return [weight for weight in system.parameters() if weight.requires_grad]


def _buffers(system: SegmentationModel) -> list[torch.Tensor]:
    """The buffers of the trained parts; a network may put others in their place at each call."""
    return [buffer for part in system.parts().values() for buffer in part.buffers()]


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
