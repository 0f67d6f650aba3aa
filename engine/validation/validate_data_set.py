"""A trained model scored on one data set, its test split or the cases held out, and all results written."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.cases import Case, DataSet
from datasets.checks.leaks import known_groups, leaked_test_cases, same_source_file
from datasets.splits import Split
from engine.device import resolved_precision
from engine.runs.provenance import network_name, provenance
from engine.runs.seen_cases import cases_leaked_to, fitted_cases, held_out_cases
from engine.runs.training_record import NO_SCORE_CHOSE
from engine.validation.case_predictions import (
    locked_for_writing,
    predict_cases,
    remove_other_predictions,
    report_cases,
    save_each,
)
from engine.validation.options import EvaluationOptions
from scoring.case_scores import score_cases
from scoring.examples import draw_examples, names_by_quantile, write_overlays
from scoring.groups import KnownGroups
from scoring.in_words import replaced_settings
from scoring.metrics import CaseScores
from scoring.report import ReportCase, write_report
from scoring.results import Provenance, Summary, write_results
from scoring.summary_text import format_summary
from utils.config import part_of
from utils.errors import listed
from utils.runs import (
    HELD_OUT_MASKS_PREFIX,
    HELD_OUT_PREFIX,
    MASKS_PREFIX,
    RESULTS_PREFIX,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from engine.runs.trained_run import LoadedRun

log = logging.getLogger("wavegms")

SHOWN = 4  # cases in a message


@dataclass(frozen=True)
class CasesToScore:
    """Cases of a data set, and what their scores rest on."""

    cases: tuple[Case, ...]
    kind: str
    """`test` or `held-out`."""
    made_with: Provenance
    leaked: set[str]
    """Names of those that the network may have seen in training."""
    known: KnownGroups
    """Which cases of the data set show the same source."""


def validate_data_set(
    loaded: LoadedRun,
    data_set: DataSet,
    accelerator: Accelerator,
    folder: Path,
    predictions: Path | None = None,
    held_out: bool = False,
) -> Summary:
    """Predict and score the test split of a data set, or the cases that the run held out of train.

    All goes into `folder`, see `validate_run.results_folder`: masks and probabilities into
    `predicted_masks_<data set>` or `held_out_masks_<data set>`, the rest into `valid_results_<data set>` or
    `held_out_results_<data set>`. What a validation before left there of other cases is deleted once the new
    scores are written. With `predictions`, masks and probabilities go into that folder, in which nothing is
    deleted. Returns the summary that is also written as summary.json. FolderInUse while another process
    writes the same masks.
    """
    config = loaded.config
    find = held_out_part if held_out else test_part
    scored = find(loaded, data_set, resolved_precision(accelerator))
    results_prefix = HELD_OUT_PREFIX if held_out else RESULTS_PREFIX
    masks_prefix = HELD_OUT_MASKS_PREFIX if held_out else MASKS_PREFIX
    results = folder / f"{results_prefix}{data_set.name}"
    masks = predictions or folder / f"{masks_prefix}{data_set.name}"
    with locked_for_writing(masks), warning_of_mixed_results(masks, results):
        predicted = predict_cases(
            loaded.system,
            scored.cases,
            part_of(config, EvaluationOptions),
            accelerator,
            title=f"{scored.kind} cases",
        )
        scores = score_cases(
            save_each(predicted, masks, config.threshold),
            hd95_empty=config.hd95_empty,
            workers=config.num_workers,
            total=len(scored.cases),
        )
        replaced = replaced_settings(results, scored.made_with, config.hd95_empty)
        summary = write_results(
            results,
            scores,
            provenance=scored.made_with,
            leaked=scored.leaked,
            known=scored.known,
            hd95_empty=config.hd95_empty,
        )
        if predictions is None:
            remove_other_predictions(masks, scored.cases)
        title = f"{network_name(config)} on {data_set.name}, {scored.kind} cases"
        write_pictures(results, scored.cases, masks, scores, summary, title, config.threshold)
    if replaced:
        log.info("these scores replace others in %s, made with %s", results, " ".join(replaced))
    log.info(format_summary(data_set.name, summary, scored.kind))
    log.info("masks and probabilities: %s", masks)
    log.info("scores, examples.png and report.html: %s", results)
    return summary


@contextmanager
def warning_of_mixed_results(masks: Path, results: Path) -> Iterator[None]:
    """Warn, where this ends before its time, that an earlier validation's files may be replaced in part."""
    earlier = (results / "summary.json").is_file()
    try:
        yield
    except BaseException:
        if earlier:
            log.warning(
                f"stopped before its end: the masks in {masks} may be partly of this validation, the scores and pictures "
                f"in {results} wholly or partly of an earlier one. Run the same command again"
            )
        raise


