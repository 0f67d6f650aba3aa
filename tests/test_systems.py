from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.build import system_from
from engine.runs.trained_run import load_system
from models.base import SegmentationModel
from models.baseline import Baseline, build_baseline
from models.build import VAE_MODELS, build_system
from models.latent_mapping import GROUPS
from models.losses import LossWeights, dice_loss, focal_tversky_loss
from models.sft import haar_details
from models.wave_gms import WaveGMS
from tests.autoencoders import save_sd_vae, save_tiny_vae
from tests.run_on_disk import write_run
from tests.small_run import arguments
from utils.config import Config, load_config
from utils.errors import UserError

SIZE = 32
SYSTEMS: dict[str, dict[str, Any]] = {
    "wave-gms": {"vae_model": "litevae", "guidance_method": None},
    "tiny_vae": {"vae_model": "tiny_vae", "guidance_method": None},
    "wavelet": {"vae_model": "tiny_vae", "guidance_method": "wavelet"},
    "gms": {"vae_model": "sd_vae", "guidance_method": None},
}
EACH = pytest.mark.parametrize("name", list(SYSTEMS))


@pytest.fixture(scope="module")
def vae_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vae")
    tiny = save_tiny_vae(folder / "tiny")
    return {"litevae": tiny, "tiny_vae": tiny, "sd_vae": save_sd_vae(folder / "sd")}


def build(name: str, folders: dict[str, Path], **changes) -> WaveGMS:
    options = (
        SYSTEMS[name] | {"ch": 16, "image_size": SIZE, "loss_weights": LossWeights()} | changes
    )
    torch.manual_seed(0)
    system = build_system(**options, vae_weights=folders[SYSTEMS[name]["vae_model"]])
    assert isinstance(system, WaveGMS)
    return system


def batch(system: SegmentationModel, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, size, size, generator=generator)
    mask = (torch.rand(2, 1, size, size, generator=generator) > 0.5).float()
    return image, mask, torch.randn(2, *system.latent_shape(size), generator=generator)


def plain_losses(system: WaveGMS, image: Tensor, mask: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """The design's losses in the plain way: encodes apart, three decodes, mean over RGB after."""
    vae: Any = system.vae
    mask_latent, _ = vae.encode(mask.repeat(1, 3, 1, 1))
    image_latent, deviation = vae.encode(image)
    if system.encoder is not None:
        sample_mean, sample_deviation = system.encoder(image)
        sample = sample_mean + sample_deviation * noise
    else:
        sample = image_latent if deviation is None else image_latent + deviation * noise
    if system.guidance is not None:
        heads = system.mapping(sample, system.guidance(haar_details(image)))
    else:
        heads = system.mapping(sample)

    lm = seg = torch.zeros(())
    for head in (heads["level2"], heads["level1"], heads["out"]):
        lm = lm + ((head - mask_latent) ** 2).mean()
        if hasattr(vae, "post_quant_conv"):
            decoded = vae.decoder(vae.post_quant_conv(head / 0.18215))
        else:
            decoded = vae.decoder(head)
        p = ((decoded.mean(dim=1, keepdim=True) + 1) / 2).clamp(0, 1)
        overlap, total = (p * mask).sum((1, 2, 3)), (p + mask).sum((1, 2, 3))
        seg = seg + (1 - (2 * overlap + 1e-5) / (total + 1e-5)).mean()
    losses = {"lm": lm, "seg": seg}
    weights = system.loss_weights
    loss = weights.lm * lm + weights.seg * seg
    if system.encoder is not None:
        cosine = F.cosine_similarity(sample, image_latent, dim=1)
        losses["align"] = 0.9 * (1 - cosine.mean()) + 0.1 * F.smooth_l1_loss(sample, image_latent)
        loss = loss + weights.align * losses["align"]
    return losses | {"loss": loss}


def gradients(system: SegmentationModel, loss: Tensor) -> dict[str, Tensor]:
    system.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in system.named_parameters() if p.grad is not None}


