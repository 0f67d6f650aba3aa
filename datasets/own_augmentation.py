"""An augmentation of the user's own, named in the config as `augment: package.module:function`."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from utils.errors import UserError
from utils.own_functions import OwnFunction
from utils.random_numbers import python_and_numpy_kept

log = logging.getLogger("wavegms")

TRIALS = 8  # samples on which an augmentation is tried out
TOLERANCE = 1e-3  # by which interpolation may leave [0, 1]


class OwnAugmentation:
    """What the function returns for `image_size` and its options: a callable from image and mask to both.

    It is given a `tv_tensors.Image` (3, S, S) and a `tv_tensors.Mask` (1, S, S) of 0 and 1, both uint8, and
    returns tensors of these shapes, the image as uint8 or as floats in [0, 1]. What it draws from the global
    generators of torch, numpy and Python follows from the sample's seed.

    Raises:
        UserError: the function is not there or cannot be called so, or what it returned does not do this.
    """

    def __init__(self, spec: str, image_size: int) -> None:
        self.spec = spec
        self.image_size = image_size
        function = OwnFunction("augment", spec)
        self._called = function.call_text(image_size=image_size)
        self._transform = function(image_size=image_size)
        if not callable(self._transform):
            raise UserError(
                f"{self._called} returned a {type(self._transform).__name__}, expected a function or an object "
                "to call with an image and a mask"
            )

    def __reduce__(self) -> tuple[type[OwnAugmentation], tuple[str, int]]:
        """Loader processes that do not share this one's memory build it anew, so it may hold anything."""
        return OwnAugmentation, (self.spec, self.image_size)

    def __call__(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """Image (3, S, S) float32 in [0, 1] and mask (1, S, S) float32 of 0 and 1."""
        with python_and_numpy_kept(seed=int(torch.randint(1 << 32, ()))):
            result = self._transform(image.clone(), mask.clone())  # it may work in place
        return self._checked(result)

    def try_out(self) -> None:
        """UserError where it fails on made-up samples; a warning where they cannot be repeated."""
        repeated = True
        with torch.random.fork_rng(devices=[]):
            for seed in range(TRIALS):
                once, again = self._sample(seed), self._sample(seed)
                repeated &= all(map(torch.equal, once, again))
        if not repeated:
            log.warning(
                "%s draws random numbers that do not follow from the seed, so that no run can be repeated: draw "
                "them from the global generators of torch, numpy or Python",
                self._called,
            )

    def _sample(self, seed: int) -> tuple[Tensor, Tensor]:
        size = self.image_size
        torch.default_generator.manual_seed(seed)
        image = torch.randint(256, (3, size, size), dtype=torch.uint8)
        mask = torch.zeros(1, size, size, dtype=torch.uint8)
        mask[:, size // 4 : size // 2, size // 4 :] = 1
        return self(tv_tensors.Image(image), tv_tensors.Mask(mask))

    def _checked(self, result: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise self._error(f"a {type(result).__name__}", "a pair of image and mask")
        image, mask = result
        size = self.image_size
        for name, value, channels in (("image", image, 3), ("mask", mask, 1)):
            shape = (channels, size, size)
            if not isinstance(value, Tensor) or value.shape != shape:
                what = f"{tuple(value.shape)}" if hasattr(value, "shape") else "no shape"
                got = f"as {name} a {type(value).__name__} of {what}"
                raise self._error(got, f"a tensor {shape}")
        image = image.as_subclass(Tensor)
        scaled = image.dtype == torch.uint8
        image = v2.functional.to_dtype(image, torch.float32, scale=scaled)
        if not (image.min() >= -TOLERANCE and image.max() <= 1 + TOLERANCE):  # NaN is in no range
            got = f"an image of {image.min():.4g} to {image.max():.4g}"
            raise self._error(
                got, "uint8, or floats from 0 to 1 (standardising is up to the model)"
            )
        mask = mask.as_subclass(Tensor).float()
        if not ((mask == 0) | (mask == 1)).all():
            odd = mask[(mask != 0) & (mask != 1)][0]
            raise self._error(
                f"a mask with {odd:.4g}",
                "0 and 1: move masks by nearest neighbour, without interpolation",
            )
        return image.clamp(0, 1), mask

    def _error(self, got: str, expected: str) -> UserError:
        return UserError(f"what {self._called} returned gave {got}, expected {expected}")
