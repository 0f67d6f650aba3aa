from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.base import SegmentationModel
from models.baseline import Baseline
from models.build import build_system
from models.losses import LossWeights
from tests.autoencoders import parity, save_tiny_vae
from utils.checkpoints import load_weights, save_weights, weights_sha256
from utils.errors import UserError

SUFFIXES = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
Build = Callable[..., SegmentationModel]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = save_tiny_vae(tmp_path_factory.mktemp("vae"))

    def build(vae_model: str = "litevae", guidance: str | None = None, ch: int = 16, seed: int = 0):
        torch.manual_seed(seed)
        return build_system(
            vae_model=vae_model,
            guidance_method=guidance,
            vae_weights=folder,
            ch=ch,
            loss_weights=LossWeights(),
        )

    return build


def weights_of(system: SegmentationModel) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value.clone() for key, value in part.state_dict().items()}
        for name, part in system.parts().items()
    }


def test_the_hash_of_weights_is_over_their_names_too() -> None:
    weights = {"scale": torch.ones(2), "shift": torch.zeros(2)}
    one, same, other = torch.nn.Module(), torch.nn.Module(), torch.nn.Module()
    for module, names in ((one, weights), (same, weights), (other, ("gain", "bias"))):
        for name, value in zip(names, weights.values(), strict=True):
            module.register_buffer(name, value.clone())
    assert weights_sha256(one) == weights_sha256(same) != weights_sha256(other)


