"""Starting a training from given weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.cases import Case, DataSet
from datasets.held_out import training_cases
from engine.build import hold_out_from
from engine.training_record import (
    averaged_run_count,
    cases_of_split,
    has_recorded_cases,
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


def load_initial_weights(weights: Path, data_set: DataSet, system: SegmentationModel) -> None:
    """Copy the `weights` that a training starts from into the trainable parts of `system`.

    UserError where they do not fit, or were trained on cases of this test split.
    """
    load_weights(weights, system, key="init_weights")
    history = [checkpoint for checkpoint, _ in training_history(weights)]
    others = [each for each in history if trained_on_another_split(each, data_set)]
    if others:
        how = "was" if others[0] == weights else f"started from {others[0]}, which was"
        raise UserError(
            f"init_weights: {weights} {how} trained on another split of {data_set.name} than that of "
            f"{data_set.split_file}, so that scores on its test cases could mean nothing. Prepare the data set "
            "with the split that these weights name, or take weights of another data set"
        )
    test = {case.name for case in data_set.test}
    seen = sorted(test.intersection(recorded_training_cases(weights, data_set)))
    if seen:
        raise UserError(
            f"init_weights: {weights} was trained on {len(seen)} of the {len(test)} test "
            f"cases of this split ({listed(seen, limit=SHOWN)}), so that their scores would mean nothing. "
            "Take weights of another data set, or of a run with the same split"
        )


def known_held_out_cases(weights: Path, held_out: Sequence[Case], data_set: DataSet) -> list[str]:
    """Names of the `held_out` cases of `data_set` on which the weights were trained, sorted.

    As far as their training is recorded.
    """
    fitted: set[str] = set()
    for checkpoint, run in training_history(weights):
        fitted |= _fitted_cases(checkpoint, run, data_set)
    return sorted(fitted.intersection(case.name for case in held_out))


def _fitted_cases(checkpoint: Path, run: Config | None, data_set: DataSet) -> set[str]:
    """Cases that changed the weights: those of the run's split without the ones that it held out.

    Where it is not known which these were, or the weights are a mean of several runs, all of the split.
    """
    if run is None:
        is_recorded = has_recorded_cases(checkpoint, data_set)
        return {case.name for case in data_set.train} if is_recorded else set()
    names = set(cases_of_split(checkpoint, run, data_set))
    same_split = names == {case.name for case in data_set.train}
    if not same_split or averaged_run_count(checkpoint) > 1 or split_has_changed(checkpoint, run):
        return names
    try:
        return {case.name for case in training_cases(data_set, hold_out_from(run)).train}
    except UserError:  # the data set now names its own cases to hold out, for example
        return names
