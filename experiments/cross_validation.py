"""A cross-validation as one result: every case of train once, scored by the run that held it out.

    python -m experiments.cross_validation ckpt/fold_*/epochs_1000 --out ckpt/cross_validation/wave_gms

pools the held-out scores of the K runs of `folds: K`, of which `python valid.py --run RUN --held-out` has
scored each. For another checkpoint than the best, give the folder of its results (RUN/epoch_1000). Runs
that are not the K folds of one training, or were not scored alike, are refused. Written to --out:
cross_validation.md and .tex (with booktabs), the means over all cases and those of each fold; and, for
`python compare.py` to compare two systems case by case, results.csv and summary.json as of a validation, the
latter with the Dice of each fold below `folds`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.entry import described_parser, exit_from


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="ckpt/<experiment>/epochs_<N> of each fold",
    )
    add("--dataset", help="which data set, where the held-out cases of more than one were scored")
    add("--out", type=Path, required=True, metavar="FOLDER", help="one for each system")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from experiments.folds import read_folds
    from experiments.pooled_folds import format_folds, write_cross_validation
    from scoring.summary_text import format_summary
    from utils.runs import writing_to

    folds = read_folds(arguments.runs, arguments.dataset)
    with writing_to(arguments.out):
        summary, across = write_cross_validation(arguments.out, folds)
    print(format_summary(folds[0].config.dataset, summary, "held-out"))
    print(format_folds(across))
    print(f"written to {arguments.out}; compare two systems with compare.py FOLDER_A FOLDER_B")


if __name__ == "__main__":
    exit_from(main)
