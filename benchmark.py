"""Measure training, validation and prediction against the published recipe done the plain way.

    python benchmark.py                                  # dummy data, the bundled Tiny-VAE
    python benchmark.py --vae madebyollin/taesd --vae ckpt/tiny_vae --data busi --out docs/performance
    python benchmark.py --growth --data busi --out docs/performance

The reference takes the first `--vae`; ours is measured with each of them. Every way lives in a
process of its own and they take turns in random order. `--data` adds an epoch of training, of
validation and of prediction from the files of a prepared data set. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.entry import exit_from

if TYPE_CHECKING:
    from benchmarks.candidates import Workload
    from benchmarks.report import Rates, Results
    from benchmarks.separate_process import SeparateProcess

log = logging.getLogger("wavegms")

UNET = "smp/Unet?encoder=resnet34"
SIDES = (128, 224, 256, 512, 768, 1024)
COUNTS = (8, 16, 32, 64)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vae", action="append", help="Tiny-VAE; may be given again (ckpt/tiny_vae)"
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1, help="training steps a round (1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", help="also epochs from disk of this prepared data set")
    parser.add_argument("--cases", type=int, default=48, help="cases of such an epoch (48)")
    parser.add_argument("--workers", type=int, default=2, help="loader workers of ours (2)")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument(
        "--growth", action="store_true", help="how time and memory grow, in place of the rest"
    )
    parser.add_argument(
        "--sides", type=int, nargs="+", default=SIDES, help="image sides of --growth"
    )
    parser.add_argument(
        "--counts", type=int, nargs="+", default=COUNTS, help="numbers of cases of --growth"
    )
    parser.add_argument("--out", type=Path, help="folder for tables, CSV files and plots")
    arguments = parser.parse_args(argv)
    arguments.vae = arguments.vae or ["ckpt/tiny_vae"]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from utils.runs import log_to

    log_to()
    if arguments.growth:
        measure_growth(arguments)
        return
    from benchmarks.report import format_results, write_results

    results = measure(arguments)
    log.info("\n%s", format_results(results))
    if arguments.out:
        write_results(arguments.out, results)


def workload_from(arguments: argparse.Namespace) -> Workload:
    """What the candidates are given; UserError where `--data` names no prepared data set."""
    from benchmarks.candidates import Workload
    from datasets.cases import open_data_set
    from models.base import check_image_size
    from utils.errors import UserError

    check_image_size(arguments.image_size, arguments.image_size)
    train: tuple[Any, ...] = ()
    test: tuple[Any, ...] = ()
    if arguments.data:
        name = arguments.data
        data_set = open_data_set(Path("datasets") / name / f"{name}_train_test_names.json")
        train, test = data_set.train[: arguments.cases], data_set.test[: arguments.cases]
        if len(train) < arguments.batch:
            raise UserError(
                f"{len(train)} training cases of {name} do not fill a batch of {arguments.batch}: "
                "lower --batch or raise --cases"
            )
    return Workload(
        arguments.image_size, arguments.batch, arguments.precision, arguments.workers, train, test
    )


def measure(arguments: argparse.Namespace) -> Results:
    """Rates, the parts of a step and peak memory of every way."""
    from benchmarks.report import Results, Step

    workload = workload_from(arguments)
    with ExitStack() as stack:
        ways = start_ways(arguments.vae, workload, stack)
        reference, ours, *_ = ways.values()
        agree(reference.call("first_losses"), ours.call("first_losses"))
        head = (
            f"{ours.call('describe')}; {workload.image_size} px, batch {workload.batch}; "
            f"{arguments.rounds} rounds"
        )
        if workload.train:
            head += f"; {len(workload.train)} + {len(workload.test)} cases of {arguments.data}"
        # after the losses, and before anything else can raise the peak of memory
        training = {name: way for name, way in ways.items() if not name.startswith("U-Net")}
        rates = []
        for task, method, count in tasks(arguments):
            log.info("measuring: %s", task)
            takes_part = ways if "prediction" in task else training
            rates += take_turns(task, takes_part, method, count, arguments.rounds)
            if task == "training step, dummy":
                memory = {name: way.call("peak_memory") for name, way in training.items()}
        log.info("measuring: the parts of a step")
        steps = [
            Step(
                name,
                way.call("step_seconds", arguments.steps),
                way.call("step_arithmetic"),
                memory[name],
            )
            for name, way in training.items()
        ]
        peak = ours.call("convolution_peak")
    return Results(head, workload.batch, peak, rates, steps)


def start_ways(
    vaes: Sequence[str], workload: Workload, stack: ExitStack
) -> dict[str, SeparateProcess]:
    """The ways by name: the reference, ours with each VAE, and where it is installed a U-Net."""
    from dataclasses import replace

    from benchmarks.candidates import Ours, Reference
    from benchmarks.separate_process import SeparateProcess
    from utils.errors import UserError

    def start(*build: Any) -> SeparateProcess:
        process = SeparateProcess(*build)
        stack.callback(process.close)
        return process

    ways = {f"reference, {Path(vaes[0]).name}": start(Reference, workload, vaes[0])}
    for vae in vaes:
        ways[f"ours, {Path(vae).name}"] = start(Ours, workload, vae)
    try:
        ways["U-Net, ResNet-34"] = start(Ours, replace(workload, train=()), "", UNET)
    except UserError as error:
        log.info("without a U-Net to compare with: %s", error)
    return ways


def tasks(arguments: argparse.Namespace) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, method of the candidates and its arguments; training comes first."""
    dummy: list[tuple[str, str, tuple[int, ...]]] = [
        ("training step, dummy", "train_steps", (arguments.steps,)),
        ("validation, dummy", "validate_batch", ()),
        ("prediction, one dummy image", "predict_one", (4,)),
    ]
    if not arguments.data:
        return dummy
    name = arguments.data
    return [
        *dummy,
        (f"training epoch, {name}", "train_epoch", ()),
        (f"validation epoch, {name}", "validate_cases", ()),
        (f"prediction from files, {name}", "predict_files", ()),
    ]


