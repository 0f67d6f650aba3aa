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
from dataclasses import dataclass
from pathlib import Path

from experiments.studies.curves import draw_curves
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
from experiments.studies.study import GROUPED, PUBLISHED, Study, trials_of
from experiments.trials.earlier_runs import check_processes
from scoring.in_words import mean_difference_text, signed
from utils.errors import UserError
from utils.files import atomic_write
from utils.runs import RESULTS_PREFIX, writing_to
from utils.tables import markdown_table


@dataclass(frozen=True)
class Column:
    """A number of runs on one split, scored in one way: a column of the first table.

    Args:
        split: PUBLISHED or GROUPED.
        checkpoint: the way of scoring, a key of `WAYS`.
        number: of a run's score; None where it has none.
    """

    name: str
    split: str
    checkpoint: str
    number: Callable[[Score], float | None]

    def values(self, scores: Iterable[Score]) -> list[float]:
        """The numbers that the runs have."""
        fitting = [s for s in scores if (s.split, s.checkpoint) == (self.split, self.checkpoint)]
        numbers = [self.number(score) for score in fitting]
        return [number for number in numbers if number is not None]


def _dice_without_leaked(score: Score) -> float | None:
    kept = score.dice_without_leaked
    return None if kept is None else 100 * kept


COLUMNS = (
    Column("Dice", PUBLISHED, ON_VAL, lambda s: 100 * s.dice),
    Column("no leaked cases", PUBLISHED, ON_VAL, _dice_without_leaked),
    Column("group split", GROUPED, ON_VAL, lambda s: 100 * s.dice),
    Column("IoU", PUBLISHED, ON_VAL, lambda s: 100 * s.iou),
    Column("HD95", PUBLISHED, ON_VAL, lambda s: s.hd95),
    Column("HD95, misses as 0", PUBLISHED, ON_VAL, lambda s: s.hd95_misses_as_0),
    Column("missed", PUBLISHED, ON_VAL, lambda s: s.misses),
    Column("Dice, TTA", PUBLISHED, TTA, lambda s: 100 * s.dice),
    Column("Dice, chosen on test", PUBLISHED, ON_TEST, lambda s: 100 * s.dice),
    Column("minutes", PUBLISHED, ON_VAL, lambda s: s.minutes),
    Column("CPU minutes", PUBLISHED, ON_VAL, lambda s: s.cpu_minutes),
)
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
    columns = [column for column in COLUMNS if column.values(scores)]
    rows = []
    for system in study.systems:
        of_system = [score for score in scores if score.system == system]
        if not of_system:
            rows.append([system, *["-"] * (1 + len(columns))])
            continue
        cells = [_cell(column.values(of_system), len(study.seeds)) for column in columns]
        rows.append([system, f"{of_system[0].parameters:,}", *cells])
    names = [column.name for column in columns]
    explained = {name: text for name, text in EXPLAINED.items() if name in names}
    plain = [s for s in scores if (s.split, s.checkpoint) == (PUBLISHED, ON_VAL)]
    leaked = {s.leaked_cases for s in plain if s.dice_without_leaked is not None} - {None}
    if len(leaked) > 1:
        explained["no leaked cases"] += OTHER_CASES
    seeds = ", ".join(map(str, study.seeds))
    lines = [
        f"**{study.title}.** {study.protocol}",
        "",
        markdown_table(["system", "parameters", *names], rows),
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


def _cell(values: Sequence[float], expected: int) -> str:
    """`81.2 ± 0.4`, with the number of runs where some are missing."""
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return text if len(values) == expected else f"{text} ({len(values)})"
