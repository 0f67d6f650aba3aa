"""The validations of several models on several data sets, by model and test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scoring.results import CSV_NAME, Results, Summary, read_results
from scoring.validated_runs import (
    check_of_present_weights,
    check_same_cases,
    label_runs,
    scored_checkpoint,
)
from utils.errors import UserError
from utils.runs import RESULTS_PREFIX

SCORED_ALIKE: dict[str, Callable[[Summary], Any]] = {
    "evaluation_size": lambda summary: summary["provenance"].get("evaluation_size"),
    "hd95_empty": lambda summary: summary["hd95"]["rule"],
}
"""Settings that all validations of a matrix must share."""


def collect_cells(runs: Sequence[Path]) -> dict[tuple[str, str], Summary]:
    """The summaries of all validations in the run folders, by model as `label_models` names it and test set.

    UserError unless each folder holds scores of one model, and the scores can be compared.
    """
    by_run = {run: read_run(run) for run in runs}
    labels = label_models(runs, {run: of_run[0].summary for run, of_run in by_run.items()})
    results_by: dict[tuple[str, str], Results] = {}
    for run, of_run in by_run.items():
        for results in of_run:
            cell = labels[run], str(results.summary["provenance"]["data_set"])
            if cell in results_by:
                raise UserError(
                    f"{results_by[cell].folder} and {results.folder} are both of {cell[1]}; "
                    "move one of them out of the run folder"
                )
            results_by[cell] = results
    check_comparable(results_by)
    return {cell: results.summary for cell, results in results_by.items()}


def read_run(run: Path) -> list[Results]:
    """The validations in a run folder, at least one and all of the weights that the run has now."""
    folders = sorted(path.parent for path in run.glob(f"{RESULTS_PREFIX}*/{CSV_NAME}"))
    if not folders:
        raise UserError(f"{run} holds no {RESULTS_PREFIX}*: run valid.py on it first")
    weights: dict[str | None, Path] = {}  # folder by hash of the checkpoint
    validations = [read_results(folder) for folder in folders]
    for results in validations:
        provenance = results.summary.get("provenance", {})
        if not {"trained_on", "data_set"} <= provenance.keys():
            raise UserError(
                f"{results.folder}/summary.json does not say trained_on and data_set in its "
                "provenance; run valid.py again"
            )
        weights.setdefault(provenance.get("sha256", {}).get("checkpoint"), results.folder)
    if len(weights) > 1:
        first, second, *_ = weights.values()
        raise UserError(
            f"{first} and {second} are of different weights, and a row of the matrix is one model; run "
            "valid.py again on both data sets"
        )
    check_of_present_weights(validations[0], scored_checkpoint(validations[0]))
    return validations


def label_models(runs: Sequence[Path], summaries: Mapping[Path, Summary]) -> dict[Path, str]:
    """Each run's train set, or its folder where that is not known; `train set (run)` where runs share it."""
    by_train_set: dict[str, list[Path]] = {}
    for run in runs:
        trained_on = summaries[run]["provenance"]["trained_on"]
        by_train_set.setdefault(trained_on or f"{run.parent.name}/{run.name}", []).append(run)
    labels = {}
    for train_set, sharing in by_train_set.items():
        if len(sharing) == 1:
            labels[sharing[0]] = train_set
        else:
            names = label_runs(sharing)
            labels |= {
                run: f"{train_set} ({name})" for run, name in zip(sharing, names, strict=True)
            }
    return labels


def check_comparable(results_by: Mapping[tuple[str, str], Results]) -> None:
    """UserError unless sizes and HD95 rules are the same, and the cases of each test set."""
    for what, of in SCORED_ALIKE.items():
        values = {str(results.folder): of(results.summary) for results in results_by.values()}
        if len(set(values.values())) > 1:
            listing = "; ".join(f"{folder}: {value}" for folder, value in values.items())
            raise UserError(f"{what} differs ({listing}): validate again with the same settings")
    for test_set in dict.fromkeys(test for _, test in results_by):
        column = [results for (_, test), results in results_by.items() if test == test_set]
        check_same_cases({str(results.folder): results for results in column})
