"""Compare validated runs case by case: is one better, and by how much?

    python compare.py ckpt/wave_gms_busi/epochs_1000 ckpt/gms_busi/epochs_1000
    python compare.py RUN_A RUN_B RUN_C --dataset busi --out ckpt/comparison

A run is a run folder or a folder of validation results in it. The first one is the reference; each
other run's scores are paired with the reference's on the same case. Written to --out:
comparison.md and comparison.csv (means and paired differences with 95 % bootstrap intervals, p-values
of the paired sign-flip test), comparison.tex (the main ones as LaTeX tables, with booktabs), and
comparison.png and .pdf (the paired differences). comparison.md, which is printed too, also says how each
checkpoint was chosen and scored.
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
        help="ckpt/<experiment>/epochs_<N>, or a valid_results_<dataset> folder; first: reference",
    )
    add("--dataset", help="which data set, where a run was validated on more than one")
    add("--out", type=Path, default=Path("ckpt/comparison"), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from scoring.comparison import write_comparison
    from scoring.validated_runs import read_runs
    from utils.runs import writing_to

    runs = read_runs(arguments.runs, arguments.dataset)
    with writing_to(arguments.out):
        table = write_comparison(arguments.out, runs)
    print(table)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    exit_from(main)
