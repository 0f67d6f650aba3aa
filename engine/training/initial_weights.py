"""Starting a training from given weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.cases import Case, DataSet
from datasets.held_out import training_cases
from engine.build import hold_out_from
from engine.runs.training_record import TrainingRecord, recorded_training_cases, training_history
from models.base import SegmentationModel
from utils.checkpoints import load_weights
from utils.config import Config
from utils.errors import UserError, listed

SHOWN = 4  # cases in a message


def load_initial_weights(
    weights: Path, data_set: DataSet, system: SegmentationModel, config: Config
) -> None:
    """Copy the `weights` that a training starts from into the trainable parts of `system`, that of `config`.

    UserError where they do not fit, or were trained on cases of this test split.
    """
    load_weights(weights, system, key="init_weights", config=config)
    others = [each for each in training_history(weights) if each.used_another_split(data_set)]
    if others:
        start = others[0].checkpoint
        how = "was" if start == weights else f"started from {start}, which was"
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
    return sorted(fitted_cases(weights, data_set).intersection(case.name for case in held_out))


def fitted_cases(weights: Path, data_set: DataSet) -> set[str]:
    """Cases of `data_set` that changed the weights, or those before them, as far as that is recorded."""
    return set().union(*(_fitted_cases(each, data_set) for each in training_history(weights)))


def _fitted_cases(record: TrainingRecord, data_set: DataSet) -> set[str]:
    """Cases that changed the weights: those of the run's split without the ones that it held out.

    Where it is not known which these were, or the weights are a mean of several runs, all of the split.
    """
    all_cases = {case.name for case in data_set.train}
    if record.config is None:
        return all_cases if record.had_cases_of(data_set) else set()
    names = set(record.cases_of(data_set))
    if record.cases is not None:
        return names.intersection(record.cases.train)
    if names != all_cases or record.averaged_runs > 1 or record.split_has_changed():
        return names
    try:
        return {case.name for case in training_cases(data_set, hold_out_from(record.config)).train}
    except UserError:  # the data set now names its own cases to hold out, for example
        return names
