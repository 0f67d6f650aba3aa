"""The published recipe done the plain way, as a candidate: what the benchmark measures ours against.

fp32, contiguous layout, image and mask encoded apart, three decodes apart, each loss read at each
step, images decoded from disk at every access and augmented as float32 at their own size. It
computes the same losses as `models.wave_gms`, from the same modules, with torch's own settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks.candidate import THRESHOLD, Candidate, Workload, fresh_system
from benchmarks.step_parts import Part
from datasets.augmentation import published_augmentation
from datasets.cases import Case, read_case, read_image, resize_image
from models.losses import LossWeights, dice_and_iou
from models.tiny_vae import load_tiny_vae
from models.wave_gms import WaveGMS

SMOOTH = 1e-5


class Reference(Candidate):
    """Trains and uses Wave-GMS with the diffusers autoencoder that it was made with."""

    def __init__(self, workload: Workload, vae: str) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(workload, device)
        system = fresh_system(vae, workload.image_size).to(device)
        assert isinstance(system, WaveGMS) and system.encoder is not None
        self.system, self.encoder, self.weights = system, system.encoder, LossWeights()
        self.vae = load_tiny_vae(vae).to(device)
        self.optimizer = torch.optim.AdamW(
            [p for p in system.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.01
        )

    def losses(self, image: Tensor, mask: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The design's losses, one network call after the other."""
        with torch.no_grad():
            image_latent = self.vae.encode(image * 2 - 1).latents
            mask_latent = self.vae.encode(mask.expand(-1, 3, -1, -1) * 2 - 1).latents
        mean, deviation = self.encoder(image)
        sample = mean + deviation * noise
        heads = self.system.mapping(sample)
        lm, seg = image.new_zeros(()), image.new_zeros(())
        for name in ("level2", "level1", "out"):
            lm = lm + F.mse_loss(heads[name], mask_latent)
            grey = self.vae.decode(heads[name]).sample.mean(1, keepdim=True)
            grey = ((grey + 1) / 2).clamp(0, 1)
            overlap = (grey * mask).sum((1, 2, 3))
            size = grey.sum((1, 2, 3)) + mask.sum((1, 2, 3))
            seg = seg + (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).mean()
        cosine = 1 - F.cosine_similarity(sample, image_latent, dim=1)
        align = 0.9 * cosine.mean() + 0.1 * F.smooth_l1_loss(sample, image_latent)
        w = self.weights
        return {
            "loss": w.lm * lm + w.seg * seg + w.align * align,
            "lm": lm,
            "seg": seg,
            "align": align,
        }

    def backward(self, losses: dict[str, Tensor]) -> None:
        self.optimizer.zero_grad()
        losses["loss"].backward()

    def update(self, losses: dict[str, Tensor]) -> None:
        self.optimizer.step()
        for value in losses.values():
            value.item()

    @torch.inference_mode()
    def predict(self, image: Tensor) -> Tensor:
        mean, _ = self.encoder(image)
        rgb = self.vae.decode(self.system.mapping(mean)["out"]).sample
        return ((rgb.mean(1, keepdim=True) + 1) / 2).clamp(0, 1).cpu()

    def networks(self) -> dict[str, Part]:
        return {
            "encode, frozen": (self.vae.encoder, "forward"),
            "encoder": (self.encoder, "forward"),
            "mapping": (self.system.mapping, "forward"),
            "decode": (self.vae.decoder, "forward"),
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


def reference_batches(
    cases: Sequence[Case], image_size: int, batch_size: int, augment: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and masks, decoded one by one in this process; augmented, then full batches only."""
    transform = published_augmentation() if augment else v2.Identity()
    resize = v2.Resize((image_size, image_size), antialias=True)
    end = len(cases) - batch_size + 1 if augment else len(cases)
    for start in range(0, end, batch_size):
        images, masks = [], []
        for case in cases[start : start + batch_size]:
            pixels, label = read_case(case)
            label = cv2.resize(label, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
            mask = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(label))[None])
            image, mask = resize(*transform(image, mask))
            images.append(image.as_subclass(torch.Tensor))
            masks.append(mask.as_subclass(torch.Tensor).float())
        yield torch.stack(images), torch.stack(masks)
