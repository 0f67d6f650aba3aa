"""Phrases and formats that terminal, tables and report share: units, settings, what intervals are over."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from scoring.groups import narrow_note, unit_or_why_none
from scoring.metrics import LOWER_IS_BETTER, EmptyRule
from scoring.results import WITH_LESION, Provenance, Scores, Summary, read_results
from scoring.statistics import t_interval
from utils.errors import UserError

SETTINGS_OF_SCORES = (
    "vae_weights", "image_size", "evaluation_size", "threshold", "tta", "keep_upright", "precision",
)  # keys of the provenance  # fmt: skip


def scale_of(metric: str) -> int:
    """The factor by which a metric is shown: scores in per cent, distances in pixels."""
    return 1 if metric in LOWER_IS_BETTER else 100


def unit_of(metric: str) -> str:
    return "pixels" if metric in LOWER_IS_BETTER else "per cent"


def with_unit(metric: str) -> str:
    """The metric for the head of a column, as `HD95 (px)`."""
    return f"{metric} ({'px' if metric in LOWER_IS_BETTER else '%'})"


def better_of(metric: str) -> str:
    return "lower is better" if metric in LOWER_IS_BETTER else "higher is better"


def arrow_of(metric: str) -> str:
    """Where better is."""
    return "↓" if metric in LOWER_IS_BETTER else "↑"


def with_interval(
    metric: str, mean: float | None, ends: Sequence[float | None], sign: str = ""
) -> str:
    """A mean in the metric's unit as `mean [low, high]`, without an interval where an end is None or NaN.

    `-` without a mean; with the `sign` "+" all numbers have theirs.
    """
    if mean is None:
        return "-"
    scale = scale_of(metric)
    known = [f"{scale * end:{sign}.2f}" for end in ends if end is not None and not math.isnan(end)]
    interval = f" [{', '.join(known)}]" if len(known) == 2 else ""
    return f"{scale * mean:{sign}.2f}{interval}"


def mean_difference_text(differences: Sequence[float]) -> str:
    """`+8.7 (5.8 to 11.6)`: points, with the 95 % interval by Student's t; `-` for none."""
    if not differences:
        return "-"
    low, high = (round(bound, 1) + 0.0 for bound in t_interval(differences))
    return f"{signed(statistics.fmean(differences))} ({low:.1f} to {high:.1f})"


def signed(points: float) -> str:
    """`+8.7`, and `0.0` for what rounds to 0."""
    rounded = round(points, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def how_scored(summary: Summary) -> str:
    """What a reader of the scores has to know: how the checkpoint was chosen and scored, and leaks."""
    made_with, without_leaked = summary["provenance"], summary["without_leaked"]
    said = [made_with.get("selection", "no record of how the checkpoint was chosen")]
    seen = made_with.get("test_cases_trained_on")
    if made_with.get("init_weights"):
        said.append(f"started from {made_with['init_weights']}")
    if made_with.get("teachers"):
        said.append(f"learned from the predictions of {', '.join(made_with['teachers'])}")
    if seen:
        said.append(
            f"trained on {len(seen)} of the {summary['count']} scored cases, scores are too high"
        )
    elif made_with.get("trained_on_another_split"):
        said.append("trained on another split, test cases may have been in training")
    if without_leaked:
        said.append(
            f"{len(without_leaked['dropped'])} of the {summary['count']} scored cases leaked"
        )
    values: Mapping[str, object] = made_with
    for key, trained in made_with.get("trained_otherwise", {}).items():
        now = f"{key} {values[key]}" if key in values else f"another {key}"
        said.append(f"scored with {now}, trained with {trained}")
    if made_with.get("tta"):
        said.append("test-time augmentation")
    if "threshold" in made_with:
        said.append(f"threshold {made_with['threshold']:g}")
    if "precision" in made_with:
        said.append(f"computed in {made_with['precision']}")
    return "; ".join(said)


def replaced_settings(folder: Path, made_with: Provenance, rule: EmptyRule) -> list[str]:
    """Settings in which the scores already in `folder` differ from the new ones, such as `tta=false`.

    The new ones are `made_with` these, HD95 by this `rule`. Empty if the folder holds no scores that can be
    read.
    """
    try:
        earlier = read_results(folder).summary
    except UserError:
        return []
    before = {**earlier["provenance"], "hd95_empty": earlier["hd95"]["rule"]}
    now = {**made_with, "hd95_empty": rule}
    return [
        f"{key}={before[key] if isinstance(before[key], str) else json.dumps(before[key])}"
        for key in (*SETTINGS_OF_SCORES, "hd95_empty")
        if key in before and key in now and before[key] != now[key]
    ]


def interval_unit(summary: Summary) -> str:
    """What the intervals of the summary are over, or that there are none, in words."""
    return unit_or_why_none(*_drawn_over(summary))


def intervals_text(summary: Summary) -> str:
    """`interval_unit` as a line of its own."""
    drawn, none = "95 % intervals: bootstrap {}", "no intervals: {}"
    return unit_or_why_none(*_drawn_over(summary), drawn=drawn, none=none)


def narrow_parts(summary: Summary) -> list[str]:
    """Of which numbers in the summary the interval is of few cases, though it has more."""
    parts = {"HD95, detected": summary["hd95"]["detected"]}
    if summary["empty_truths"]:
        parts[WITH_LESION] = summary["dice_with_lesion"]
    if without := summary["without_leaked"]:
        parts["Dice, no leaked"] = without["metrics"]["DSC"]
    groups = summary["bootstrap"]["groups"]
    notes = [narrow_note(name, p["groups"], p["count"], groups) for name, p in parts.items()]
    return [note for note in notes if note]


def _drawn_over(summary: Summary) -> tuple[int, int, str | None]:
    """Groups and cases of the summary's bootstrap, and how the groups are known."""
    bootstrap = summary["bootstrap"]
    return bootstrap["groups"], summary["count"], bootstrap["by"]


def empty_truths_text(scores: Scores) -> str:
    """How many of the cases have no lesion, and what that does to the means; empty where all have one."""
    empty = scores["empty_truths"]
    if not empty:
        return ""
    return (
        f"{empty} of {scores['count']} cases {'has' if empty == 1 else 'have'} no lesion: where nothing is predicted "
        "in one, it counts as perfect (Dice 1, HD95 0), and otherwise as a false alarm (Dice 0). "
        f"{WITH_LESION}: that of the other cases."
    )
