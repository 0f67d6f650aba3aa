"""Validated runs: where their results lie, what to call them, and whether their scores compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoring.results import CSV_NAME, Results, read_results
from utils.errors import UserError, listed
from utils.files import sha256
from utils.runs import BEST_WEIGHTS, RESULTS_PREFIX

NAMES_SHOWN = 5
OF_THE_TRUTH = ("Height", "Width", "TruthPixels")  # sizes that do not depend on the prediction


def read_runs(paths: Sequence[Path], dataset: str | None) -> dict[str, Results]:
    """The validations of the runs by a short name for each, the reference first.

    UserError unless there are at least two and their scores compare.
    """
    if len(paths) < 2:
        raise UserError(f"one run given ({paths[0]}); name at least two to compare")
    folders = [find_results(path, dataset) for path in paths]
    runs = dict(zip(label_runs(folders), map(read_results, folders), strict=True))
    for results in runs.values():
        check_of_present_weights(results, scored_checkpoint(results))
        check_of_present_folds(results)
    check_comparable(runs)
    return runs


def scored_checkpoint(results: Results) -> Path:
    """Where the scored checkpoint is, unless it has been moved: in the folder of the run."""
    inside = results.folder.parents or results.folder.resolve().parents
    # the run, or a checkpoint's folder in it, or one of a --name in either
    near = list(inside)[:3]
    folder = next((path for path in near if (path / "config.yaml").is_file()), near[0])
    return folder / Path(results.summary["provenance"].get("checkpoint", BEST_WEIGHTS)).name


def check_of_present_weights(results: Results, checkpoint: Path, command: str = "valid.py") -> None:
    """UserError if the checkpoint has changed since it was scored; one that is not there is taken to fit."""
    scored = results.summary["provenance"].get("sha256", {}).get("checkpoint")
    _check_hash(results.folder, checkpoint, scored, f"run {command} again")


def check_of_present_folds(results: Results) -> None:
    """The same of each fold, where the results are those of a cross-validation."""
    pooled: Any = results.summary.get("folds", {"each": ()})
    for fold in pooled["each"]:
        remedy = "score the held-out cases of all folds, and pool them, again"
        _check_hash(results.folder, Path(fold["checkpoint"]), fold.get("sha256"), remedy)


def _check_hash(folder: Path, checkpoint: Path, scored: str | None, remedy: str) -> None:
    if scored and checkpoint.is_file() and sha256(checkpoint) != scored:
        raise UserError(
            f"{folder} holds the scores of earlier weights than {checkpoint} has now: {remedy}"
        )


def find_results(
    run: Path, dataset: str | None, prefix: str = RESULTS_PREFIX, command: str = "valid.py"
) -> Path:
    """The folder of validation results that `run` is or holds; `command` would write it."""
    if (run / CSV_NAME).is_file():
        provenance = read_results(run).summary["provenance"]
        scored_on = provenance.get("data_set", run.name.removeprefix(prefix))
        if dataset and dataset != scored_on:
            raise UserError(
                f"{run} is not of --dataset {dataset}; give the run folder instead, or results on {dataset}"
            )
        return run
    if not run.is_dir():
        raise UserError(f"{run} is not a folder; expected ckpt/<experiment>/epochs_<N>")
    folders = (path.parent.name for path in run.glob(f"{prefix}*/{CSV_NAME}"))
    validated_on = sorted(name.removeprefix(prefix) for name in folders)
    names = ", ".join(validated_on)
    if not validated_on:
        raise UserError(f"{run} was not validated: it holds no {prefix}*; run {command}")
    if dataset is None and len(validated_on) > 1:
        raise UserError(f"{run} was validated on {names}; choose one with --dataset")
    if dataset is not None and dataset not in validated_on:
        raise UserError(f"{run} was not validated on {dataset}, only on {names}")
    return run / (prefix + (dataset or validated_on[0]))


def label_runs(folders: list[Path]) -> list[str]:
    """The shortest names that tell the runs apart: their paths without what all have in common."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(path for path in parts if parts.count(path) > 1)
        raise UserError(f"{Path(*twice)} is given twice; name each run once")
    while min(map(len, parts)) > 1 and len({path[-1] for path in parts}) == 1:
        parts = [path[:-1] for path in parts]
    while min(map(len, parts)) > 1 and len({path[0] for path in parts}) == 1:
        parts = [path[1:] for path in parts]
    return ["/".join(path) for path in parts]


def check_comparable(runs: Mapping[str, Results]) -> None:
    """Raise `UserError` unless all runs scored the same cases, at one size, by one HD95 rule."""
    check_same_cases(runs)
    (first, reference), *others = runs.items()
    for label, run in others:
        rule, other_rule = (
            results.summary.get("hd95", {}).get("rule") for results in (reference, run)
        )
        if rule != other_rule:
            raise UserError(
                f"HD95 of a miss is scored by the rule {rule!r} in {first} and {other_rule!r} in "
                f"{label}. Validate both with the same hd95_empty"
            )


def check_same_cases(runs: Mapping[str, Results]) -> None:
    """Raise `UserError` unless all runs, by label, scored the same cases by the same masks."""
    (first, reference), *others = runs.items()
    for label, run in others:
        only = {
            first: sorted(reference.scores.keys() - run.scores.keys()),
            label: sorted(run.scores.keys() - reference.scores.keys()),
        }
        problems = [
            f"{len(names)} only in {owner} ({listed(names, NAMES_SHOWN)})"
            for owner, names in only.items()
            if names
        ]
        if problems:
            raise UserError(
                f"{first} and {label} were scored on different cases: {'; '.join(problems)}. "
                "Validate both on the same test set"
            )
        differing = [
            name
            for name, scores in run.scores.items()
            if any(scores[key] != reference.scores[name][key] for key in OF_THE_TRUTH)
        ]
        if differing:
            raise UserError(
                f"{first} and {label} were scored against different masks or at different sizes "
                f"in {len(differing)} cases ({listed(differing, NAMES_SHOWN)}). Validate both on "
                "the same masks at the same evaluation size"
            )
