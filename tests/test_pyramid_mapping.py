from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.pyramid_mapping import DilatedContext, Merge, PyramidMapping, SubPixelHead


def test_it_has_fewer_parameters_than_the_published_mapping() -> None:
    assert sum(parameter.numel() for parameter in PyramidMapping().parameters()) == 1_080_404


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (10, 12), (28, 28)])
def test_heads_have_the_size_of_the_latent(size: tuple[int, int]) -> None:
    heads = PyramidMapping(ch=16)(torch.randn(2, 4, *size))
    assert tuple(heads) == ("level2", "level1", "out")
    assert all(head.shape == (2, 4, *size) for head in heads.values())


def test_width_and_multipliers_shape_the_stages() -> None:
    network = PyramidMapping(ch=16, ch_mult=(1, 3, 2, 4))
    widths = {
        name: network.get_submodule(name).out_channels
        for name in ("stem", "to_half", "to_quarter", "bottom.0", "merge_half.conv")
    }
    assert widths == {
        "stem": 16,
        "to_half": 48,
        "to_quarter": 32,
        "bottom.0": 64,
        "merge_half.conv": 48,
    }


@pytest.mark.parametrize("head", ["level2", "level1", "out"])
def test_every_head_sees_the_whole_latent_and_details_of_their_place(head: str) -> None:
    torch.manual_seed(0)
    latent = torch.randn(1, 4, 28, 28, requires_grad=True)
    PyramidMapping(ch=16)(latent)[head][0, :, 2, 2].sum().backward()
    reached = latent.grad.abs().sum(dim=(0, 1))
    assert (reached > 0).all()
    assert reached[:4, :4].mean() > 10 * reached[14:, 14:].mean()


def test_a_coarse_position_covers_two_by_two_fine_ones() -> None:
    merge = Merge(1, 1)
    with torch.no_grad():
        merge.conv.weight[:] = torch.tensor([10.0, 1.0]).view(1, 2, 1, 1)
    coarse = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    skip = torch.arange(9.0).view(1, 1, 3, 3)
    expected = torch.tensor([[10.0, 11.0, 22.0], [13.0, 14.0, 25.0], [36.0, 37.0, 48.0]])
    torch.testing.assert_close(merge(coarse, skip)[0, 0] - merge.conv.bias, expected)


def test_a_coarse_head_draws_each_fine_position_by_itself() -> None:
    torch.manual_seed(0)
    head, x = SubPixelHead(16, 4, 2), torch.randn(1, 16, 3, 3)
    conv = head.layers[2]
    channels = conv(F.silu(F.group_norm(x, 16, head.layers[0].weight, head.layers[0].bias, 1e-6)))
    latent = head(x, (5, 6))
    assert latent.shape == (1, 4, 5, 6)
    for channel, row, column in ((0, 0, 0), (3, 3, 4), (1, 4, 5)):
        of_place = channels[0, 4 * channel + 2 * (row % 2) + column % 2, row // 2, column // 2]
        torch.testing.assert_close(latent[0, channel, row, column], of_place)


def test_the_context_looks_one_two_and_three_positions_away() -> None:
    torch.manual_seed(0)
    layer = DilatedContext(16)
    layer.norm = torch.nn.Identity()  # which looks at every position
    x = torch.randn(1, 16, 9, 9, requires_grad=True)
    layer(x)[0, :, 4, 4].sum().backward()
    seen = (x.grad.abs().sum(dim=(0, 1)) > 0).nonzero() - 4
    expected = {(a * r, b * r) for r in (1, 2, 3) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    assert {tuple(offset) for offset in seen.tolist()} == expected


def test_convolutions_start_at_unit_gain_and_depthwise_ones_too() -> None:
    torch.manual_seed(0)
    weights = PyramidMapping(ch=64).state_dict()
    for key, fan_in in (("up_quarter.0.layers.0", 25), ("up_quarter.0.layers.2", 256)):
        assert weights[f"{key}.weight"].std().item() == pytest.approx(fan_in**-0.5, rel=0.05)
        assert not weights[f"{key}.bias"].any()
