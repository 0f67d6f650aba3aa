from __future__ import annotations

import pytest
import torch

from models.encoder import HaarEncoder
from models.haar import haar_pyramid
from tests.autoencoders import parity, relative_error, waves, weighted_by_waves


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("litevae", 1_035_692),
        ("litevae-b", 6_750_636),
        ("litevae-m", 32_750_124),
        ("litevae-l", 41_422_380),
    ],
)
def test_parameter_count(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(HaarEncoder(name)) == parameters


def test_parameter_count_of_the_parts() -> None:
    encoder = HaarEncoder("litevae").encoder
    assert count(encoder.feature_extractor_L1) == 258_204
    assert count(encoder.feature_aggregator) == 261_080


def test_agrees_with_the_published_encoder(shared) -> None:
    weights, tensors = parity(shared, "encoder")
    encoder = HaarEncoder("litevae")
    encoder.load_state_dict(weights)
    with torch.no_grad():
        moments = encoder.encoder(*haar_pyramid(tensors["image"]))
        mean, deviation = encoder(tensors["image"])
    assert relative_error(moments, tensors["moments"]) < 1e-5
    assert relative_error(mean, tensors["mean"]) < 1e-5
    expected = (0.5 * tensors["moments"][:, 4:]).exp()
    assert relative_error(deviation, expected) < 1e-5


def test_outputs_stay_what_they_were_when_they_agreed_with_the_published_ones() -> None:
    """Where the reference data is absent: order of the layers, skips, groups of the norms, pooling."""
    mean, deviation = weighted_by_waves(HaarEncoder("litevae"))((1 + waves(1, 3, 16, 24)) / 2)
    expected = ([2.98989, 2.55736, -1.69172], [3.04862, 5.49839, 3.97126])
    for moment, values in zip((mean, deviation), expected, strict=True):
        assert moment.flatten()[::8].tolist() == pytest.approx(values, rel=1e-4)


@pytest.mark.parametrize(("log_variance", "clamped"), [(100.0, 20.0), (-100.0, -30.0)])
def test_log_variance_is_clamped(log_variance: float, clamped: float) -> None:
    encoder = HaarEncoder("litevae")
    out_layer = encoder.encoder.feature_aggregator.out_layer
    torch.nn.init.zeros_(out_layer.weight)
    out_layer.bias = torch.nn.Parameter(torch.tensor([0.25] * 4 + [log_variance] * 4))
    mean, deviation = encoder(torch.rand(1, 3, 16, 16))
    assert (mean == 0.25).all()
    expected = torch.full_like(deviation, clamped / 2).exp()
    torch.testing.assert_close(deviation, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["litevae", "litevae-b"])
def test_every_weight_takes_a_gradient(name: str) -> None:
    encoder = HaarEncoder(name)
    mean, deviation = encoder(torch.rand(1, 3, 16, 24))
    assert mean.shape == deviation.shape == (1, 4, 2, 3)
    (mean * deviation).sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_the_moments_are_float32_in_mixed_precision() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mean, deviation = HaarEncoder("litevae")(torch.rand(1, 3, 16, 16))
    assert mean.dtype == deviation.dtype == torch.float32
