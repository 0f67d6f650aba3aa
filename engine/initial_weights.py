"""Starting a training from given weights."""

from __future__ import annotations

from pathlib import Path

from datasets.cases import DataSet
from engine.build import training_cases
from engine.training_record import (
    averaged_run_count,
    cases_of_split,
    recorded_training_cases,
    split_has_changed,
    trained_on_another_split,
    training_history,
)
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


def known_held_out_cases(config: Config, data_set: DataSet) -> list[str]:
    """Cases held out to choose the checkpoint on which the initial weights were trained, sorted.

    As far as their training is recorded. UserError as `training_cases`.
    """
    if config.init_weights is None or config.select_on == "test":
        return []
    held_out = {case.name for case in training_cases(config, data_set)[1]}
    fitted: set[str] = set()
    for checkpoint, run in training_history(config.init_weights):
        if run is not None:
            fitted |= _fitted_cases(checkpoint, run, data_set)
    return sorted(held_out & fitted)


def _fitted_cases(checkpoint: Path, run: Config, data_set: DataSet) -> set[str]:
    """Cases that changed the weights: those of the run's split without the ones that it held out.

    Where it is not known which these were, or the weights are a mean of several runs, all of the split.
    """
    names = set(cases_of_split(run, data_set))
    same_split = names == {case.name for case in data_set.train}
    if not same_split or averaged_run_count(checkpoint) > 1 or split_has_changed(checkpoint, run):
        return names
    try:
        return {case.name for case in training_cases(run, data_set)[0]}
    except UserError:  # the data set now names its own cases to hold out, for example
        return names


def held_out_note(config: Config, data_set: DataSet) -> list[str]:
    """A line of the plan where the initial weights were trained on cases that are held out; none
    otherwise.
    """
    known = known_held_out_cases(config, data_set)
    if not known:
        return []
    return [
        f"warning: {config.init_weights} was trained on {len(known)} of the cases for choosing, so that val_dice is "
        "too high and may choose a worse checkpoint; keep the seed, val_fraction and folds of its run, or "
        "start from weights of other data"
    ]
