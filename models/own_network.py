"""A network of the user's own, named in the config as `package.module:function`.

Naming it imports the module and calls the function: it is the one place where a config runs code.

Shapes: image (B, 3, S, S) in [0, 1] -> logits (B, 1, S, S).
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.base import SegmentationModel
from models.baseline import Baseline
from utils.errors import UserError

log = logging.getLogger("wavegms")


def build_own_network(spec: str, image_size: int) -> SegmentationModel:
    """What the function that `spec` names returns for `in_channels=3, out_channels=1, image_size`.

    That is a network from image to logits, trained as a baseline is, or a SegmentationModel, which
    brings its own losses. Errors within the user's code are left as they are.

    Raises:
        UserError: there is no such module or function, it cannot be called so, or what it returns
            cannot be trained or is of another shape.
    """
    function = _import(spec)
    arguments = {"in_channels": 3, "out_channels": 1, "image_size": image_size}
    called = f"{spec}({', '.join(f'{name}={value}' for name, value in arguments.items())})"
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{called}: the function cannot be called so, {error}") from error
    except ValueError:
        pass  # written in C, it has no signature to read
    network = function(**arguments)
    if not isinstance(network, nn.Module):
        raise UserError(f"{called} returned {_described(network)}, expected a torch.nn.Module")
    output = _output(network, image_size)
    expected = (1, 1, image_size, image_size)
    if not isinstance(output, Tensor) or output.shape != expected:
        raise UserError(
            f"{called}: for an image (1, 3, {image_size}, {image_size}) the network returned "
            f"{_described(output)}, expected a tensor {expected}: a logit for each pixel"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"{called}: the network has no parameter to train")
    return network if isinstance(network, SegmentationModel) else Baseline(network)


def _import(spec: str) -> Callable[..., Any]:
    """The function that `package.module:function` names."""
    name, _, attribute = spec.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; one that it imports is not
        raise UserError(
            f"model {spec!r}: there is no module {error.name!r}. It is looked for beside train.py, in "
            "the folders of PYTHONPATH and among the installed packages"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "no such name" if function is None else f"a {type(function).__name__}"
        raise UserError(f"model {spec!r}: expected a function in {module.__file__}, found {found}")
    log.info("network: %s of %s", attribute, module.__file__)
    return function


@torch.no_grad()
def _output(network: nn.Module, image_size: int) -> Any:
    """Output of the network in eval mode for an empty image."""
    training = network.training
    output = network.eval()(torch.zeros(1, 3, image_size, image_size))
    network.train(training)
    return output


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"a {type(value).__name__}"