@SUFFIXES
@pytest.mark.parametrize(("vae_model", "guidance"), [("litevae", None), ("tiny_vae", "wavelet")])
def test_weights_come_back(
    build: Build, tmp_path: Path, suffix: str, vae_model: str, guidance: str | None
) -> None:
    written = build(vae_model, guidance, seed=1).to(memory_format=torch.channels_last)
    read = build(vae_model, guidance, seed=2)
    save_weights(tmp_path / f"best_model{suffix}", written)
    load_weights(tmp_path / f"best_model{suffix}", read)
    torch.testing.assert_close(weights_of(read), weights_of(written), rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == [f"best_model{suffix}"]


def test_a_file_holds_the_parts_in_published_form_and_no_vae(build: Build, tmp_path: Path) -> None:
    save_weights(tmp_path / "best_model.pth", build())
    content = torch.load(tmp_path / "best_model.pth", weights_only=True)
    assert list(content) == ["model", "vae_model"]
    assert "conv2_2.resblock.conv1.0.weight" in content["model"]
    assert "encoder.feature_extractor_L1.encoder_blocks.0.norm_in.weight" in content["vae_model"]
    assert sum(value.numel() for part in content.values() for value in part.values()) < 2_000_000


def test_published_weights_load(build: Build, tmp_path: Path, shared: Path) -> None:
    mapping, encoder = parity(shared, "latent_mapping")[0], parity(shared, "encoder")[0]
    file = tmp_path / "best_model.pth"
    torch.save({"model": mapping, "vae_model": encoder, "epoch": 12, "optimizer": {"lr": 1}}, file)
    system = build(ch=32)
    load_weights(file, system)
    torch.testing.assert_close(weights_of(system), {"model": mapping, "vae_model": encoder})

    guided, skff = parity(shared, "sft_latent_mapping")[0], parity(shared, "skff")[0]
    parallel = {f"module.{key}": value for key, value in guided.items()}
    torch.save({"model": parallel, "skff_model": skff}, file)
    system = build("tiny_vae", "wavelet", ch=32)
    load_weights(file, system)
    torch.testing.assert_close(weights_of(system), {"model": guided, "skff_model": skff})


@SUFFIXES
def test_a_part_that_is_called_module_keeps_its_names(tmp_path: Path, suffix: str) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = torch.nn.Conv2d(3, 1, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.module(image)
            return output

    written, read = Baseline(Wrapper()), Baseline(Wrapper())
    file = tmp_path / f"best_model{suffix}"
    save_weights(file, written)
    load_weights(file, read)
    torch.testing.assert_close(weights_of(read), weights_of(written), rtol=0, atol=0)


def test_what_is_empty_is_no_part(build: Build, tmp_path: Path) -> None:
    written, read = build(seed=1), build(seed=2)
    file = tmp_path / "weights.pth"
    torch.save(weights_of(written) | {"scaler": {}, "epoch": 3}, file)
    load_weights(file, read)
    torch.testing.assert_close(weights_of(read), weights_of(written), rtol=0, atol=0)
    torch.save({"model": {}, "vae_model": weights_of(written)["vae_model"]}, file)
    with pytest.raises(UserError, match="part 'model' is missing"):
        load_weights(file, read)


@SUFFIXES
def test_a_part_without_weights_needs_none(
    build: Build, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, parts = build(seed=1), build(seed=2).parts()
    monkeypatch.setattr(system, "parts", lambda: parts | {"vae_model": torch.nn.Identity()})
    save_weights(tmp_path / f"weights{suffix}", system)
    before = weights_of(system)
    with torch.no_grad():
        next(parts["model"].parameters()).zero_()
    load_weights(tmp_path / f"weights{suffix}", system)
    torch.testing.assert_close(weights_of(system), before, rtol=0, atol=0)


def test_the_state_of_a_training_is_told_from_weights(build: Build, tmp_path: Path) -> None:
    state = {"format": 1, "weights": weights_of(build()), "optimizer": {}, "progress": {}}
    torch.save(state, tmp_path / "last.pth")
    with pytest.raises(UserError, match=r"last\.pth is the state of a training.*best_model\.pth"):
        load_weights(tmp_path / "last.pth", build())


@SUFFIXES
def test_one_error_lists_every_mismatch_and_nothing_is_loaded(
    build: Build, tmp_path: Path, suffix: str
) -> None:
    from safetensors.torch import save_file

    system = build()
    weights = weights_of(build(seed=1))
    weights["model"].pop("input_blocks.bias")
    weights["model"]["extra.weight"] = torch.zeros(1)
    weights["vae_model"]["encoder.feature_aggregator.out_layer.bias"] = torch.zeros(6)
    weights["skff_model"] = {"reduce_conv.1.weight": torch.zeros(1)}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(weights, file)
    else:
        save_file({f"{p}.{k}": v for p, part in weights.items() for k, v in part.items()}, file)

    before = weights_of(system)
    with pytest.raises(UserError) as caught:
        load_weights(file, system)
    for part in (
        str(file),
        "in 'model' 1 missing: input_blocks.bias",
        "in 'model' 1 unexpected: extra.weight",
        "in 'vae_model' 1 of another shape: encoder.feature_aggregator.out_layer.bias (6,), "
        "expected (8,)",
        "part 'skff_model' is unexpected",
    ):
        assert part in str(caught.value)
    torch.testing.assert_close(weights_of(system), before, rtol=0, atol=0)


def test_weights_of_another_width_are_told_in_short(build: Build, tmp_path: Path) -> None:
    save_weights(tmp_path / "narrow.pth", build(ch=16))
    with pytest.raises(UserError, match=r"of another shape: input_blocks\.weight .* and \d+ more"):
        load_weights(tmp_path / "narrow.pth", build(ch=32))


def test_a_missing_part_is_named(build: Build, tmp_path: Path) -> None:
    save_weights(tmp_path / "tiny.pth", build("tiny_vae"))
    with pytest.raises(
        UserError, match=r"part 'vae_model' is missing.*Are they of GMS\? Then set vae_model=sd_vae"
    ):
        load_weights(tmp_path / "tiny.pth", build())


def test_a_missing_file_says_where_it_was_sought_and_how_to_train(
    build: Build, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_weights(tmp_path / "best_model.pth", build())
    assert str(tmp_path / "best_model.pth") in str(caught.value)
    assert "train" in str(caught.value)


class Payload:
    """Unpickles to a call that makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", [torch.save, lambda o, f: f.write_bytes(pickle.dumps(o))])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    build: Build, tmp_path: Path, write: Callable[[object, Path], object]
) -> None:
    write({"model": Payload(tmp_path / "ran")}, tmp_path / "hostile.pth")
    with pytest.raises(
        UserError,
        match=r"hostile\.pth holds no readable weights: it is damaged, or no plain file of tensors$",
    ):
        load_weights(tmp_path / "hostile.pth", build())
    assert not (tmp_path / "ran").exists()


@SUFFIXES
@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"PK\x03\x04", b"not weights", None])
def test_a_damaged_file_is_refused(
    build: Build, tmp_path: Path, suffix: str, content: bytes | None
) -> None:
    file = tmp_path / f"weights{suffix}"
    save_weights(file, build())
    file.write_bytes(file.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(UserError, match="holds no readable weights"):
        load_weights(file, build())


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2)])
def test_what_is_no_dict_is_refused(build: Build, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="expected a dict of state dicts"):
        load_weights(tmp_path / "weights.pth", build())


def test_another_suffix_is_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.pth or \.safetensors, not '\.ckpt'"):
        save_weights(tmp_path / "weights.ckpt", build())