def agree(reference: Mapping[str, float], ours: Mapping[str, float]) -> None:
    """Stop if the two ways do not compute the same losses, to 1e-4 relative."""
    from utils.errors import UserError

    for name, value in reference.items():
        if not abs(ours[name] - value) <= 1e-4 * abs(value) + 1e-5:
            raise UserError(
                f"the loss {name!r} is {value} in the reference loop and {ours[name]} in ours; they "
                "must agree to 1e-4 before their speed can be compared"
            )


def take_turns(
    task: str, ways: Mapping[str, Any], method: str, arguments: tuple[int, ...], rounds: int
) -> list[Rates]:
    """Each way once to warm up, then `rounds` times in random order."""
    from benchmarks.report import Rates

    measured = {name: Rates(task, name) for name in ways}
    order = random.Random(0)
    for way in ways.values():
        way.call("timed", method, *arguments)
    for _ in range(rounds):
        for name in order.sample(list(ways), len(ways)):
            timing = ways[name].call("timed", method, *arguments)
            measured[name].rounds.append(timing.images / timing.seconds)
            measured[name].waited.append(timing.waited / timing.seconds)
    for name, rates in measured.items():
        log.info("  %s: %.2f images a second", name, rates.median)
    return list(measured.values())


def measure_growth(arguments: argparse.Namespace) -> None:
    from benchmarks.growth import Point, case_growth, mapping_growth
    from benchmarks.report import write_growth
    from engine.device import describe_device, make_accelerator
    from models.base import check_image_size

    for side in arguments.sides:
        check_image_size(side, side)
    workload = workload_from(arguments)
    device = describe_device(make_accelerator(arguments.precision, 1, deterministic=False))
    head = f"{device}. Mapping: one image. Cases: {workload.image_size} px, batch {workload.batch}."
    series = {"side in px": mapping_growth(arguments.sides, arguments.precision)}
    if arguments.data:
        series["cases"] = case_growth(arguments.counts, workload, arguments.vae[0])
    points_by: dict[str, list[Point]] = {}
    for x_name, points in series.items():
        points_by[x_name] = []
        for point in points:
            points_by[x_name].append(point)
            log.info("%s", point)
            if arguments.out:
                write_growth(arguments.out, head, points_by)


if __name__ == "__main__":
    exit_from(main)
