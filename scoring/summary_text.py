"""What valid.py prints: the numbers of one validation."""

from __future__ import annotations

from pathlib import Path

from scoring.in_words import intervals_text, narrow_parts
from scoring.metrics import EMPTY_RULES, EmptyRule
from scoring.results import WITH_LESION, MetricStatistics, ScoresWithoutLeaked, Summary
from utils.config import Config


def format_summary(data_set: str, summary: Summary, kind: str = "test") -> str:
    """The numbers of a validation for the terminal; `kind` is that of the cases."""
    metrics = summary["metrics"]
    hd95 = summary["hd95"]
    other: EmptyRule = "zero" if hd95["rule"] == "diagonal" else "diagonal"
    mistakes = f"{summary['misses']} missed, {summary['false_alarms']} false alarm(s)"
    lines = [
        f"{data_set}: {summary['count']} {kind} cases, {mistakes}",
        _line("Dice", metrics["DSC"], 100, "%"),
    ]
    if empty := summary["empty_truths"]:
        lines.append(
            _line(WITH_LESION, summary["dice_with_lesion"], 100, "%")
            + f", {summary['count'] - empty} cases; {empty} without, "
            f"{summary['false_alarms']} false alarm(s) among them"
        )
    lines += [
        _line("IoU", metrics["IoU"], 100, "%"),
        _line(f"HD95, {EMPTY_RULES[hd95['rule']]}", metrics["HD95"], 1, "px"),
        _line(f"HD95, {EMPTY_RULES[other]}", hd95[other], 1, "px"),
        _line("HD95, detected", hd95["detected"], 1, "px"),
    ]
    if kept := summary["without_leaked"]:
        lines.append(
            _line("Dice, no leaked", kept["metrics"]["DSC"], 100, "%")
            + f", {kept['count']} cases {_what_is_kept(summary, kept)}"
        )
    lines += [f"  {note}" for note in (intervals_text(summary), *narrow_parts(summary))]
    if special := _special_settings(summary):
        lines.append(f"  scored with: {', '.join(special)}")
    lines.append(f"  {summary['provenance']['selection']}")
    return "\n".join(lines)


def _line(name: str, numbers: MetricStatistics, factor: float, unit: str) -> str:
    """Mean and interval of a metric, each times `factor`."""
    if numbers["mean"] is None:
        return f"  {name:<24} none"
    low, high = numbers["ci95"]
    if low is None or high is None:
        count = numbers["count"]
        cases = f"{count} cases of one group" if count > 1 else "1 case"
        interval = f"{cases}, no interval"
    else:
        interval = f"95 % interval {factor * low:.2f} to {factor * high:.2f}"
    return f"  {name:<24}{factor * numbers['mean']:7.2f} {unit:<3} ({interval})"


def _special_settings(summary: Summary) -> list[str]:
    """The settings of the scores that are not the defaults, in words."""
    made_with, said = summary["provenance"], []
    checkpoint = Path(made_with.get("checkpoint", "best_model"))
    if checkpoint.stem != "best_model":
        said.append(f"checkpoint {checkpoint.name}")
    if made_with.get("tta"):
        upright = ", images kept upright" if made_with.get("keep_upright") else ""
        said.append(f"test-time augmentation{upright}")
    default: float = Config.model_fields["threshold"].default
    if made_with.get("threshold", default) != default:
        said.append(f"threshold {made_with['threshold']:g}")
    size = made_with.get("evaluation_size")
    if size != made_with.get("image_size"):
        said.append("native size" if size == "native" else f"size {size} px")
    return said


def _what_is_kept(summary: Summary, kept: ScoresWithoutLeaked) -> str:
    """In what the cases that did not leak differ from the others."""
    seen = summary["provenance"]["test_cases_trained_on"]
    if not seen:
        return "without those found to have a near-duplicate in train"
    if len(seen) == len(kept["dropped"]):
        return "that were not in the training data"
    return "neither in the training data nor found to have a near-duplicate there"
