"""The settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from engine.training.optimizers import OptimizerName


@dataclass(frozen=True)
class TrainingOptions:
    """What the loop takes from the config, where the fields and properties are described."""

    epochs: int
    batch_size: int
    accumulate: int
    optimizer: OptimizerName
    lr: float
    weight_decay: float
    warmup_epochs: float
    clip_norm: float
    ema_decay: float
    seed: int
    threshold: float
    scored_on: str
    keeps_last: bool
    num_workers: int
    validate_every: int
    log_every: int
    save_minutes: float
    save_freq: int | None
    skip_nonfinite: int
