"""What the frozen autoencoders share: their interface, and where their weights come from."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from utils.errors import UserError, first_line
from utils.files import REPOSITORY
from utils.vae_weights import FILES, may_be_hub_id, weights_folder

LATENT_CHANNELS = 4
DOWNSAMPLING = 8
BUNDLED = "vae_weights=ckpt/tiny_vae, which comes with the repository"


class FrozenVAE(nn.Module):
    """An autoencoder whose weights take no gradient and which stays in eval mode.

    Gradients flow through it to its input.
    """

    noise_probability = 0.0

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenVAE:
        super().train(False)
        return self

    @abstractmethod
    def encode(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and deviation (None: no noise) of the latent, (B, 4, H/8, W/8), without gradient.

        `image` is (B, 3, H, W) in [0, 1]; networks that want [-1, 1] scale it themselves.
        """

    @abstractmethod
    def decode_to_grey(self, latent: Tensor) -> Tensor:
        """Decoded image, its mean over RGB, in [0, 1] up to overshoot; (B, 4, h, w) -> (B, 1, 8h, 8w)."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The frozen parts by name."""


def grey_convolution(rgb: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (1, C, 3, 3) and bias (1,) whose output is the mean of the outputs of `rgb`."""
    assert rgb.bias is not None
    return rgb.weight.detach().mean(0, keepdim=True), rgb.bias.detach().mean(0, keepdim=True)


def load_autoencoder(class_name: str, weights: str | Path) -> Any:
    """The diffusers autoencoder `class_name` in float32 from a folder or the Hugging Face hub.

    `weights` is a folder (relative to the working directory or to the repository) that holds
    config.json and diffusion_pytorch_model.safetensors, or a hub id `owner/name`.

    Raises:
        UserError: it cannot be loaded, or it is another network than `class_name` with 4 latent
            channels, 3 image channels and a downsampling of 8.
    """
    folder = _locate(str(weights), class_name)
    problem = f"cannot load the VAE {str(weights)!r}: "
    if not (folder / FILES[0]).exists():
        raise UserError(
            f"{problem}the folder {folder} has no {FILES[0]}. Expected is a VAE in diffusers' layout, {FILES[0]} and "
            f"{FILES[1]}: {_example(class_name)}"
        )
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{problem}{folder / 'config.json'} cannot be read ({error})") from error
    _check_config(config, class_name, problem + f"{folder / 'config.json'} ")

    import diffusers
    import torch

    try:
        autoencoder, loading = getattr(diffusers, class_name).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            torch_dtype=torch.float32,
        )
    except Exception as error:  # diffusers and safetensors raise many kinds, and this one itself
        raise UserError(f"{problem}{folder / FILES[1]}: {first_line(error)}") from error
    if missing := loading["missing_keys"]:
        raise UserError(
            f"{problem}{folder / FILES[1]} lacks {len(missing)} weights that its config.json "
            f"promises, {sorted(missing)[0]!r} among them; download it again"
        )
    return autoencoder


def _example(class_name: str) -> str:
    """What `vae_weights` may be for this class, for a message."""
    if class_name == "AutoencoderTiny":
        return f"{BUNDLED}, or an id such as madebyollin/taesd"
    return "the VAE of Stable Diffusion, by an id such as vae_weights=stabilityai/sd-vae-ft-mse"


def _locate(weights: str, class_name: str) -> Path:
    """Folder of the weights, from the disk or through the hub's cache."""
    if (folder := weights_folder(weights)) is not None:
        return folder
    name = weights.rstrip("/").rsplit("/", 1)[-1]
    if not may_be_hub_id(weights):
        raise UserError(
            f"cannot load the VAE {weights!r}: there is no such folder here or in {REPOSITORY}, and "
            "it is not a Hugging Face id (owner/name, where no folder is called owner); set "
            f"`vae_weights:` to a folder that holds {FILES[0]} and {FILES[1]}: {_example(class_name)}"
        )
    # Files in the cache need no connection. For others one request goes ahead of the download: unlike
    # this one it is not tried again, so that a hub that hangs costs seconds. Both keep to
    # HF_HUB_OFFLINE, HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT (10 s each by default).
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    cached = [try_to_load_from_cache(weights, file) for file in FILES]
    try:
        if not all(isinstance(file, str) for file in cached):
            get_hf_file_metadata(hf_hub_url(weights, FILES[0]))
            cached = [hf_hub_download(weights, file) for file in FILES]
    except Exception as error:  # HTTP, offline, timeout, cache and disk errors share no base
        raise UserError(
            f"cannot load the VAE {weights!r}: there is no such folder here or in {REPOSITORY}, and "
            f"the Hugging Face hub did not give it ({type(error).__name__}: {first_line(error)}); "
            f"download it where there is a connection, `hf download {weights} --local-dir "
            f"ckpt/{name}`, or set `vae_weights:` to a local folder that holds {FILES[0]} and "
            f"{FILES[1]}" + (f": {BUNDLED}" if class_name == "AutoencoderTiny" else "")
        ) from error
    return Path(str(cached[0])).parent


def _check_config(config: dict[str, Any], class_name: str, problem: str) -> None:
    blocks = config.get("encoder_block_out_channels", config.get("block_out_channels", ()))
    for what, got, expected in (
        ("network", config.get("_class_name"), class_name),
        ("latent_channels", config.get("latent_channels", LATENT_CHANNELS), LATENT_CHANNELS),
        ("in_channels", config.get("in_channels", 3), 3),
        ("out_channels", config.get("out_channels", 3), 3),
        ("downsampling", 2 ** (len(blocks) - 1), DOWNSAMPLING),
    ):
        if got != expected:
            raise UserError(f"{problem}describes {what} {got!r}, needed is {expected!r}")
