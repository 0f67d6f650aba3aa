"""Where a training step spends its time and its arithmetic, and how fast the machine convolves.

A part of a step is a bound method, named by its owner and attribute. While it is watched, a wrapper
stands in its place; nothing is left in the models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.arithmetic import multiply_adds

Part = tuple[object, str]
"""Owner and attribute of a method."""

REST = "losses and the rest"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def wrapped(part: Part, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put `wrap(method)` in the method's place."""
    owner, attribute = part
    setattr(owner, attribute, wrap(getattr(owner, attribute)))
    try:
        yield
    finally:
        delattr(owner, attribute)


def time_parts(
    step: Callable[[], object], parts: Mapping[str, Part], device: torch.device, steps: int
) -> dict[str, float]:
    """Seconds per step by part, and under REST what lies between the parts.

    The device is waited for at the borders of the parts. That undoes the overlap of a GPU with the
    processor, so this is a pass of its own, apart from the one that measures rates.
    """
    seconds = dict.fromkeys(parts, 0.0)

    def now() -> float:
        synchronise(device)
        return time.perf_counter()

    def timed(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                started = now()
                result = method(*arguments)
                seconds[name] += now() - started
                return result

            return run

        return wrap

    with ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(wrapped(part, timed(name)))
        started = now()
        for _ in range(steps):
            step()
        total = now() - started
    seconds[REST] = total - sum(seconds.values())
    return {name: value / steps for name, value in seconds.items()}


def count_parts(
    step: Callable[[], object], parts: Mapping[str, Part]
) -> dict[str, tuple[float, float]]:
    """Multiply-adds per step by part, forward and backward.

    Each call of a part is seen in a real step and then repeated alone, forward and backward
    (`utils.arithmetic`). Parts that compute none are left out.
    """
    calls: list[tuple[str, Callable[..., Any], tuple[Tensor, ...]]] = []

    def seen(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                if all(isinstance(argument, Tensor) for argument in arguments):
                    calls.append((name, method, arguments))
                return method(*arguments)

            return run

        return wrap

    with ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(wrapped(part, seen(name)))
        step()
    counts: dict[str, tuple[float, float]] = {}
    for name, method, arguments in calls:
        forward, backward = multiply_adds(method, arguments)
        before = counts.get(name, (0.0, 0.0))
        counts[name] = before[0] + forward, before[1] + backward
    return {name: count for name, count in counts.items() if sum(count)}


@torch.inference_mode()
def convolution_peak(
    device: torch.device,
    dtype: torch.dtype,
    layouts: Sequence[torch.memory_format],
    side: int,
    batch: int,
) -> float:
    """The best rate of some 3x3 convolutions, in multiply-adds per second.

    The shapes are those of the largest layers at this side and batch; each runs thrice after a warm-up.
    """
    best = 0.0
    for channels, size in ((32, side), (64, side), (64, side // 2), (128, side // 4)):
        for layout in layouts:
            x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
            weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
            x, weight = x.to(memory_format=layout), weight.to(memory_format=layout)
            F.conv2d(x, weight, padding=1)
            for _ in range(3):
                synchronise(device)
                started = time.perf_counter()
                F.conv2d(x, weight, padding=1)
                synchronise(device)
                seconds = time.perf_counter() - started
                best = max(best, 9 * batch * channels**2 * size**2 / seconds)
    return best
