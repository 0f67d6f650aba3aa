"""How much GPU memory training takes, found out without a GPU and without computing anything.

One training step runs on fake tensors, which have shapes and no values, while every allocation and
release is counted. The count holds what torch's allocator would hand out, on any device; the CUDA
context and the convolutions' workspace, a few hundred MB that depend on the GPU, come on top.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from models.base import SegmentationModel
from utils.errors import UserError

BLOCK = 512  # bytes; the CUDA allocator rounds up to it
GB = 1e9
USABLE = 0.85  # of a GPU's memory: the rest is CUDA, workspace, fragments and validation's graphs
LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of training, in bytes, by what holds it."""

    batch_size: int
    weights: int  # frozen ones, teachers and the average of those that are trained included
    gradients: int
    optimizer: int  # AdamW's two moments; Muon keeps less
    step: int
    """Peak of images, activations and the backward pass, plus what the teachers' predictions need."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.step

    def largest_batch(self, available: float) -> int:
        """The largest batch that fits into `available` bytes; only `step` grows with the batch."""
        left = USABLE * available - (self.total - self.step)
        return max(0, int(left * self.batch_size / self.step))


class PeakMemory(TorchDispatchMode):
    """While entered, counts the bytes of live tensors; those made before do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def ignore(self, tensors: Any) -> None:
        """Count neither these nor what shares their memory."""
        for tensor in tensors:
            self._watch(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                bytes_ = tensor.untyped_storage().nbytes()
                self._watch(tensor, -(-bytes_ // BLOCK) * BLOCK)
        self.peak = max(self.peak, self.live)
        return result

    def _watch(self, tensor: Tensor, bytes_: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return

        def release(_: object) -> None:
            self.live -= bytes_
            del self._storages[key]

        self.live += bytes_
        self._storages[key] = weakref.ref(storage, release)


class CudaAutocast(TorchFunctionMode):
    """Makes the CPU's autocast keep to float32 where CUDA's does and the CPU's does not.

    These are the operations of our networks that differ; float32 is twice the memory.
    """

    in_float32 = (F.group_norm, F.interpolate, F.softmax)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.in_float32:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


class _Step(nn.Module):
    """Forward and backward in one call, so that both see the same stand-ins for the weights."""

    def __init__(self, system: SegmentationModel) -> None:
        super().__init__()
        self.system = system

    def forward(self, image: Tensor, mask: Tensor, noise: Tensor) -> None:
        # the class's own: a compiled system would be compiled here, a captured one replayed
        losses: Any = type(self.system).forward(self.system, image, mask, noise)
        losses["loss"].backward()


class _Prediction(nn.Module):
    """A prediction without gradients."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        return self.system(image)


def estimate_memory(
    system: SegmentationModel,
    batch_size: int,
    image_size: int,
    precision: str,
    averaged: bool = False,
    processes: int = 1,
    teachers: nn.Module | None = None,
) -> MemoryEstimate:
    """Estimate the peak memory of training `system`, whose weights stay untouched.

    Args:
        batch_size: cases per process and batch.
        image_size: side in pixels.
        precision: `bf16` or `fp16`, mixed as by CUDA's autocast, or anything else for float32.
        averaged: whether an average of the trained weights is kept.
        processes: with several, their gradients are gathered in buckets of the same size.
        teachers: what predicts each batch beside it, from images to masks.

    Raises:
        UserError: what the network does depends on the values of tensors, which an estimate lacks.
    """
    try:
        dtype, shapes = LOW_PRECISION.get(precision), system.batch_shapes(batch_size, image_size)
        # two batches: the loader puts the next one on the GPU while this one is at work
        step = _peak(_Step(system), shapes, dtype, batches=2)
        if teachers is not None:
            step += _peak(_Prediction(teachers), shapes[:1], dtype)
    except Exception as error:  # whatever a network raises that meets tensors without values
        raise UserError(f"cannot be estimated for this network ({type(error).__name__})") from error
    trained = sum(_bytes(p) for p in system.parameters() if p.requires_grad)
    weights = sum(_bytes_of(each) for each in (system, teachers) if each is not None)
    if averaged:  # the copy has the rest in common with the system
        weights += trained + sum(
            _bytes(b) for part in system.parts().values() for b in part.buffers()
        )
    return MemoryEstimate(
        batch_size=batch_size,
        weights=weights,
        gradients=trained * (2 if processes > 1 else 1),
        optimizer=2 * trained,
        step=step,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes_of(module: nn.Module) -> int:
    return sum(map(_bytes, [*module.parameters(), *module.buffers()]))


def _peak(
    call: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype | None,
    batches: int = 1,
) -> int:
    """Bytes that `call` on inputs of these shapes takes beside weights and gradients."""
    fake, peak = FakeTensorMode(allow_non_fake_inputs=True), PeakMemory()
    with ExitStack() as stack:
        stack.enter_context(fake)
        state = {
            name: _stand_in(tensor) for name, tensor in call.state_dict(keep_vars=True).items()
        }
        state |= {name: _stand_in(tensor) for name, tensor in call.named_buffers()}
        for tensor in state.values():
            if tensor.requires_grad:
                tensor.grad = torch.empty_like(tensor)
        peak.ignore(state.values())
        peak.ignore(tensor.grad for tensor in state.values() if tensor.grad is not None)
        stack.enter_context(peak)
        if dtype is not None:
            stack.enter_context(torch.autocast("cpu", dtype))
            stack.enter_context(CudaAutocast())
        inputs = [[torch.empty(shape) for shape in shapes] for _ in range(batches)]
        torch.func.functional_call(call, state, tuple(inputs[0]))
    return peak.peak


def _stand_in(tensor: Tensor) -> Tensor:
    """A fake tensor like it on the CPU; to be called in fake mode."""
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return like.requires_grad_(tensor.requires_grad)


def describe_memory(estimate: MemoryEstimate, precision: str, gpu_memory: int | None) -> str:
    """The estimate as a line of the plan; `gpu_memory`: bytes of the GPU, where there is one."""
    parts = (estimate.weights, estimate.gradients, estimate.optimizer, estimate.step)
    weights, gradients, optimizer, step = (f"{part / GB:.2f}" for part in parts)
    line = (
        f"GPU memory: about {estimate.total / GB:.1f} GB per GPU at batch {estimate.batch_size}, "
        f"{precision} (weights {weights}, gradients {gradients}, optimiser {optimizer}, images and "
        f"activations {step}; CUDA itself and convolution workspace come on top)"
    )
    if gpu_memory is not None:
        line += (
            f"; this GPU has {gpu_memory / GB:.1f} GB, for batches up to "
            f"{estimate.largest_batch(gpu_memory)}"
        )
    return line
