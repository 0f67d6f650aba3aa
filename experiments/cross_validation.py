"""A cross-validation as one result: every case of train once, scored by the run that held it out.

    python -m experiments.cross_validation ckpt/fold_*/epochs_1000 --out ckpt/cross_validation/wave_gms

pools the held-out scores of the K runs of `folds: K`, of which `python valid.py --run RUN --held-out` has
scored each. For another checkpoint than the best, give the folder of its results (RUN/epoch_1000). Runs
that are not the K folds of one training, or were not scored alike, are refused. Written to --out:
cross_validation.md and .tex (with booktabs), the means over all cases and those of each fold; and, for
`python compare.py` to compare two systems case by case, results.csv and summary.json as of a validation, the
latter with the Dice of each fold below `folds`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from utils.entry import described_parser, exit_from
from utils.errors import UserError, listed
from utils.runs import writing_to

if TYPE_CHECKING:
    from engine.runs.training_record import RunCases, TrainingRecord
    from scoring.results import Results, Summary
    from utils.config import Config

OF_ONE_FOLD = (
    "checkpoint", "environment", "init_weights", "sha256", "test_cases_trained_on", "trained_on_another_split",
)  # keys of the provenance that may be another in each fold  # fmt: skip
CHOOSES_THE_EPOCH = "validate_every"
SHOWN = 4  # cases in a message
ALL_CASES = "all cases"


class FoldScores(TypedDict):
    """A fold by itself."""

    fold: int
    count: int
    misses: int
    dice: float
    """Mean over its cases."""
    checkpoint: str
    sha256: str | None


class AcrossFolds(TypedDict):
    """`folds` of summary.json: the mean Dice of each fold; their mean, and deviation with divisor K - 1."""

    mean: float
    std: float
    each: list[FoldScores]


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
        beside = self.results.folder.parent
        name = f" --name {beside.name}" if beside != own else ""
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
    from engine.runs.training_record import CASES_FILE, TrainingRecord
    from scoring.comparison import find_results
    from scoring.results import HELD_OUT_PREFIX, read_results
    from utils.files import sha256

    results = read_results(find_results(run, dataset, HELD_OUT_PREFIX, held_out_command(run)))
    made_with = results.summary["provenance"]
    # the run, or a checkpoint's folder in it, or one of a --name in either
    near = list(results.folder.parents)[:3]
    folder = next((path for path in near if (path / "config.yaml").is_file()), near[0])
    checkpoint = folder / Path(made_with.get("checkpoint", "best_model.pth")).name
    record = TrainingRecord.read(checkpoint)
    if record.config is None or record.cases is None:
        raise UserError(
            f"{results.folder} does not lie in the folder of a run, whose config.yaml and {CASES_FILE} say which fold "
            "it held out: name a run as train.py wrote it (ckpt/<experiment>/epochs_<N>)"
        )
    fold = Fold(results, record, record.config, record.cases)
    if not fold.config.folds:
        raise UserError(
            f"{folder} was trained without folds (folds: 0): train one run for each fold, with folds=5 and fold=0 "
            "to fold=4, and score each with --held-out"
        )
    scored = made_with.get("sha256", {}).get("checkpoint")
    if scored and checkpoint.is_file() and sha256(checkpoint) != scored:
        raise UserError(
            f"{results.folder} holds the scores of earlier weights than {checkpoint} has now: run {fold.command} again"
        )
    return fold


def check_alike(folds: Sequence[Fold]) -> None:
    """UserError unless all were trained with the same settings but `fold`, and scored with the same.

    Settings of the machine may differ. Weights to start from may be one file for all, or one for each fold.
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
    from engine.runs.training_record import INITIAL_WEIGHTS, SPLIT_FILE
    from utils.config import CHANGEABLE_ON_RESUME

    choosing = set() if fold.config.keeps_last else {CHOOSES_THE_EPOCH}
    ignored = (CHANGEABLE_ON_RESUME - choosing) | {"fold", "init_weights"}
    settings = fold.config.model_dump(mode="json", exclude=set(ignored))
    recorded = fold.record.environment
    return (
        {"data set": fold.config.dataset}
        | settings
        | {key: recorded[key] for key in ("precision", "processes") if key in recorded}
        | {
            name: value
            for name, value in fold.record.hashes.items()
            if name not in (INITIAL_WEIGHTS, SPLIT_FILE)
        }
    )


