"""What the benchmark compares: the reference loop, ours, another network, behind one interface.

Each does the same tasks on a dummy batch and on cases from disk. A task returns the images that it
handled. Every candidate lives in a process of its own (`benchmarks.separate_process`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.reference_loop import ReferenceLoop, reference_batches
from benchmarks.step_parts import Part, convolution_peak, count_parts, synchronise, time_parts
from datasets.cases import Case, read_image, resize_image
from datasets.loading import EpochSampler, SegmentationDataset, make_loader
from engine.device import choose_layout, describe_device, make_accelerator
from engine.evaluation import predict_cases
from engine.prediction import Method, segment
from engine.validation import overlap, validate
from models.base import SegmentationModel
from models.build import build_system
from models.losses import LossWeights
from models.tiny_vae import load_tiny_vae
from models.wave_gms import WaveGMS
from utils.machine import peak_bytes
from utils.streams import bounded_map

LATENT_CHANNELS = 4
THRESHOLD = 0.5


@dataclass(frozen=True)
class Workload:
    """What every candidate is given."""

    image_size: int
    batch: int
    precision: str
    workers: int  # loader processes and reading threads of ours
    train: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()


@dataclass(frozen=True)
class Timing:
    """One run of a task."""

    images: int
    seconds: float
    waited: float = 0.0  # of these, for the loader


def wave_gms(vae: str, image_size: int) -> WaveGMS:
    """A freshly initialised Wave-GMS: the same weights for the same VAE in every process."""
    torch.manual_seed(0)
    system = build_system(
        vae_model="litevae",
        guidance_method=None,
        vae_weights=vae,
        image_size=image_size,
        loss_weights=LossWeights(),
    )
    assert isinstance(system, WaveGMS)
    return system


class Candidate(ABC):
    """A way to train and to use a network; `device_text` names what it runs on."""

    device_text: str

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload = workload
        self.device = device
        self.waited = 0.0
        size, batch = workload.image_size, workload.batch
        random = torch.Generator().manual_seed(0)
        self.image = torch.rand(batch, 3, size, size, generator=random).to(device)
        self.mask = torch.rand(batch, 1, size, size, generator=random).round().to(device)
        latent = (batch, LATENT_CHANNELS, size // 8, size // 8)
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
        """Probability (B, 1, S, S) on the CPU."""

    @abstractmethod
    def networks(self) -> dict[str, Part]:
        """The methods that compute the forward parts of a step, by name."""

    @abstractmethod
    def train_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Image, mask and noise of an epoch of the training cases, augmented, on the CPU."""

    @abstractmethod
    def validate_cases(self) -> int:
        """Score the test cases, from disk."""

    @abstractmethod
    def predict_files(self) -> int:
        """Probabilities of the test cases' images at their own sizes, from disk."""

    def step(self, image: Tensor, mask: Tensor, noise: Tensor) -> None:
        losses = self.losses(image, mask, noise)
        self.backward(losses)
        self.update(losses)

    def dummy_step(self) -> None:
        self.step(self.image, self.mask, self.noise)

    def train_steps(self, count: int) -> int:
        for _ in range(count):
            self.dummy_step()
        return count * self.workload.batch

    def validate_batch(self) -> int:
        overlap(self.predict(self.image), self.mask.cpu(), THRESHOLD)[0].mean().item()
        return len(self.image)

    def predict_one(self, count: int) -> int:
        for _ in range(count):
            self.predict(self.image[:1])
        return count

    def train_epoch(self) -> int:
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
        """Run the task, and the device to its end."""
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
        """Seconds of a step by part."""
        parts: dict[str, Part] = self.networks()
        parts |= {"backward": (self, "backward"), "optimiser": (self, "update")}
        return time_parts(self.dummy_step, parts, self.device, steps)

    def step_arithmetic(self) -> dict[str, tuple[float, float]]:
        """Multiply-adds of a step by part, forward and backward."""
        return count_parts(self.dummy_step, self.networks())

    def peak_memory(self) -> int:
        """Bytes: of the GPU's tensors, or else of the process with all its libraries."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_bytes()

    def describe(self) -> str:
        return self.device_text


class Reference(Candidate):
    """`benchmarks.reference_loop`, with torch's own settings."""

    def __init__(self, workload: Workload, vae: str) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(workload, device)
        self.device_text = device.type
        system = wave_gms(vae, workload.image_size).to(device)
        self.loop = ReferenceLoop(system, load_tiny_vae(vae).to(device), LossWeights())

    def losses(self, image: Tensor, mask: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return self.loop.losses(image, mask, noise)

    def backward(self, losses: dict[str, Tensor]) -> None:
        self.loop.backward(losses)

    def update(self, losses: dict[str, Tensor]) -> None:
        self.loop.update(losses)

    def predict(self, image: Tensor) -> Tensor:
        return self.loop.probability(image).cpu()

    def networks(self) -> dict[str, Part]:
        vae, system = self.loop.vae, self.loop.system
        return {
            "encode, frozen": (vae.encoder, "forward"),
            "encoder": (system.encoder, "forward"),
            "mapping": (system.mapping, "forward"),
            "decode": (vae.decoder, "forward"),
        }

    def train_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size, batch = self.workload.image_size, self.workload.batch
        for image, mask in reference_batches(self.workload.train, size, batch, augment=True):
            yield image, mask, torch.randn(self.noise.shape)

    def validate_cases(self) -> int:
        size, batch = self.workload.image_size, self.workload.batch
        count = 0
        for image, mask in reference_batches(self.workload.test, size, batch, augment=False):
            probability = self.predict(image.to(self.device))
            for one, truth in zip(probability, mask, strict=True):
                overlap(one[None], truth[None], THRESHOLD)[0].item()
            count += len(image)
        return count

    def predict_files(self) -> int:
        size = self.workload.image_size
        for case in self.workload.test:
            pixels = read_image(case.image)
            square = resize_image(pixels, size, size).transpose(2, 0, 1)[None]
            image = torch.from_numpy(square.astype(np.float32) / 255).to(self.device)
            probability = self.predict(image)[0, 0].numpy()
            cv2.resize(probability, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return len(self.workload.test)


class Ours(Candidate):
    """Any system as train.py, valid.py and predict.py run it."""

    def __init__(self, workload: Workload, vae: str, model: str = "wave-gms") -> None:
        self.accelerator = make_accelerator(workload.precision, 1, deterministic=False)
        super().__init__(workload, self.accelerator.device)
        self.device_text = describe_device(self.accelerator)
        self.system: SegmentationModel
        if model == "wave-gms":
            self.system = wave_gms(vae, workload.image_size)
        else:
            self.system = build_system(
                model=model,
                vae_model="",
                guidance_method=None,
                vae_weights="",
                image_size=workload.image_size,
                loss_weights=LossWeights(),
            )
        choose_layout(self.system, self.device.type == "cuda")
        self.system.to(self.device)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.system.parameters() if p.requires_grad],
            lr=2e-3,
            weight_decay=0.01,
            fused=True,
        )
        self.image_size = workload.image_size
        self.train_loader: Any = None
        self.test_loader: Any = None
        if workload.train:
            self._make_loaders()

    def _make_loaders(self) -> None:
        work, cache = self.workload, 1 << 32
        on_gpu = self.device.type == "cuda"
        self.sampler = EpochSampler(len(work.train), 0)
        train_set = SegmentationDataset(
            work.train,
            work.image_size,
            augment=True,
            noise_shape=self.noise.shape[1:],
            noise_probability=self.system.noise_probability,
            cache_bytes=cache,
        )
        self.train_loader = make_loader(
            train_set,
            work.batch,
            sampler=self.sampler,
            num_workers=work.workers,
            pin_memory=on_gpu,
        )
        test_set = SegmentationDataset(work.test, work.image_size, cache_bytes=cache)
        self.test_loader = make_loader(test_set, work.batch, pin_memory=on_gpu)

    def losses(self, image: Tensor, mask: Tensor, noise: Tensor) -> dict[str, Tensor]:
        with self.accelerator.autocast():
            losses = self.system(image, mask, noise)
        assert isinstance(losses, dict)
        return losses

    @torch.no_grad()
    def first_losses(self) -> dict[str, float]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            losses = self.system(self.image, self.mask, self.noise)
        return {name: value.item() for name, value in losses.items()}

    def step_arithmetic(self) -> dict[str, tuple[float, float]]:
        with self.accelerator.autocast():  # the parts are called again with what they got under it
            return super().step_arithmetic()

    def backward(self, losses: dict[str, Tensor]) -> None:
        losses["loss"].backward()

    def update(self, losses: dict[str, Tensor]) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.inference_mode()
    def predict(self, image: Tensor) -> Tensor:
        self.system.eval()
        with self.accelerator.autocast():
            probability = self.system(image)
        self.system.train()
        return probability.float().cpu()

    def networks(self) -> dict[str, Part]:
        if not isinstance(self.system, WaveGMS):
            return {"encoder": (self.system.network, "forward")}
        vae = self.system.vae
        return {
            "encode, frozen": (vae, "encode"),
            "encoder": (self.system.encoder, "forward"),
            "mapping": (self.system.mapping, "forward"),
            "decode": (vae, "decode_to_grey"),
        }

    def train_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in self.train_loader:
            yield batch["image"], batch["mask"], batch["noise"]

    def validate_cases(self) -> int:
        batches = (
            {key: batch[key].to(self.device) for key in ("image", "mask")}
            for batch in self.test_loader
        )
        validate(self.system, batches, self.accelerator, THRESHOLD)
        return len(self.workload.test)

    def predict_files(self) -> int:
        def read(case: Case) -> tuple[Path, np.ndarray]:
            return case.image, read_image(case.image)

        pictures = bounded_map(read, self.workload.test, max(1, self.workload.workers))
        return sum(1 for _ in segment(self, pictures, Method(), self.workload.batch))

    def predict_cases(self) -> int:
        """What valid.py streams through: every test case's probability at the evaluation size."""
        work = self.workload
        predictions = predict_cases(
            self.system, work.test, work.image_size, None, work.batch, 0, self.accelerator
        )
        return sum(1 for _ in predictions)

    # what `segment` asks of a backend
    threshold = THRESHOLD
    sha256 = ""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.predict(torch.from_numpy(images).to(self.device))[:, 0].numpy()

    def convolution_peak(self) -> float:
        """Multiply-adds a second, at the precision and in the layouts of the step."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
            self.accelerator.mixed_precision, torch.float32
        )
        layouts = (torch.channels_last, torch.contiguous_format)
        work = self.workload
        return convolution_peak(self.device, dtype, layouts, work.image_size, work.batch)
