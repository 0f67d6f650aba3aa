from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch

from models.haar import haar_pyramid
from tests.autoencoders import parity, relative_error


def test_agrees_with_pywavelets() -> None:
    image = np.random.default_rng(0).random((2, 3, 48, 40))
    ours = haar_pyramid(torch.from_numpy(image))
    for level in (1, 2, 3):
        approximation, details, *_ = pywt.wavedec2(image, "haar", level=level)
        expected = np.concatenate([approximation, *details], axis=1) / 2**level
        np.testing.assert_allclose(ours[level - 1].numpy(), expected, atol=1e-12)


def test_agrees_with_the_published_pyramid(shared) -> None:
    _, tensors = parity(shared, "encoder")
    for level, ours in enumerate(haar_pyramid(tensors["image"]), start=1):
        assert relative_error(ours, tensors[f"haar{level}"]) < 1e-6


def test_approximation_is_the_block_mean_and_details_are_bounded() -> None:
    image = torch.randint(0, 2, (1, 3, 16, 16)).float()
    for level, coefficients in enumerate(haar_pyramid(image), start=1):
        mean = torch.nn.functional.avg_pool2d(image, 2**level)
        torch.testing.assert_close(coefficients[:, :3], mean)
        assert coefficients[:, 3:].abs().max() <= 0.5


@pytest.mark.parametrize(
    ("columns", "channel"), [(False, 1), (True, 2)], ids=["horizontal", "vertical"]
)
def test_an_edge_shows_in_its_own_detail(columns: bool, channel: int) -> None:
    image = torch.zeros(1, 1, 2, 2)
    image[..., 0, :] = 1
    (coefficients,) = haar_pyramid(image.mT if columns else image, levels=1)
    expected = torch.tensor([0.5, 0, 0, 0])
    expected[channel] = 0.5
    torch.testing.assert_close(coefficients.flatten(), expected)


def test_no_gradient_reaches_the_image() -> None:
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    assert not any(level.requires_grad for level in haar_pyramid(image))
