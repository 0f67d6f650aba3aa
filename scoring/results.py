"""The scores of a validation on disk: results.csv, one row per case, and summary.json.

results.csv   Name, the metrics, pixel counts and image size; the last two rows are Avg and
              Std (divisor N - 1) of the metrics
summary.json  a `Summary`
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic reads that of typing from Python 3.12 on only

from scoring.groups import NOTHING_KNOWN, KnownGroups
from scoring.metrics import METRICS, SIZES, CaseScores, EmptyRule
from scoring.statistics import CONFIDENCE, RESAMPLES, SEED, describe
from utils.errors import UserError, listed
from utils.files import atomic_write
from utils.tables import csv_text

COLUMNS = ("Name", *METRICS, *SIZES)
CSV_NAME = "results.csv"
SUMMARY_NAME = "summary.json"
MISFITS_SHOWN = 3
WITH_LESION = "Dice, with lesion"
"""What the mean Dice over the cases whose truth is not empty is called, in every output."""


class MetricStatistics(TypedDict):
    """One metric over the cases; None for an undefined number, such as the deviation of one case."""

    count: int
    groups: int
    """Groups of these cases, over which the interval is."""
    mean: float | None
    std: float | None
    median: float | None
    ci95: list[float | None]
    """Lower and upper end of the interval of the mean across groups of cases."""


class Hd95ByRule(TypedDict):
    """HD95 where one of two masks is empty, by each rule."""

    rule: EmptyRule
    """The rule that HD95 among the metrics follows."""
    diagonal: MetricStatistics
    """Counted as the diagonal of the image."""
    zero: MetricStatistics
    """Counted as 0, the published rule."""
    detected: MetricStatistics
    """Left out, as are cases in which both are empty."""


class Scores(TypedDict):
    """The scores of a set of cases."""

    count: int
    misses: int
    """Cases with true foreground and an empty prediction."""
    missed_cases: list[str]
    false_alarms: int
    """Cases with a prediction and no true foreground."""
    false_alarm_cases: list[str]
    empty_truths: int
    """Cases without true foreground: the false alarms, and those that are correctly empty."""
    dice_with_lesion: MetricStatistics
    """Over the other cases."""
    metrics: dict[str, MetricStatistics]
    hd95: Hd95ByRule


class ScoresWithoutLeaked(Scores):
    """The scores of the cases that did not leak."""

    dropped: list[str]
    """The cases left out."""


class Provenance(TypedDict, total=False):
    """What a score rests on; files of earlier versions lack some of the keys."""

    selection: str
    """How the checkpoint was chosen."""
    trained_on: str | None
    """Name of the data set; None where it is not known."""
    trained_on_another_split: bool
    test_cases_trained_on: list[str] | None
    """Of the scored cases those that the weights were trained on; None where it is not known."""
    trained_otherwise: dict[str, Any]
    """Keys of the config that were another at the training, with their values then."""
    data_set: str
    model: str
    vae_model: str | None
    guidance_method: str | None
    vae_weights: str | None
    init_weights: str | None
    teachers: list[str]
    """Whose predictions were learned beside the masks."""
    checkpoint: str
    sha256: dict[str, str]
    """Of the checkpoint and of the split file."""
    image_size: int
    evaluation_size: int | str
    threshold: float
    tta: bool
    keep_upright: bool
    precision: str
    environment: dict[str, Any]


class Bootstrap(TypedDict):
    """How the intervals came about, and over what."""

    resamples: int
    confidence: float
    seed: int
    cases: int
    groups: int
    """Groups of these cases that are drawn as one."""
    by: str | None
    """How the groups are known, such as `near-duplicates`; None where nothing is."""


class Summary(Scores):
    """What summary.json holds."""

    without_leaked: ScoresWithoutLeaked | None
    bootstrap: Bootstrap
    group_of: dict[str, str]
    """The group of each scored case that shares one with another case of its data set, scored or not, by
    the name of its first case."""
    provenance: Provenance


@dataclass(frozen=True)
class Results:
    """A validation read back: the scores of its cases, sorted by name, and its summary."""

    folder: Path
    scores: dict[str, CaseScores]
    summary: Summary

    @property
    def names(self) -> list[str]:
        return list(self.scores)

    def values(self, metric: str) -> np.ndarray:
        """The scores (N,) of one metric, in the order of `names`."""
        return column(self.scores, metric)


def write_results(
    folder: Path,
    scores: Mapping[str, CaseScores],
    *,
    provenance: Mapping[str, Any],
    leaked: Collection[str] = (),
    known: KnownGroups = NOTHING_KNOWN,
    hd95_empty: EmptyRule = "diagonal",
    further: Mapping[str, Any] | None = None,
) -> Summary:
    """Write results.csv and summary.json into `folder`, each at once or not at all.

    `scores` are those of `scoring.case_scores.score_cases`, with the same `hd95_empty`. `leaked`
    names cases that the network may have seen in training; if some are among the scored ones, the
    summary says every number with and without them. `known` says which cases show the same source: the
    intervals are over groups of these. `provenance` goes into the summary as it is
    and must be JSON: how the checkpoint was chosen, model, hashes of weights, versions, data set,
    split, image size, threshold; so do the keys of `further`, beside it. Returns the summary.
    """
    if not scores:
        raise UserError(f"no case to summarise for {folder}: score at least one case")
    ordered = {name: scores[name] for name in sorted(scores)}
    dropped = sorted(ordered.keys() & set(leaked))
    kept = {name: ordered[name] for name in ordered if name not in set(dropped)}
    known = known.among(ordered)
    summary: Summary = {
        **summarise(ordered, hd95_empty, known),
        "without_leaked": {"dropped": dropped, **summarise(kept, hd95_empty, known)}
        if dropped
        else None,
        "bootstrap": {
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "seed": SEED,
            "cases": len(ordered),
            "groups": len(set(known.labels(ordered))),
            "by": known.by,
        },
        "group_of": dict(known.group_of),
        "provenance": cast(Provenance, dict(provenance)),
    }
    content = {**summary, **(further or {})}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    atomic_write(folder / CSV_NAME, _to_csv(ordered, summary["metrics"]))
    atomic_write(folder / SUMMARY_NAME, text)
    return summary


def summarise(
    scores: Mapping[str, CaseScores],
    hd95_empty: EmptyRule = "diagonal",
    known: KnownGroups = NOTHING_KNOWN,
) -> Scores:
    """Statistics of every metric, and what empty masks did to HD95.

    `scores` were computed with `hd95_empty`; the intervals are over the groups in `known`.
    """
    groups = np.array(known.labels(scores), dtype=object)
    predicted, true = column(scores, "PredictedPixels"), column(scores, "TruthPixels")
    distance = column(scores, "HD95")
    diagonal = np.hypot(column(scores, "Height"), column(scores, "Width"))
    one_empty = (predicted > 0) != (true > 0)
    detected = (predicted > 0) & (true > 0)
    names = np.array(list(scores), dtype=object)
    missed, alarmed = one_empty & (true > 0), one_empty & (predicted > 0)
    return {
        "count": len(scores),
        "misses": int(missed.sum()),
        "missed_cases": names[missed].tolist(),
        "false_alarms": int(alarmed.sum()),
        "false_alarm_cases": names[alarmed].tolist(),
        "empty_truths": int((true == 0).sum()),
        "dice_with_lesion": _statistics(column(scores, "DSC")[true > 0], groups[true > 0]),
        "metrics": {metric: _statistics(column(scores, metric), groups) for metric in METRICS},
        "hd95": {
            "rule": hd95_empty,
            "diagonal": _statistics(np.where(one_empty, diagonal, distance), groups),
            "zero": _statistics(np.where(one_empty, 0.0, distance), groups),
            "detected": _statistics(distance[detected], groups[detected]),
        },
    }


def read_results(folder: Path) -> Results:
    """Read what `write_results` wrote; `UserError` if something is missing or does not fit."""
    for name in (CSV_NAME, SUMMARY_NAME):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no {name}; expected a folder of validation results such as "
                "ckpt/<experiment>/epochs_<N>/valid_results_<dataset>, which valid.py writes"
            )
    scores = _from_csv(folder / CSV_NAME)
    path = folder / SUMMARY_NAME
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); run valid.py again") from error
    if not isinstance(summary, dict) or summary.get("count") != len(scores):
        raise UserError(
            f"{path} does not belong to {CSV_NAME} beside it, which has {len(scores)} cases; "
            "run valid.py again"
        )
    sections = ("dice_with_lesion", "metrics", "hd95", "bootstrap", "group_of", "provenance")
    missing = [key for key in sections if not isinstance(summary.get(key), dict)]
    if missing:
        raise UserError(
            f"{path} has no mapping {', '.join(missing)}, which valid.py writes; it is edited, or of "
            "another version: run valid.py again"
        )
    if summary["hd95"].get("rule") not in get_args(EmptyRule):
        raise UserError(
            f"{path}: hd95.rule is {summary['hd95'].get('rule')!r}, expected {' or '.join(get_args(EmptyRule))}; "
            "run valid.py again"
        )
    try:
        TypeAdapter(Summary).validate_python(summary, strict=True)
    except ValidationError as error:
        wrong = [".".join(map(str, problem["loc"])) for problem in error.errors()]
        raise UserError(
            f"{path} is edited, or of another version: missing, or not as valid.py writes it, is "
            f"{listed(wrong, MISFITS_SHOWN)}. Run valid.py again"
        ) from error
    for metric in METRICS:
        mean = float(column(scores, metric).mean())
        said = summary["metrics"].get(metric, {}).get("mean")
        if said is None or not math.isclose(said, mean, rel_tol=1e-9, abs_tol=1e-12):
            raise UserError(
                f"{path} does not belong to {CSV_NAME} beside it: the mean of {metric} is {said} there and {mean} "
                "here. Was a validation stopped while it wrote them? Run valid.py again"
            )
    return Results(folder, scores, cast(Summary, summary))


def recorded_groups(summary: Summary) -> KnownGroups:
    """Which of the scored cases show the same patient, lesion or scan, as the summary says."""
    return KnownGroups(summary["bootstrap"]["by"], summary["group_of"])


def statistics_of(scores: Scores, metric: str) -> MetricStatistics:
    """Those of one metric, or of `WITH_LESION`."""
    return scores["dice_with_lesion"] if metric == WITH_LESION else scores["metrics"][metric]


def mean_of(statistics: MetricStatistics) -> float:
    """The mean of a metric over at least one case."""
    mean = statistics["mean"]
    assert mean is not None, "a mean over no cases"
    return mean


def column(scores: Mapping[str, CaseScores], name: str) -> np.ndarray:
    """One metric or size of every case (N,)."""
    return np.array([case_scores[name] for case_scores in scores.values()], dtype=np.float64)


def _statistics(values: np.ndarray, groups: np.ndarray) -> MetricStatistics:
    sample = describe(values, groups.tolist())
    return {
        "count": sample.count,
        "groups": sample.groups,
        "mean": _or_none(sample.mean),
        "std": _or_none(sample.std),
        "median": _or_none(sample.median),
        "ci95": [_or_none(sample.low), _or_none(sample.high)],
    }


def _or_none(number: float) -> float | None:
    return None if math.isnan(number) else number


def _to_csv(scores: Mapping[str, CaseScores], statistics: Mapping[str, MetricStatistics]) -> str:
    rows = [{"Name": name, **case_scores} for name, case_scores in scores.items()]
    average = {"Name": "Avg", **{metric: statistics[metric]["mean"] for metric in METRICS}}
    deviation = {"Name": "Std", **{metric: statistics[metric]["std"] for metric in METRICS}}
    return csv_text(COLUMNS, [*rows, average, deviation])


def _from_csv(path: Path) -> dict[str, CaseScores]:
    """The scores by case, sorted by name."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file ({error}); run valid.py again") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        got = ", ".join(lines[0]) if lines else "nothing"
        raise UserError(f"{path}: expected the columns {', '.join(COLUMNS)}; got {got}")
    if [line[0] for line in lines[-2:] if line] != ["Avg", "Std"]:
        raise UserError(f"{path} does not end in the rows Avg and Std; it is cut off or edited")
    scores: dict[str, CaseScores] = {}
    for number, line in enumerate(lines[1:-2], 2):
        name, case_scores = _parse(path, number, line)
        if name in scores:
            raise UserError(f"{path} has the case {name!r} more than once")
        scores[name] = case_scores
    if not scores:
        raise UserError(f"{path} has no case")
    return {name: scores[name] for name in sorted(scores)}


def _parse(path: Path, number: int, line: list[str]) -> tuple[str, CaseScores]:
    """Name and scores of a row of the CSV file; every number in it is finite."""
    if len(line) != len(COLUMNS):
        raise UserError(f"{path}, row {number}: {len(line)} columns, expected {len(COLUMNS)}")
    try:
        scores = dict(zip(COLUMNS[1:], map(float, line[1:]), strict=True))
    except ValueError as error:
        raise UserError(f"{path}, row {number}: {error}") from error
    for key, value in scores.items():
        if not math.isfinite(value):
            raise UserError(f"{path}, row {number}: {key} is {value}, expected a finite number")
    return line[0], scores
