"""Which cases of a data set the weights of a checkpoint have seen, as far as it is recorded.

    cases_trained_on         that it had for training, those held out included; without a record all of train
    recorded_training_cases  the same; without a record none
    fitted_cases             that changed the weights, so without those held out
    held_out_cases           that its own run held out of train
    known_held_out_cases     that another run holds out, and that changed these weights
    seen_test_cases          of the test split among `recorded_training_cases`; None where that is not known
    cases_leaked_to          of the test split among `cases_trained_on`, or with a near-duplicate there

In all but `held_out_cases`, those of the weights that the run started or learned from count, too, and so do
copies in a data set of another name, as far as `TrainingRecord.copies_in` finds them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from datasets.cases import Case, DataSet
from datasets.checks.leaks import leaked_test_cases
from datasets.splits import Split
from engine.runs.run_cases import CASES_FILE, names_data_set, names_sha256
from engine.runs.training_record import (
    TRAINING_CASES,
    TrainingRecord,
    training_config,
    training_history,
)
from engine.training_cases import training_cases_from
from utils.errors import UserError

log = logging.getLogger("wavegms")


def cases_trained_on(checkpoint: Path, data_set: DataSet) -> tuple[str, ...]:
    """Cases of `data_set` that the checkpoint's run had for training, those held out included.

    By the split in the config beside the checkpoint; without one, the train part of `data_set`. Where the
    run was trained on a set of another name, the copies of its cases that are found. Those of the weights
    that the run started or learned from are included as far as they are recorded. UserError where the run's
    split file is gone.
    """
    if training_config(checkpoint) is None:
        return tuple(case.name for case in data_set.train)
    return recorded_training_cases(checkpoint, data_set)


def recorded_training_cases(checkpoint: Path, data_set: DataSet) -> tuple[str, ...]:
    """Like `cases_trained_on`, but none where nothing beside the checkpoint says what it was trained on."""
    cases: dict[str, None] = {}
    for record in training_history(checkpoint):
        cases |= dict.fromkeys(record.cases_of(data_set) or record.copies_in(data_set))
    return tuple(cases)


def fitted_cases(weights: Path, data_set: DataSet) -> set[str]:
    """Cases of `data_set` that changed the weights, or those before them, as far as that is recorded."""
    return set().union(*(_fitted_cases(each, data_set) for each in training_history(weights)))


def _fitted_cases(record: TrainingRecord, data_set: DataSet) -> set[str]:
    """Cases that changed the weights: those of the run's split without the ones that it held out.

    All of the split where it is not known which these were, or the weights are of several runs.
    """
    all_cases = {case.name for case in data_set.train}
    if record.config is None:
        return all_cases if record.had_cases_of(data_set) else set()
    names = set(record.cases_of(data_set) or record.copies_in(data_set))
    if record.cases is not None:
        return names.intersection(record.cases.train)
    if names != all_cases or record.combined_runs > 1 or record.split_has_changed():
        return names
    try:
        return {case.name for case in training_cases_from(record.config, data_set).train}
    except UserError:  # the data set now names its own cases to hold out, for example
        return names


def held_out_cases(checkpoint: Path, data_set: DataSet) -> tuple[Case, ...]:
    """The cases of `data_set` that the checkpoint's run held out, as recorded."""
    record = TrainingRecord.read(checkpoint)
    if record.cases is None or not set(record.cases_of(data_set)):
        raise UserError(
            f"{checkpoint} has no record ({CASES_FILE} beside it) of which cases of {data_set.name} its run held out: "
            "name the folder of a run of train.py on this data set"
        )
    held_out = tuple(case for case in data_set.train if case.name in record.cases.held_out)
    if not held_out:
        chosen = "; it was chosen on test" if record.config and not record.config.keeps_last else ""
        raise UserError(f"{checkpoint}: its run held out no case of train{chosen}")
    return held_out


def known_held_out_cases(weights: Path, held_out: Sequence[Case], data_set: DataSet) -> list[str]:
    """Names of the `held_out` cases of `data_set` on which the weights were trained, sorted.

    As far as their training is recorded.
    """
    return sorted(fitted_cases(weights, data_set).intersection(case.name for case in held_out))


def seen_test_cases(checkpoint: Path, data_set: DataSet) -> list[str] | None:
    """Names of the test cases of `data_set` among `recorded_training_cases`, sorted; None where not known.

    That is so without a config beside the checkpoint, and where the run has recorded no cases and its split
    file is gone or has changed.
    """
    record = TrainingRecord.read(checkpoint)
    if record.config is None or (record.cases is None and record.split_has_changed()):
        return None
    try:
        own, trained_on = record.cases_of(data_set), recorded_training_cases(checkpoint, data_set)
    except UserError:
        return None
    recorded = record.metadata or record.environment
    is_own_split = recorded.get(TRAINING_CASES) in (None, names_sha256(own))
    if names_data_set(record.config.dataset, data_set) and not (own and is_own_split):
        return None
    return sorted({case.name for case in data_set.test}.intersection(trained_on))


def cases_leaked_to(data_set: DataSet, checkpoint: Path) -> set[str]:
    """Test cases that the weights were trained on, or on a near-duplicate of. Needs a checked data set.

    What counts is the split that the checkpoint was trained on; where that is unknown, the data set's.
    """
    trained_on = cases_trained_on(checkpoint, data_set)
    test = tuple(case.name for case in data_set.test)
    if not trained_on:
        trained = TrainingRecord.read(checkpoint).data_set
        log.info(
            "%s: no case of %s is known to have been in training; the same images under other names, or "
            "converted, and near-duplicates were not looked for",
            f"trained on another data set ({trained})" if trained else "trained on unknown data",
            data_set.name,
        )
        return set()
    return leaked_test_cases(data_set.folder, Split(trained_on, test)) | (
        set(trained_on) & set(test)
    )
