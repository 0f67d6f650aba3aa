"""The losses of one epoch: summed on the device, read every few steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import atomic_write


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite."""


class EpochLosses:
    """Sums of losses over the batches of an epoch that are finite, on the device.

    Adding does not wait for a GPU; `take_nonfinite` and `tolist` do.
    """

    def __init__(self, sums: Sequence[float], device: torch.device) -> None:
        self._sums = torch.tensor(sums, dtype=torch.float64, device=device)
        self._unchecked: list[tuple[int, Tensor]] = []

    def add(self, batch: int, losses: Tensor) -> None:
        """Add the losses, float64 in the order of the sums, of the epoch's batch of that number."""
        self._sums += torch.where(torch.isfinite(losses).all(), losses, 0)
        self._unchecked.append((batch, losses))

    def take_nonfinite(self) -> list[tuple[int, list[float]]]:
        """Numbers and losses of the batches that are not finite, among those added since the last call."""
        if not self._unchecked:
            return []
        numbers = [number for number, _ in self._unchecked]
        values = torch.stack([losses for _, losses in self._unchecked]).cpu()
        self._unchecked.clear()
        finite = torch.isfinite(values).all(dim=1).tolist()
        return [
            (number, row.tolist())
            for number, row, good in zip(numbers, values, finite, strict=True)
            if not good
        ]

    def tolist(self) -> list[float]:
        return self._sums.tolist()


def write_nonfinite(
    path: Path, epoch: int, batches: Sequence[dict[str, Any]], parts: dict[str, nn.Module]
) -> None:
    """Write, as JSON, what may explain such a loss: the batches, and the norms of the weights."""
    norms = {
        name: nn.utils.get_total_norm([p.detach() for p in part.parameters()]).item()
        for name, part in parts.items()
    }
    report = {"epoch": epoch, "batches": batches, "weight_norms": norms}
    atomic_write(path, json.dumps(report, indent=2) + "\n")
