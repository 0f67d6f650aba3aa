"""Building a system from the names and sizes in a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.base import SegmentationModel, check_image_size
from models.encoder import ENCODER_SIZES, HaarEncoder
from models.latent_mapping import GROUPS, LatentMapping, ResAttnUNet_DS
from models.losses import LatentLoss, LossWeights
from models.own_network import build_own_network, is_own_network
from models.sft import SKFF, SFT_UNet_DS
from models.vae import LATENT_CHANNELS, FrozenVAE
from models.wave_gms import WaveGMS
from utils.errors import UserError

VAE_MODELS = (*ENCODER_SIZES, "tiny_vae", "sd_vae")


def build_system(
    *,
    vae_model: str,
    guidance_method: str | None,
    vae_weights: str | Path,
    ch: int = 32,
    ch_mult: Sequence[int] = (1, 2, 4, 4),
    image_size: int = 224,
    loss_weights: LossWeights,
    latent_loss: LatentLoss = "mse",
    model: str = "wave-gms",
    checkpoint_decoder: bool = False,
    pretrained: bool = True,
) -> SegmentationModel:
    """The system that a config describes, its trainable parts freshly initialised.

    Args:
        vae_model: `litevae`, `-b`, `-m` or `-l` (Wave-GMS), `tiny_vae`, or `sd_vae` (GMS).
        guidance_method: `wavelet` (only with `tiny_vae`) or None.
        vae_weights: folder or hub id of the frozen VAE.
        ch, ch_mult: width of the mapping, a multiple of 16, and its four multipliers.
        image_size: side in pixels, a multiple of 8.
        loss_weights, latent_loss: see `models.losses`.
        model: `wave-gms`; or a baseline such as `smp/Unet?encoder=resnet18`, or a function of one's
            own as `package.module:function?option=value`, for which the arguments on VAE and latents
            have no meaning.
        checkpoint_decoder: decode twice in training rather than keep the activations.
        pretrained: load the weights that a baseline's name asks for; False where others replace them.

    Raises:
        UserError: a value that no system has, or VAE weights that cannot be loaded.
    """
    if is_own_network(model):
        return build_own_network(model, image_size)

    if model != "wave-gms":
        from models.baseline import build_baseline, check_forward

        baseline = build_baseline(model, pretrained)
        check_image_size(image_size, image_size, baseline.size_multiple)
        check_forward(baseline, model, image_size)
        return baseline

    check_image_size(image_size, image_size)
    _check(vae_model, guidance_method, ch, ch_mult)
    mapping_class: type[LatentMapping] = SFT_UNet_DS if guidance_method else ResAttnUNet_DS
    return WaveGMS(
        load_frozen_vae(vae_model, vae_weights),
        mapping_class(LATENT_CHANNELS, LATENT_CHANNELS, ch, ch_mult),
        loss_weights,
        encoder=HaarEncoder(vae_model) if vae_model in ENCODER_SIZES else None,
        guidance=SKFF() if guidance_method else None,
        latent_loss=latent_loss,
        checkpoint_decoder=checkpoint_decoder,
    )


def load_frozen_vae(vae_model: str, weights: str | Path) -> FrozenVAE:
    """The VAE that `vae_model` decodes with, from a folder or a hub id."""
    if vae_model == "sd_vae":
        from models.sd_vae import SDVAE, load_sd_vae

        return SDVAE(load_sd_vae(weights))

    from models.tiny_vae import TinyVAE, load_tiny_vae

    return TinyVAE(load_tiny_vae(weights))


def _check(vae_model: str, guidance_method: str | None, ch: int, ch_mult: Sequence[int]) -> None:
    if vae_model not in VAE_MODELS:
        raise UserError(
            f"vae_model {vae_model!r} is unknown; choose one of {', '.join(VAE_MODELS)}"
        )
    if guidance_method not in (None, "wavelet"):
        raise UserError(f"guidance_method {guidance_method!r} is unknown; choose wavelet or null")
    if guidance_method and vae_model != "tiny_vae":
        raise UserError(
            f"guidance_method {guidance_method!r} goes with vae_model 'tiny_vae', not {vae_model!r}"
        )
    if ch <= 0 or ch % GROUPS or len(ch_mult) != 4 or min(ch_mult) < 1:
        raise UserError(
            f"ch {ch} with ch_mult {list(ch_mult)}: ch must be a multiple of {GROUPS}, ch_mult four "
            "positive integers, such as 32 and [1, 2, 4, 4]"
        )