def scored_with(fold: Fold) -> dict[str, Any]:
    """What the scoring of a fold has in common with that of the others, as far as it is recorded."""
    from scoring.results import recorded_groups

    summary = fold.results.summary
    made_with = {
        key: value for key, value in summary["provenance"].items() if key not in OF_ONE_FOLD
    }
    return made_with | {
        "hd95_empty": summary["hd95"]["rule"],
        "groups of cases known by": recorded_groups(summary).by,
    }


def start_of(fold: Fold) -> str | None:
    """The hash of the initial weights, or their path where it is not recorded; None for random ones."""
    if fold.config.init_weights is None:
        return None
    from engine.runs.training_record import INITIAL_WEIGHTS

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


def write_cross_validation(folder: Path, folds: Sequence[Fold]) -> tuple[Summary, AcrossFolds]:
    """Write results.csv and summary.json of all cases, and tables of them and of each fold, into `folder`.

    `folds` as `read_folds` returns them. Cases of one group are one for the intervals, also where they lie in
    different folds.
    """
    from scoring.groups import joined
    from scoring.results import Results, recorded_groups, write_results
    from scoring.statistics import describe
    from utils.files import atomic_write

    summaries = [fold.results.summary for fold in folds]
    each: list[FoldScores] = [
        {
            "fold": fold.config.fold,
            "count": len(fold.results.names),
            "misses": fold.results.summary["misses"],
            "dice": float(fold.results.values("DSC").mean()),
            "checkpoint": str(fold.record.checkpoint),
            "sha256": fold.results.summary["provenance"].get("sha256", {}).get("checkpoint"),
        }
        for fold in folds
    ]
    dice = describe([scores["dice"] for scores in each])
    across: AcrossFolds = {"mean": dice.mean, "std": dice.std, "each": each}
    leaked = [
        name for one in summaries if (kept := one["without_leaked"]) for name in kept["dropped"]
    ]
    scores = {name: each for fold in folds for name, each in fold.results.scores.items()}
    summary = write_results(
        folder,
        scores,
        provenance=shared_provenance(folds),
        leaked=leaked,
        known=joined([recorded_groups(one) for one in summaries]),
        hd95_empty=summaries[0]["hd95"]["rule"],
        further={"folds": across},
    )
    pooled = Results(folder, dict(sorted(scores.items())), summary)
    atomic_write(folder / "cross_validation.md", to_markdown(folds, pooled))
    atomic_write(folder / "cross_validation.tex", to_latex(folds, pooled))
    return summary, across


def to_markdown(folds: Sequence[Fold], pooled: Results) -> str:
    """Two tables: the means over all cases, and those of each fold; how the folds were scored."""
    from scoring.comparison import WITHOUT_LEAKED, compare_metrics, how_scored, means_paragraphs
    from scoring.results import empty_truths_text, interval_unit
    from utils.tables import markdown_table

    runs, summary = {ALL_CASES: pooled}, pooled.summary
    paragraphs = [
        f"# Cross-validation on {folds[0].config.dataset}: {summary['count']} cases in {len(folds)} folds",
        *means_paragraphs(compare_metrics(runs), runs, [ALL_CASES]),
        f"The intervals are {interval_unit(summary)}.",
        markdown_table(*table_of_folds(folds, pooled)),
        "Means over the cases of each fold, and mean and standard deviation (divisor K - 1) of these, in which each "
        "fold counts once. The deviation comes from both the cases and the trainings of the folds, and is no "
        "standard error: any two trainings share most of their cases.",
    ]
    if note := empty_truths_text(summary):
        paragraphs.append(note)
    if without := summary["without_leaked"]:
        paragraphs.append(
            f"{WITHOUT_LEAKED} leaves out {len(without['dropped'])} of {summary['count']} cases: those that their "
            "fold's weights were trained on, or that were found to have a near-duplicate among its training cases."
        )
    paragraphs.append(f"{how_scored(summary)}.")
    paragraphs.append(
        "\n".join(f"- fold {fold.config.fold}: {fold.record.checkpoint}" for fold in folds)
    )
    return "\n\n".join(paragraphs) + "\n"


def to_latex(folds: Sequence[Fold], pooled: Results) -> str:
    """The two tables for a paper; needs booktabs."""
    from scoring.comparison import compare_metrics, means_latex
    from utils.tables import latex_table

    runs = {ALL_CASES: pooled}
    return (
        f"{means_latex(compare_metrics(runs), runs)}\n"
        "% means of the folds, their mean and standard deviation\n"
        f"{latex_table(*table_of_folds(folds, pooled))}"
    )


