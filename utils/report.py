"""report.html: one file in which a person can look at every case of a validation.

The page is `report_template.html` with numbers and pictures put in; it loads nothing. Pictures are
written one case at a time, as text that the browser decodes when the case is shown:

    image          WebP
    truth          PNG, 0 or 255
    probability    PNG of steps: how many of the slider's levels do not exceed the probability, so
                   that the browser's mask at every level is exactly `probability >= level`
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from utils.errors import UserError
from utils.files import atomic_write
from utils.metrics import EMPTY_RULES, LOWER_IS_BETTER, METRICS, ScoreRow
from utils.results import MetricStatistics, Summary, column

TEMPLATE = Path(__file__).with_name("report_template.html")
CASES_GO_HERE = "<!-- cases -->"
LEVELS = 200
WEBP_QUALITY = 80
BINS = 20
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
    rows: Sequence[ScoreRow],
    summary: Summary,
    title: str,
    threshold: float = 0.5,
    max_side: int = 512,
) -> None:
    """Write the report of a validation to `path`, at once or not at all.

    `rows` and `summary` are those of `score_cases` and `write_results`. `cases` come in any order,
    one for each row, and only one is held at a time. Pictures longer than `max_side` pixels are
    reduced, and the page says that what it computes from them is approximate. Raises `UserError`
    for a case without a row or a row without a case, for sizes that differ and for probabilities
    that are not numbers.
    """
    if not rows:
        raise UserError(f"no case to report in {path}: score at least one case")
    levels = np.unique([*np.arange(1, LEVELS + 1) / LEVELS, threshold])
    before, after = _page(rows, summary, title, threshold, levels).split(CASES_GO_HERE)

    def write(temporary: Path) -> None:
        missing = {str(row["Name"]): index for index, row in enumerate(rows)}
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
    rows: Sequence[ScoreRow],
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
                row["Name"],
                *(row[metric] for metric in METRICS),
                row["PredictedPixels"],
                row["TruthPixels"],
                int(row["Name"] in leaked),
            ]
            for row in rows
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
        "plots": "".join(_histogram(metric, rows, summary) for metric in METRICS),
        "ramp": ", ".join(f"rgb{colour}" for colour in RAMP),
        # "<" would let a name close the script element.
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if metric in LOWER_IS_BETTER else f"{value:.4f}"


def _interval(metric: str, description: MetricStatistics) -> str:
    low, high = description["ci95"]
    return (
        "-" if low is None or high is None else f"{_number(metric, low)} to {_number(metric, high)}"
    )


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
    tiles += [
        ("Misses", str(summary["misses"]), "lesion, but nothing predicted"),
        ("False alarms", str(summary["false_alarms"]), "prediction, but no lesion"),
    ]
    return "".join(
        f'<div class="card tile"><span>{name}</span><b>{value}</b>'
        f'<span class="soft">{note}</span></div>'
        for name, value, note in tiles
    )


def _summary_table(summary: Summary) -> str:
    """One row per metric, and HD95 by the other rules; beside it without leaked cases, if any are."""
    without = summary["without_leaked"]
    rules: dict[Literal["diagonal", "zero", "detected"], str] = {
        "diagonal": "HD95, one mask empty counts the diagonal",
        "zero": "HD95, one mask empty counts 0 (published rule)",
        "detected": "HD95, detected cases only",
    }
    lines: list[tuple[str, str, list[MetricStatistics]]] = [
        (metric, metric, [each["metrics"][metric] for each in (summary, without) if each])
        for metric in METRICS
    ]
    lines += [
        ("HD95", label, [each["hd95"][rule] for each in (summary, without) if each])
        for rule, label in rules.items()
    ]
    head = "<th>Mean</th><th>95 % interval</th><th>Std</th><th>Median</th><th>Cases</th>"
    if without:
        head += "<th>Mean without leaked</th><th>95 % interval</th><th>Cases</th>"
    body = []
    for metric, label, (whole, *rest) in lines:
        cells = [
            _number(metric, whole["mean"]),
            _interval(metric, whole),
            _number(metric, whole["std"]),
            _number(metric, whole["median"]),
            str(whole["count"]),
        ]
        for each in rest:
            cells += [
                _number(metric, each["mean"]),
                _interval(metric, each),
                str(each["count"]),
            ]
        unit = " (px)" if metric in LOWER_IS_BETTER else ""
        body.append(
            f'<tr><th scope="row">{label}{unit}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return f"<thead><tr><th>Metric</th>{head}</tr></thead><tbody>{''.join(body)}</tbody>"


def _notes(summary: Summary) -> str:
    without = summary["without_leaked"]
    if not without:
        return ""
    return (
        f'<p class="soft">{len(without["dropped"])} of these cases leaked from the training set; '
        "compare the columns without them.</p>"
    )


def _provenance(provenance: Mapping[str, Any]) -> str:
    return "".join(
        f'<tr><th scope="row">{html.escape(key)}</th><td>{html.escape(value)}</td></tr>'
        for key, value in _flatten(provenance)
    )


def _flatten(value: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [
            pair
            for inner, each in value.items()
            for pair in _flatten(each, f"{key}.{inner}" if key else str(inner))
        ]
    return [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def _histogram(metric: str, rows: Sequence[ScoreRow], summary: Summary) -> str:
    """A figure with an SVG histogram of one metric; a bar carries the filter for its cases.

    Distances that stand for an empty mask, the image diagonal, share the last bar, since on a
    common scale they would squeeze all others into the first.
    """
    values = column(rows, metric)
    one_empty = (column(rows, "PredictedPixels") > 0) != (column(rows, "TruthPixels") > 0)
    top = 1.0
    if metric in LOWER_IS_BETTER:
        top = float(np.floor(values[~one_empty].max(initial=0))) + 1  # bars end before their edge
    beyond = bool(values.max() > top)
    ends = np.linspace(0, top, BINS + 1 - beyond)
    # Edges as they are written into the filter, so that bar and list count alike.
    edges = np.array([float(f"{end:g}") for end in ends])
    if beyond:
        edges = np.append(edges, np.ceil(values.max()))
    counts, _ = np.histogram(values, bins=edges)
    width, height, base = 240, 110, 92
    places = np.linspace(0, width, BINS + 1)
    bars = []
    for index, (place, count) in enumerate(zip(places, counts, strict=False)):
        if not count:
            continue
        low, high = (f"{edge:g}" for edge in edges[index : index + 2])
        upper = "&lt;=" if index == BINS - 1 else "&lt;"
        bar = max(2.0, count / counts.max() * (base - 4))
        bars.append(
            f'<g data-filter="{metric}&gt;={low} {metric}{upper}{high}">'
            f"<title>{count} with {metric} {low} to {high}</title>"
            f'<rect class="area" x="{place:g}" y="0" width="{width / BINS:g}" height="{base}"/>'
            f'<rect class="bar" x="{place + 0.75:g}" y="{base - bar:.1f}" '
            f'width="{width / BINS - 1.5:g}" height="{bar:.1f}" rx="1"/></g>'
        )
    found = summary["metrics"][metric]
    interval = [found["mean"] if bound is None else bound for bound in found["ci95"]]
    x_low, x_mean, x_high = np.interp([interval[0], found["mean"], interval[1]], edges, places)
    label = f"{metric} of {len(rows)} cases: mean {_number(metric, found['mean'])}, "
    label += f"from {_number(metric, values.min())} to {_number(metric, values.max())}"
    unit = " (px)" if metric in LOWER_IS_BETTER else ""
    ticks = [(0, "start", "0"), (width, "end", f"{top:g}")]
    if beyond:
        ticks[1:] = [(width - 40, "end", f"{top:g}"), (width, "end", "empty")]
    return (
        f'<figure class="card"><figcaption>{metric}{unit}'
        f"<span>median {_number(metric, found['median'])}</span></figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<rect class="interval" x="{x_low:.1f}" y="0" width="{x_high - x_low:.1f}" '
        f'height="{base}"/>{"".join(bars)}'
        f'<line class="mean" x1="{x_mean:.1f}" x2="{x_mean:.1f}" y1="0" y2="{base}" '
        'pointer-events="none"/>'
        f'<line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/>'
        + "".join(
            f'<text x="{x}" y="{height - 5}" text-anchor="{anchor}">{text}</text>'
            for x, anchor, text in ticks
        )
        + "</svg></figure>"
    )
