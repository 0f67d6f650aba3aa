"""This repository's way, as a candidate of the benchmark: what train.py, valid.py, predict.py do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.candidate import THRESHOLD, Candidate, Workload, fresh_system
from benchmarks.step_parts import Part, convolution_peak
from datasets.augmentation import published_augmentation
from datasets.cases import Case, read_image
from datasets.loading import EpochSampler, SegmentationDataset, make_loader
from engine.cuda_graphs import Predictor, TrainingPass, can_capture
from engine.device import choose_layout, describe_device, make_accelerator
from engine.prediction.segmentation import PredictionOptions, segment
from engine.training.compiling import compile_losses
from engine.training.epoch_scores import mean_scores
from engine.training.optimizers import make_optimizer
from engine.validation.case_predictions import predict_cases
from engine.validation.options import EvaluationOptions
from models.wave_gms import WaveGMS
from utils.streams import bounded_map

CACHE_BYTES = 1 << 32  # for the decoded cases of each loader


class Ours(Candidate):
    """Wave-GMS, or a baseline for predictions alone, in the layouts and precision of the engine."""

    orientations = 8  # with `image_size` and `__call__`, a `SquareModel`

    def __init__(self, workload: Workload, vae: str, model: str = "wave-gms") -> None:
        self.accelerator = make_accelerator(workload.precision, 1, deterministic=False)
        super().__init__(workload, self.accelerator.device)
        self.image_size = workload.image_size
        self.system = fresh_system(vae, workload.image_size, model)
        on_gpu = self.device.type == "cuda"
        choose_layout(self.system, on_gpu)
        if workload.compile:
            compile_losses(self.system)
        self.system = self.accelerator.prepare_model(self.system)
        to_capture = can_capture(self.system, self.accelerator)
        self.training_pass = TrainingPass(self.system, self.accelerator, to_capture)
        self.probability = Predictor(self.system, self.accelerator)
        optimizer = make_optimizer(
            workload.optimizer, self.system.parameters(), lr=2e-3, weight_decay=0.01
        )
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)  # scales gradients in fp16
        if workload.train:
            self.train_loader, self.test_loader = self._loaders(on_gpu)

    def _loaders(self, on_gpu: bool) -> tuple[Any, Any]:
        """Of the training cases, augmented, and of the test cases."""
        work = self.workload
        train_set = SegmentationDataset(
            work.train,
            work.image_size,
            augmentation=published_augmentation(),
            noise_shape=self.noise.shape[1:],
            noise_probability=self.system.noise_probability,
            cache_bytes=CACHE_BYTES,
        )
        test_set = SegmentationDataset(work.test, work.image_size, cache_bytes=CACHE_BYTES)
        train_loader = make_loader(
            train_set,
            work.batch_size,
            sampler=EpochSampler(len(work.train), 0),
            num_workers=work.workers,
            pin_memory=on_gpu,
        )
        return train_loader, make_loader(test_set, work.batch_size, pin_memory=on_gpu)

    def describe(self) -> str:
        """What it runs on, for people."""
        return describe_device(self.accelerator)

    def losses(self, image: Tensor, mask: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return self.training_pass(image, mask, noise)

    def _launch_one_by_one(self) -> None:
        """Run the step's operations singly from now on: as a whole, compiled or replayed, it has no parts."""
        self.training_pass.to_capture = False
        self.system.__dict__.pop("forward", None)  # the class's own again

    def step_seconds(self, steps: int) -> dict[str, float]:
        self._launch_one_by_one()
        return super().step_seconds(steps)

    @torch.no_grad()
    def first_losses(self) -> dict[str, float]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            losses = type(self.system).forward(self.system, self.image, self.mask, self.noise)
        assert isinstance(losses, dict)
        return {name: value.item() for name, value in losses.items()}

    def step_arithmetic(self) -> dict[str, tuple[float, float]]:
        self._launch_one_by_one()
        with self.accelerator.autocast():  # the parts are called again with what they got under it
            return super().step_arithmetic()

    def backward(self, losses: dict[str, Tensor]) -> None:
        self.accelerator.backward(losses["loss"])

    def update(self, losses: dict[str, Tensor]) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self, image: Tensor) -> Tensor:
        self.system.eval()
        probability = self.probability(image)
        self.system.train()
        return probability.float().cpu()

    def networks(self) -> dict[str, Part]:
        assert isinstance(self.system, WaveGMS), "a baseline takes part in no training"
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
        mean_scores(self.probability, batches, THRESHOLD)
        return len(self.workload.test)

    def predict_files(self) -> int:
        def read(case: Case) -> tuple[Path, np.ndarray]:
            return case.image, read_image(case.image)

        pictures = bounded_map(read, self.workload.test, max(1, self.workload.workers))
        return sum(
            1 for _ in segment(self, pictures, PredictionOptions(), self.workload.batch_size)
        )

    def predict_cases(self) -> int:
        """What valid.py streams through: every test case's probability at the evaluation size."""
        work = self.workload
        options = EvaluationOptions(work.image_size, work.batch_size)
        predictions = predict_cases(self.system, work.test, options, self.accelerator)
        return sum(1 for _ in predictions)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (B, 3, S, S) float32 in [0, 1] -> probabilities (B, S, S) float32."""
        return self.predict(torch.from_numpy(images).to(self.device))[:, 0].numpy()

    def convolution_peak(self) -> float:
        """Multiply-adds per second of the best convolution, at the precision and in the layouts of
        the step.
        """
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
            self.accelerator.mixed_precision, torch.float32
        )
        layouts = (torch.channels_last, torch.contiguous_format)
        work = self.workload
        return convolution_peak(self.device, dtype, layouts, work.image_size, work.batch_size)
