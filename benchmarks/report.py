"""The benchmark's results as Markdown tables, CSV files and plots."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.figures import COLOURS, png
from utils.files import atomic_write
from utils.tables import csv_text, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.growth import Point
    from benchmarks.single_changes import Measured

GIB = 2**30
STEP_TASK = "training step, dummy"
DRAWN_NAMES = {  # by the end of a name in the tables
    "training step, dummy": "training step, random images",
    "validation, dummy": "validation, random images",
    "one dummy image": "one random image",
    "taesd": "TAESD",
    "tiny_vae": "bundled Tiny-VAE",
    "encode, frozen": "frozen encoder",
    "encoder": "Haar encoder",
    "mapping": "latent mapping",
    "decode": "frozen decoder",
    "fused": "fused attention",
    "math": "plain attention",
}
PANELS_ABREAST = 3
BAR_INCHES = 0.3
LABEL_WIDTH = 0.12  # of an axis, at least, from one tick that has a label to the next


@dataclass
class Rates:
    """One way of doing one task, round by round."""

    task: str
    way: str
    rounds: list[float] = field(default_factory=list)  # images per second
    waited: list[float] = field(default_factory=list)  # share of the time spent waiting for data

    @property
    def median(self) -> float:
        """Images per second."""
        return statistics.median(self.rounds)


@dataclass
class Step:
    """A training step of one way, taken apart."""

    way: str
    seconds: dict[str, float]  # by part, per batch
    multiply_adds: dict[str, tuple[float, float]]  # by part, per batch, forward and backward
    peak_memory: int  # bytes


@dataclass
class BenchmarkResults:
    """What a benchmark has measured so far; the training steps are taken apart last."""

    head: str
    batch: int
    peak: float = 0.0  # multiply-adds per second of the best convolution
    rates: list[Rates] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def of(self, task: str) -> list[Rates]:
        """The ways of a task, the reference first."""
        return [rates for rates in self.rates if rates.task == task]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in the order of measurement."""
        return list(dict.fromkeys(rates.task for rates in self.rates))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, all of it aligned to the left."""
    return markdown_table(header, rows, left=len(header))


def format_results(results: BenchmarkResults) -> str:
    """The page benchmark.md."""
    sections = [
        results.head,
        "## Rates\n\nMedians of the rounds; the reference is the first of each task.",
        rate_table(results),
    ]
    if results.steps:
        sections += step_sections(results)
    return "\n\n".join(sections) + "\n"


def step_sections(results: BenchmarkResults) -> list[str]:
    """Time, arithmetic and memory of the parts of a training step."""
    return [
        "## Where a training step spends its time\n\nMilliseconds per image, in a pass of its own.",
        time_table(results),
        "## Arithmetic of a training step\n\nGMACs (10^9 multiply-adds) per image, forward + backward. "
        f"The best convolution reached {results.peak / 1e9:.1f} GMACs per second here; "
        "the last row is the share of that in the measured step.",
        arithmetic_table(results),
        "## Peak memory of training\n\nEach way in a process of its own; on the CPU the whole "
        "process, its libraries included.",
        table(
            ["way", "GiB"], [[step.way, f"{step.peak_memory / GIB:.2f}"] for step in results.steps]
        ),
    ]


def rate_table(results: BenchmarkResults) -> str:
    """Images per second of every task and way, and their ratio to the first way of the task."""
    rows = []
    for task in results.tasks:
        ways = results.of(task)
        for way in ways:
            waited = f"{100 * statistics.median(way.waited):.0f} %" if any(way.waited) else ""
            span = f"{min(way.rounds):.2f} to {max(way.rounds):.2f}"
            ratio = way.median / ways[0].median
            rows.append([task, way.way, f"{way.median:.2f} ({span})", f"{ratio:.2f}", waited])
    header = ["task", "way", "images per second (range)", "times the reference", "waiting for data"]
    return table(header, rows)


def _parts(steps: Sequence[Step], what: str) -> list[str]:
    return list(dict.fromkeys(part for step in steps for part in getattr(step, what)))


def time_table(results: BenchmarkResults) -> str:
    """Milliseconds per image of the parts of a training step."""
    steps, images = results.steps, results.batch
    rows = [
        [part, *(f"{1000 * step.seconds.get(part, 0) / images:.1f}" for step in steps)]
        for part in _parts(steps, "seconds")
    ]
    totals = [f"{1000 * sum(step.seconds.values()) / images:.1f}" for step in steps]
    return table(["part", *(step.way for step in steps)], [*rows, ["sum", *totals]])


def arithmetic_table(results: BenchmarkResults) -> str:
    """GMACs per image of the parts, and the share of the best convolution that a step reaches."""
    steps, unit = results.steps, 1e9 * results.batch

    def cell(count: tuple[float, float]) -> str:
        return f"{count[0] / unit:.2f} + {count[1] / unit:.2f}"

    rows = [
        [part, *(cell(step.multiply_adds.get(part, (0, 0))) for step in steps)]
        for part in _parts(steps, "multiply_adds")
    ]
    sums = [sum(map(sum, step.multiply_adds.values())) / unit for step in steps]
    rows.append(["sum", *(f"{total:.2f}" for total in sums)])
    rates = {rates.way: rates.median for rates in results.of(STEP_TASK)}
    shares = [
        f"{100 * total * 1e9 * rates[step.way] / results.peak:.0f} %"
        for step, total in zip(steps, sums, strict=True)
    ]
    rows.append(["share of the peak", *shares])
    return table(["part", *(step.way for step in steps)], rows)


def write_benchmark(folder: Path, results: BenchmarkResults) -> None:
    """Write benchmark.md, benchmark.csv (every round), step_parts.csv and benchmark.png."""
    atomic_write(folder / "benchmark.md", format_results(results))
    _write_csv(
        folder / "benchmark.csv",
        ["task", "way", "round", "images_per_second", "waiting_share"],
        [
            [rates.task, rates.way, i + 1, rate, waited]
            for rates in results.rates
            for i, (rate, waited) in enumerate(zip(rates.rounds, rates.waited, strict=True))
        ],
    )
    _write_csv(
        folder / "step_parts.csv",
        ["way", "part", "seconds_per_batch", "multiply_adds_forward", "multiply_adds_backward"],
        [
            [step.way, part, step.seconds.get(part, ""), *step.multiply_adds.get(part, ("", ""))]
            for step in results.steps
            for part in dict.fromkeys([*step.seconds, *step.multiply_adds])
        ],
    )
    _draw(folder / "benchmark.png", results)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    named = (dict(zip(columns, row, strict=True)) for row in rows)
    atomic_write(path, csv_text(columns, named))


def _draw(path: Path, results: BenchmarkResults) -> None:
    """Bars of the rates of each task, their medians and ranges; below them the parts of a step."""
    from matplotlib.figure import Figure

    columns = min(PANELS_ABREAST, len(results.tasks))
    rows = -(-len(results.tasks) // columns)
    ways = list(dict.fromkeys(rates.way for rates in results.rates))
    heights = [0.9 + BAR_INCHES * len(ways)] * rows
    if results.steps:
        heights.append(1.2 + BAR_INCHES * len(results.steps))
    figure = Figure(figsize=(1.9 + 2.9 * columns, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for index, task in enumerate(results.tasks):
        axis = figure.add_subplot(grid[divmod(index, columns)])
        _draw_rates(axis, results.of(task), ways)
        axis.set_title(drawn_name(task), fontsize="medium")
        axis.tick_params(axis="y", labelleft=index % columns == 0)
    if results.steps:
        _draw_steps(figure.add_subplot(grid[rows, :]), results)
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    atomic_write(path, png(figure))


def drawn_name(name: str) -> str:
    """A task, way, part or series as figures name it, in words that need no table beside them."""
    for short, clear in DRAWN_NAMES.items():
        if name == short or name.endswith(f", {short}"):
            return name.removesuffix(short) + clear
    return name


def _draw_rates(axis: Axes, measured: Sequence[Rates], ways: Sequence[str]) -> None:
    """A bar for each of the task's ways, at the place that it has among all `ways`, the first on top."""
    medians = [rates.median for rates in measured]
    ranges = [
        [rates.median - min(rates.rounds) for rates in measured],
        [max(rates.rounds) - rates.median for rates in measured],
    ]
    several = any(len(rates.rounds) > 1 for rates in measured)
    places = [ways.index(rates.way) for rates in measured]
    axis.barh(places, medians, xerr=ranges if several else None, color=COLOURS[4], capsize=3)
    for place in set(range(len(ways))).difference(places):
        axis.text(0, place, " not measured", color="0.4", fontsize="small", va="center")
    axis.set_yticks(range(len(ways)), [drawn_name(way) for way in ways])
    axis.set_ylim(len(ways) - 0.5, -0.5)
    axis.set_xlabel("images per second" + (", median and range" if several else ""))


