"""The steps of a training: how many an epoch has, and the learning rate at each."""

from __future__ import annotations

import math
from collections.abc import Callable

from utils.errors import UserError


def warmup_then_cosine(warmup_steps: float, total_steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at an optimiser step: linear up, then half a cosine to 0.

    The first step already learns; the published schedule spends its first epoch at rate 0.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def batches_per_epoch(cases: int, batch_size: int, accumulate: int, processes: int) -> int:
    """Batches that each process has in an epoch: as many as fill whole optimiser steps.

    UserError where they fill none.
    """
    steps = cases // (batch_size * processes * accumulate)
    if not steps:
        each = f"a batch of {batch_size}" if accumulate == 1 else f"{accumulate} of {batch_size}"
        raise UserError(
            f"{cases} training cases do not fill {each} on each of {processes} process(es), as a "
            f"step of the optimiser needs: lower batch_size{'' if accumulate == 1 else ' or accumulate'}"
        )
    return steps * accumulate
