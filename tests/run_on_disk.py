"""A small run on disk, for tests: everything but accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.config import Config, dump_config, load_config

ROOT = Path(__file__).resolve().parents[1]


def write_vae(folder: Path, seed: int = 0) -> Path:
    """A small Tiny-VAE with random weights whose images lie between 0 and 1."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    vae: Any = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    with torch.no_grad():
        vae.decoder.layers[-1].weight.mul_(10)
        vae.decoder.layers[-1].bias.fill_(0.5)
    vae.save_pretrained(folder)
    return folder


def write_run(folder: Path, vae: Path, *overrides: str) -> Config:
    """`config.yaml` and `best_model.pth` of an untrained model, as train.py leaves them."""
    import torch

    from engine.build import system_from
    from utils.checkpoints import save_weights

    torch.set_num_threads(1)
    config = load_config(
        ROOT / "configs" / "base.yaml",
        [
            "pickle_file_path=blobs_train_test_names.json",
            f"vae_weights={vae}",
            f"snapshot_path={folder.parent}",
            "image_size=32",
            "ch=16",
            "ch_mult=[1, 1, 1, 1]",
            *overrides,
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    system = system_from(config)
    with torch.no_grad():
        for part in system.parts().values():
            for weight in part.parameters():
                weight.mul_(0.7)  # as drawn, they amplify rounding a thousandfold
    save_weights(folder / "best_model.pth", system)
    return config
