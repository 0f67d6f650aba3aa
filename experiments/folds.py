"""The runs of a cross-validation: each one fold, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.runs.run_cases import CASES_FILE, RunCases
from engine.runs.training_record import INITIAL_WEIGHTS, SPLIT_FILE, TEACHERS, TrainingRecord
from scoring.results import Results, read_results, recorded_groups
from scoring.validated_runs import check_of_present_weights, find_results, scored_checkpoint
from utils.config import Config
from utils.config_keys import CHANGEABLE_ON_RESUME
from utils.errors import UserError, listed
from utils.runs import HELD_OUT_PREFIX

KEYS_OF_ONE_FOLD = (
    "checkpoint", "environment", "init_weights", "sha256", "teachers", "test_cases_trained_on",
    "trained_on_another_split",
)  # keys of the provenance that may be another in each fold  # fmt: skip
CHOOSES_THE_EPOCH = "validate_every"
SHOWN = 4  # cases in a message


@dataclass(frozen=True)
class Fold:
    """The held-out scores of one run, and what is recorded of its training."""

    results: Results
    record: TrainingRecord
    config: Config
    cases: RunCases

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.record.checkpoint.parent

    @property
    def command(self) -> str:
        """What scores its held-out cases again."""
        is_best, checkpoint = self.record.is_best, self.record.checkpoint
        own = self.folder if is_best else checkpoint.with_suffix("")
        results_parent = self.results.folder.parent
        name = f" --name {results_parent.name}" if results_parent != own else ""
        weights = "" if is_best else f" model_weight={checkpoint}"
        return held_out_command(self.folder) + name + weights


def read_folds(runs: Sequence[Path], dataset: str | None = None) -> list[Fold]:
    """The folds of one cross-validation, in order.

    UserError unless they are all of its folds, each once, trained and scored alike, and hold out every
    case once.
    """
    folds = [read_fold(run, dataset) for run in runs]
    check_alike(folds)
    check_complete(folds)
    folds.sort(key=lambda fold: fold.config.fold)
    check_cases(folds)
    return folds


def held_out_command(run: Path) -> str:
    return f"python valid.py --run {run} --held-out"


def read_fold(run: Path, dataset: str | None = None) -> Fold:
    """The held-out scores of a run, or those of its checkpoint to which the folder `run` belongs."""
    results = read_results(find_results(run, dataset, HELD_OUT_PREFIX, held_out_command(run)))
    record = TrainingRecord.read(scored_checkpoint(results))
    if record.config is None or record.cases is None:
        raise UserError(
            f"{results.folder} does not lie in the folder of a run, whose config.yaml and {CASES_FILE} say which fold "
            "it held out: name a run as train.py wrote it (ckpt/<experiment>/epochs_<N>)"
        )
    fold = Fold(results, record, record.config, record.cases)
    if not fold.config.folds:
        raise UserError(
            f"{fold.folder} was trained without folds (folds: 0): train one run for each fold, with folds=5 and fold=0 "
            "to fold=4, and score each with --held-out"
        )
    if record.is_best and (epoch := record.unfinished_at()) is not None:
        raise UserError(
            f"{fold.folder} has done {epoch} of {fold.config.epochs} epochs, so that its weights are not those of a whole "
            f"training: resume it with the same command, then run {fold.command}"
        )
    check_of_present_weights(results, record.checkpoint, fold.command)
    return fold


def check_alike(folds: Sequence[Fold]) -> None:
    """UserError unless all were trained with the same settings but `fold`, and scored with the same.

    Settings of the machine may differ, and each fold may have its own teachers. Weights to start from may be
    one file for all, or one for each fold.
    """
    first, *others = folds
    for other in others:
        for told_by, remedy in (
            (trained_with, "train all folds with the same settings apart from fold"),
            (scored_with, f"score them alike, such as with {held_out_command(other.folder)}"),
        ):
            one, two = told_by(first), told_by(other)
            differ = [
                f"{key}: {one[key]!r} and {two[key]!r}"
                for key in one
                if key in two and one[key] != two[key]
            ]
            if differ:
                raise UserError(
                    f"{first.results.folder} and {other.results.folder} do not belong to one cross-validation, they "
                    f"differ in {'; '.join(differ)}: {remedy}"
                )
    starts = {start_of(fold) for fold in folds}
    if len(starts) > 1 and (None in starts or len(starts) < len(folds)):
        listing = "; ".join(f"{fold.folder}: {fold.config.init_weights}" for fold in folds)
        raise UserError(
            f"the folds did not start alike, init_weights differs ({listing}): train all from random weights, from "
            "one file, or each from a file of its own"
        )


def trained_with(fold: Fold) -> dict[str, Any]:
    """What the training of a fold has in common with that of the others, as far as it is recorded."""
    choosing = set() if fold.config.keeps_last else {CHOOSES_THE_EPOCH}
    ignored = (CHANGEABLE_ON_RESUME - choosing) | {"fold", "init_weights", "teachers"}
    settings = fold.config.model_dump(mode="json", exclude=set(ignored))
    recorded = fold.record.environment
    return (
        {"data set": fold.config.dataset}
        | settings
        | {key: recorded[key] for key in ("precision", "processes") if key in recorded}
        | {
            name: value
            for name, value in fold.record.hashes.items()
            if name not in (INITIAL_WEIGHTS, SPLIT_FILE, TEACHERS)
        }
    )


def scored_with(fold: Fold) -> dict[str, Any]:
    """What the scoring of a fold has in common with that of the others, as far as it is recorded."""
    summary = fold.results.summary
    made_with = {
        key: value for key, value in summary["provenance"].items() if key not in KEYS_OF_ONE_FOLD
    }
    return made_with | {
        "hd95_empty": summary["hd95"]["rule"],
        "groups of cases known by": recorded_groups(summary).by,
    }


def start_of(fold: Fold) -> str | None:
    """The hash of the initial weights, or their path where it is not recorded; None for random ones."""
    if fold.config.init_weights is None:
        return None
    return fold.record.hashes.get(INITIAL_WEIGHTS) or str(fold.config.init_weights)


def check_complete(folds: Sequence[Fold]) -> None:
    """UserError unless each of the folds is there once."""
    number = folds[0].config.folds
    by_fold: dict[int, Fold] = {}
    for fold in folds:
        other = by_fold.setdefault(fold.config.fold, fold)
        if other is not fold:
            raise UserError(
                f"{other.folder} and {fold.folder} are both fold {fold.config.fold} of {number}: name one run for each"
            )
    missing = [str(index) for index in range(number) if index not in by_fold]
    if missing:
        raise UserError(
            f"of {number} folds, {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing: name these runs "
            f"too, trained with folds={number} fold={missing[0]} and scored with valid.py --held-out"
        )


def check_cases(folds: Sequence[Fold]) -> None:
    """UserError unless the folds scored all cases that they held out, and these are train, each once."""
    held_out_by: dict[str, Fold] = {}
    for fold in folds:
        held_out, scored = set(fold.cases.held_out), set(fold.results.names)
        if held_out != scored:
            raise UserError(
                f"{fold.results.folder} does not score what its run held out: {_told(held_out - scored)} not scored, "
                f"{_told(scored - held_out)} not held out. If the split file has changed since the training, restore "
                f"it; then run {fold.command}"
            )
        twice = sorted(scored & held_out_by.keys())
        if twice:
            raise UserError(
                f"{held_out_by[twice[0]].folder} and {fold.folder} both held out {listed(twice, SHOWN)}: the split "
                "file, or the groups, of the data set changed between them; train all folds on the same"
            )
        held_out_by |= dict.fromkeys(scored, fold)
    for fold in folds:
        unscored = (set(fold.cases.train) | set(fold.cases.held_out)) ^ held_out_by.keys()
        if unscored:
            raise UserError(
                f"{fold.folder} had other cases in train than the folds hold out together ({_told(unscored)}): the "
                "split file of the data set changed between the trainings; train all folds on the same"
            )


def _told(names: Iterable[str]) -> str:
    """How many cases, and some of them."""
    every = sorted(names)
    return f"{len(every)} ({listed(every, SHOWN)})" if every else "none"
