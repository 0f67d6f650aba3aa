from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import models.vae
import utils.vae_weights
from models.sd_vae import SCALE_FACTOR, SDVAE, load_sd_vae
from models.tiny_vae import TinyVAE, load_tiny_vae
from tests.autoencoders import save_sd_vae, save_tiny_vae
from utils.errors import UserError


def small(folder: Path, name: str) -> tuple[models.vae.FrozenVAE, Any]:
    """The frozen VAE `name` and the diffusers network that it wraps."""
    if name == "tiny_vae":
        autoencoder = load_tiny_vae(save_tiny_vae(folder))
        return TinyVAE(autoencoder), autoencoder
    autoencoder = load_sd_vae(save_sd_vae(folder))
    return SDVAE(autoencoder), autoencoder


NAMES = pytest.mark.parametrize("name", ["tiny_vae", "sd_vae"])


@NAMES
def test_is_frozen_in_eval_and_float32(tmp_path: Path, name: str) -> None:
    _, autoencoder = small(tmp_path, name)
    wrapper = TinyVAE if name == "tiny_vae" else SDVAE

    def check(frozen: torch.nn.Module) -> None:
        assert not any(module.training for module in frozen.modules())
        assert not any(p.requires_grad or p.dtype != torch.float32 for p in frozen.parameters())

    check(autoencoder)
    vae = wrapper(autoencoder.requires_grad_(True).train())
    check(vae)
    check(vae.train())
    assert not any(key.startswith("grey") for key in vae.state_dict())


@NAMES
def test_grey_decode_is_the_mean_over_rgb_of_the_plain_one(tmp_path: Path, name: str) -> None:
    vae, autoencoder = small(tmp_path, name)
    latent = torch.randn(2, 4, 4, 5)
    unscaled = latent if name == "tiny_vae" else latent / SCALE_FACTOR
    plain = (autoencoder.decode(unscaled).sample.mean(dim=1, keepdim=True) + 1) / 2
    grey = vae.decode_to_grey(latent)
    assert grey.shape == (2, 1, 32, 40)
    torch.testing.assert_close(grey, plain, rtol=1e-5, atol=1e-6)


@NAMES
def test_gradient_flows_to_the_latent_alone(tmp_path: Path, name: str) -> None:
    vae, autoencoder = small(tmp_path, name)
    latent = torch.randn(1, 4, 2, 2, requires_grad=True)
    vae.decode_to_grey(latent).sum().backward()
    assert latent.grad is not None and latent.grad.any()
    assert all(parameter.grad is None for parameter in autoencoder.parameters())


def test_tiny_vae_encodes_as_diffusers_does(tmp_path: Path) -> None:
    vae, autoencoder = small(tmp_path, "tiny_vae")
    image = torch.rand(2, 3, 32, 40)
    latent, deviation = vae.encode(image)
    assert deviation is None
    torch.testing.assert_close(latent, autoencoder.encode(image * 2 - 1).latents)


def test_sd_vae_encodes_to_its_scaled_posterior(tmp_path: Path) -> None:
    vae, autoencoder = small(tmp_path, "sd_vae")
    image = torch.rand(2, 3, 32, 40)
    posterior = autoencoder.encode(image * 2 - 1).latent_dist
    mean, deviation = vae.encode(image)
    torch.testing.assert_close(mean, posterior.mean * 0.18215)
    torch.testing.assert_close(deviation, posterior.std * 0.18215)


def test_the_real_taesd(shared: Path) -> None:
    autoencoder = load_tiny_vae(shared / "taesd")
    vae = TinyVAE(autoencoder)
    sizes = {n: sum(p.numel() for p in part.parameters()) for n, part in vae.parts().items()}
    assert sizes == {"Tiny-VAE encoder": 1_222_532, "Tiny-VAE decoder": 1_222_531}

    image = torch.rand(1, 3, 64, 64)
    latent, _ = vae.encode(image)
    plain = (autoencoder.decode(latent).sample.mean(dim=1, keepdim=True) + 1) / 2
    torch.testing.assert_close(latent, autoencoder.encode(image * 2 - 1).latents)
    torch.testing.assert_close(vae.decode_to_grey(latent), plain, rtol=1e-5, atol=1e-6)


def test_a_relative_folder_is_sought_here_and_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_vae(tmp_path / "repository" / "ckpt" / "tiny")
    monkeypatch.setattr(utils.vae_weights, "REPOSITORY", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    load_tiny_vae("ckpt/tiny")
    load_tiny_vae("repository/ckpt/tiny")


@pytest.mark.parametrize(
    "weights", ["./no/such/folder", "taesd", "/nowhere/at/all", "ckpt/tiny-vae"]
)
def test_what_is_neither_folder_nor_id_is_refused(weights: str) -> None:
    with pytest.raises(UserError, match=r"no such folder.*it is not a Hugging Face id") as caught:
        load_tiny_vae(weights)
    assert repr(weights) in str(caught.value) and "vae_weights:" in str(caught.value)


def test_an_absent_hub_is_named_with_the_two_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def no_hub(url: str) -> None:
        raise TimeoutError("no answer in 10 s")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_hub)
    with pytest.raises(UserError) as caught:
        load_tiny_vae("somebody/some-taesd")
    message = str(caught.value)
    assert "'somebody/some-taesd'" in message
    assert "TimeoutError: no answer in 10 s" in message
    assert "hf download somebody/some-taesd --local-dir ckpt/some-taesd" in message
    assert "`vae_weights:`" in message and "vae_weights=ckpt/tiny_vae" in message
    with pytest.raises(UserError) as caught:
        load_sd_vae("somebody/some-sd-vae")
    assert "tiny_vae" not in str(caught.value), "which is of another kind"


def test_a_cached_network_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    save_tiny_vae(tmp_path)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repo_id, file: str(tmp_path / file)
    )
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", None)
    load_tiny_vae("somebody/some-taesd")


def test_offline_mode_is_respected() -> None:
    with pytest.raises(UserError, match="offline mode is enabled"):
        load_tiny_vae("somebody/some-taesd")


def test_a_hub_that_hangs_is_given_up(tmp_path: Path) -> None:
    program = (
        "from models.tiny_vae import load_tiny_vae\n"
        "from utils.errors import UserError\n"
        "try: load_tiny_vae('somebody/some-taesd')\n"
        "except UserError as error: print(error)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_ETAG_TIMEOUT": "1",
            "OMP_NUM_THREADS": "1",
        }
        finished = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | settings,
            cwd=models.vae.REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert "ReadTimeout" in finished.stdout, finished.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 16}, "latent_channels 16, needed is 4"),
        ({"_class_name": "AutoencoderKL"}, "network 'AutoencoderKL', needed is 'AutoencoderTiny'"),
        ({"encoder_block_out_channels": [8, 8, 8]}, "downsampling 4, needed is 8"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    config = save_tiny_vae(tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_tiny_vae(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (save_tiny_vae(tmp_path) / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors"):
        load_tiny_vae(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    expected = r"has no config\.json. Expected is a VAE in diffusers' layout.*vae_weights="
    with pytest.raises(UserError, match=f"{expected}ckpt/tiny_vae"):
        load_tiny_vae(tmp_path)
    with pytest.raises(UserError, match=f"{expected}stabilityai/"):
        load_sd_vae(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_tiny_vae(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "incomplete"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    file = save_tiny_vae(tmp_path) / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        weights = load_file(file)
        weights.pop("decoder.layers.0.weight")
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors"):
        load_tiny_vae(tmp_path)
