"""How time and memory grow: of the mapping with the image's side, of inference with the cases.

Attention compares all (S/8)^2 positions with each other, so its arithmetic grows with S^4. So does
the memory of the plain ("math") kernel, which keeps the matrix; the fused kernels never write it.
Each measurement has a process of its own, so that its peak memory is its own; imports that it does
not need would count, and are made where they are needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.separate_process import SeparateProcess
from utils.machine import available_bytes

if TYPE_CHECKING:
    from benchmarks.candidate import Workload
    from benchmarks.ours import Ours

STAGES = 8  # each with an attention
TIMED_SECONDS = 1.0
KERNELS = ("fused", "math")
PASSES = ("forward", "forward and backward")


@dataclass(frozen=True)
class Point:
    """One measurement of a series; without seconds it was not made, for the reason in `note`."""

    series: str
    x: int  # image side in pixels, or number of cases
    seconds: float | None = None
    peak_bytes: int | None = None  # of the process, or of the GPU's tensors
    note: str = ""


def mapping_growth(sizes: Sequence[int], precision: str) -> Iterator[Point]:
    """Time and memory of the latent mapping model for one image, by kernel and by side in pixels.

    A point that would take more than half of the free memory, or runs out of it, is not made.

    Raises:
        UserError: a process died.
    """
    import torch

    for run in PASSES:
        for kernel in KERNELS:
            for size in sizes:
                series = f"{run}, {kernel}"
                needed = attention_bytes(size, run) if kernel == "math" else 0
                free = free_bytes()
                if free is not None and needed > free / 2:
                    note = (
                        f"not run: about {needed / 2**30:.0f} GiB of {free / 2**30:.0f} available"
                    )
                    yield Point(series, size, note=note)
                    continue
                process = SeparateProcess(MappingRun, size, kernel, run == PASSES[1], precision)
                try:
                    yield Point(series, size, *process.call("measure"))
                except torch.OutOfMemoryError:
                    yield Point(series, size, note="not run: out of memory")
                finally:
                    process.close()


def free_bytes() -> int | None:
    """Memory that is free where the mapping will run: on the GPU, or else of the machine."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_bytes()


def attention_bytes(size: int, run: str) -> int:
    """Bytes of the attention matrices that the math kernel holds at a time, in float32."""
    matrix = 4 * (size // 8) ** 4
    return matrix * (2 if run == PASSES[0] else STAGES + 2)


class MappingRun:
    """The mapping, freshly initialised, and a latent of an image of side `size`."""

    def __init__(self, size: int, kernel: str, backward: bool, precision: str) -> None:
        import torch
        from torch.nn.attention import SDPBackend

        from engine.device import make_accelerator
        from models.latent_mapping import ResAttnUNet_DS

        self.accelerator = make_accelerator(precision, 1, deterministic=False)
        self.device = self.accelerator.device
        self.backward = backward
        self.backends = (
            [SDPBackend.MATH]
            if kernel == "math"
            else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        )
        torch.manual_seed(0)
        self.mapping = ResAttnUNet_DS().to(memory_format=torch.channels_last).to(self.device)
        self.latent = torch.randn(1, 4, size // 8, size // 8, device=self.device)

    def measure(self) -> tuple[float, int]:
        """Seconds of a run, and peak memory in bytes.

        The median of the runs that fit into `TIMED_SECONDS`, at least one, after a first one.
        """
        import torch

        from utils.machine import peak_bytes

        self._timed_run()
        seconds: list[float] = []
        while sum(seconds) < TIMED_SECONDS:
            seconds.append(self._timed_run())
        on_gpu = self.device.type == "cuda"
        return median(seconds), torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()

    def _timed_run(self) -> float:
        from benchmarks.step_parts import synchronise

        synchronise(self.device)
        started = time.perf_counter()
        self._run()
        synchronise(self.device)
        return time.perf_counter() - started

    def _run(self) -> None:
        import torch
        from torch.nn.attention import sdpa_kernel

        with (
            sdpa_kernel(self.backends),
            self.accelerator.autocast(),
            torch.set_grad_enabled(self.backward),
        ):
            heads = self.mapping(self.latent)
            if self.backward:
                torch.stack([head.float().sum() for head in heads.values()]).sum().backward()


def case_growth(counts: Sequence[int], workload: Workload, vae: str) -> Iterator[Point]:
    """Time and memory of validation and of prediction from files, by the number of cases.

    The workload's test cases are taken again from the start where a count asks for more.
    Nothing is decoded ahead.

    Raises:
        UserError: the VAE cannot be had, or a process died.
    """
    for task in ("predict_cases", "predict_files"):
        for count in counts:
            cases = workload.test * -(-count // len(workload.test))
            process = SeparateProcess(_ours, replace(workload, test=cases[:count]), vae)
            try:
                timing = process.call("timed", task)
                yield Point(
                    {"predict_cases": "validation", "predict_files": "prediction"}[task],
                    count,
                    timing.seconds,
                    process.call("peak_memory"),
                )
            finally:
                process.close()


def _ours(workload: Workload, vae: str) -> Ours:
    from benchmarks.ours import Ours

    return Ours(replace(workload, train=()), vae)
