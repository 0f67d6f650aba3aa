"""Which cases a run trains on and which it holds out, by its config."""

from __future__ import annotations

from datasets.cases import DataSet
from datasets.held_out import HoldOut, TrainingCases, training_cases
from utils.config import Config, part_of


def training_cases_from(config: Config, data_set: DataSet) -> TrainingCases:
    """The cases of `data_set` to train on, and those that choose the checkpoint.

    UserError as of `datasets.held_out.training_cases`.
    """
    return training_cases(data_set, part_of(config, HoldOut))
