"""Baselines from segmentation-models-pytorch, with the same interface as Wave-GMS.

Source: github.com/qubvel-org/segmentation_models.pytorch. A spec names one of its networks:
`smp/Unet?encoder=resnet18`, or `smp/Unet?encoder=resnet18&weights=imagenet` to start from weights
that the package downloads.

Shapes: image (B, 3, H, W) in [0, 1], mask (B, 1, H, W) in {0, 1}.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qs

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import SegmentationModel, check_image_size
from models.losses import dice_loss, hard_dice
from utils.errors import UserError

EXAMPLE = "smp/Unet?encoder=resnet18"
TIMM_PREFIX = "tu-"  # what the package puts before the names of timm's encoders


class Baseline(SegmentationModel):
    """A network that gives logits (B, 1, H, W), trained with Dice and binary cross-entropy.

    For another loss override `loss_names` and `losses`.

    Args:
        network: from images, standardised by `mean` and `std` (3 values each), to logits.
        size_multiple: what `network` wants H and W to be multiples of.
    """

    loss_names: tuple[str, ...] = ("loss", "seg", "bce")
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        size_multiple: int = 1,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.network = network
        self.size_multiple = size_multiple
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def parts(self) -> dict[str, nn.Module]:
        return {"model": self.network}

    def forward(
        self, image: Tensor, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        height, width = image.shape[-2:]
        check_image_size(height, width, self.size_multiple)
        logits = self.network((image - self.mean) / self.std)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"the network returned a {type(logits).__name__}, expected a tensor of logits (B, 1, H, W), in "
                "training as well; for more outputs write a SegmentationModel (docs/models.md)"
            )
        with torch.autocast(image.device.type, enabled=False):
            logits = logits.float()
            probability = logits.sigmoid()
            if mask is None:
                return probability
            mask = mask.float()
            return self.losses(logits, mask) | {"dice": hard_dice(probability, mask)}

    def losses(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Scalars under `loss_names` of logits and mask, float32 (B, 1, H, W) both."""
        seg = dice_loss(logits.sigmoid(), mask)
        bce = F.binary_cross_entropy_with_logits(logits, mask)
        return {"loss": seg + bce, "seg": seg, "bce": bce}


def build_baseline(spec: str, pretrained: bool = True) -> Baseline:
    """The network that `spec` names, its weights freshly initialised unless it says otherwise.

    Without `pretrained` they are not downloaded even then, only how images were standardised for them.

    Raises:
        UserError: the package is absent, or it has no such architecture, encoder or weights.
    """
    architecture, encoder, weights = _parse(spec)
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise UserError(
            f"model {spec!r} needs segmentation-models-pytorch, which is not installed here: "
            "pip install segmentation-models-pytorch"
        ) from error

    architectures = {
        model.__name__.lower(): model.__name__ for model in smp.MODEL_ARCHITECTURES_MAPPING.values()
    }
    if architecture.lower() not in architectures:
        raise _unknown(spec, "architecture", architecture, list(architectures.values()))
    encoders = smp.encoders.get_encoder_names()
    if not encoder.startswith(TIMM_PREFIX) and encoder not in encoders:
        raise _unknown(spec, "encoder", encoder, encoders)
    if encoder.startswith(TIMM_PREFIX) and weights not in (None, "imagenet"):
        raise UserError(
            f"model {spec!r}: timm names weights in the encoder, as in {TIMM_PREFIX}resnet18.a1_in1k; "
            "write weights=imagenet to load those of the encoder's name"
        )
    try:
        loaded: str | bool | None = weights if pretrained else None
        if loaded and encoder.startswith(TIMM_PREFIX):
            loaded = True  # how the package asks timm for the weights that belong to the name
        network = smp.create_model(architecture, encoder, loaded, in_channels=3, classes=1)
        standard = _standardisation(smp, encoder, weights) if weights else {}
    except Exception as error:  # whatever the package, timm or the hub raise for something missing
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"model {spec!r} cannot be built: {reason}") from error
    multiple = network.encoder.output_stride if network.requires_divisible_input_shape else 1
    return Baseline(network, multiple, **standard)


def pretrained_encoder(spec: str) -> str | None:
    """The encoder of a baseline that starts from downloaded weights, with their name; None for another."""
    _, encoder, weights = _parse(spec)
    return f"{encoder} with the weights {weights}" if weights else None


def check_forward(baseline: Baseline, spec: str, image_size: int) -> None:
    """UserError where the network that `spec` names cannot segment an image of this size."""
    try:
        with torch.no_grad():
            baseline.eval()(torch.zeros(1, 3, image_size, image_size))
    except RuntimeError as error:
        raise UserError(
            f"model {spec!r} cannot take images of {image_size} px ({error}): raise image_size"
        ) from error
    baseline.train()


def _parse(spec: str) -> tuple[str, str, str | None]:
    """Architecture, encoder and weights of `smp/Architecture?encoder=name[&weights=name]`."""
    path, _, query = spec.partition("?")
    family, _, architecture = path.partition("/")
    options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    encoder, weights = options.pop("encoder", "resnet34"), options.pop("weights", None)
    if family != "smp" or not architecture or not encoder or options:
        raise UserError(
            f"model {spec!r} is unknown; expected wave-gms, a baseline written as {EXAMPLE} "
            "(options: encoder, weights), or a function of your own as package.module:function"
        )
    return architecture, encoder, weights


def _unknown(spec: str, what: str, name: str, known: list[str]) -> UserError:
    lower = {candidate.lower(): candidate for candidate in known}
    close = [lower[match] for match in get_close_matches(name.lower(), lower, n=3)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(known)}"
    return UserError(f"model {spec!r}: segmentation-models-pytorch has no {what} {name!r}; {hint}")


def _standardisation(smp: Any, encoder: str, weights: str) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of the images that pretrained weights were trained on."""
    parameters = smp.encoders.get_preprocessing_params(encoder, weights)
    return {"mean": tuple(parameters["mean"]), "std": tuple(parameters["std"])}
