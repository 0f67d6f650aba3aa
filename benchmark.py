"""Measure training, validation and prediction against the published recipe done the plain way.

    python benchmark.py                                  # dummy data, the bundled Tiny-VAE
    python benchmark.py --vae madebyollin/taesd --vae ckpt/tiny_vae --dataset busi --out docs/performance
    python benchmark.py --growth --dataset busi --out docs/performance
    python benchmark.py --single-changes --out docs/performance

The reference takes the first `--vae`; ours is measured with each of them. Every candidate lives in
a process of its own and they take turns in random order. `--dataset` adds an epoch of training and of
validation on the cases of a prepared data set, and prediction from its files. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.entry import check_values, described_parser, exit_from, positive_int

if TYPE_CHECKING:
    from benchmarks.candidate import Workload

log = logging.getLogger("wavegms")

SIDES = (128, 224, 256, 512, 768, 1024)
COUNTS = (8, 16, 32, 64)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add("--vae", action="append", help="Tiny-VAE; may be given again (ckpt/tiny_vae)")
    add("--image-size", type=int, default=224, help="side in pixels (224)")
    add("--batch-size", type=positive_int, default=12, help="images per step (12)")
    add("--steps", type=positive_int, default=1, help="training steps per round (1)")
    add("--rounds", type=positive_int, default=3, help="turns of each candidate (3)")
    add("--dataset", help="also epochs from disk of this prepared data set")
    add("--cases", type=positive_int, default=48, help="cases of such an epoch (48)")
    add("--workers", type=int, default=2, help="loader workers of ours (2)")
    add("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    add("--compile", action="store_true", help="ours with torch.compile, as `compile: true`")
    add("--optimizer", default="adamw", choices=["adamw", "muon"], help="of ours (adamw)")
    add("--out", type=Path, help="folder for tables, CSV files and plots")
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--growth", action="store_true", help="how time and memory grow, in place of the rest"
    )
    other.add_argument(
        "--single-changes",
        action="store_true",
        help="processor time without and with each change for the CPU, in place of the rest",
    )
    add("--sides", type=int, nargs="+", default=SIDES, help="image sides of --growth (128 to 1024)")
    add(
        "--counts",
        type=positive_int,
        nargs="+",
        default=COUNTS,
        help="numbers of cases of --growth (8 to 64)",
    )
    arguments = parser.parse_args(argv)
    arguments.vae = arguments.vae or ["ckpt/tiny_vae"]
    check_values(
        parser,
        ("vae", len(set(arguments.vae)) == len(arguments.vae), "another each time"),
        ("workers", arguments.workers >= 0, "at least 0"),
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from utils.logs import log_to

    log_to()
    workload = workload_from(arguments)
    if arguments.growth:
        measure_growth(arguments, workload)
    elif arguments.single_changes:
        measure_single_changes(arguments)
    else:
        compare_with_reference(arguments, workload)


def workload_from(arguments: argparse.Namespace) -> Workload:
    """What the candidates are given; UserError where `--dataset` names no prepared data set."""
    from benchmarks.candidate import Workload
    from datasets.cases import Case, open_prepared
    from models.base import check_image_size
    from utils.errors import UserError

    check_image_size(arguments.image_size, arguments.image_size)
    train: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    if arguments.dataset:
        data_set = open_prepared(arguments.dataset)
        train, test = data_set.train[: arguments.cases], data_set.test[: arguments.cases]
        if len(train) < arguments.batch_size:
            raise UserError(
                f"{len(train)} training cases of {arguments.dataset} do not fill a batch of "
                f"{arguments.batch_size}: lower --batch-size or raise --cases"
            )
    return Workload(
        arguments.image_size,
        arguments.batch_size,
        arguments.precision,
        arguments.workers,
        train,
        test,
        arguments.compile,
        arguments.optimizer,
    )


def compare_with_reference(arguments: argparse.Namespace, workload: Workload) -> None:
    """Print the comparison; write benchmark.md, its CSV files and plot to `--out`, after each task."""
    from benchmarks.comparison import compare
    from benchmarks.report import format_results, write_benchmark

    made = compare(workload, arguments.vae, arguments.dataset, arguments.steps, arguments.rounds)
    for results in made:
        if arguments.out:
            write_benchmark(arguments.out, results)
    log.info("\n%s", format_results(results))


def measure_growth(arguments: argparse.Namespace, workload: Workload) -> None:
    """Print each point once it is measured; write growth.md, .csv and .png to `--out`."""
    from benchmarks.growth import Point, case_growth, mapping_growth
    from benchmarks.report import write_growth
    from engine.device import describe_device, make_accelerator
    from models.base import check_image_size

    for side in arguments.sides:
        check_image_size(side, side)
    device = describe_device(make_accelerator(arguments.precision, 1, deterministic=False))
    head = (
        f"{device}. Mapping: one image. "
        f"Cases: {workload.image_size} px, batch {workload.batch_size}."
    )
    series = {"side in px": mapping_growth(arguments.sides, arguments.precision)}
    if arguments.dataset:
        series["cases"] = case_growth(arguments.counts, workload, arguments.vae[0])
    points_by: dict[str, list[Point]] = {}
    for x_name, points in series.items():
        points_by[x_name] = []
        for point in points:
            points_by[x_name].append(point)
            log.info("%s", point)
            if arguments.out:
                write_growth(arguments.out, head, points_by)


def measure_single_changes(arguments: argparse.Namespace) -> None:
    """Print the processor times; write changes.md and changes.csv to `--out`."""
    from benchmarks.report import format_changes, write_changes
    from benchmarks.single_changes import Measured, measure_changes

    size, batch_size = arguments.image_size, arguments.batch_size
    head = f"CPU, 1 thread, fp32; {size} px, batch {batch_size}; {arguments.rounds} rounds"
    changes: list[Measured] = []
    for measured in measure_changes(arguments.vae, size, batch_size, arguments.rounds):
        changes.append(measured)
        log.info("measured: %s, on %s", measured.change, measured.operation)
        if arguments.out:
            write_changes(arguments.out, head, changes)
    log.info("\n%s", format_changes(head, changes))


if __name__ == "__main__":
    exit_from(main)
