"""The settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from engine.optimizers import OptimizerName


@dataclass(frozen=True)
class TrainingOptions:
    """What the loop takes from the config, where the fields are described."""

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
    select_on: str
    num_workers: int
    validate_every: int
    log_every: int
    save_minutes: float
    save_freq: int | None
    skip_nonfinite: int

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch is kept, not the one that scores best."""
        return self.select_on == "last"

    @property
    def scored_on(self) -> str:
        """`val` or `test`: the cases that the epochs are scored on, if there are any."""
        return "test" if self.select_on == "test" else "val"
