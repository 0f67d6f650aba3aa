"""What is compared behind one interface: the same tasks on a dummy batch and on cases from disk.

A task returns the number of images that it handled. Every candidate lives in a process of its own
(`benchmarks.separate_process`).

Shapes: image (B, 3, S, S) in [0, 1], mask (B, 1, S, S) of 0 and 1, noise (B, 4, S/8, S/8).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.step_parts import Part, count_parts, synchronise, time_parts
from datasets.cases import Case
from engine.training.optimizers import OptimizerName
from models.base import SegmentationModel
from models.build import build_system
from models.losses import LossWeights, dice_and_iou
from models.vae import DOWNSAMPLING, LATENT_CHANNELS
from utils.machine import peak_bytes

THRESHOLD = 0.5


@dataclass(frozen=True)
class Workload:
    """What every candidate is given."""

    image_size: int  # side S in pixels, a multiple of 8
    batch_size: int
    precision: str  # auto, fp32, bf16 or fp16
    workers: int  # loader processes and reading threads of ours
    train: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    compile: bool = False  # the training step of ours
    optimizer: OptimizerName = "adamw"  # of ours


@dataclass(frozen=True)
class Timing:
    """One run of a task."""

    images: int
    seconds: float
    waited: float = 0.0  # of these, for the loader


def fresh_system(vae: str, image_size: int, model: str = "wave-gms") -> SegmentationModel:
    """Wave-GMS, or a baseline, freshly initialised: the same weights in every process.

    Raises:
        UserError: see `models.build.build_system`.
    """
    torch.manual_seed(0)
    return build_system(
        model=model,
        vae_model="litevae",
        guidance_method=None,
        vae_weights=vae,
        image_size=image_size,
        loss_weights=LossWeights(),
    )


def vae_labels(vaes: Sequence[str]) -> dict[str, str]:
    """Each Tiny-VAE's name in tables: the shortest end of its path that no other has."""
    parts = {vae: Path(vae).parts for vae in vaes}

    def label(vae: str) -> str:
        for length in range(1, len(parts[vae]) + 1):
            end = parts[vae][-length:]
            if sum(other[-length:] == end for other in parts.values()) == 1:
                return str(Path(*end))
        return vae

    return {vae: label(vae) for vae in vaes}


class Candidate(ABC):
    """A way to train and to use a network.

    Attributes:
        waited: seconds that the current task waited for the loader.
    """

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload = workload
        self.device = device
        self.waited = 0.0
        size, batch = workload.image_size, workload.batch_size
        random = torch.Generator().manual_seed(0)
        self.image = torch.rand(batch, 3, size, size, generator=random).to(device)
        self.mask = torch.rand(batch, 1, size, size, generator=random).round().to(device)
        latent = (batch, LATENT_CHANNELS, size // DOWNSAMPLING, size // DOWNSAMPLING)
        self.noise = torch.randn(latent, generator=random).to(device)

    @abstractmethod
    def losses(self, image: Tensor, mask: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Forward; the total under "loss"."""

    @abstractmethod
    def backward(self, losses: dict[str, Tensor]) -> None:
        """The gradients of the total."""

    @abstractmethod
    def update(self, losses: dict[str, Tensor]) -> None:
        """One step of the optimiser, and the reading of the losses where that is done each time."""

    @abstractmethod
    def predict(self, image: Tensor) -> Tensor:
        """Probability (B, 1, S, S) of images, on the CPU."""

    @abstractmethod
    def networks(self) -> dict[str, Part]:
        """The methods that compute the forward parts of a step, by name."""

    @abstractmethod
    def train_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Image, mask and noise of an epoch of the training cases, augmented, on the CPU."""

    @abstractmethod
    def validate_cases(self) -> int:
        """Score the test cases, from disk or from what is cached of them."""

    @abstractmethod
    def predict_files(self) -> int:
        """Probabilities of the test cases' images at their own sizes, from disk."""

    def step(self, image: Tensor, mask: Tensor, noise: Tensor) -> None:
        """A whole training step."""
        losses = self.losses(image, mask, noise)
        self.backward(losses)
        self.update(losses)

    def dummy_step(self) -> None:
        """A training step on the dummy batch."""
        self.step(self.image, self.mask, self.noise)

    def train_steps(self, count: int) -> int:
        """`count` training steps on the dummy batch."""
        for _ in range(count):
            self.dummy_step()
        return count * self.workload.batch_size

    def validate_batch(self) -> int:
        """Predict and score the dummy batch."""
        dice_and_iou(self.predict(self.image), self.mask.cpu(), THRESHOLD)[0].mean().item()
        return len(self.image)

    def predict_one(self, count: int) -> int:
        """`count` predictions of one dummy image."""
        for _ in range(count):
            self.predict(self.image[:1])
        return count

    def train_epoch(self) -> int:
        """Train on every batch of the training cases, from disk or from what is cached of it."""
        count = 0
        batches = self.train_batches()
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return count
            self.step(*(tensor.to(self.device, non_blocking=True) for tensor in batch))
            count += len(batch[0])

    def timed(self, task: str, *arguments: Any) -> Timing:
        """Run the task, named as a method, and the device to its end."""
        self.waited = 0.0
        synchronise(self.device)
        started = time.perf_counter()
        images = getattr(self, task)(*arguments)
        synchronise(self.device)
        return Timing(images, time.perf_counter() - started, self.waited)

    @torch.no_grad()  # activations kept for a backward pass would count as its peak of memory
    def first_losses(self) -> dict[str, float]:
        """The losses of the dummy batch in full float32."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            losses = self.losses(self.image, self.mask, self.noise)
        return {name: value.item() for name, value in losses.items()}

    def step_seconds(self, steps: int) -> dict[str, float]:
        """Seconds per training step by part, mean of `steps`."""
        parts: dict[str, Part] = self.networks()
        parts |= {"backward": (self, "backward"), "optimiser": (self, "update")}
        return time_parts(self.dummy_step, parts, self.device, steps)

    def step_arithmetic(self) -> dict[str, tuple[float, float]]:
        """Multiply-adds per training step by part, forward and backward."""
        return count_parts(self.dummy_step, self.networks())

    def peak_memory(self) -> int:
        """Peak in bytes: of the GPU's tensors, or else of the process with all its libraries."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_bytes()
