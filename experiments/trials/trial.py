"""A named training run with the commands that make it, and how it ended."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.trials.records import Record
from utils.config import Config
from utils.files import REPOSITORY

Steps = Mapping[str, Sequence[str]]  # name of a step -> its command


@dataclass(frozen=True)
class Trial:
    """A named training run. No other trial has the `run_folder` of its config."""

    name: str
    config: Config

    @property
    def folder(self) -> Path:
        return self.config.run_folder

    @property
    def config_file(self) -> Path:
        """The config on disk, written before a command of this trial starts."""
        return self.folder / "trial.yaml"

    @property
    def log_file(self) -> Path:
        """What its commands printed."""
        return self.folder / "trial.log"


@dataclass(frozen=True)
class Outcome:
    """A trial, its record at the end, and whether one of its commands ran; otherwise it was skipped."""

    trial: Trial
    record: Record
    ran: bool


def training_steps(trial: Trial) -> Steps:
    """Train the trial."""
    return {"train": _entry_point("train.py", trial)}


def training_and_validation_steps(trial: Trial) -> Steps:
    """Train the trial, then score it on the test split."""
    return {"train": _entry_point("train.py", trial), "valid": _entry_point("valid.py", trial)}


def _entry_point(script: str, trial: Trial) -> list[str]:
    return [sys.executable, str(REPOSITORY / script), "--config", str(trial.config_file)]
