"""What a study would run, for `study.py --dry-run`: every run, and what is wrong before it begins."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

from datasets.cases import open_data_set
from engine.training_cases import training_cases_from
from experiments.studies.study import Run, Study
from experiments.trials.inputs import check_weights
from experiments.trials.records import read_record
from experiments.trials.trial import Trial


def describe_plan(study: Study, runs: Mapping[Run, Trial], left: Collection[Trial]) -> str:
    """All runs of the study and how far they are; `left` are those without all of their results.

    UserError where the data set, the cases to choose by, or weights of one that is left are missing.
    """
    open_once = functools.cache(open_data_set)
    for trial in left:
        check_weights(trial.config, trial.name)
        training_cases_from(trial.config, open_once(trial.config.pickle_file_path))
    lines = [f"{study.title}: {len(runs)} run(s), {len(left)} without all of their results:"]
    lines += [f"  {run.name}: {_state(trial, left)}" for run, trial in runs.items()]
    return "\n".join([*lines, f"writes to: {study.folder}"])


def _state(trial: Trial, left: Collection[Trial]) -> str:
    if trial not in left:
        return "has its results"
    record = read_record(trial.folder)
    if record is None:
        return "to be trained"
    if record.trained and record.status != "failed":
        return "trained, to be scored"
    return record.status
