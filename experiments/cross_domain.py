"""How models trained on one data set perform on others: a matrix of models by test sets.

    python -m experiments.cross_domain ckpt/bus/epochs_1000 ckpt/busi/epochs_1000 --out ckpt/cross_domain

collects every valid_results_<dataset> of the run folders. A model goes by its train set, and by its run
as well where several were trained on one set. Written: cross_domain_<metric>.csv, the means with one row
per model and one column per test set; cross_domain.md, with intervals and how each checkpoint was chosen
and scored; and cross_domain.png, one heat map per metric.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.entry import described_parser, exit_from


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN")
    add("--out", type=Path, default=Path("ckpt/cross_domain"), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from scoring.cross_domain_cells import collect_cells
    from scoring.cross_domain_matrix import write_matrix
    from utils.runs import writing_to

    cells = collect_cells(arguments.runs)
    with writing_to(arguments.out):
        write_matrix(arguments.out, cells)
    print((arguments.out / "cross_domain.md").read_text(encoding="utf-8"))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    exit_from(main)
