"""The record of a trial in its run folder, `trial.json`."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from utils.config import Config, make_config
from utils.config_keys import CHANGEABLE_ON_RESUME, MACHINE_SETTINGS
from utils.errors import UserError
from utils.files import atomic_write

RECORD = "trial.json"

Status = Literal["finished", "running", "interrupted", "failed", "pruned", "waiting"]


@dataclass
class Record:
    """How far a trial has come and what it has cost.

    `wall_seconds` and `cpu_seconds` (user and system, with child processes) are sums over all
    attempts, by step: {"train": 812.4, "valid": 9.1}. A training that found the run complete adds
    nothing. An attempt whose runner was killed leaves no times; it is counted in
    `untimed_attempts`, and the sums are then too low.
    """

    name: str
    config: dict[str, Any]
    status: Status = "waiting"
    done: list[str] = field(default_factory=list)  # steps that have succeeded
    attempts: int = 0
    untimed_attempts: int = 0
    wall_seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    exit_code: int | None = None
    error: str | None = None
    vae_sha256: str | None = None
    """Of the file of the VAE's weights when the training began, if it was here."""

    @property
    def trained(self) -> bool:
        """Whether the training is complete, whatever became of the steps after it."""
        return "train" in self.done


def read_record(folder: Path) -> Record | None:
    """The record in a run folder, or None where there is none; UserError where it is not a record."""
    path = folder / RECORD
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a trial's record ({error}). Delete it: the trial then resumes from "
            "what train.py has saved"
        ) from error


def recorded_config(record: Record) -> Config | None:
    """The record's config; keys that were introduced after it was written have their defaults.

    None where this version of the config refuses its keys or values.
    """
    try:
        return make_config(record.config)
    except UserError:
        return None


def scored_settings(config: Config) -> dict[str, Any]:
    """The settings of a run that decide its scores, without those that have their default."""
    values = config.model_dump(mode="json", exclude_defaults=True, exclude=set(MACHINE_SETTINGS))
    return values | {"data set": config.dataset}


def is_record_of(record: Record, config: Config) -> bool:
    """Whether the record belongs to a run with the same score-relevant settings as `config`."""
    recorded = recorded_config(record)
    return recorded is not None and scored_settings(recorded) == scored_settings(config)


def is_of_same_training(
    record: Record, config: Config, ignored: Set[str] = CHANGEABLE_ON_RESUME
) -> bool:
    """Whether the record's run learned what `config` asks for, but for the keys that are `ignored`."""
    recorded = recorded_config(record)
    if recorded is None or recorded.dataset != config.dataset:
        return False
    ignored = set(ignored)
    return recorded.model_dump(exclude=ignored) == config.model_dump(exclude=ignored)


def write_record(folder: Path, record: Record) -> None:
    atomic_write(folder / RECORD, json.dumps(asdict(record), indent=2) + "\n")
