"""Starting a training from given weights."""

from __future__ import annotations

from datasets.cases import DataSet
from engine.training_record import recorded_training_cases, trained_on_another_split
from models.base import SegmentationModel
from utils.checkpoints import load_weights
from utils.config import Config
from utils.errors import UserError, listed

SHOWN = 4  # cases in a message


def load_initial_weights(config: Config, data_set: DataSet, system: SegmentationModel) -> None:
    """Copy the weights that `init_weights` names, if it does, into the trainable parts of `system`.

    UserError where they do not fit, or were trained on cases of this test split.
    """
    if config.init_weights is None:
        return
    load_weights(config.init_weights, system, key="init_weights")
    if trained_on_another_split(config.init_weights, data_set):
        raise UserError(
            f"init_weights: {config.init_weights} was trained on another split of {data_set.name} than that of "
            f"{data_set.split_file}, so that scores on its test cases could mean nothing. Prepare the data set "
            "with the split that these weights name, or take weights of another data set"
        )
    test = {case.name for case in data_set.test}
    seen = sorted(test.intersection(recorded_training_cases(config.init_weights, data_set)))
    if seen:
        raise UserError(
            f"init_weights: {config.init_weights} was trained on {len(seen)} of the {len(test)} test "
            f"cases of this split ({listed(seen, limit=SHOWN)}), so that their scores would mean nothing. "
            "Take weights of another data set, or of a run with the same split"
        )
