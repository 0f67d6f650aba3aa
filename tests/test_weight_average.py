"""The moving average of the weights in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.training.weight_average import WeightAverage
from models.baseline import Baseline
from models.build import build_system
from models.losses import LossWeights
from tests.own_networks import masked


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers by name, also those that are not saved."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def change(system: torch.nn.Module) -> None:
    """Move the trained weights, as a step does."""
    with torch.no_grad():
        for weight in system.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight)


def test_it_is_torchs_average_of_the_trained_weights_and_the_rest_is_shared(vae: Path) -> None:
    torch.manual_seed(0)
    system: Any = build_system(
        vae_model="litevae",
        guidance_method=None,
        vae_weights=vae,
        ch=16,
        ch_mult=(1, 1, 1, 1),
        loss_weights=LossWeights(),
    )
    expected: Any = AveragedModel(system, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average = WeightAverage(system, 0.9)
    for _ in range(3):
        change(system)
        expected.update_parameters(system)
        average.update()
    assert average.count == 3
    originals, of_torch = tensors(system), tensors(expected.module)
    for name, value in tensors(average.system).items():
        assert torch.equal(value, of_torch[name]), name
        assert (value.data_ptr() == originals[name].data_ptr()) == name.startswith("vae."), name


def test_the_average_has_modes_of_its_own() -> None:
    system = Baseline(torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.Dropout()))
    system.network[0].requires_grad_(False)
    average = WeightAverage(system, 0.9).system
    average.eval()
    assert all(module.training for module in system.modules())
    assert average.network[0].weight is system.network[0].weight


def test_statistics_are_copied_and_constants_of_infinity_stay() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), masked())
    constant = torch.nn.Parameter(torch.tensor(-torch.inf), requires_grad=False)
    network.register_parameter("constant", constant)
    system = Baseline(network)
    average = WeightAverage(system, 0.9)
    for _ in range(3):
        change(system)
        system(torch.rand(2, 3, 8, 8))
        network[1].num_batches_tracked = network[1].num_batches_tracked + 1
        average.update()
        for name, buffer in system.named_buffers():
            assert torch.equal(average.system.get_buffer(name), buffer), name
    assert average.system.network.constant.isneginf()
