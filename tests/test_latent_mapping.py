from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from models.haar import haar_pyramid
from models.latent_mapping import ResAttnUNet_DS, SelfAttention, group_norm
from models.sft import SFT, SKFF, SFT_UNet_DS, haar_details
from tests.autoencoders import parity, relative_error, waves, weighted_by_waves

HEADS = ("level3", "level2", "level1", "out")


@pytest.mark.parametrize(
    ("network", "parameters"), [(ResAttnUNet_DS, 1_564_976), (SFT_UNet_DS, 2_995_712), (SKFF, 13)]
)
def test_parameter_count(network: type[torch.nn.Module], parameters: int) -> None:
    assert sum(parameter.numel() for parameter in network().parameters()) == parameters


def test_latent_mapping_agrees_with_the_published_one(shared) -> None:
    weights, tensors = parity(shared, "latent_mapping")
    network = ResAttnUNet_DS()
    network.load_state_dict(weights)
    with torch.no_grad():
        heads = network(tensors["latent"])
    assert tuple(heads) == HEADS
    for name in HEADS:
        assert relative_error(heads[name], tensors[f"out.{name}"]) < 1e-5


def test_sft_mapping_agrees_with_the_published_one(shared) -> None:
    weights, tensors = parity(shared, "sft_latent_mapping")
    network = SFT_UNet_DS()
    network.load_state_dict(weights)
    with torch.no_grad():
        heads = network(tensors["latent"], tensors["fused"])
    assert tuple(heads) == HEADS
    for name in HEADS:
        assert relative_error(heads[name], tensors[f"out.{name}"]) < 1e-5


def test_skff_agrees_with_the_published_one(shared) -> None:
    weights, tensors = parity(shared, "skff")
    network = SKFF()
    network.load_state_dict(weights)
    with torch.no_grad():
        assert relative_error(network(tensors["guidance"]), tensors["fused"]) < 1e-5


@pytest.mark.parametrize(
    ("network", "guidance", "expected"),
    [
        (
            ResAttnUNet_DS,
            (),
            {
                "level3": [-1.39736, 1.56084, 2.79849],
                "level2": [1.7408, 1.50408, 2.39643],
                "level1": [-1.22258, -1.00993, 0.46886],
                "out": [1.06003, 1.02004, -0.22535],
            },
        ),
        (
            SFT_UNet_DS,
            (waves(1, 3, 2, 3),),
            {
                "level3": [-0.5621, -1.94971, -1.93382],
                "level2": [1.58728, 1.8367, 0.83565],
                "level1": [-0.36861, -0.25217, 1.10965],
                "out": [1.45942, 1.63645, 1.43232],
            },
        ),
    ],
)
def test_heads_stay_what_they_were_when_they_agreed_with_the_published_ones(
    network: type[torch.nn.Module],
    guidance: tuple[torch.Tensor, ...],
    expected: dict[str, list[float]],
) -> None:
    """Where the reference data is absent: order of the layers, skips, norms, which head is which."""
    heads = weighted_by_waves(network())(waves(1, 4, 2, 3, phase=1), *guidance)
    assert tuple(heads) == HEADS
    for name, values in expected.items():
        assert heads[name].flatten()[::8].tolist() == pytest.approx(values, rel=1e-4), name


@pytest.mark.parametrize(
    ("decoder", "skip", "below"),
    [
        ("conv3_1", "conv3_0", "conv4_0"),
        ("conv2_2", "conv2_0", "conv3_1"),
        ("conv1_3", "conv1_0", "conv2_2"),
        ("conv0_4", "input_blocks", "conv1_3"),
    ],
)
def test_a_decoder_stage_takes_the_skip_connection_then_the_stage_below(
    decoder: str, skip: str, below: str
) -> None:
    network = ResAttnUNet_DS()
    outputs: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
            inputs[name], outputs[name] = args[0], output

        return hook

    for name in (decoder, skip, below):
        network.get_submodule(name).register_forward_hook(record(name))
    network(torch.randn(1, 4, 2, 3))
    torch.testing.assert_close(
        inputs[decoder], torch.cat([outputs[skip], outputs[below]], dim=1), rtol=0, atol=0
    )


def test_guidance_is_the_details_of_the_image_in_minus_one_to_one() -> None:
    image = torch.rand(2, 3, 16, 24)
    details = haar_details(image)
    assert details.shape == (2, 9, 2, 3)
    torch.testing.assert_close(details, 2 * haar_pyramid(image)[2][:, 3:])


def test_attention_is_the_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(16), torch.randn(2, 16, 3, 5)
    normed = layer.norm(x)
    q, k, v = (project(normed).flatten(2) for project in (layer.q, layer.k, layer.v))
    weights = (torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(16)).softmax(dim=2)
    expected = x + layer.proj_out(torch.einsum("bnm,bcm->bcn", weights, v).view_as(x))
    torch.testing.assert_close(layer(x), expected)


def test_norms_add_a_millionth_to_the_variance() -> None:
    x = torch.tensor([-1e-3, 1e-3]).repeat(16).view(1, 32, 1, 1)  # of the same size in each group
    torch.testing.assert_close(group_norm(32)(x), x.sign() / math.sqrt(2))


def test_sft_scales_and_shifts() -> None:
    layer, x = SFT(16), torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        for convolution, value in ((layer.gamma, 3.0), (layer.beta, -1.0)):
            convolution.weight.zero_()
            convolution.bias.fill_(value)
    torch.testing.assert_close(layer(x, torch.randn(1, 3, 4, 4)), 3 * x - 1)


@pytest.mark.parametrize("network", [ResAttnUNet_DS, SFT_UNet_DS])
def test_convolutions_start_kaiming_normal_by_fan_out(
    network: type[ResAttnUNet_DS] | type[SFT_UNet_DS],
) -> None:
    torch.manual_seed(0)
    weights = network().state_dict()
    for key, fan_out in (("resblock.conv1.2", 9 * 128), ("attention.q", 128)):
        std = weights[f"conv3_1.{key}.weight"].std().item()
        assert std == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
        assert not weights[f"conv3_1.{key}.bias"].any()


def test_width_and_multipliers_shape_the_stages() -> None:
    network = ResAttnUNet_DS(ch=16, ch_mult=(1, 3, 2, 4))
    heads = network(torch.randn(1, 4, 2, 3))
    assert network.conv2_0.attention.q.out_channels == 48
    assert network.conv4_0.attention.q.out_channels == 64
    assert all(head.shape == (1, 4, 2, 3) for head in heads.values())
