"""The report of a study: `results.md`, `results.csv`, `curves.png`, `examples.png`.

The first table of `results.md` has one row per system: the mean over the seeds and, where there are several,
the standard deviation across them. The second one has the differences between the first system and each
other one, seed by seed, and their mean with and without the leaked cases. Rows that are already in
`results.csv` stay, so that a study can be gathered from the CSVs of several machines.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.runs.history import read_scores
from experiments.studies.score_run import ON_TEST, TTA
from experiments.studies.scores import (
    ON_VAL,
    TABLE,
    Score,
    check_splits,
    scores_in_table,
    scores_of,
    to_csv,
    trained_in,
)
from experiments.studies.study import GROUPED, PUBLISHED, Run, Study, trials_of
from experiments.trials.earlier_runs import check_processes
from scoring.in_words import mean_difference_text, signed
from utils.errors import UserError
from utils.figures import COLOURS, png
from utils.files import atomic_write
from utils.runs import RESULTS_PREFIX, writing_to
from utils.tables import markdown_table

MOST_BANDS = 4  # systems; the bands of more hide each other
LEFT_OUT = 0.15  # of the Dice of curves.png, the lowest
EXPLAINED = {
    "no leaked cases": " *No leaked cases* leaves out the test cases "
    "for which a near-duplicate was found in train.",
    "group split": " *Group split* is training and testing on a split that "
    "none of the near-duplicates found crosses.",
    "Dice, chosen on test": " *Dice, chosen on test* is the best on test of the epochs that "
    "were kept, which need not be all.",
}
OTHER_CASES = (
    " They are not the same for all systems, such as where initial weights or teachers bring training cases of their own: "
    "where they differ, the numbers of this column do not compare, and there is no difference without them below."
)


class NothingScored(UserError):
    """No run of the study has scores yet."""


def write_study(study: Study, out: Path) -> str:
    """Write the report of all runs that are scored so far into `out`; returns the Markdown.

    NothingScored where none is, UserError where `out` has a table of other runs or of other splits.
    """
    runs = trials_of(study)
    elsewhere = scores_in_table(out, runs)
    here = {run: scores_of(run, trial) for run, trial in runs.items()}
    # either those here or those elsewhere, never a mixture: they come from two trainings
    by_run = {run: max(here[run], elsewhere.get(run, []), key=len) for run in runs}
    scores = [score for run in runs for score in by_run[run]]
    check_splits(scores)
    check_processes(trained_in(scores, runs))
    if not scores:
        raise NothingScored(f"no run of this study is scored yet: {study.folder}")
    table = to_markdown(study, scores)
    with writing_to(out):
        atomic_write(out / "results.md", table)
        atomic_write(out / TABLE, to_csv(scores))

    published = [run for run in runs if run.split == PUBLISHED]
    scored_here = [run for run in published if by_run[run] and by_run[run] is here[run]]
    paths = {run: runs[run].folder / "history.csv" for run in scored_here}
    histories = {run: path for run, path in paths.items() if path.is_file()}
    if histories:  # otherwise the figure is left as it was made elsewhere
        with writing_to(out):
            draw_curves(out / "curves.png", study, histories, len(published))
    first = scores[0].run
    trial = runs[first]
    examples = trial.folder / f"{RESULTS_PREFIX}{trial.config.dataset}" / "examples.png"
    if by_run[first] is here[first] and examples.is_file():
        with writing_to(out):
            shutil.copyfile(examples, out / "examples.png")
    return table


def to_markdown(study: Study, scores: Sequence[Score]) -> str:
    """The table, what its columns mean, and the differences seed by seed.

    Columns that have no number yet are left out.
    """
    columns: dict[str, tuple[str, str, Callable[[Score], float | None]]] = {
        "Dice": (PUBLISHED, ON_VAL, lambda s: 100 * s.dice),
        "no leaked cases": (PUBLISHED, ON_VAL, _dice_without_leaked),
        "group split": (GROUPED, ON_VAL, lambda s: 100 * s.dice),
        "IoU": (PUBLISHED, ON_VAL, lambda s: 100 * s.iou),
        "HD95": (PUBLISHED, ON_VAL, lambda s: s.hd95),
        "HD95, misses as 0": (PUBLISHED, ON_VAL, lambda s: s.hd95_misses_as_0),
        "missed": (PUBLISHED, ON_VAL, lambda s: s.misses),
        "Dice, TTA": (PUBLISHED, TTA, lambda s: 100 * s.dice),
        "Dice, chosen on test": (PUBLISHED, ON_TEST, lambda s: 100 * s.dice),
        "minutes": (PUBLISHED, ON_VAL, lambda s: s.minutes),
        "CPU minutes": (PUBLISHED, ON_VAL, lambda s: s.cpu_minutes),
    }
    columns = {
        name: (split, way, number)
        for name, (split, way, number) in columns.items()
        if any((s.split, s.checkpoint) == (split, way) and number(s) is not None for s in scores)
    }
    rows = []
    for system in study.systems:
        of_system = [score for score in scores if score.system == system]
        if not of_system:
            rows.append([system, *["-"] * (1 + len(columns))])
            continue
        cells = []
        for split, way, number in columns.values():
            values = [number(s) for s in of_system if (s.split, s.checkpoint) == (split, way)]
            cells.append(_cell([v for v in values if v is not None], len(study.seeds)))
        rows.append([system, f"{of_system[0].parameters:,}", *cells])
    explained = {name: text for name, text in EXPLAINED.items() if name in columns}
    plain = [s for s in scores if (s.split, s.checkpoint) == (PUBLISHED, ON_VAL)]
    leaked = {s.leaked_cases for s in plain if s.dice_without_leaked is not None} - {None}
    if len(leaked) > 1:
        explained["no leaked cases"] += OTHER_CASES
    seeds = ", ".join(map(str, study.seeds))
    lines = [
        f"**{study.title}.** {study.protocol}",
        "",
        markdown_table(["system", "parameters", *columns], rows),
        "",
        f"Mean and standard deviation across runs of the seeds {seeds}; (n) where only n have the "
        "number. "
        "Dice and IoU in per cent, HD95 in pixels, misses as the image's diagonal where nothing else "
        "is said. The checkpoint is chosen on a held-out part of train, except in the column that "
        "says otherwise." + "".join(explained.values()),
        "",
    ]
    return "\n".join([*lines, *compare_systems(study, scores)])


def compare_systems(study: Study, scores: Iterable[Score]) -> list[str]:
    """Lines of a second table: the first system's Dice minus each other one's, seed by seed.

    Over the seeds that both have on the published split; nothing where no pair has two of them. The mean
    without the leaked cases has a column where a pair has it for two seeds, and is only of pairs in which the
    same cases leaked, as far as that is recorded.
    """
    chosen = [s for s in scores if (s.split, s.checkpoint) == (PUBLISHED, ON_VAL)]
    differences = _differences(study, {(s.system, s.seed): 100 * s.dice for s in chosen})
    if not differences:
        return []
    kept = {(s.system, s.seed): _dice_without_leaked(s) for s in chosen}
    without = _differences(study, {run: dice for run, dice in kept.items() if dice is not None})
    leaked = {(s.system, s.seed): s.leaked_cases for s in chosen}
    first = next(iter(study.systems))
    for other, by_seed in list(without.items()):
        pairs = [{leaked[first, seed], leaked[other, seed]} - {None} for seed in by_seed]
        if any(len(pair) > 1 for pair in pairs):
            del without[other]
    seeds = [s for s in study.seeds if any(s in by_seed for by_seed in differences.values())]
    rows = []
    for other, by_seed in differences.items():
        cells = [signed(by_seed[seed]) if seed in by_seed else "-" for seed in seeds]
        cells.append(mean_difference_text(list(by_seed.values())))
        if without:
            cells.append(mean_difference_text(list(without.get(other, {}).values())))
        rows.append([other, *cells])
    header = [f"Dice of {first} minus that of"]
    header += [*(f"seed {seed}" for seed in seeds), "mean"]
    header += ["mean, no leaked cases"] if without else []
    compared = len(differences)
    return [
        markdown_table(header, rows),
        "",
        "Points of Dice between runs of the same seed; in brackets the 95 % interval of the mean by "
        "Student's t"
        + (f", not adjusted for the {compared} systems compared." if compared > 1 else "."),
        "",
    ]


def _differences(
    study: Study, dice: Mapping[tuple[str, int], float]
) -> dict[str, dict[int, float]]:
    """System -> seed -> Dice of the first system less its own, where both have it for two seeds or more."""
    first, *others = study.systems
    differences = {
        other: {
            seed: dice[first, seed] - dice[other, seed]
            for seed in study.seeds
            if (first, seed) in dice and (other, seed) in dice
        }
        for other in others
    }
    return {other: by_seed for other, by_seed in differences.items() if len(by_seed) > 1}


def _dice_without_leaked(score: Score) -> float | None:
    kept = score.dice_without_leaked
    return None if kept is None else 100 * kept


def _cell(values: Sequence[float], expected: int) -> str:
    """`81.2 ± 0.4`, with the number of runs where some are missing."""
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return text if len(values) == expected else f"{text} ({len(values)})"


def draw_curves(path: Path, study: Study, histories: Mapping[Run, Path], count: int) -> None:
    """Dice on the held-out part of train by epoch: a line per system, with the best at the end named first.

    Of the `count` runs on the published split, those whose histories are here; the title says how many. A
    band spans each system's seeds where there are few systems. The axis leaves out low values of the first
    epochs.
    """
    from cycler import cycler
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = _curves_of(study, histories)
    banded = len(curves) <= MOST_BANDS
    height = max(4.4, 1 + 0.22 * len(study.systems))
    figure = Figure(figsize=(10, height), layout="constrained")
    axis = figure.subplots()
    # another line style and marker each time the colours begin again
    styles = cycler(linestyle=["-", "--", ":", "-."], marker=["o", "s", "^", "D"])
    axis.set_prop_cycle(styles * cycler(color=COLOURS))
    lines = {}
    for system, (epochs, dice) in curves.items():
        (lines[system],) = axis.plot(epochs, dice.mean(0), markersize=3, label=system)
        if banded:
            colour = lines[system].get_color()
            axis.fill_between(
                epochs, dice.min(0), dice.max(0), color=colour, alpha=0.15, linewidth=0
            )
    drawn = [dice if banded else dice.mean(0, keepdims=True) for _, dice in curves.values()]
    if drawn:
        axis.set_ylim(bottom=_lowest_shown(drawn, axis.dataLim.y1))
    figure.suptitle(f"{study.title} ({len(histories)} of {count} runs)")
    axis.set(xlabel="epoch", ylabel="Dice on the held-out part of train")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    best_first = sorted(curves, key=lambda system: -curves[system][1].mean(0)[-1])
    handles = [lines[system] for system in best_first]
    over = "mean and range of the seeds" if banded else "mean of the seeds"
    style = {"loc": "outside right center", "frameon": False, "handlelength": 3}
    figure.legend(handles=handles, title=over, alignment="left", **style)
    atomic_write(path, png(figure))


def _curves_of(
    study: Study, histories: Mapping[Run, Path]
) -> dict[str, tuple[list[int], np.ndarray]]:
    """System -> the epochs that all its runs have, at least one, and their Dice (runs, epochs)."""
    curves = {}
    for system in study.systems:
        runs = [
            read_scores(history, "val_dice")
            for run, history in histories.items()
            if run.system == system
        ]
        epochs = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        if epochs:
            curves[system] = epochs, np.array([[run[epoch] for epoch in epochs] for run in runs])
    return curves


def _lowest_shown(drawn: Sequence[np.ndarray], top: float) -> float | None:
    """Where the axis begins, for curves (runs, epochs) up to `top`; None: where it would.

    Below most values, and below every curve's last ones.
    """
    low = min(
        float(np.quantile(np.concatenate([dice.ravel() for dice in drawn]), LEFT_OUT)),
        *(float(dice[:, -1].min()) for dice in drawn),
    )
    return low - 0.05 * (top - low) if low < top else None