def _draw_steps(axis: Axes, results: BenchmarkResults) -> None:
    """The parts of each way's step after each other."""
    names = [drawn_name(step.way) for step in results.steps]
    left = [0.0] * len(names)
    parts = _parts(results.steps, "seconds")
    for part, colour in zip(parts, itertools.cycle(COLOURS)):
        widths = [1000 * step.seconds.get(part, 0) / results.batch for step in results.steps]
        axis.barh(
            names,
            widths,
            left=left,
            label=drawn_name(part),
            color=colour,
            edgecolor="white",
            linewidth=0.5,
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_title("where a training step spends its time", fontsize="medium")
    axis.set_xlabel("ms per image")


def write_growth(folder: Path, head: str, points_by: Mapping[str, Sequence[Point]]) -> str:
    """growth.md, growth.csv and growth.png; returns the page.

    `points_by` is keyed by what the points' x is, such as "side in px".
    """
    sections = [head]
    for x_name, points in points_by.items():
        rows = []
        for p in points:
            cells = [p.note, ""]
            if p.seconds is not None and p.peak_bytes is not None:
                cells = [f"{p.seconds:.3f}", f"{p.peak_bytes / GIB:.2f}"]
            rows.append([p.series, str(p.x), *cells])
        sections.append(table(["what", x_name, "seconds", "peak memory (GiB)"], rows))
    page = "\n\n".join(sections) + "\n"
    atomic_write(folder / "growth.md", page)
    _write_csv(
        folder / "growth.csv",
        ["series", "x_is", "x", "seconds", "peak_bytes", "note"],
        [
            [p.series, x_name, p.x, p.seconds, p.peak_bytes, p.note]
            for x_name, points in points_by.items()
            for p in points
        ],
    )
    _draw_growth(folder / "growth.png", points_by)
    return page


def format_changes(head: str, changes: Sequence[Measured]) -> str:
    """The page changes.md."""
    rows = []
    for measured in changes:
        sides = [f"{user:.2f} + {system:.2f}" for user, system in measured.medians()]
        rows.append([measured.change, measured.operation, *sides])
    header = ["change", "measured on", "before (s)", "after (s)"]
    return f"{head}. Processor time, user + system, medians.\n\n{table(header, rows)}\n"


def write_changes(folder: Path, head: str, changes: Sequence[Measured]) -> None:
    """changes.md and changes.csv (every round)."""
    atomic_write(folder / "changes.md", format_changes(head, changes))
    _write_csv(
        folder / "changes.csv",
        ["change", "operation", "side", "round", "user_seconds", "system_seconds"],
        [
            [measured.change, measured.operation, side, i + 1, *(f"{s:.2f}" for s in seconds)]
            for measured in changes
            for side in ("before", "after")
            for i, seconds in enumerate(getattr(measured, side))
        ],
    )


def _draw_growth(path: Path, points_by: Mapping[str, Sequence[Point]]) -> None:
    """A row for each x: time, and memory, by series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.1 * len(points_by) + 0.7), layout="constrained")
    axes = figure.subplots(len(points_by), 2, squeeze=False)
    colours = itertools.cycle(COLOURS)
    for (times, memory), (x_name, points) in zip(axes, points_by.items(), strict=True):
        for series in dict.fromkeys(p.series for p in points):
            made = [p for p in points if p.series == series and p.seconds is not None]
            style = {"marker": "o", "markersize": 4, "color": next(colours)}
            xs = [p.x for p in made]
            times.plot(xs, [p.seconds for p in made], label=drawn_name(series), **style)
            gib = [p.peak_bytes / GIB for p in made if p.peak_bytes is not None]
            memory.plot(xs, gib, **style)
        seconds = [p.seconds for p in points if p.seconds is not None]
        far_apart = bool(seconds) and max(seconds) > 20 * min(seconds)
        times.set(xlabel=x_name, ylabel="seconds")
        memory.set(xlabel=x_name, ylabel="peak memory (GiB)")
        scale = math.log if far_apart else float
        ticks = _apart(sorted({p.x for p in points}), scale)
        for axis in (times, memory):
            axis.set_xscale("log" if far_apart else "linear")
            axis.set_xticks(ticks, [str(x) for x in ticks], fontsize="small")
            axis.minorticks_off()
            axis.set_ylim(bottom=0, top=1.05 * axis.get_ylim()[1])
        if far_apart:
            times.set_ylim(auto=True)
            times.set_yscale("log")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    atomic_write(path, png(figure))


def _apart(xs: Sequence[int], scale: Callable[[float], float]) -> list[int]:
    """Those of the ascending `xs` that leave room for a label each, on an axis of this scale."""
    kept = list(xs[:1])
    for x in xs[1:]:
        if scale(x) - scale(kept[-1]) >= LABEL_WIDTH * (scale(xs[-1]) - scale(xs[0])):
            kept.append(x)
    return kept
