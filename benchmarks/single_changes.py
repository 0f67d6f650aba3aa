"""Changes for speed on the CPU, each alone: processor time of one operation without and with it.

Processor time on one thread, so that other programs disturb little; user and system apart. The two
sides of a comparison live in processes of their own and take turns. All else is as in `ours`, fp32.

Shapes: image (B, 3, S, S), latents of the three heads (3B, 4, S/8, S/8).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.candidate import Workload, vae_labels
from benchmarks.ours import Ours
from benchmarks.separate_process import SeparateProcess
from engine import device
from models.encoder import HaarEncoder
from models.tiny_vae import TinyVAE, load_tiny_vae
from models.vae import DOWNSAMPLING, LATENT_CHANNELS
from models.wave_gms import SUPERVISED_HEADS

MERGED, KEPT, CONTIGUOUS = (
    "upsampling merged with the convolution after it",
    "freed memory kept in the process",
    "trained encoder in the contiguous layout",
)

Seconds = tuple[float, float]
"""Processor time, user and system."""


@dataclass
class Measured:
    """A change, what it was measured on, and the processor times of its rounds."""

    change: str
    operation: str
    before: list[Seconds] = field(default_factory=list)
    after: list[Seconds] = field(default_factory=list)

    def medians(self) -> tuple[Seconds, Seconds]:
        """Median user and system time before and after."""
        before, after = (
            (statistics.median(user), statistics.median(system))
            for user, system in (zip(*self.before, strict=True), zip(*self.after, strict=True))
        )
        return before, after


def decoder_pass(merged: bool, vae: str, image_size: int, batch_size: int) -> Callable[[], Tensor]:
    """The decoder forward and backward to its input, on the latents of all heads; that gradient."""
    autoencoder = load_tiny_vae(vae).to(memory_format=torch.channels_last)
    tiny_vae = TinyVAE(autoencoder).to(memory_format=torch.channels_last)
    side = image_size // DOWNSAMPLING
    latents = torch.randn(len(SUPERVISED_HEADS) * batch_size, LATENT_CHANNELS, side, side)
    latents = latents.to(memory_format=torch.channels_last).requires_grad_()

    def decode_layer_by_layer(latent: Tensor) -> Tensor:
        features = autoencoder.decoder.layers[:-1](torch.tanh(latent / 3) * 3)
        return F.conv2d(features, tiny_vae.grey_weight, tiny_vae.grey_bias, padding=1)

    decode = tiny_vae.decode_to_grey if merged else decode_layer_by_layer

    def run() -> Tensor:
        latents.grad = None
        decode(latents).square().sum().backward()
        assert latents.grad is not None
        return latents.grad

    return run


def encoder_pass(
    contiguous: bool, vae: str, image_size: int, batch_size: int
) -> Callable[[], None]:
    """The trained encoder forward and backward; `vae` plays no part."""
    layout = torch.contiguous_format if contiguous else torch.channels_last
    encoder = HaarEncoder("litevae").to(memory_format=layout)
    image = torch.rand(batch_size, 3, image_size, image_size)
    return lambda: torch.stack([output.sum() for output in encoder(image)]).sum().backward()


def training_step(kept: bool, vae: str, image_size: int, batch_size: int) -> Callable[[], None]:
    """A whole training step of ours."""
    if not kept:
        device.keep_freed_memory = lambda: None
    return Ours(Workload(image_size, batch_size, "fp32", 0), vae).dummy_step


OPERATIONS = {
    MERGED: (decoder_pass, "decoder forward and backward"),
    KEPT: (training_step, "training step"),
    CONTIGUOUS: (encoder_pass, "encoder forward and backward"),
}


class Operation:
    """One side of a comparison, in a process of its own."""

    def __init__(
        self, change: str, changed: bool, vae: str, image_size: int, batch_size: int
    ) -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        torch.manual_seed(0)
        if change != KEPT:
            device.keep_freed_memory()
        make, _ = OPERATIONS[change]
        self.run = make(changed, vae, image_size, batch_size)
        self.run()

    def seconds(self) -> Seconds:
        """Processor time of one run after the first."""
        before = os.times()
        self.run()
        after = os.times()
        return after.user - before.user, after.system - before.system


def measure_changes(
    vaes: Sequence[str], image_size: int, batch_size: int, rounds: int
) -> Iterator[Measured]:
    """Every change; that of the decoder with each VAE, that of the step with the first.

    Raises:
        UserError: a VAE cannot be had, or a process died.
    """
    labels = vae_labels(vaes)
    for change, (_, operation) in OPERATIONS.items():
        for vae in vaes if change == MERGED else vaes[:1]:
            on = operation if change == CONTIGUOUS else f"{operation}, {labels[vae]}"
            measured = Measured(change, on)
            with ExitStack() as stack:
                sides = []
                for changed in (False, True):
                    side = SeparateProcess(Operation, change, changed, vae, image_size, batch_size)
                    stack.callback(side.close)
                    sides.append(side)
                for _ in range(rounds):
                    measured.before.append(sides[0].call("seconds"))
                    measured.after.append(sides[1].call("seconds"))
            yield measured
