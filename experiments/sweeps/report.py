"""The report of a sweep: sweep.csv, sweep.md, sweep.png and best.yaml in its folder.

One row per setting, with two kinds of interval: across runs (Student t over the seeds and folds of a
setting: what another seed would change) and across cases (bootstrap over the test cases, each one's
score averaged over the runs: what other test images would change).
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, get_args

from experiments.sweeps.scores import CHOOSING, Repeat, SettingScores
from experiments.trials.records import Status
from scoring.groups import unit_or_why_none
from scoring.in_words import mean_difference_text
from scoring.statistics import SampleStatistics, describe, t_interval
from utils.config import Config, dump_config
from utils.errors import listed
from utils.figures import VERMILION, png
from utils.files import atomic_write
from utils.runs import writing_to
from utils.tables import csv_text, markdown_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATUSES: tuple[Status, ...] = get_args(Status)
MAX_BARS = 40  # settings drawn
MAX_TICKS = 5  # of the scores, whose labels would touch if there were more
NAMED = 3  # settings tied with the best
NAME_WIDTH = 40  # characters of a setting's name in a line of the drawing


def find_best(rows: Sequence[SettingScores]) -> SettingScores | None:
    """The setting whose runs are all trained and have the highest mean Dice on the choosing cases."""
    complete = [row for row in rows if row.complete]
    return max(complete, key=lambda row: fmean(row.val), default=None)


def tied_with(best: SettingScores | None, rows: Sequence[SettingScores]) -> list[str]:
    """Names of the other complete settings whose mean Dice on the choosing cases is that of the best."""
    if best is None:
        return []
    highest = fmean(best.val)
    return [r.name for r in rows if r is not best and r.complete and fmean(r.val) == highest]


def write_report(
    folder: Path,
    title: str,
    rows: Sequence[SettingScores],
    *,
    select_on: str,
    figure: Figure | None = None,
) -> None:
    """Write the tables and `figure`, which by default shows the scores of the settings.

    `select_on` names the cases that chose the checkpoints: `val` or `test`.
    """
    drawn = figure or plot_settings(title, rows, select_on)
    with writing_to(folder):
        atomic_write(folder / "sweep.csv", to_csv(rows, select_on))
        atomic_write(folder / "sweep.md", to_markdown(title, rows, select_on))
        atomic_write(folder / "sweep.png", png(drawn, dpi=130))


def write_best(folder: Path, best: SettingScores, config: Config) -> None:
    """Write `config`, that of the best setting, as best.yaml."""
    dice = f"{CHOOSING[config.select_on]} {fmean(best.val):.4f}"
    header = f"# {best.name}: mean {dice} over {len(best.val)} run(s)"
    with writing_to(folder):
        atomic_write(folder / "best.yaml", f"{header}\n{dump_config(config)}")


def to_csv(rows: Sequence[SettingScores], select_on: str) -> str:
    """One row per setting, unrounded; cells without a number are empty."""
    best = find_best(rows)
    choosing = CHOOSING[select_on].lower().replace(" ", "_")
    lines = []
    for row in rows:
        cases = _across_cases(row)
        line: dict[str, object] = {"setting": row.name, **row.values, "runs": row.planned}
        line |= {status: row.statuses[status] for status in STATUSES}
        for name, dice in ((choosing, row.val), ("test_dice", row.test)):
            across, (low, high) = describe(dice), t_interval(dice)
            numbers = {"mean": across.mean, "std": across.std, "runs_low": low, "runs_high": high}
            line |= {f"{name}_{key}": _or_empty(value) for key, value in numbers.items()}
        line |= {
            "test_runs": len(row.test),
            "test_cases": cases.count,
            "test_dice_cases_low": _or_empty(cases.low),
            "test_dice_cases_high": _or_empty(cases.high),
            "wall_seconds": round(row.wall_seconds, 1),
            "cpu_seconds": round(row.cpu_seconds, 1),
            "untimed_attempts": row.untimed_attempts,
            "best": int(row is best),
        }
        lines.append(line)
    return csv_text(list(lines[0]) if lines else ["setting"], lines)


def to_markdown(title: str, rows: Sequence[SettingScores], select_on: str) -> str:
    """The table to read: best first; scores in per cent."""
    best = find_best(rows)
    tested = any(row.test for row in rows)
    progress = _counts(sum((row.statuses for row in rows), start=Counter()))
    compared = [row for row in rows if best and _minus_best(row.val_of, best.val_of)]
    columns = _columns(select_on, tested, best if compared else None)
    header = ["setting", *(head for heads, _ in columns for head in heads)]
    lines = [
        f"# {title}",
        "",
        f"{len(rows)} setting(s); runs: {progress or 'none yet'}. Dice in per cent.",
        "",
        markdown_row([*header, "state", "wall s", "CPU s"]),
        markdown_row(["---", *["---:"] * (len(header) - 1), "---", "---:", "---:"]),
    ]
    tied = tied_with(best, rows)
    mark = f"(best, tied with {listed(tied, NAMED)})" if tied else "(best)"
    for row in sorted(rows, key=_rank):
        name = f"**{row.name}** {mark}" if row is best else row.name
        cells = [cell for _, cells_of in columns for cell in cells_of(row)]
        more = "+" if row.untimed_attempts else ""
        seconds = [f"{row.wall_seconds:.0f}{more}", f"{row.cpu_seconds:.0f}{more}"]
        lines.append(markdown_row([name, *cells, _counts(row.statuses), *seconds]))
    lines += [
        "",
        _legend(rows, select_on, tested) + _legend_of_differences(compared, select_on),
        "",
    ]
    errors = {name: error for row in rows for name, error in row.errors.items()}
    if errors:
        lines += ["Failed:", ""]
        lines += [f"- `{name}`: {_in_one_line(error)}" for name, error in errors.items()]
        lines.append("")
    left_out = {name: other for row in rows for name, other in row.others.items()}
    if left_out:
        lines += ["Made with other settings, so not counted:", ""]
        lines += [f"- `{name}`: {other}" for name, other in left_out.items()]
        lines.append("")
    return "\n".join(lines)


Columns = tuple[list[str], Callable[[SettingScores], list[str]]]
"""Heads of neighbouring columns, and their cells in the row of a setting."""


def _columns(select_on: str, tested: bool, best: SettingScores | None) -> list[Columns]:
    """The columns of scores, on the test split too if `tested`, and of differences from `best` if any."""
    columns: list[Columns] = [
        (["n"], lambda row: [str(len(row.val))]),
        ([CHOOSING[select_on], "SD", "95 % across runs"], lambda row: _across_runs(row.val)),
    ]
    if best:
        columns.append((["minus the best"], lambda row: [_minus_best(row.val_of, best.val_of)]))
    if tested:
        heads = ["test Dice", "SD", "95 % across runs", "95 % across cases"]
        columns.append((heads, _on_test))
    if tested and best:
        columns.append((["minus the best"], lambda row: [_minus_best(row.test_of, best.test_of)]))
    return columns


def _on_test(row: SettingScores) -> list[str]:
    """Mean, standard deviation and interval across runs, and the interval across cases."""
    mean, *others = _across_runs(row.test)
    fewer = f" ({len(row.test)})" if 0 < len(row.test) < len(row.val) else ""
    cases = _across_cases(row)
    return [mean + fewer, *others, _interval(cases.low, cases.high)]


def plot_settings(title: str, rows: Sequence[SettingScores], select_on: str) -> Figure:
    """One line per setting, best on top: one dot per run, the mean and its interval across runs."""
    from matplotlib.figure import Figure

    trained = [row for row in sorted(rows, key=_rank) if row.val]
    shown = trained[:MAX_BARS]
    tested = any(row.test for row in shown)
    names = [textwrap.wrap(row.name, NAME_WIDTH, break_on_hyphens=False) for row in shown]
    height = max(0.32, 0.17 * max(map(len, names), default=1))
    figure = Figure(figsize=(9 if tested else 6.4, 1.4 + height * len(shown)), layout="constrained")
    panels = [(f"{CHOOSING[select_on]}, %", [row.val for row in shown])]
    if tested:
        panels.append(("test Dice, %", [row.test for row in shown]))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (label, scores) in zip(axes, panels, strict=True):
        _draw_runs(panel, scores)
        panel.set_xlabel(label)
    axes[0].set_yticks(range(len(shown)), ["\n".join(lines) for lines in names])
    axes[0].set_ylim(max(1, len(shown)) - 0.5, -0.5)
    if len(shown) < len(trained):
        title += f", best {len(shown)} of {len(trained)}"
    figure.suptitle(f"{title}: runs, their mean and its 95 % interval", fontsize=11)
    return figure


def _draw_runs(axes: Axes, scores: Sequence[Sequence[float]]) -> None:
    """Over the range of the runs: the interval of two may be ten times as wide, and is cut off there."""
    from matplotlib.ticker import MaxNLocator

    for height, values in enumerate(scores):
        if not values:
            continue
        low, high = t_interval(values)
        dots = [100 * dice for dice in values]
        axes.plot(dots, [height] * len(dots), "o", color="0.6", ms=4, zorder=3)
        axes.plot([100 * low, 100 * high], [height] * 2, "|-", color=VERMILION)
        axes.plot(100 * fmean(values), height, "D", color=VERMILION, ms=5, zorder=4)
    runs = [100 * dice for values in scores for dice in values]
    if runs:
        margin = max(1, 0.2 * (max(runs) - min(runs)))
        axes.set_xlim(max(0, min(runs) - margin), min(100, max(runs) + margin))
    axes.xaxis.set_major_locator(MaxNLocator(MAX_TICKS))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _rank(row: SettingScores) -> tuple[bool, float]:
    """Sort key: complete settings first, then by mean Dice, the highest first."""
    return (not row.complete, -fmean(row.val) if row.val else math.inf)


def _across_cases(row: SettingScores) -> SampleStatistics:
    """The mean over the test cases with its interval, computed once: a report follows every trial."""
    scores = tuple(row.cases) if row.cases is not None else ()
    return _bootstrapped(scores, tuple(row.groups) if row.groups is not None else None)


def _unit(row: SettingScores) -> str:
    """What the interval across cases is over, in words."""
    cases = _across_cases(row)
    of = cases.groups, cases.count, row.grouped_by
    return unit_or_why_none(*of, drawn="bootstrap {}", none="none, as {}")


@functools.lru_cache(maxsize=1024)
def _bootstrapped(scores: tuple[float, ...], groups: tuple[str, ...] | None) -> SampleStatistics:
    return describe(scores, groups)


def _across_runs(values: Sequence[float]) -> list[str]:
    """Mean, standard deviation and interval; the latter without what no Dice can be."""
    across, (low, high) = describe(values), t_interval(values)
    interval = _interval(max(0.0, low), min(1.0, high)) if len(values) > 1 else ""
    return [_percent(across.mean), _percent(across.std), interval]


def _minus_best(dice: Mapping[Repeat, float], of_best: Mapping[Repeat, float]) -> str:
    """Mean difference in points from the best setting over the runs that both have, with its interval; empty
    for the best itself and for less than two runs.
    """
    differences = [100 * (dice[each] - of_best[each]) for each in dice if each in of_best]
    return mean_difference_text(differences) if len(differences) > 1 and dice is not of_best else ""


def _legend_of_differences(compared: Sequence[SettingScores], select_on: str) -> str:
    if not compared:
        return ""
    across_folds = any(row.across_folds for row in compared)
    return (
        " Minus the best: points of Dice between runs of the same seed and fold, their mean and in brackets its 95 % "
        "interval (Student t), not adjusted for the number of settings. The best was chosen by its "
        f"{CHOOSING[select_on]}, so that differences in this are rather too large."
        + (" With folds these intervals, too, are rather too narrow." if across_folds else "")
    )


def _counts(statuses: Counter[Status]) -> str:
    return ", ".join(f"{statuses[status]} {status}" for status in STATUSES if statuses[status])


def _in_one_line(error: str) -> str:
    """A recorded error, how the command ended and then what it said: its message, or else its last line."""
    ending, *said = error.strip().splitlines() or [""]
    has_message = any(line.startswith("error: ") for line in said)
    return " ".join(" ".join([ending, *(said if has_message else said[-1:])]).split())


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.2f}"


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{100 * low:.2f} to {100 * high:.2f}"


def _or_empty(value: float) -> float | str:
    return "" if math.isnan(value) else value


def _legend(rows: Sequence[SettingScores], select_on: str, tested: bool) -> str:
    text = ""
    if select_on == "test":
        text = "**Checkpoints and best setting were chosen on the TEST split (select_on: test).** "
    text += (
        f"{CHOOSING[select_on]} is each run's best epoch on the cases that chose it, so it is "
        "optimistic, the more so the more settings are compared. n: trained runs (seeds, folds); SD "
        "across them; 95 % across runs: Student t with n - 1 degrees of freedom, cut off at 0 and 100."
    )
    if any(row.across_folds for row in rows):
        text += (
            " Folds share training cases, so with folds it is rather too narrow, and SD / sqrt(n) is no "
            "standard error."
        )
    if tested:
        units = dict.fromkeys(_unit(row) for row in rows if row.cases is not None)
        text += (
            f" 95 % across cases: {' or '.join(units) or 'bootstrap over the test cases'}; each case's Dice is "
            "averaged over the runs."
        )
    if any(0 < len(row.test) < len(row.val) for row in rows):
        text += " (k): only k of the n runs are scored on the test split."
    if tested and select_on == "val":
        text += " The best setting was chosen by val Dice, not by test Dice."
    if any(row.untimed_attempts for row in rows):
        text += " +: without the seconds of an attempt whose sweep was killed."
    return text
