"""The folds of a cross-validation as one result: pooled scores, and tables of these and of each fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from engine.runs.training_record import NO_SCORE_CHOSE
from experiments.folds import Fold
from scoring.comparison import (
    PLOTTED,
    WITHOUT_LEAKED,
    compare_metrics,
    means_latex,
    means_paragraphs,
)
from scoring.groups import joined
from scoring.in_words import (
    empty_truths_text,
    how_scored,
    interval_unit,
    narrow_parts,
    scale_of,
    with_unit,
)
from scoring.results import (
    WITH_LESION,
    Results,
    Summary,
    recorded_groups,
    statistics_of,
    write_results,
)
from scoring.statistics import describe
from utils.files import atomic_write
from utils.tables import latex_table, markdown_table

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


def write_cross_validation(folder: Path, folds: Sequence[Fold]) -> tuple[Summary, AcrossFolds]:
    """Write results.csv and summary.json of all cases, and tables of them and of each fold, into `folder`.

    `folds` as `read_folds` returns them. Cases of one group are one for the intervals, also where they lie in
    different folds.
    """
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
    runs, summary = {ALL_CASES: pooled}, pooled.summary
    paragraphs = [
        f"# Cross-validation on {folds[0].config.dataset}: {summary['count']} cases in {len(folds)} folds",
        *means_paragraphs(compare_metrics(runs), runs, [ALL_CASES]),
        "; ".join((f"The intervals are {interval_unit(summary)}", *narrow_parts(summary))) + ".",
        markdown_table(*table_of_folds(folds, pooled)),
        "Means over the cases of each fold, and mean and standard deviation (divisor K - 1) of these, in which each "
        "fold counts once. The deviation comes from both the cases and the trainings of the folds, and is no "
        "standard error: any two trainings share most of their cases.",
    ]
    if note := empty_truths_text(summary):
        paragraphs.append(note)
    if without := summary["without_leaked"]:
        paragraphs.append(
            f"{_leaked_out(len(without['dropped']), summary['count'])} that their fold's weights were trained on, or "
            "that were found to have a near-duplicate among its training cases."
        )
    paragraphs.append(f"{how_scored(summary)}.")
    paragraphs.append(
        "\n".join(f"- fold {fold.config.fold}: {fold.record.checkpoint}" for fold in folds)
    )
    return "\n\n".join(paragraphs) + "\n"


def _leaked_out(leaked: int, cases: int) -> str:
    """What is left out where cases leaked, for a list of why."""
    if leaked == cases:
        return f"There is no {WITHOUT_LEAKED}: each of the {cases} cases is one"
    return f"{WITHOUT_LEAKED} leaves out {leaked} of {cases} cases: those"


def to_latex(folds: Sequence[Fold], pooled: Results) -> str:
    """The two tables for a paper; needs booktabs."""
    runs = {ALL_CASES: pooled}
    return (
        f"{means_latex(compare_metrics(runs), runs)}\n"
        "% means of the folds, their mean and standard deviation\n"
        f"{latex_table(*table_of_folds(folds, pooled))}"
    )


def table_of_folds(folds: Sequence[Fold], pooled: Results) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each fold's numbers of cases and means, the last row mean and deviation of these."""
    summaries = [fold.results.summary for fold in folds]
    counts = {
        "cases": [summary["count"] for summary in summaries],
        "missed": [summary["misses"] for summary in summaries],
    }
    metrics = list(PLOTTED)
    if pooled.summary["empty_truths"]:
        counts["without a lesion"] = [summary["empty_truths"] for summary in summaries]
        counts["false alarms"] = [summary["false_alarms"] for summary in summaries]
        metrics.insert(metrics.index("DSC") + 1, WITH_LESION)
    columns = [["", *(f"fold {fold.config.fold}" for fold in folds), "mean ± SD"]]
    columns += [[head, *map(str, of_folds), ""] for head, of_folds in counts.items()]
    columns += [_column_of_means(metric, summaries) for metric in metrics]
    header, *rows = map(list, zip(*columns, strict=True))
    return header, rows


def _column_of_means(metric: str, summaries: Sequence[Summary]) -> list[str]:
    """Head, the mean of each fold, and the mean and deviation of these."""
    means, scale = [statistics_of(each, metric)["mean"] for each in summaries], scale_of(metric)
    across = describe([mean for mean in means if mean is not None])
    spread = f"{scale * across.mean:.2f} ± {scale * across.std:.2f}" if across.count > 1 else "-"
    cells = ("-" if mean is None else f"{scale * mean:.2f}" for mean in means)
    return [with_unit(metric), *cells, spread]


def shared_provenance(folds: Sequence[Fold]) -> dict[str, Any]:
    """What all folds' scores rest on; `selection` says whether the scored cases chose the checkpoints."""
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
    teachers = dict.fromkeys(teacher for each in all_of for teacher in each.get("teachers", ()))
    return shared | {
        "selection": said,
        "init_weights": ", ".join(starts) or None,
        "teachers": list(teachers),
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
