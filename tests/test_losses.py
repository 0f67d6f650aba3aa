from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.losses import (
    alignment_loss,
    dice_and_iou,
    dice_loss,
    focal_tversky_loss,
    hard_dice,
    latent_matching_loss,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_latent_matching_is_the_sum_of_mean_squares() -> None:
    heads, target = [random(2, 4, 3, 3, seed=seed) for seed in range(3)], random(2, 4, 3, 3, seed=9)
    expected = sum(np.mean((head.numpy() - target.numpy()) ** 2) for head in heads)
    assert latent_matching_loss(heads, target, [1, 1, 1]).item() == pytest.approx(
        expected, rel=1e-6
    )


def test_dice_is_averaged_over_samples() -> None:
    probability, mask = random(3, 1, 5, 6).sigmoid(), (random(3, 1, 5, 6, seed=1) > 0).float()
    losses = []
    for p, m in zip(probability.double().numpy(), mask.double().numpy(), strict=True):
        losses.append(1 - (2 * np.sum(p * m) + 1e-5) / (np.sum(p) + np.sum(m) + 1e-5))
    assert dice_loss(probability, mask).item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("loss", [dice_loss, focal_tversky_loss])
def test_a_mask_with_values_between_is_learned_as_it_is(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """As where teachers doubt: a wrong lesion, whether sure or not, costs more than their own doubt."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 2:5] = 0.2
    least = loss(mask, mask).item()
    assert least == pytest.approx(0, abs=2e-4)
    for wrong in (mask / 0.2, 2 * mask, mask / 2, torch.zeros_like(mask)):
        assert loss(wrong, mask).item() > least + 0.1
    logits = torch.full_like(mask, -3.0).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss(logits.sigmoid(), mask).backward()
        optimizer.step()
    torch.testing.assert_close(logits.detach().sigmoid(), mask, rtol=0, atol=0.05)


def test_dice_of_nothing_and_nothing_is_perfect() -> None:
    assert dice_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).item() == 0


def test_alignment_mixes_cosine_and_smooth_l1() -> None:
    sample, target = 2 * random(2, 4, 3, 5), random(2, 4, 3, 5, seed=1)
    a, b = sample.double().numpy(), target.double().numpy()
    cosine = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    distance = np.abs(a - b)
    smooth_l1 = np.where(distance < 1, 0.5 * distance**2, distance - 0.5)
    expected = 0.9 * (1 - cosine).mean() + 0.1 * smooth_l1.mean()
    assert alignment_loss(sample, target).item() == pytest.approx(expected, rel=1e-5)


def test_alignment_with_itself_is_zero() -> None:
    latent = random(1, 4, 3, 3)
    assert alignment_loss(latent, latent).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("probability", "mask", "dice"),
    [
        ([0.5, 0.9, 0.1, 0.0], [1, 1, 0, 0], 1.0),  # the threshold itself is foreground
        ([0.9, 0.9, 0.9, 0.0], [1, 0, 0, 0], 0.5),
        ([0.9, 0.0, 0.0, 0.0], [0, 0, 0, 1], 0.0),
        ([0.4, 0.0, 0.0, 0.0], [0, 0, 0, 1], 0.0),
        ([0.9, 0.0, 0.0, 0.0], [0, 0, 0, 0], 0.0),
        ([0.4, 0.0, 0.0, 0.0], [0, 0, 0, 0], 1.0),
    ],
)
def test_hard_dice(probability: list[float], mask: list[float], dice: float) -> None:
    shape = (1, 1, 2, 2)
    assert hard_dice(torch.tensor(probability).view(shape), torch.tensor(mask).view(shape)) == dice


def test_hard_dice_is_the_dice_that_the_checkpoint_is_chosen_by() -> None:
    probability, mask = random(5, 1, 9, 7).sigmoid(), (random(5, 1, 9, 7, seed=1) > 0).float()
    dice, _ = dice_and_iou(probability, mask, 0.5)
    shown = hard_dice(probability, mask)
    assert shown.dtype == torch.float32
    assert shown.item() == pytest.approx(dice.mean().item(), rel=1e-6)
    assert 0 < shown < 1 and shown != dice_and_iou(probability, mask, 0.4)[0].float().mean()


def test_hard_dice_is_averaged_over_samples() -> None:
    probability = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2)
    assert hard_dice(probability, mask).item() == pytest.approx((1 + 2 / 3) / 2)


def test_heads_are_weighted_and_the_distance_can_be_absolute() -> None:
    heads, target = [random(2, 4, 3, 3, seed=seed) for seed in range(3)], random(2, 4, 3, 3, seed=9)
    far = [np.abs(head.numpy() - target.numpy()).mean() for head in heads]
    expected = 0.5 * far[0] + 0.25 * far[1] + 2 * far[2]
    loss = latent_matching_loss(heads, target, [0.5, 0.25, 2], kind="l1")
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_focal_tversky_is_averaged_over_samples_and_weighs_misses_more() -> None:
    probability, mask = random(3, 1, 5, 6).sigmoid(), (random(3, 1, 5, 6, seed=1) > 0).float()
    losses = []
    for p, m in zip(probability.double().numpy(), mask.double().numpy(), strict=True):
        hit, missed, false = np.sum(p * m), np.sum((1 - p) * m), np.sum(p * (1 - m))
        losses.append((1 - hit / (hit + 0.7 * missed + 0.3 * false)) ** 0.75)
    loss = focal_tversky_loss(probability, mask).item()
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("probability", "mask", "expected"),
    [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0)],
)
def test_focal_tversky_at_its_ends_has_finite_gradients(
    probability: float, mask: float, expected: float
) -> None:
    p = torch.full((1, 1, 4, 4), probability, requires_grad=True)
    loss = focal_tversky_loss(p, torch.full((1, 1, 4, 4), mask))
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=2e-4)
    assert p.grad is not None and p.grad.isfinite().all()