def test_part(loaded: LoadedRun, data_set: DataSet, precision: str) -> CasesToScore:
    """The test cases; warns if the weights have seen some of them, or if that is unknown."""
    checkpoint, drop_leaked = loaded.checkpoint, loaded.config.drop_leaked
    made_with = provenance(loaded, data_set, precision)
    seen: list[str] = made_with["test_cases_trained_on"] or []
    if made_with["trained_on_another_split"]:
        warn_of_another_split(data_set, checkpoint, seen)
    leaked = set() if drop_leaked is False else set(seen)
    if should_check_leaks(data_set, drop_leaked):
        leaked |= cases_leaked_to(data_set, checkpoint)
    return CasesToScore(data_set.test, "test", made_with, leaked, known_groups(data_set.folder))


def held_out_part(loaded: LoadedRun, data_set: DataSet, precision: str) -> CasesToScore:
    """The cases of train that the checkpoint's run held out; warns if its initial weights have seen some.

    UserError if it held out none, or it is not recorded which.
    """
    checkpoint, drop_leaked = loaded.checkpoint, loaded.config.drop_leaked
    cases = held_out_cases(checkpoint, data_set)
    names, fitted = tuple(case.name for case in cases), fitted_cases(checkpoint, data_set)
    seen = sorted(fitted.intersection(names))
    if seen:
        log.warning(
            f"{checkpoint} started from weights that were trained on {len(seen)} of the {len(names)} held-out cases "
            f"({listed(seen, limit=SHOWN)}): the scores are too high"
        )
    made_with = provenance(loaded, data_set, precision)
    chosen = NO_SCORE_CHOSE not in made_with["selection"]
    made_with |= {
        "selection": f"{made_with['selection']}; scored on the held-out cases"
        + (", which choose the checkpoint" if chosen else ""),
        "trained_on_another_split": bool(seen),
        "test_cases_trained_on": seen,
    }
    leaked = set() if drop_leaked is False else set(seen)
    if should_check_leaks(data_set, drop_leaked):
        train = tuple(case.name for case in data_set.train if case.name in fitted)
        leaked |= leaked_test_cases(data_set.folder, Split(train, names))
    return CasesToScore(cases, "held-out", made_with, leaked, known_groups(data_set.folder))


def write_pictures(
    results: Path,
    cases: Sequence[Case],
    predictions: Path,
    scores: Mapping[str, CaseScores],
    summary: Summary,
    title: str,
    threshold: float,
) -> None:
    """report.html, overlays and examples.png, from the saved `predictions`, of which each is read once."""
    chosen = set(names_by_quantile(scores).values())
    examples: dict[str, ReportCase] = {}

    def with_examples_kept(cases: Iterable[ReportCase]) -> Iterator[ReportCase]:
        for case in cases:
            if case.name in chosen:
                examples[case.name] = case
            yield case

    drawn = write_overlays(results / "overlays", report_cases(cases, predictions), threshold)
    write_report(
        results / "report.html",
        with_examples_kept(drawn),
        scores=scores,
        summary=summary,
        title=title,
        threshold=threshold,
    )
    draw_examples(results / "examples.png", scores, examples, threshold)


def warn_of_another_split(data_set: DataSet, checkpoint: Path, seen: Sequence[str]) -> None:
    """Warn that the weights may have been trained on test cases, or that they were on those in `seen`."""
    consequence = (
        f"{len(seen)} of its {len(data_set.test)} test cases ({listed(seen, limit=SHOWN)}) were in the "
        "training data, and the scores are too high. Validate on the split that these weights were trained with"
        if seen
        else "its test cases may have been trained on, and the scores are then too high. "
        "Prepare the data set with the split that these weights name"
    )
    log.warning(
        f"{checkpoint} was trained on another split of {data_set.name} than that of {data_set.split_file}: "
        f"{consequence}"
    )


def should_check_leaks(data_set: DataSet, drop_leaked: bool | None) -> bool:
    """Whether to look for near-duplicates: as `drop_leaked` says; with None, in checked data sets."""
    if drop_leaked is None:
        return same_source_file(data_set.folder).is_file()
    return drop_leaked