@EACH
def test_one_step_computes_the_losses_of_the_design(name: str, vae_folders) -> None:
    system = build(name, vae_folders, loss_weights=LossWeights(lm=0.5, seg=2.0, align=3.0)).train()
    image, mask, noise = batch(system)
    fast, plain = system(image, mask, noise), plain_losses(system, image, mask, noise)
    assert set(fast) == set(plain) | {"dice"} == {*system.loss_names, "dice"}
    for key, expected in plain.items():
        torch.testing.assert_close(fast[key], expected, rtol=1e-5, atol=1e-6, msg=key)

    ours, theirs = gradients(system, fast["loss"]), gradients(system, plain["loss"])
    assert set(ours) == set(theirs)
    scale = max(gradient.abs().max().item() for gradient in theirs.values())
    for key, expected in theirs.items():
        torch.testing.assert_close(ours[key], expected, rtol=1e-3, atol=1e-5 * scale, msg=key)


def test_losses_follow_the_config(tmp_path: Path, vae: Path) -> None:
    weights = ("w_rec=2", "w_dice=3", "align_loss=4", "w_tversky=5", "head_weights=[0.25, 0.5, 1]")
    _, base, *changes = arguments(tmp_path, vae, *weights)
    system: Any = system_from(
        load_config(base, [*changes, "latent_loss=l1", "checkpoint_decoder=true"])
    )
    assert system.loss_weights == LossWeights(2, 3, 4, 5, heads=(0.25, 0.5, 1))
    assert system.latent_loss == "l1" and system.checkpoint_decoder


@EACH
def test_gradients_reach_every_trainable_part_and_never_the_vae(name: str, vae_folders) -> None:
    system = build(name, vae_folders).train()
    reached = gradients(system, system(*batch(system))["loss"])
    through_the_decoder = gradients(system, system(*batch(system))["seg"])
    assert any(gradient.any() for gradient in through_the_decoder.values())
    without = {n for n, p in system.named_parameters() if p.requires_grad and n not in reached}
    assert all(key.startswith("mapping.convds3.") for key in without)  # level3 takes no part
    assert {key.split(".")[0] for key in reached} == {
        key for key in ("mapping", "encoder", "guidance") if getattr(system, key) is not None
    }


def test_alignment_reaches_the_encoder_alone(vae_folders) -> None:
    system = build("wave-gms", vae_folders).train()
    reached = gradients(system, system(*batch(system))["align"])
    assert {key.split(".")[0] for key in reached} == {"encoder"}


@EACH
def test_losses_are_float32_scalars_and_dice_is_detached(name: str, vae_folders) -> None:
    system = build(name, vae_folders).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = system(*batch(system))
    exact = system(*batch(system))
    for key, value in result.items():
        assert value.shape == () and value.dtype == torch.float32
        assert value.requires_grad == (key != "dice")
        assert value.item() == pytest.approx(exact[key].item(), rel=0.05, abs=0.05)


