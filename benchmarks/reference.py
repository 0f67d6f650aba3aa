"""The published recipe done the plain way, as a candidate of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.candidate import THRESHOLD, Candidate, Workload, fresh_system
from benchmarks.reference_loop import ReferenceLoop, reference_batches
from benchmarks.step_parts import Part
from datasets.cases import read_image, resize_image
from engine.validation import dice_and_iou
from models.losses import LossWeights
from models.tiny_vae import load_tiny_vae
from models.wave_gms import WaveGMS


class Reference(Candidate):
    """`benchmarks.reference_loop`, with torch's own settings."""

    def __init__(self, workload: Workload, vae: str) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(workload, device)
        self.device_text = device.type
        system = fresh_system(vae, workload.image_size).to(device)
        assert isinstance(system, WaveGMS)
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
        size, batch = self.workload.image_size, self.workload.batch_size
        for image, mask in reference_batches(self.workload.train, size, batch, augment=True):
            yield image, mask, torch.randn(self.noise.shape)

    def validate_cases(self) -> int:
        size, batch = self.workload.image_size, self.workload.batch_size
        count = 0
        for image, mask in reference_batches(self.workload.test, size, batch, augment=False):
            probability = self.predict(image.to(self.device))
            for one, truth in zip(probability, mask, strict=True):
                dice_and_iou(one[None], truth[None], THRESHOLD)[0].item()
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
