"""Run a config many times: a grid, named variants or a search, over seeds and folds.

    python sweep.py --config configs/sweeps/busi_lr.yaml
    python sweep.py --config configs/sweeps/busi_lr.yaml epochs=100 sweep.workers=2
    python sweep.py --config configs/sweeps/busi_lr.yaml --dry-run

Every trial is an ordinary run in `<snapshot_path>/<trial>/epochs_<N>`. The same command again resumes
the sweep where it was stopped. Beside the trials: sweep.md, sweep.csv, sweep.png and best.yaml.
Exit code 1: a trial failed, or was stopped from outside. docs/sweeps.md says more.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.entry import described_parser, exit_from

if TYPE_CHECKING:
    from experiments.runner import Outcome

log = logging.getLogger("wavegms")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file with `sweep:`")
    add("--dry-run", action="store_true", help="check all trials, list them, stop")
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

    from experiments.runner import run_trials, training_and_validation_steps, training_steps
    from experiments.sweep_plan import describe_plan, make_plan, write_sweep_report
    from experiments.sweep_report import find_best
    from experiments.sweep_scores import outdated_steps
    from experiments.sweep_settings import load_sweep
    from experiments.sweep_slots import held_slot
    from utils.logs import log_to

    log_to()
    sweep = load_sweep(arguments.config, arguments.overrides)
    settings = sweep.settings
    log.info(describe_plan(sweep))
    if arguments.dry_run:
        log.info("every config is valid; nothing was written")
        return 0

    with held_slot(sweep.folder, shared=settings.storage is not None) as owner:
        plan = make_plan(sweep, owner, arguments.retry_failed)

        def on_end(outcome: Outcome) -> None:
            plan.ended(outcome)
            log.info(describe_outcome(outcome))
            if outcome.ran:
                write_sweep_report(sweep, plan)

        try:
            outcomes = run_trials(
                plan.trials(),
                settings.workers,
                steps=training_and_validation_steps if settings.validate_runs else training_steps,
                outdated=outdated_steps,
                retry_failed=arguments.retry_failed,
                should_prune=plan.should_prune,
                on_end=on_end,
            )
        finally:
            rows = write_sweep_report(sweep, plan)
    log.info((sweep.folder / "sweep.md").read_text())
    best = ", best.yaml" if find_best(rows) else "; best.yaml follows the first complete setting"
    log.info("written to %s: sweep.md, sweep.csv, sweep.png%s", sweep.folder, best)
    failed = sum(row.statuses["failed"] for row in rows)
    stopped = sum(outcome.record.status == "interrupted" for outcome in outcomes)
    if failed:
        log.info("%d trial(s) failed; --retry-failed tries them again", failed)
    if stopped:
        log.info("%d trial(s) were stopped from outside; the same command resumes them", stopped)
    return 1 if failed or stopped else 0


def describe_outcome(outcome: Outcome) -> str:
    """One line for the terminal."""
    from experiments.sweep_scores import CHOOSING, best_validation

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
