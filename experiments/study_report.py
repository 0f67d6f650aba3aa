"""What a study found: `results.md`, `results.csv`, `curves.png`, `examples.png`.

The table has a row a system; a number is the mean over the seeds, and the standard deviation across
them where there are several. The CSV has a row for every run and way of choosing its checkpoint.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.records import read_record
from experiments.runner import Trial
from experiments.scoring import ON_TEST, TTA
from experiments.study import GROUPED, PUBLISHED, Study, by_run, trials_of
from utils.errors import UserError
from utils.files import atomic_write
from utils.results import read_results

ON_VAL = "validation"
WAYS = {ON_VAL: ".", TTA: TTA, ON_TEST: ON_TEST}
"""Ways of scoring a run, and where in its folder `experiments.scoring` puts them."""


@dataclass(frozen=True)
class Score:
    """One run, scored in one way."""

    system: str
    split: str
    seed: int
    way: str
    summary: Mapping[str, Any]
    parameters: int
    minutes: float
    cpu_minutes: float

    def mean(self, metric: str) -> float:
        return self.summary["metrics"][metric]["mean"]


def write_study(study: Study, out: Path) -> str:
    """Write the report of all runs that are scored so far into `out`; returns the Markdown.

    UserError where none is.
    """
    runs = by_run(study, trials_of(study))
    scores = [score for key, trial in runs.items() for score in scores_of(*key, trial)]
    if not scores:
        raise UserError(f"no run of this study is scored yet: {study.folder}")
    table = to_markdown(study, scores)
    atomic_write(out / "results.md", table)
    atomic_write(out / "results.csv", to_csv(scores))
    curves = {key: trial.folder / "history.csv" for key, trial in runs.items()}
    draw_curves(out / "curves.png", study, curves)
    first = scores[0]
    trial = runs[first.system, first.split, first.seed]
    examples = trial.folder / f"valid_results_{trial.config.dataset}" / "examples.png"
    shutil.copyfile(examples, out / "examples.png")
    return table


def scores_of(system: str, split: str, seed: int, trial: Trial) -> list[Score]:
    """The scores of a run, none while it is not scored."""
    record = read_record(trial.folder)
    if record is None or "score" not in record.done:
        return []
    parameters = json.loads((trial.folder / "parameters.json").read_text())["trainable"]
    return [
        Score(
            system,
            split,
            seed,
            way,
            read_results(folder).summary,
            parameters,
            record.wall_seconds["train"] / 60,
            record.cpu_seconds["train"] / 60,
        )
        for way, place in WAYS.items()
        if (folder := trial.folder / place / f"valid_results_{trial.config.dataset}").is_dir()
    ]


def to_markdown(study: Study, scores: Sequence[Score]) -> str:
    """The table, and under it what its columns mean."""
    columns: dict[str, tuple[str, str, Callable[[Score], float | None]]] = {
        "Dice": (PUBLISHED, ON_VAL, lambda s: 100 * s.mean("DSC")),
        "no leaked cases": (PUBLISHED, ON_VAL, _dice_without_leaked),
        "group split": (GROUPED, ON_VAL, lambda s: 100 * s.mean("DSC")),
        "IoU": (PUBLISHED, ON_VAL, lambda s: 100 * s.mean("IoU")),
        "HD95": (PUBLISHED, ON_VAL, lambda s: s.summary["hd95"]["diagonal"]["mean"]),
        "HD95, misses as 0": (PUBLISHED, ON_VAL, lambda s: s.summary["hd95"]["zero"]["mean"]),
        "missed": (PUBLISHED, ON_VAL, lambda s: s.summary["misses"]),
        "Dice, TTA": (PUBLISHED, TTA, lambda s: 100 * s.mean("DSC")),
        "Dice, chosen on test": (PUBLISHED, ON_TEST, lambda s: 100 * s.mean("DSC")),
        "minutes": (PUBLISHED, ON_VAL, lambda s: s.minutes),
        "CPU minutes": (PUBLISHED, ON_VAL, lambda s: s.cpu_minutes),
    }
    lines = [
        f"**{study.title}.** {study.protocol}",
        "",
        f"| system | parameters | {' | '.join(columns)} |",
        f"|---|---:|{'---:|' * len(columns)}",
    ]
    for system in study.systems:
        of_system = [score for score in scores if score.system == system]
        if not of_system:
            lines.append(f"| {system} | {' | '.join('-' for _ in range(len(columns) + 1))} |")
            continue
        cells = []
        for split, way, number in columns.values():
            values = [number(s) for s in of_system if (s.split, s.way) == (split, way)]
            cells.append(_cell([v for v in values if v is not None], len(study.seeds)))
        lines.append(f"| {system} | {of_system[0].parameters:,} | {' | '.join(cells)} |")
    seeds = ", ".join(map(str, study.seeds))
    lines += [
        "",
        f"Mean and standard deviation across runs of the seeds {seeds}; (n) where fewer are done. "
        "Dice and IoU in per cent, HD95 in pixels, misses as the image's diagonal where nothing else "
        "is said. The checkpoint is chosen on a held-out part of train, except in the column that "
        "says otherwise. *No leaked cases* leaves out the test cases with a twin in train; "
        "*group split* is training and testing on a split that no twins cross.",
        "",
    ]
    return "\n".join(lines)


def _dice_without_leaked(score: Score) -> float | None:
    kept = score.summary["without_leaked"]
    return None if kept is None else 100 * kept["metrics"]["DSC"]["mean"]


def _cell(values: Sequence[float], expected: int) -> str:
    """`81.2 ± 0.4`, with the number of runs where some are missing."""
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return text if len(values) == expected else f"{text} ({len(values)})"


def to_csv(scores: Sequence[Score]) -> str:
    """A row for every run and way of choosing its checkpoint; Dice and IoU in [0, 1]."""
    text = io.StringIO(newline="")
    rows = [
        {
            "system": score.system,
            "split": score.split,
            "seed": score.seed,
            "checkpoint": score.way,
            "dice": score.mean("DSC"),
            "dice_low": score.summary["metrics"]["DSC"]["ci95"][0],
            "dice_high": score.summary["metrics"]["DSC"]["ci95"][1],
            "dice_without_leaked": (score.summary["without_leaked"] or {})
            .get("metrics", {})
            .get("DSC", {})
            .get("mean"),
            "iou": score.mean("IoU"),
            "hd95": score.summary["hd95"]["diagonal"]["mean"],
            "hd95_misses_as_0": score.summary["hd95"]["zero"]["mean"],
            "hd95_detected": score.summary["hd95"]["detected"]["mean"],
            "misses": score.summary["misses"],
            "cases": score.summary["count"],
            "parameters": score.parameters,
            "minutes": round(score.minutes, 2),
            "cpu_minutes": round(score.cpu_minutes, 2),
        }
        for score in scores
    ]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw_curves(path: Path, study: Study, histories: Mapping[tuple[str, str, int], Path]) -> None:
    """Dice on the held-out part of train by epoch; a line a system, its seeds as a band."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for system in study.systems:
        runs = [
            _val_dice(history)
            for (name, split, _), history in histories.items()
            if name == system and split == PUBLISHED and history.is_file()
        ]
        epochs = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        if epochs:
            dice = np.array([[run[epoch] for epoch in epochs] for run in runs])
            (line,) = axis.plot(epochs, dice.mean(0), marker="o", markersize=3, label=system)
            axis.fill_between(
                epochs, dice.min(0), dice.max(0), color=line.get_color(), alpha=0.15, linewidth=0
            )
    axis.set(xlabel="epoch", ylabel="Dice on the held-out part of train", title=study.title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def _val_dice(history: Path) -> dict[int, float]:
    with history.open(newline="") as file:
        return {
            int(row["epoch"]): float(row["val_dice"])
            for row in csv.DictReader(file)
            if row.get("val_dice")
        }