def test_dice_loss_sums_in_float32_under_autocast(
    vae_folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = build("wave-gms", vae_folders).train()
    decode, decoded = system.decode, []

    def recorded(latents: Tensor) -> Tensor:
        decoded.append(decode(latents))
        return decoded[-1]

    monkeypatch.setattr(system, "decode", recorded)
    image, mask, noise = batch(system, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        seg = system(image, mask, noise)["seg"]
    assert decoded[0].dtype == torch.bfloat16
    grey = decoded[0].double().clamp(0, 1).chunk(3)
    expected = sum(dice_loss(p, mask.double()).item() for p in grey)
    assert seg.item() == pytest.approx(expected, rel=1e-5)


@EACH
def test_dice_is_that_of_the_out_head(name: str, vae_folders) -> None:
    system = build(name, vae_folders)
    image, mask, _ = batch(system)
    prediction = system(image) >= 0.5
    overlap = (prediction & mask.bool()).sum((1, 2, 3))
    expected = (2 * overlap / (prediction.sum((1, 2, 3)) + mask.sum((1, 2, 3)))).mean()
    torch.testing.assert_close(system(image, mask)["dice"], expected)


@EACH
def test_probability_is_that_of_the_mean_and_of_one_sample_alone(name: str, vae_folders) -> None:
    system = build(name, vae_folders).eval()
    image, _, _ = batch(system, 40)
    with torch.inference_mode():
        probability = system(image)
        alone = system(image[1:])
    assert probability.shape == (2, 1, 40, 40) and probability.dtype == torch.float32
    assert probability.min() >= 0 and probability.max() <= 1
    torch.testing.assert_close(probability[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "probability", "sampled"),
    [
        ("wave-gms", 1.0, True),
        ("gms", 0.5, True),
        ("tiny_vae", 0.0, False),
        ("wavelet", 0.0, False),
    ],
)
def test_noise_is_used_where_the_design_samples(
    name: str, probability: float, sampled: bool, vae_folders
) -> None:
    system = build(name, vae_folders)
    image, mask, noise = batch(system)
    assert system.noise_probability == probability
    assert system.latent_shape(224) == (4, 28, 28)
    mean = system(image, mask)["lm"]
    assert (system(image, mask, noise)["lm"] != mean) == sampled
    assert system(image, mask, torch.zeros_like(noise))["lm"] == mean


@EACH
def test_parts_carry_the_published_names(name: str, vae_folders) -> None:
    system = build(name, vae_folders)
    expected = {"wave-gms": ["model", "vae_model"], "wavelet": ["model", "skff_model"]}
    assert list(system.parts()) == expected.get(name, ["model"])
    trainable = {id(p) for p in system.parameters() if p.requires_grad}
    assert {id(p) for part in system.parts().values() for p in part.parameters()} == trainable
    frozen = {id(p) for part in system.frozen().values() for p in part.parameters()}
    assert frozen == {id(p) for p in system.parameters()} - trainable


def test_the_vae_stays_in_eval(vae_folders) -> None:
    system = build("gms", vae_folders).train()
    assert system.mapping.training
    assert not any(module.training for module in system.vae.modules())


def test_checkpoint_decoder_decodes_twice_in_pieces_and_gives_the_same_gradients(
    vae_folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build("wave-gms", vae_folders).train()
    saving = build("wave-gms", vae_folders, checkpoint_decoder=True).train()
    decode, decoded = saving.vae.decode_to_grey, []

    def counted(latent: Tensor) -> Tensor:
        decoded.append(len(latent))
        return decode(latent)

    monkeypatch.setattr(saving.vae, "decode_to_grey", counted)
    expected = gradients(plain, plain(*batch(plain))["loss"])
    torch.testing.assert_close(gradients(saving, saving(*batch(saving))["loss"]), expected)
    assert decoded[:2] == [4, 2]  # three heads of two images
    assert sorted(decoded[2:]) == [2, 4]


@EACH
def test_channels_last_changes_nothing_but_the_layout(name: str, vae_folders) -> None:
    system = build(name, vae_folders)
    other = copy.deepcopy(system).to(memory_format=torch.channels_last)
    expected = system(*batch(system))
    for key, value in other(*batch(system)).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


def test_without_weight_the_alignment_is_left_out(vae_folders) -> None:
    system = build("wave-gms", vae_folders, loss_weights=LossWeights(align=0))
    result = system(*batch(system))
    assert "align" not in result and "align" not in system.loss_names
    torch.testing.assert_close(result["loss"], result["lm"] + result["seg"])


@EACH
def test_optional_losses_are_added_and_heads_weighted(name: str, vae_folders) -> None:
    weights = LossWeights(lm=0.5, seg=2, align=3, tversky=4, heads=(0.25, 0.5, 1))
    system = build(name, vae_folders, loss_weights=weights, latent_loss="l1").train()
    image, mask, noise = batch(system)
    result = system(image, mask, noise)
    expected = 0.5 * result["lm"] + 2 * result["seg"] + 4 * result["tversky"]
    if system.aligned:
        expected = expected + 3 * result["align"]
    torch.testing.assert_close(result["loss"], expected)
    assert {*system.loss_names, "dice"} == set(result)

    parts = [
        build(name, vae_folders, loss_weights=LossWeights(tversky=1, heads=heads), latent_loss="l1")
        for heads in ((1, 0, 1), (0, 1, 1), (0, 0, 1))
    ]
    first, second, last = (part(image, mask, noise) for part in parts)
    for key in ("lm", "seg", "tversky"):
        of_first, of_second = first[key] - last[key], second[key] - last[key]
        expected = 0.25 * of_first + 0.5 * of_second + last[key]
        torch.testing.assert_close(result[key], expected, rtol=1e-4, atol=1e-6, msg=key)


def test_each_mask_loss_is_the_one_of_its_name(
    vae_folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = LossWeights(tversky=1, heads=(0, 0, 1))
    system = build("wave-gms", vae_folders, loss_weights=weights).train()
    decode, decoded = system.vae.decode_to_grey, []

    def kept(latent: Tensor) -> Tensor:
        decoded.append(decode(latent))
        return decoded[-1]

    monkeypatch.setattr(system.vae, "decode_to_grey", kept)
    image, mask, noise = batch(system)
    result = system(image, mask, noise)
    probability = decoded[0].clamp(0, 1)
    torch.testing.assert_close(result["seg"], dice_loss(probability, mask))
    torch.testing.assert_close(result["tversky"], focal_tversky_loss(probability, mask))


def test_a_head_without_weight_is_not_decoded(vae_folders, monkeypatch: pytest.MonkeyPatch) -> None:
    system = build("wave-gms", vae_folders, loss_weights=LossWeights(heads=(0, 0.5, 1))).train()
    decode, decoded = system.vae.decode_to_grey, []

    def counted(latent: Tensor) -> Tensor:
        decoded.append(len(latent))
        return decode(latent)

    monkeypatch.setattr(system.vae, "decode_to_grey", counted)
    system(*batch(system))
    assert decoded == [4]  # two heads of two images


def test_wave_gms_has_the_published_size(shared: Path) -> None:
    system = build("wave-gms", {"litevae": shared / "taesd"}, ch=32, image_size=224)
    trainable = sum(p.numel() for p in system.parameters() if p.requires_grad)
    assert trainable == 2_600_668
    image, mask, noise = batch(system, 64)
    plain = plain_losses(system, image, mask, noise)
    for key, expected in plain.items():
        torch.testing.assert_close(system(image, mask, noise)[key], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("size", "nearest"), [(225, "224 or 232"), (220, "216 or 224"), (4, "8"), (0, "8")]
)
def test_an_image_size_off_the_grid_is_refused(size: int, nearest: str, vae_folders) -> None:
    expected = f"image size {size} is not divisible by 8; the nearest that are: {nearest}$"
    with pytest.raises(UserError, match=expected):
        build("wave-gms", vae_folders, image_size=size)


def test_an_image_off_the_grid_is_refused(vae_folders) -> None:
    with pytest.raises(UserError, match="36 is not divisible by 8; the nearest that are: 32 or 40"):
        build("tiny_vae", vae_folders)(torch.rand(1, 3, 32, 36))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae_model": "litevae-x"}, "vae_model 'litevae-x' is unknown.*litevae-b.*sd_vae"),
        ({"guidance_method": "wavelets"}, "guidance_method 'wavelets' is unknown"),
        ({"guidance_method": "wavelet"}, "goes with vae_model 'tiny_vae', not 'litevae'"),
        ({"ch": 20}, "ch 20 .*multiple of 16"),
        ({"ch_mult": (1, 2, 4)}, r"ch_mult \[1, 2, 4\].* four"),
        ({"model": "unet"}, "model 'unet' is unknown.*smp/Unet"),
    ],
)
def test_options_that_no_system_has_are_refused(change: dict, message: str, vae_folders) -> None:
    with pytest.raises(UserError, match=message):
        build("wave-gms", vae_folders, **change)


def test_the_config_admits_the_networks_that_are_built() -> None:
    vae_model, ch = (Config.model_fields[key] for key in ("vae_model", "ch"))
    assert get_args(vae_model.annotation) == VAE_MODELS
    assert GROUPS in [getattr(each, "multiple_of", None) for each in ch.metadata]


def test_a_baseline_computes_dice_and_cross_entropy() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 1, 3, padding=1)
    system = Baseline(network, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).train()
    image, mask, noise = batch(system)
    assert noise.numel() == 0 and system.noise_probability == 0
    result = system(image, mask, noise)
    channels = zip(image.unbind(1), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), strict=True)
    standardised = torch.stack([(channel - mean) / std for channel, mean, std in channels], 1)
    probability = system(image)
    torch.testing.assert_close(probability, network(standardised).sigmoid())
    overlap, total = (probability * mask).sum((1, 2, 3)), (probability + mask).sum((1, 2, 3))
    seg = (1 - (2 * overlap + 1e-5) / (total + 1e-5)).mean()
    bce = -(mask * probability.log() + (1 - mask) * (1 - probability).log()).mean()
    torch.testing.assert_close(result["seg"], seg)
    torch.testing.assert_close(result["bce"], bce)
    torch.testing.assert_close(result["loss"], seg + bce)
    assert set(result) == {*system.loss_names, "dice"}
    assert set(gradients(system, result["loss"])) == {"network.weight", "network.bias"}


