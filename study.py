"""Run an accuracy study: every system, seed and split that a YAML file names, scored in the same way.

    python study.py --config configs/studies/busi.yaml
    python study.py --config configs/studies/busi_reduced.yaml --workers 2 --out docs/results/busi_reduced
    python study.py --config configs/studies/busi.yaml --dry-run
    python study.py --config configs/studies/busi.yaml --report

Each run is an ordinary run folder under ckpt/studies/<name>/. The same command again resumes: finished
runs are skipped, and so are those whose scores results.csv of --out already has, for example from another
machine. The report is written anew after each run. Exit code 1: a run failed or was stopped from outside.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils.entry import described_parser, exit_from, positive_int
from utils.errors import UserError, listed

if TYPE_CHECKING:
    from experiments.studies.study import Run, Study
    from experiments.trials.trial import Outcome, Trial

log = logging.getLogger("wavegms")

NAMED = 4  # runs in each of the last messages; all were reported when they ended


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML in configs/studies/")
    add("--workers", type=positive_int, default=1, help="runs at a time (1)")
    add("--out", type=Path, help="folder of the report; default: the study's")
    add("--dry-run", action="store_true", help="check all runs, list them, stop")
    add("--report", action="store_true", help="write the report of what is done")
    add("--retry-failed", action="store_true", help="start failed runs again")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)

    from experiments.studies.study import load_study, trials_of
    from experiments.trials.earlier_runs import check_earlier_runs
    from utils.logs import log_to

    log_to()
    study = load_study(arguments.config)
    out = arguments.out or study.folder
    runs = trials_of(study)
    check_writable(out)
    check_earlier_runs(runs.values())
    trials = unscored_trials(study, out, runs, arguments.report)
    outcomes: list[Outcome] = []
    if arguments.dry_run:
        from experiments.studies.plan import describe_plan

        check_together(out, runs, trials, arguments.workers)
        log.info("%s", describe_plan(study, runs, trials))
        log.info("every config is valid, its data and local weights are here; nothing was written")
        return 0
    if not arguments.report:
        outcomes = run_study(study, out, runs, trials, arguments.workers, arguments.retry_failed)
    return tell_end(study, out, outcomes)


def check_writable(out: Path) -> None:
    """UserError where the report cannot be written into the folder; one that is new is not left behind."""
    from utils.files import try_to_write

    try:
        try_to_write(out)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {out}: {error.strerror or error}. Free the space, change the "
            "permissions, or name another folder by --out"
        ) from error


def unscored_trials(
    study: Study, out: Path, runs: Mapping[Run, Trial], is_report: bool
) -> list[Trial]:
    """The trials whose scores are neither here nor in the table of `out`, or were made in another way.

    A report names the latter.
    """
    from experiments.studies.score_run import training_and_scoring_steps
    from experiments.studies.scores import outdated_steps, runs_complete_in_table

    scored = runs_complete_in_table(study, out, runs)
    outdated = [
        trial
        for trial in runs.values()
        if outdated_steps(trial) & training_and_scoring_steps(trial, study.tta).keys()
    ]
    if is_report and outdated:
        log.warning(
            "%d run(s) were scored in another way than the study asks (the same command without --report scores "
            "them again): %s",
            len(outdated),
            listed([trial.name for trial in outdated], NAMED, "; "),
        )
    return [trial for run, trial in runs.items() if run not in scored or trial in outdated]


def check_together(
    out: Path, runs: Mapping[Run, Trial], trials: Sequence[Trial], workers: int
) -> None:
    """UserError where `trials`, which are to run, do not go with what is trained already."""
    from experiments.studies.scores import scores_in_table, trained_in
    from experiments.trials.earlier_runs import check_processes, check_settings, processes_of

    check_settings(trials)
    in_table = [score for scores in scores_in_table(out, runs).values() for score in scores]
    check_processes([*trained_in(in_table, runs), *processes_of(trials, workers)])


def run_study(
    study: Study,
    out: Path,
    runs: Mapping[Run, Trial],
    trials: Sequence[Trial],
    workers: int,
    retry_failed: bool,
) -> list[Outcome]:
    """Train and score `trials`, those of `runs` that are left; the report is written after each of them."""
    from experiments.studies.report import write_study
    from experiments.studies.score_run import training_and_scoring_steps
    from experiments.studies.scores import TABLE, outdated_steps
    from experiments.trials.runner import run_trials

    def report_end(outcome: Outcome) -> None:
        log.info("%s: %s", outcome.trial.name, outcome.record.status)
        if outcome.record.error:
            log.error("%s", outcome.record.error)
        if outcome.ran and outcome.record.status == "finished":
            write_study(study, out)

    check_together(out, runs, trials, workers)
    log.info(
        "%s: %d runs in %s; %d more have their scores in %s",
        study.title,
        len(trials),
        study.folder,
        len(runs) - len(trials),
        out / TABLE,
    )
    return run_trials(
        trials,
        workers,
        steps=partial(training_and_scoring_steps, tta=study.tta),
        outdated=outdated_steps,
        retry_failed=retry_failed,
        on_end=report_end,
    )


def tell_end(study: Study, out: Path, outcomes: Sequence[Outcome]) -> int:
    """Write and print the report, and name the runs that did not end well; returns the exit code."""
    from experiments.studies.report import NothingScored, write_study

    failed = [o.trial.name for o in outcomes if o.record.status == "failed"]
    stopped = [o.trial.name for o in outcomes if o.record.status == "interrupted"]
    try:
        log.info("%s\nwritten to %s", write_study(study, out), out)
    except NothingScored:
        if not failed and not stopped:
            raise
    if failed:
        log.info(
            "%d of %d runs failed (see their trial.log; --retry-failed tries them again): %s",
            len(failed),
            len(outcomes),
            listed(failed, NAMED, "; "),
        )
    if stopped:
        log.info(
            "%d of %d runs were stopped from outside (the same command resumes them): %s",
            len(stopped),
            len(outcomes),
            listed(stopped, NAMED, "; "),
        )
    return 1 if failed or stopped else 0


if __name__ == "__main__":
    exit_from(main)
