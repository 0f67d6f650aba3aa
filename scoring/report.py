"""report.html: one file in which a person can look at every case of a validation.

The page is `report_template.html` with numbers and pictures put in; it loads nothing. Pictures are
written one case at a time, as text that the browser decodes when the case is shown:

    image          WebP
    truth          PNG, 0 or 255
    probability    PNG of steps: how many of the slider's levels do not exceed the probability, so
                   that the browser's mask at every level is exactly `probability >= level`; `valid.py` gives
                   the probability as it is saved, in 16 bits
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scoring.in_words import empty_truths_text, intervals_text, narrow_parts
from scoring.metrics import EMPTY_RULES, LOWER_IS_BETTER, METRICS, CaseScores
from scoring.results import (
    WITH_LESION,
    MetricStatistics,
    Scores,
    Summary,
    column,
)
from utils.errors import UserError
from utils.files import atomic_write

TEMPLATE = Path(__file__).with_name("report_template.html")
CASES_GO_HERE = "<!-- cases -->"
LEVELS = 200
WEBP_QUALITY = 80
BINS = 20
PLOT_WIDTH, PLOT_HEIGHT, BASELINE = 240, 110, 92  # of a histogram, in units of its SVG
# Cividis (Nunez et al., 2018) in five steps: even in lightness, alike to colour-blind eyes.
RAMP = ((0, 34, 78), (66, 78, 108), (124, 123, 120), (187, 173, 107), (254, 232, 56))


@dataclass(frozen=True)
class ReportCase:
    """What is shown of one case, all at the size at which it was scored."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8 RGB
    truth: np.ndarray  # (H, W) bool
    probability: np.ndarray  # (H, W) float in [0, 1]


def write_report(
    path: Path,
    cases: Iterable[ReportCase],
    *,
    scores: Mapping[str, CaseScores],
    summary: Summary,
    title: str,
    threshold: float = 0.5,
    max_side: int = 512,
) -> None:
    """Write the report of a validation to `path`, at once or not at all.

    `scores` and `summary` are those of `score_cases` and `write_results`. `cases` come in any
    order, one for each scored case, and only one is held at a time. Pictures longer than `max_side`
    pixels are reduced, and the page says that what it computes from them is approximate. UserError
    for a case without scores or scores without a case, for sizes that differ and for probabilities
    that are not numbers.
    """
    if not scores:
        raise UserError(f"no case to report in {path}: score at least one case")
    levels = np.unique([*np.arange(1, LEVELS + 1) / LEVELS, threshold])
    before, after = _page(scores, summary, title, threshold, levels).split(CASES_GO_HERE)

    def write(temporary: Path) -> None:
        missing = {name: index for index, name in enumerate(scores)}
        with temporary.open("w", encoding="utf-8") as file:
            file.write(before)
            for case in cases:
                if case.name not in missing:
                    raise UserError(f"case {case.name!r} is not among the scored cases, or twice")
                index = missing.pop(case.name)
                pictures = _pictures(case, levels, max_side)
                file.write(f'<script type="text/plain" id="case-{index}">{pictures}</script>\n')
            if missing:
                raise UserError(
                    f"no picture of {len(missing)} scored cases, such as {min(missing)!r}: "
                    "their predictions are missing; validate again"
                )
            file.write(after)

    atomic_write(path, write)


def _pictures(case: ReportCase, levels: np.ndarray, max_side: int) -> str:
    """Image, truth and steps in base64, and 1 if reduced else 0, separated by spaces."""
    import cv2

    from utils.images import encode_image, encode_png

    image, truth, probability = case.image, case.truth, case.probability
    height, width = truth.shape
    if image.shape != (height, width, 3) or probability.shape != truth.shape:
        raise UserError(
            f"case {case.name!r}: image {image.shape}, truth {truth.shape} and probability "
            f"{probability.shape} must be of one size; resize them to the evaluation size"
        )
    if not np.isfinite(probability).all():
        raise UserError(f"case {case.name!r}: the probability has values that are not numbers")
    reduced = max(height, width) > max_side
    if reduced:
        scale = max_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        probability = cv2.resize(probability, size, interpolation=cv2.INTER_AREA)
        truth = cv2.resize(truth.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    # In the probability's own precision, as in the comparison `probability >= threshold`.
    steps = np.searchsorted(levels.astype(probability.dtype), probability, side="right")
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    pictures = (
        encode_image(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY]),
        encode_png(truth.astype(np.uint8) * 255),
        encode_png(steps.astype(np.uint8)),
    )
    texts = [base64.b64encode(picture).decode("ascii") for picture in pictures]
    return " ".join([*texts, str(int(reduced))])