def test_a_baseline_from_the_package() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    system = build_system(
        model="smp/unet?encoder=resnet18",
        vae_model="litevae",
        guidance_method=None,
        vae_weights="not/read",
        loss_weights=LossWeights(),
    )
    image, mask, noise = batch(system, 64)
    assert list(system.parts()) == ["model"] and not system.frozen()
    gradients(system, system(image, mask, noise)["loss"])
    assert system.eval()(image).shape == (2, 1, 64, 64)


def test_a_baseline_that_needs_larger_images_is_refused() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    settings: dict[str, Any] = {
        "model": "smp/PAN?encoder=resnet18",
        "vae_model": "litevae",
        "guidance_method": None,
        "vae_weights": "not/read",
        "loss_weights": LossWeights(),
    }
    assert build_system(**settings, image_size=160).training
    with pytest.raises(UserError, match=r"PAN.* cannot take images of 96 px .*raise image_size"):
        build_system(**settings, image_size=96)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smp/Unett?encoder=resnet18", "no architecture 'Unett'; did you mean Unet"),
        ("smp/Unet?encoder=resnet81", "no encoder 'resnet81'; did you mean resnet"),
        ("smp/Unet?encoder=tu-nothing", "cannot be built: Unknown model"),
        ("smp/Unet?encoder=resnet18&weights=imagnet", "Wrong pretrained weights `imagnet`"),
        ("smp/Unet?encoder=tu-resnet18&weights=imagnet", "write weights=imagenet to load those of"),
        ("smp/Unet?backbone=resnet18", "unknown; expected wave-gms"),
        ("smp/", "unknown; expected wave-gms"),
    ],
)
def test_a_baseline_that_does_not_exist_is_refused(spec: str, message: str) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(UserError, match=message):
        build_baseline(spec)


def test_a_trained_baseline_needs_no_pretrained_weights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is offline here, so that asking it for them fails."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    folder = tmp_path / "epochs_1"
    config = write_run(folder, tmp_path, "model=smp/Unet?encoder=resnet18")
    config = config.model_copy(update={"model": "smp/Unet?encoder=resnet18&weights=imagenet"})
    with pytest.raises(UserError, match="cannot be built"):
        load_system(config, folder / "best_model.pth")
    standard = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda *_: standard)
    with pytest.raises(UserError, match="cannot be built"):
        system_from(config)
    system: Any = load_system(config, folder / "best_model.pth")
    assert system.mean.flatten().tolist() == pytest.approx(standard["mean"])


def test_a_baseline_names_the_size_it_needs() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    system = build_baseline("smp/Linknet?encoder=resnet18")
    with pytest.raises(
        UserError, match="40 is not divisible by 32; the nearest that are: 32 or 64"
    ):
        system(torch.rand(1, 3, 40, 40))


def test_the_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match="pip install segmentation-models-pytorch"):
        build_baseline("smp/Unet?encoder=resnet18")
