"""The assembled Wave-GMS: from an image, and in training its mask, to a probability or the losses.

Source: Wave-GMS (arXiv 2510.03216), GMS (arXiv 2403.18198).

image -> image latent -> latent mapping -> mask latent -> frozen decoder -> probability. The variants
differ in where the image latent comes from (a trained Haar encoder or the frozen VAE) and in the
mapping's guidance.

Shapes: image (B, 3, H, W) in [0, 1], mask (B, 1, H, W) in {0, 1}, latents (B, 4, H/8, W/8);
H and W are multiples of 8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.base import SegmentationModel, check_image_size
from models.latent_mapping import LatentMapping
from models.losses import (
    MASK_LOSSES,
    LatentLoss,
    LossWeights,
    alignment_loss,
    hard_dice,
    latent_matching_loss,
    weighted_sum,
)
from models.sft import SKFF, haar_details
from models.vae import DOWNSAMPLING, LATENT_CHANNELS, FrozenVAE

SUPERVISED_HEADS = ("level2", "level1", "out")
DECODED_AT_ONCE = 4  # latents per chunk with `checkpoint_decoder`


class WaveGMS(SegmentationModel):
    """Image -> image latent -> latent mapping -> mask latent -> frozen decoder -> probability.

    With a Haar encoder it is Wave-GMS; with a frozen encoder it is GMS, or Wave-GMS guided by wavelets.

    Args:
        vae: the frozen autoencoder.
        mapping: from image latent to mask latents; takes the fused guidance too if there is one.
        encoder: gives the image latent in the frozen VAE's place, and is aligned with it:
            (B, 3, H, W) in [0, 1] -> mean and standard deviation (B, 4, H/8, W/8), as a HaarEncoder.
        guidance: fuses the Haar details of the image for the mapping.
        latent_loss: distance between the latents of heads and mask.
        checkpoint_decoder: decode twice in training rather than keep the activations.
    """

    capturable = True

    def __init__(
        self,
        vae: FrozenVAE,
        mapping: LatentMapping,
        loss_weights: LossWeights,
        *,
        encoder: nn.Module | None = None,
        guidance: SKFF | None = None,
        latent_loss: LatentLoss = "mse",
        checkpoint_decoder: bool = False,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.mapping = mapping
        self.encoder = encoder
        self.guidance = guidance
        self.loss_weights = loss_weights
        self.latent_loss = latent_loss
        weighted = zip(SUPERVISED_HEADS, loss_weights.heads, strict=True)
        self.head_weights = {name: weight for name, weight in weighted if weight}
        self.checkpoint_decoder = checkpoint_decoder
        weights = {
            "lm": loss_weights.lm,
            **{name: getattr(loss_weights, name) for name in MASK_LOSSES},
            "align": loss_weights.align if encoder is not None else 0,
        }
        published = ("lm", "seg")  # computed and logged also without a weight
        self.weight_of = {name: w for name, w in weights.items() if w or name in published}
        self.aligned = "align" in self.weight_of
        self.loss_names = ("loss", *self.weight_of)
        self.noise_probability = vae.noise_probability if encoder is None else 1.0

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        return (LATENT_CHANNELS, image_size // DOWNSAMPLING, image_size // DOWNSAMPLING)

    def parts(self) -> dict[str, nn.Module]:
        named = {"model": self.mapping, "vae_model": self.encoder, "skff_model": self.guidance}
        return {name: part for name, part in named.items() if part is not None}

    def frozen(self) -> dict[str, nn.Module]:
        return self.vae.parts()

    def forward(
        self, image: Tensor, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        height, width = image.shape[-2:]
        check_image_size(height, width)
        if mask is None:
            return self.probability(image)
        return self.losses(image, mask, noise)

    def probability(self, image: Tensor) -> Tensor:
        """Probability (B, 1, H, W) in [0, 1], float32, from the mean of the latent of `image`."""
        mean, _ = self.encoder(image) if self.encoder is not None else self.vae.encode(image)
        return self.vae.decode_to_grey(self.mask_latents(image, mean)["out"]).float().clamp(0, 1)

    def losses(self, image: Tensor, mask: Tensor, noise: Tensor | None) -> dict[str, Tensor]:
        """The losses of a batch, float32 scalars, in one encode and one decode.

        Image and mask are encoded as one batch, the three supervised heads decoded as one.

        Args:
            image, mask: (B, 3, H, W) in [0, 1] and (B, 1, H, W) in {0, 1}.
            noise: (B, 4, H/8, W/8), standard normal, for the latent of `image`; None for none.

        Returns:
            "loss": their weighted sum; "lm": latent matching; "seg": Dice loss; "tversky": focal Tversky
            loss, where it has a weight; "align": alignment, where there is an encoder to align; "dice":
            Dice of `out` at threshold 0.5, to show.
        """
        mask_rgb = mask.to(image.dtype).expand(-1, 3, -1, -1)
        if self.encoder is None or self.aligned:
            mean, deviation = self.vae.encode(torch.cat([image, mask_rgb]))
            vae_mean, mask_latent = mean.chunk(2)
            vae_deviation = None if deviation is None else deviation.chunk(2)[0]
        else:
            mask_latent, _ = self.vae.encode(mask_rgb)
        if self.encoder is not None:
            latent_mean, latent_deviation = self.encoder(image)
        else:
            latent_mean, latent_deviation = vae_mean, vae_deviation
        sample = reparameterise(latent_mean, latent_deviation, noise)

        latents = self.mask_latents(image, sample)
        heads = [latents[name] for name in self.head_weights]
        by_head = list(self.head_weights.values())
        probabilities = self.decode(torch.cat(heads)).chunk(len(heads))

        with torch.autocast(image.device.type, enabled=False):
            mask = mask.float()
            probabilities = tuple(p.float().clamp(0, 1) for p in probabilities)
            target = mask_latent.float()
            result = {
                "lm": latent_matching_loss(
                    [h.float() for h in heads], target, by_head, self.latent_loss
                ),
            }
            for name, mask_loss in MASK_LOSSES.items():
                if name in self.weight_of:
                    of_heads = [mask_loss(p, mask) for p in probabilities]
                    result[name] = weighted_sum(of_heads, by_head)
            if self.aligned:
                result["align"] = alignment_loss(sample.float(), vae_mean.float())
            weights = self.weight_of
            loss = weighted_sum([result[name] for name in weights], [*weights.values()])
            return result | {"loss": loss, "dice": hard_dice(probabilities[-1], mask)}

    def mask_latents(self, image: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """The mapping's heads, each (B, 4, h, w), for `image` and its latent (B, 4, h, w)."""
        if self.guidance is None:
            return self.mapping(latent)
        return self.mapping(latent, self.guidance(haar_details(image)))

    def decode(self, latents: Tensor) -> Tensor:
        """Grey images (N, 1, 8h, 8w) of latents (N, 4, h, w), in [0, 1] up to overshoot."""
        if self.checkpoint_decoder and torch.is_grad_enabled():
            # in chunks: what is recomputed for one is released before the next
            pieces = latents.split(DECODED_AT_ONCE)
            return torch.cat(
                [
                    checkpoint(
                        self.vae.decode_to_grey, p, use_reentrant=False, preserve_rng_state=False
                    )
                    for p in pieces
                ]
            )
        return self.vae.decode_to_grey(latents)


def reparameterise(mean: Tensor, deviation: Tensor | None, noise: Tensor | None) -> Tensor:
    """Sample mean + deviation * noise; the mean itself without either."""
    return mean if deviation is None or noise is None else mean + deviation * noise
