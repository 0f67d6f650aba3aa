from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import train
from engine.training.optimizers import ADAMW_SIZE, Muon, make_optimizer, orthogonalise
from tests.small_run import arguments

LR, DECAY = 0.01, 0.1


def network() -> nn.Sequential:
    """Three convolutions that are matrices, two of one shape, and one from and one to too few channels."""
    torch.manual_seed(0)
    widths = [(4, 16, 3), (16, 16, 3), (16, 16, 3), (16, 32, 1), (32, 4, 3)]
    layers = [nn.Conv2d(before, after, side) for before, after, side in widths]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def gradients_of(model: nn.Module, seed: int = 0) -> list[Tensor]:
    """Random gradients, the same for the same seed, which `model` gets."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=random)
        parameter.grad = torch.empty_like(parameter).copy_(drawn)  # laid out as autograd does
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 64, 16), (1, 32, 32)])
def test_singular_values_are_brought_near_1(shape: tuple[int, int, int]) -> None:
    # as gradients have them: a few large ones, and many that are a hundredth of these
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=torch.manual_seed(0)), False)
    values = torch.logspace(0, -2, min(shape[1:]))
    result = orthogonalise(left @ torch.diag(values) @ right)
    turned = left.mT @ result @ right.mT
    found = turned.diagonal(dim1=1, dim2=2)
    assert found.min() > 0.3 and found.max() < 1.25
    torch.testing.assert_close(turned, torch.diag_embed(found), atol=1e-4, rtol=0)


def test_a_zero_gradient_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 8, 16)), torch.zeros(2, 8, 16))


def test_a_first_step_is_orthogonal_and_of_the_size_of_adamws() -> None:
    model = network()
    before = copy.deepcopy(model)
    gradients = gradients_of(model)
    make_optimizer("muon", model.parameters(), LR, DECAY).step()
    for index in (1, 2, 3):
        old, new = before[index].weight.data, model[index].weight.data
        update = ((old * (1 - LR * DECAY) - new) / LR).flatten(1)
        size = ADAMW_SIZE * max(update.shape) ** 0.5
        expected = orthogonalise(gradients[2 * index].flatten(1)[None])[0] * size
        torch.testing.assert_close(update, expected, atol=2e-3, rtol=1e-3)
        rms = update.square().mean().sqrt()
        assert 0.6 * ADAMW_SIZE < rms < 1.1 * ADAMW_SIZE


@pytest.mark.parametrize(
    "layer", [nn.Linear(16, 40), nn.ConvTranspose2d(24, 16, 2), nn.Conv3d(8, 16, 3)]
)
def test_weights_of_other_layers_are_matrices_too(layer: nn.Module) -> None:
    weight = copy.deepcopy(layer).get_parameter("weight")
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.manual_seed(0))
    make_optimizer("muon", [weight], LR, 0.0).step()
    values = torch.linalg.svdvals((before - weight.detach()).flatten(1) / LR)
    size = ADAMW_SIZE * max(weight.flatten(1).shape) ** 0.5
    assert values.min() > 0.3 * size and values.max() < 1.25 * size


def test_momentum_is_nesterovs() -> None:
    model = network()
    optimizer = Muon(model.parameters(), LR, 0.0, momentum=0.5)
    first = gradients_of(model, 1)[2].flatten(1)
    optimizer.step()
    before = model[1].weight.detach().clone()
    second = gradients_of(model, 2)[2].flatten(1)
    optimizer.step()
    momentum = 0.5 * (0.5 * first) + 0.5 * second
    expected = orthogonalise((0.5 * momentum + 0.5 * second)[None])[0]
    update = (before - model[1].weight.detach()).flatten(1)
    cosine = torch.cosine_similarity(update.flatten(), expected.flatten(), dim=0)
    assert cosine > 1 - 1e-5


def test_biases_and_the_few_channels_of_latents_are_left_to_adamw() -> None:
    ours, theirs = network(), network()
    muon = make_optimizer("muon", ours.parameters(), LR, DECAY)
    adamw = make_optimizer("adamw", theirs.parameters(), LR, DECAY)
    for turn in range(3):
        for model, optimizer in ((ours, muon), (theirs, adamw)):
            gradients_of(model, turn)
            optimizer.step()
    same = {
        name for name, p in ours.named_parameters() if torch.equal(p, theirs.get_parameter(name))
    }
    assert same == {"0.weight", "4.weight", *(f"{index}.bias" for index in range(5))}


def test_only_what_has_a_gradient_is_trained() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model)
    gradients_of(model)
    model[1].weight.grad = model[4].weight.grad = None
    make_optimizer("muon", model.parameters(), LR, DECAY).step()
    changed = {
        n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))
    }
    assert changed == {"1.bias", "2.weight", "2.bias", "3.weight", "3.bias", "4.bias"}


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_a_saved_state_goes_on_as_if_it_had_not_stopped(device: str, tmp_path: Path) -> None:
    whole, parts = network().to(device), network().to(device)
    one, other = (make_optimizer("muon", m.parameters(), LR, DECAY) for m in (whole, parts))
    for turn in range(4):
        for model, optimizer in ((whole, one), (parts, other)):
            gradients_of(model, turn)
            optimizer.step()
        if turn == 1:
            torch.save(other.state_dict(), tmp_path / "state.pth")
            other = make_optimizer("muon", parts.parameters(), LR, DECAY)
            other.load_state_dict(torch.load(tmp_path / "state.pth", map_location="cpu"))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_config_chooses_it(tmp_path: Path, vae: Path) -> None:
    def ends(out: str, *settings: str) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        train.main(arguments(tmp_path, vae, *settings, "epochs=1", out=out))
        state = torch.load(tmp_path / out / "epochs_1" / "last.pth", weights_only=True)
        return state["weights"]["model"], list(state["optimizer"]["state"].values())

    plain, _ = ends("plain")
    adamw, adamw_state = ends("adamw", "optimizer=adamw")
    muon, muon_state = ends("muon", "optimizer=muon")
    assert all(torch.equal(plain[name], adamw[name]) for name in plain)
    assert any(not torch.equal(plain[name], muon[name]) for name in plain)
    assert not any("momentum" in state for state in adamw_state)
    assert any("momentum" in state for state in muon_state)