def table_of_folds(folds: Sequence[Fold], pooled: Results) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each fold's numbers of cases and means, the last row mean and deviation of these."""
    from scoring.comparison import PLOTTED, with_unit
    from scoring.metrics import LOWER_IS_BETTER
    from scoring.results import WITH_LESION, mean_of
    from scoring.statistics import describe

    summaries = [fold.results.summary for fold in folds]
    counts = {
        "cases": [summary["count"] for summary in summaries],
        "missed": [summary["misses"] for summary in summaries],
    }
    means = {"DSC": [mean_of(summary["metrics"]["DSC"]) for summary in summaries]}
    if pooled.summary["empty_truths"]:
        counts["without a lesion"] = [summary["empty_truths"] for summary in summaries]
        counts["false alarms"] = [summary["false_alarms"] for summary in summaries]
        of_lesions = [summary["dice_with_lesion"]["mean"] for summary in summaries]
        means[WITH_LESION] = [math.nan if mean is None else mean for mean in of_lesions]
    for metric in PLOTTED:
        means[metric] = [mean_of(summary["metrics"][metric]) for summary in summaries]
    rows = [
        [f"fold {fold.config.fold}", *(str(count[index]) for count in counts.values())]
        for index, fold in enumerate(folds)
    ]
    rows.append(["mean ± SD", *("" for _ in counts)])
    for metric, of_folds in means.items():
        scale = 1 if metric in LOWER_IS_BETTER else 100
        for row, mean in zip(rows, of_folds, strict=False):
            row.append("-" if math.isnan(mean) else f"{scale * mean:.2f}")
        across = describe([mean for mean in of_folds if not math.isnan(mean)])
        spread = f"{scale * across.mean:.2f} ± {scale * across.std:.2f}"
        rows[-1].append(spread if across.count > 1 else "-")
    return ["", *counts, *map(with_unit, means)], rows


def shared_provenance(folds: Sequence[Fold]) -> dict[str, Any]:
    """What all folds' scores rest on; `selection` says whether the scored cases chose the checkpoints."""
    from engine.runs.training_record import NO_SCORE_CHOSE

    all_of: list[dict[str, Any]] = [{**fold.results.summary["provenance"]} for fold in folds]
    first, *others = all_of
    shared = {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }
    selection = first.get("selection", "no record of how the checkpoint was chosen")
    said = f"cross-validation, in each of {len(folds)} folds: {selection}"
    if NO_SCORE_CHOSE not in selection:
        said += " (the best epoch), so that the scores are a little too high"
    seen = [each.get("test_cases_trained_on") for each in all_of]
    starts = dict.fromkeys(each["init_weights"] for each in all_of if each.get("init_weights"))
    return shared | {
        "selection": said,
        "init_weights": ", ".join(starts) or None,
        "test_cases_trained_on": sorted(name for names in seen for name in names or ()),
        "trained_on_another_split": any(seen),
    }


def format_folds(across: AcrossFolds) -> str:
    """A line for each fold, and their mean and deviation, for the terminal."""
    lines = [
        f"  {'fold ' + str(fold['fold']):<24}{100 * fold['dice']:7.2f} %   "
        f"({fold['count']} cases, {fold['misses']} missed: {Path(fold['checkpoint']).parent})"
        for fold in across["each"]
    ]
    mean = f"  {'mean of the folds':<24}{100 * across['mean']:7.2f} %   "
    return "\n".join(
        ["Dice by fold", *lines, f"{mean}(standard deviation {100 * across['std']:.2f})"]
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="ckpt/<experiment>/epochs_<N> of each fold",
    )
    add("--dataset", help="which data set, where the held-out cases of more than one were scored")
    add("--out", type=Path, required=True, metavar="FOLDER", help="one for each system")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    folds = read_folds(arguments.runs, arguments.dataset)

    from engine.validation.summary_text import format_summary

    with writing_to(arguments.out):
        summary, across = write_cross_validation(arguments.out, folds)
    print(format_summary(folds[0].config.dataset, summary, "held-out"))
    print(format_folds(across))
    print(f"written to {arguments.out}; compare two systems with compare.py FOLDER_A FOLDER_B")


if __name__ == "__main__":
    exit_from(main)