def _page(
    scores: Mapping[str, CaseScores],
    summary: Summary,
    title: str,
    threshold: float,
    levels: np.ndarray,
) -> str:
    """The page without the cases' pictures."""
    without = summary["without_leaked"]
    leaked = set(without["dropped"]) if without else set()
    data = {
        "metrics": METRICS,
        "lower": sorted(LOWER_IS_BETTER),
        "levels": levels.tolist(),
        "threshold": threshold,
        "ramp": RAMP,
        "cases": [
            [
                name,
                *(case_scores[metric] for metric in METRICS),
                case_scores["PredictedPixels"],
                case_scores["TruthPixels"],
                int(name in leaked),
            ]
            for name, case_scores in scores.items()
        ],
    }
    count = summary["count"]
    parts = {
        "title": html.escape(title),
        "subtitle": f"{count} {'case' if count == 1 else 'cases'}, threshold {threshold:g}",
        "tiles": _tiles(summary),
        "summary": _summary_table(summary),
        "notes": _notes(summary),
        "provenance": _provenance(summary["provenance"]),
        "plots": "".join(_histogram(metric, scores, summary) for metric in METRICS),
        "ramp": ", ".join(f"rgb{colour}" for colour in RAMP),
        # "<" would let a name close the script element.
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if metric in LOWER_IS_BETTER else f"{value:.4f}"


def _interval(metric: str, statistics: MetricStatistics) -> str:
    low, high = statistics["ci95"]
    if low is None or high is None:
        return "-"
    return f"{_number(metric, low)} to {_number(metric, high)}"


def _tiles(summary: Summary) -> str:
    rule = EMPTY_RULES[summary["hd95"]["rule"]]
    tiles = [
        (
            f"{metric}, mean{f' (px, {rule})' if metric in LOWER_IS_BETTER else ''}",
            _number(metric, summary["metrics"][metric]["mean"]),
            f"95 % {_interval(metric, summary['metrics'][metric])}",
        )
        for metric in ("DSC", "IoU", "HD95")
    ]
    alarm_note = "prediction, but no lesion"
    if empty := summary["empty_truths"]:
        dice = summary["dice_with_lesion"]
        note = f"95 % {_interval('DSC', dice)}, {dice['count']} cases"
        tiles.insert(1, (WITH_LESION, _number("DSC", dice["mean"]), note))
        alarm_note = f"of {empty} without a lesion"
    tiles += [
        ("Misses", str(summary["misses"]), "lesion, but nothing predicted"),
        ("False alarms", str(summary["false_alarms"]), alarm_note),
    ]
    return "".join(
        f'<div class="card tile"><span>{name}</span><b>{value}</b>'
        f'<span class="soft">{note}</span></div>'
        for name, value, note in tiles
    )


def _summary_table(summary: Summary) -> str:
    """One row per metric, Dice of the cases with a lesion where some have none, and HD95 by the other rules.

    Beside it without leaked cases, if any are.
    """
    without = summary["without_leaked"]
    rules: dict[Literal["diagonal", "zero", "detected"], str] = {
        "diagonal": "HD95, one mask empty counts the diagonal",
        "zero": "HD95, one mask empty counts 0 (published rule)",
        "detected": "HD95, detected cases only",
    }
    case_sets: list[Scores] = [summary, *([without] if without else [])]
    lines: list[tuple[str, str, list[MetricStatistics]]] = [
        (metric, metric, [case_set["metrics"][metric] for case_set in case_sets])
        for metric in METRICS
    ]
    if summary["empty_truths"]:
        dice = [case_set["dice_with_lesion"] for case_set in case_sets]
        lines.insert(METRICS.index("DSC") + 1, ("DSC", WITH_LESION, dice))
    lines += [
        ("HD95", label, [case_set["hd95"][rule] for case_set in case_sets])
        for rule, label in rules.items()
    ]
    head = "<th>Mean</th><th>95 % interval</th><th>Std</th><th>Median</th><th>Cases</th>"
    if without:
        head += "<th>Mean without leaked</th><th>95 % interval</th><th>Cases</th>"
    body = []
    for metric, label, (whole, *without_leaked) in lines:
        cells = [
            _number(metric, whole["mean"]),
            _interval(metric, whole),
            _number(metric, whole["std"]),
            _number(metric, whole["median"]),
            str(whole["count"]),
        ]
        for statistics in without_leaked:
            cells += [
                _number(metric, statistics["mean"]),
                _interval(metric, statistics),
                str(statistics["count"]),
            ]
        unit = " (px)" if metric in LOWER_IS_BETTER else ""
        body.append(
            f'<tr><th scope="row">{label}{unit}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return f"<thead><tr><th>Metric</th>{head}</tr></thead><tbody>{''.join(body)}</tbody>"


def _notes(summary: Summary) -> str:
    without, seen = summary["without_leaked"], summary["provenance"].get("test_cases_trained_on")
    notes = [text] if (text := empty_truths_text(summary)) else []
    if seen:
        notes.append(
            f"The weights were trained on {len(seen)} of these cases: scores are too high."
        )
    if without:
        notes.append(
            f"{len(without['dropped'])} of these cases leaked from the training set; "
            "compare the columns without them."
        )
    notes += [f"{html.escape(n)}." for n in (intervals_text(summary), *narrow_parts(summary))]
    return "".join(f'<p class="soft">{note}</p>' for note in notes)


def _provenance(provenance: Mapping[str, Any]) -> str:
    return "".join(
        f'<tr><th scope="row">{html.escape(key)}</th><td>{html.escape(value)}</td></tr>'
        for key, value in _flatten(provenance)
    )


def _flatten(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Nested mappings as pairs of a dotted key and its value as text."""
    if isinstance(value, Mapping):
        return [
            pair
            for inner_key, inner in value.items()
            for pair in _flatten(inner, f"{key}.{inner_key}" if key else str(inner_key))
        ]
    return [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


@dataclass(frozen=True)
class Bins:
    """The histogram of one metric over the cases."""

    edges: np.ndarray  # (BINS + 1,)
    counts: np.ndarray  # (BINS,) int
    ends_in_misses: bool  # the last bin holds nothing but cases of which one mask is empty


def score_bins(metric: str, scores: Mapping[str, CaseScores]) -> Bins:
    """Count the scores in BINS bins.

    Image diagonals that stand for an empty mask share the last bin where they exceed every distance
    between two masks, since on a common scale they would squeeze those into the first; the diagonals
    of smaller images may not exceed them.
    """
    values = column(scores, metric)
    one_empty = (column(scores, "PredictedPixels") > 0) != (column(scores, "TruthPixels") > 0)
    top = 1.0
    if metric in LOWER_IS_BETTER:
        # above the largest distance between two masks, which its bin would not include otherwise
        top = float(np.floor(values[~one_empty].max(initial=0))) + 1
    ends_in_misses = bool(values.max() > top)
    ends = np.linspace(0, top, BINS + 1 - ends_in_misses)
    # Edges as they are written into the filter, so that bar and list count alike.
    edges = np.array([float(f"{end:g}") for end in ends])
    if ends_in_misses:
        edges = np.append(edges, np.ceil(values.max()))
    counts, _ = np.histogram(values, bins=edges)
    return Bins(edges, counts, ends_in_misses)


def _bars(metric: str, bins: Bins) -> str:
    """The bars of a histogram in SVG; each carries the filter that lists its cases."""
    width = PLOT_WIDTH / BINS
    bars = []
    for index, count in enumerate(bins.counts):
        if not count:
            continue
        low, high = (f"{edge:g}" for edge in bins.edges[index : index + 2])
        upper = "&lt;=" if index == BINS - 1 else "&lt;"
        left = index * width
        height = max(2.0, count / bins.counts.max() * (BASELINE - 4))
        bars.append(
            f'<g data-filter="{metric}&gt;={low} {metric}{upper}{high}">'
            f"<title>{count} with {metric} {low} to {high}</title>"
            f'<rect class="area" x="{left:g}" y="0" width="{width:g}" height="{BASELINE}"/>'
            f'<rect class="bar" x="{left + 0.75:g}" y="{BASELINE - height:.1f}" '
            f'width="{width - 1.5:g}" height="{height:.1f}" rx="1"/></g>'
        )
    return "".join(bars)


def _histogram(metric: str, scores: Mapping[str, CaseScores], summary: Summary) -> str:
    """A figure with the histogram of one metric, its mean, and the interval of the mean."""
    bins = score_bins(metric, scores)
    statistics = summary["metrics"][metric]
    mean = statistics["mean"]
    low, high = (mean if end is None else end for end in statistics["ci95"])
    places = np.linspace(0, PLOT_WIDTH, BINS + 1)
    x_low, x_mean, x_high = np.interp([low, mean, high], bins.edges, places)
    values = column(scores, metric)
    label = f"{metric} of {len(scores)} cases: mean {_number(metric, mean)}, "
    label += f"from {_number(metric, values.min())} to {_number(metric, values.max())}"
    unit = " (px)" if metric in LOWER_IS_BETTER else ""
    ticks = [(0, "start", "0"), (PLOT_WIDTH, "end", f"{bins.edges[-1]:g}")]
    if bins.ends_in_misses:
        ticks[1:] = [
            (PLOT_WIDTH - 40, "end", f"{bins.edges[-2]:g}"),
            (PLOT_WIDTH, "end", "empty"),
        ]
    tick_texts = "".join(
        f'<text x="{x}" y="{PLOT_HEIGHT - 5}" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in ticks
    )
    return (
        f'<figure class="card"><figcaption>{metric}{unit}'
        f"<span>median {_number(metric, statistics['median'])}</span></figcaption>"
        f'<svg viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" role="img" aria-label="{label}">'
        f'<rect class="interval" x="{x_low:.1f}" y="0" width="{x_high - x_low:.1f}" '
        f'height="{BASELINE}"/>{_bars(metric, bins)}'
        f'<line class="mean" x1="{x_mean:.1f}" x2="{x_mean:.1f}" y1="0" y2="{BASELINE}" '
        'pointer-events="none"/>'
        f'<line class="axis" x1="0" x2="{PLOT_WIDTH}" y1="{BASELINE}" y2="{BASELINE}"/>'
        f"{tick_texts}</svg></figure>"
    )
