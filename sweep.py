"""Run a config many times: a grid, named variants or a search, over seeds and folds.

    python sweep.py --config configs/sweeps/busi_lr.yaml
    python sweep.py --config configs/sweeps/busi_lr.yaml epochs=100 sweep.workers=2
    python sweep.py --config configs/sweeps/busi_lr.yaml --dry-run
    python sweep.py --config configs/sweeps/busi_lr.yaml --report

Every trial is an ordinary run in `<snapshot_path>/<trial>/epochs_<N>`. The same command again resumes
the sweep where it was stopped. Beside the trials: sweep.md, sweep.csv, sweep.png and best.yaml.
Exit code 1: a trial failed, or was stopped and not resumed. docs/sweeps.md says more.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.entry import described_parser, exit_from
from utils.errors import listed

if TYPE_CHECKING:
    from experiments.sweeps.base import Plan
    from experiments.sweeps.scores import OpenElsewhere, SettingScores
    from experiments.sweeps.settings import Sweep
    from experiments.trials.trial import Outcome

log = logging.getLogger("wavegms")

NAMED = 4  # settings in each of the last messages


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file with `sweep:`")
    add("--dry-run", action="store_true", help="check all trials, list them, stop")
    add("--report", action="store_true", help="write the tables of what is done, stop")
    add("--retry-failed", action="store_true", help="try failed trials again")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="change keys of the config, or (sweep.key=value) of the sweep",
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)

    from experiments.sweeps.plan import (
        check_sweep,
        describe_plan,
        make_plan,
        make_report_plan,
        write_sweep_report,
    )
    from experiments.sweeps.settings import load_sweep
    from experiments.sweeps.slots import held_slot
    from utils.logs import log_to

    log_to()
    sweep = load_sweep(arguments.config, arguments.overrides)
    if arguments.report:
        plan = make_report_plan(sweep)
        tell_report(sweep.folder, write_sweep_report(sweep, plan))
        return 0
    trials = check_sweep(sweep)
    log.info(describe_plan(sweep, trials))
    if arguments.dry_run:
        log.info("every config is valid; nothing was written")
        return 0

    with held_slot(sweep.folder, shared=sweep.settings.storage is not None) as owner:
        plan = make_plan(sweep, owner, arguments.retry_failed)
        try:
            outcomes = run_plan(sweep, plan, arguments.retry_failed)
        finally:
            rows = write_sweep_report(sweep, plan)
        open_elsewhere = plan.open_elsewhere()
    tell_report(sweep.folder, rows)
    return tell_end(rows, outcomes, open_elsewhere)


def run_plan(sweep: Sweep, plan: Plan, retry_failed: bool) -> list[Outcome]:
    """Run all trials of the plan; the report is written anew after each of them.

    UserError where the first ones fail one after the other.
    """
    from experiments.sweeps.plan import write_sweep_report
    from experiments.sweeps.scores import outdated_steps
    from experiments.trials.failures import Failures
    from experiments.trials.runner import run_trials
    from experiments.trials.trial import training_and_validation_steps, training_steps

    failures = Failures(sweep.folder)

    def on_end(outcome: Outcome) -> None:
        plan.ended(outcome)
        log.info(describe_outcome(outcome))
        if outcome.ran:
            write_sweep_report(sweep, plan)
        failures.check(outcome)

    settings = sweep.settings
    return run_trials(
        plan.trials(),
        settings.workers,
        steps=training_and_validation_steps if settings.validate_runs else training_steps,
        outdated=outdated_steps,
        retry_failed=retry_failed,
        should_prune=plan.should_prune,
        on_end=on_end,
        in_order=bool(settings.search),  # what is asked for next depends on what has ended
    )


def tell_report(folder: Path, rows: Sequence[SettingScores]) -> None:
    """Print the table, and what was written."""
    from experiments.sweeps.report import find_best

    log.info((folder / "sweep.md").read_text(encoding="utf-8"))
    best = ", best.yaml" if find_best(rows) else "; best.yaml follows the first complete setting"
    log.info("written to %s: sweep.md, sweep.csv, sweep.png%s", folder, best)


def tell_end(
    rows: Sequence[SettingScores], outcomes: Sequence[Outcome], open_elsewhere: OpenElsewhere
) -> int:
    """Name what did not end well, or has not ended; returns the exit code."""
    failed = sum(row.statuses["failed"] for row in rows)
    told = {name for row in rows for name in row.errors}
    # finished runs whose records stay, as train.py refuses them with other settings
    failed += sum(o.record.status == "failed" and o.trial.name not in told for o in outcomes)
    stopped = sum(outcome.record.status == "interrupted" for outcome in outcomes)
    if failed:
        log.info("%d trial(s) failed; --retry-failed tries them again", failed)
    if stopped:
        log.info("%d trial(s) were stopped from outside; the same command resumes them", stopped)
    if tried := open_elsewhere.tried:
        log.info(
            "%d setting(s) are open in the study under other sweeps: %s. Where such a sweep has ended, the same "
            "command in its folder resumes them",
            len(tried),
            listed(tried, NAMED),
        )
    if abandoned := open_elsewhere.abandoned:
        log.warning(
            "%d setting(s) were left by another sweep in this folder that has ended: %s. The same command resumes them",
            len(abandoned),
            listed(abandoned, NAMED),
        )
    return 1 if failed or stopped or abandoned else 0


def describe_outcome(outcome: Outcome) -> str:
    """One line for the terminal."""
    from experiments.sweeps.scores import CHOOSING, best_validation

    record, trial = outcome.record, outcome.trial
    parts = [record.status if outcome.ran else f"{record.status} before"]
    if (dice := best_validation(trial)) is not None:
        parts.append(f"{CHOOSING[trial.config.select_on]} {dice:.4f}")
    parts.append(f"{sum(record.wall_seconds.values()):.0f} s")
    lines = [f"{trial.name}: {', '.join(parts)}"]
    if record.error and record.status == "failed":
        lines += [f"  {line}" for line in [*record.error.splitlines(), f"log: {trial.log_file}"]]
    return "\n".join(lines)


if __name__ == "__main__":
    exit_from(main)
