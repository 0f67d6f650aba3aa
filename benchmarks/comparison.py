"""Ours against the reference: each in a process of its own, taking turns in random order."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from benchmarks.candidate import Workload, vae_labels
from benchmarks.ours import Ours
from benchmarks.reference import Reference
from benchmarks.report import STEP_TASK, BenchmarkResults, Rates, Step
from benchmarks.separate_process import SeparateProcess
from utils.errors import UserError

log = logging.getLogger("wavegms")

UNET = "smp/Unet?encoder=resnet34"


def compare(
    workload: Workload, vaes: Sequence[str], data: str | None, steps: int, rounds: int
) -> Iterator[BenchmarkResults]:
    """Measure rates, peak memory and the parts of a training step of every candidate.

    Yields the results after each task: always the same object, with what has been measured so far.

    Args:
        vaes: Tiny-VAEs; the reference takes the first, ours each of them.
        data: name of the data set that the workload's cases are from; None for dummy data alone.
        steps: training steps per round.

    Raises:
        UserError: reference and ours compute different losses, or a process died.
    """
    with ExitStack() as stack:
        candidates = start_candidates(vaes, workload, stack)
        reference, ours, *_ = candidates.values()
        check_agreement(reference.call("first_losses"), ours.call("first_losses"))
        head = (
            f"{ours.call('describe')}; {workload.image_size} px, batch {workload.batch_size}; "
            f"{rounds} rounds"
        )
        if workload.compile:
            head += "; ours compiled"
        if workload.optimizer != "adamw":
            head += f"; ours with {workload.optimizer.capitalize()}"
        if data:
            head += f"; {len(workload.train)} + {len(workload.test)} cases of {data}"
        trained = {name: c for name, c in candidates.items() if not name.startswith("U-Net")}
        results, memory = BenchmarkResults(head, workload.batch_size), {}
        for task, method, arguments in tasks(data, steps):
            log.info("measuring: %s", task)
            takes_part = candidates if "prediction" in task else trained
            results.rates += take_turns(task, takes_part, method, arguments, rounds)
            if task == STEP_TASK:  # before anything else can raise the peak
                memory = {name: c.call("peak_memory") for name, c in trained.items()}
            yield results
        log.info("measuring: the parts of a step")
        results.steps = [
            Step(name, c.call("step_seconds", steps), c.call("step_arithmetic"), memory[name])
            for name, c in trained.items()
        ]
        results.peak = ours.call("convolution_peak")
        yield results


def start_candidates(
    vaes: Sequence[str], workload: Workload, stack: ExitStack
) -> dict[str, SeparateProcess]:
    """By name: the reference, ours with each VAE, and a U-Net if it is installed."""

    def start(*build: Any) -> SeparateProcess:
        process = SeparateProcess(*build)
        stack.callback(process.close)
        return process

    labels = vae_labels(vaes)
    candidates = {f"reference, {labels[vaes[0]]}": start(Reference, workload, vaes[0])}
    for vae, label in labels.items():
        candidates[f"ours, {label}"] = start(Ours, workload, vae)
    try:
        candidates["U-Net, ResNet-34"] = start(Ours, replace(workload, train=()), "", UNET)
    except UserError as error:
        log.info("without a U-Net to compare with: %s", error)
    return candidates


def tasks(data: str | None, steps: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, method of the candidates and its arguments; training steps come first."""
    dummy: list[tuple[str, str, tuple[int, ...]]] = [
        (STEP_TASK, "train_steps", (steps,)),
        ("validation, dummy", "validate_batch", ()),
        ("prediction, one dummy image", "predict_one", (4,)),
    ]
    if not data:
        return dummy
    return [
        *dummy,
        (f"training epoch, {data}", "train_epoch", ()),
        (f"validation epoch, {data}", "validate_cases", ()),
        (f"prediction from files, {data}", "predict_files", ()),
    ]


def check_agreement(reference: Mapping[str, float], ours: Mapping[str, float]) -> None:
    """Raise UserError unless both compute the same losses, to 1e-4 relative."""
    for name, value in reference.items():
        if not abs(ours[name] - value) <= 1e-4 * abs(value) + 1e-5:
            raise UserError(
                f"the loss {name!r} is {value} in the reference loop and {ours[name]} in ours; they "
                "must agree to 1e-4 before their speed can be compared"
            )


def take_turns(
    task: str,
    candidates: Mapping[str, SeparateProcess],
    method: str,
    arguments: tuple[int, ...],
    rounds: int,
) -> list[Rates]:
    """Each candidate once to warm up, then `rounds` times in random order."""
    measured = {name: Rates(task, name) for name in candidates}
    order = random.Random(0)
    for candidate in candidates.values():
        candidate.call("timed", method, *arguments)
    for _ in range(rounds):
        for name in order.sample(list(candidates), len(candidates)):
            timing = candidates[name].call("timed", method, *arguments)
            measured[name].rounds.append(timing.images / timing.seconds)
            measured[name].waited.append(timing.waited / timing.seconds)
    for name, rates in measured.items():
        waited = f", {max(rates.waited):.0%} of it waiting for data" if any(rates.waited) else ""
        log.info("  %s: %.2f images per second%s", name, rates.median, waited)
    return list(measured.values())
