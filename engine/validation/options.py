"""The settings of predicting the cases of a data set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluationOptions:
    """What predicting cases takes from the config, where the fields are described."""

    image_size: int
    batch_size: int
    evaluation_size: int | str | None = None
    tta: bool = False
    keep_upright: bool = False
    num_workers: int = 0
    cache_mb: int = 0
