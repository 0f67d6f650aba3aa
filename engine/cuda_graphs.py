"""Training steps and predictions replayed as CUDA graphs.

A training step of Wave-GMS is some 6000 small kernels, which a GPU finishes faster than Python can
launch them. A graph launches all kernels of a pass at once. It computes the same and keeps to the
memory it was captured in, so that inputs are copied in and every batch has the shape of the first.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.base import SegmentationModel

if TYPE_CHECKING:
    from accelerate import Accelerator

WARM_UP_RUNS = 3  # before a capture: what is made once, such as cuDNN's choice of kernels
MAX_SHAPES = 4  # of batches that a Predictor captures; each keeps its own memory


def can_capture(system: SegmentationModel, accelerator: Accelerator) -> bool:
    """Whether steps of `system` can be replayed here: on one GPU, where the model allows it."""
    on_gpu = accelerator.device.type == "cuda"
    return system.capturable and on_gpu and accelerator.num_processes == 1


class TrainingPass:
    """`model(image, mask, noise)` in training mode under the run's autocast: its losses.

    With `to_capture`, losses and gradients are captured as CUDA graphs at the first call, or before it by
    `capture`, and replayed from then on. Every batch then has the shape of the first.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator, to_capture: bool) -> None:
        self.model, self.accelerator, self.to_capture = model, accelerator, to_capture

    def __call__(self, image: Tensor, mask: Tensor, noise: Tensor) -> dict[str, Tensor]:
        self.capture(image, mask, noise)
        with self.accelerator.autocast():  # a benchmark's model has none of its own
            losses: dict[str, Tensor] = self.model(image, mask, noise)
        return losses

    def capture(self, image: Tensor, mask: Tensor, noise: Tensor) -> None:
        """Capture the step now, if it is to be captured; the values of the batch play no part.

        While a loader runs that pins memory in a thread of its own, a capture can fail, since CUDA then
        forbids that in every thread.
        """
        if self.to_capture:
            capture_training_step(self.model, image, mask, noise)
            self.to_capture = False


def capture_training_step(model: nn.Module, image: Tensor, mask: Tensor, noise: Tensor) -> None:
    """From here on, the losses of `model` in training mode, and their gradients, are replayed.

    `model` applies its autocast itself, as `Accelerator.prepare` makes it do. The tensors are a batch
    on the GPU, of the shape of all that follow; their values play no part. The next call overwrites the
    losses and the gradients: those of several batches cannot be accumulated.
    """
    examples = tuple(tensor.clone() for tensor in (image, mask, noise))
    # the capture, and so the gradients, belong to a stream of their own, which newer torch remarks on
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet is not None:
        quiet(False)
    torch.cuda.make_graphed_callables(
        model, examples, num_warmup_iters=WARM_UP_RUNS, allow_unused_input=True
    )


class Predictor:
    """`system(images)` under the run's autocast: (B, 3, S, S) in [0, 1] -> (B, 1, S, S).

    Captures a CUDA graph for each of the first MAX_SHAPES batch shapes, if `can_capture`. The weights may
    change between calls, not their memory. The system has to be in eval mode and on its device, where
    the images are put. Calls from several threads take turns, since they share the memory of the graphs.
    """

    def __init__(self, system: SegmentationModel, accelerator: Accelerator) -> None:
        self.system, self.accelerator = system, accelerator
        self.max_shapes = MAX_SHAPES if can_capture(system, accelerator) else 0
        self._captured: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        # one for all graphs: they take turns, and what they leave behind is copied at once
        self._memory = torch.cuda.graph_pool_handle() if self.max_shapes else None
        self._turn = Lock()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        with self._turn:
            return self._replay(images.to(self.accelerator.device))

    def _replay(self, images: Tensor) -> Tensor:
        if images.shape not in self._captured:
            if len(self._captured) >= self.max_shapes:
                return self._predict(images)
            self._captured[images.shape] = self._capture(images)
        graph, held_images, held_probability = self._captured[images.shape]
        held_images.copy_(images)
        graph.replay()
        return held_probability.clone()

    def _predict(self, images: Tensor) -> Tensor:
        # trying out cuDNN's kernels takes seconds for each shape, more than they save here
        tried_out, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        try:
            with self.accelerator.autocast():
                return self.system(images)
        finally:
            torch.backends.cudnn.benchmark = tried_out

    def _capture(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """A graph, and the memory that it reads and writes."""
        held_images = images.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self._predict(held_images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may use the GPU meanwhile, such as those of a web page
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            held_probability = self._predict(held_images)
        return graph, held_images, held_probability
