"""A network of the user's own, named in the config as `package.module:function`.

Options follow as in `package.module:function?width=32&depth=3`, each value written as in YAML. Naming it
imports the module and calls the function: it is the one place where a config runs code.

Shapes: image (B, 3, S, S) in [0, 1] -> logits (B, 1, S, S).
"""

from __future__ import annotations

import importlib
import inspect
import logging
import random
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.base import SegmentationModel
from models.baseline import Baseline
from utils.errors import UserError, listed
from utils.yaml_files import parse_yaml, shown

log = logging.getLogger("wavegms")

SHOWN = 4  # weights in a message
COLUMNS = frozenset(
    {"epoch", "lr", "dice", "train_dice", "val_dice", "val_iou", "test_dice", "test_iou"}
)
"""Names that history.csv has for something else than a loss."""

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers as 1e-3, which are text in YAML 1.1."""


def is_own_network(model: str) -> bool:
    """Whether `model` of a config names a function, `package.module:function`, with options or without."""
    return ":" in model and not model.startswith("smp/")


def build_own_network(spec: str, image_size: int) -> SegmentationModel:
    """What the function that `spec` names returns for `in_channels=3, out_channels=1, image_size`
    and the options in `spec`.

    That is a network from image to logits, trained as a baseline is, or a SegmentationModel, which
    brings its own losses. It is `capturable` only if the function has set that. Errors within the user's
    code are left as they are.

    Raises:
        UserError: there is no such module or function, it cannot be called so or does not take an
            option, or what it returns cannot be trained, is of another shape, or trains what it would
            not save.
    """
    name, _, query = spec.partition("?")
    given = {"in_channels": 3, "out_channels": 1, "image_size": image_size}
    options = _options(spec, query)
    if twice := given.keys() & options.keys():
        raise UserError(
            f"model {spec!r}: {', '.join(sorted(twice))} cannot be an option, since every network is given it: leave "
            "it out (image_size is a key of the config)"
        )
    function = _import(name)
    arguments = given | options
    called = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    try:
        signature = inspect.signature(function)
        _check_options(spec, options, signature, given)
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"{called}: the function cannot be called so, {error}") from error
    except ValueError:
        pass  # written in C, it has no signature to read
    network = function(**arguments)
    if not isinstance(network, nn.Module):
        raise UserError(f"{called} returned {_described(network)}, expected a torch.nn.Module")
    device = _trial_device()
    output = _output(network.to(device), torch.zeros(1, 3, image_size, image_size, device=device))
    network.to("cpu")
    expected = (1, 1, image_size, image_size)
    if not isinstance(output, Tensor) or output.shape != expected:
        raise UserError(
            f"{called}: for an image (1, 3, {image_size}, {image_size}) the network returned "
            f"{_described(output)}, expected a tensor {expected}: a logit for each pixel"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"{called}: the network has no parameter to train")
    system = network if isinstance(network, SegmentationModel) else Baseline(network)
    # WaveGMS promises it for its own parts and losses alone
    system.capturable = bool(vars(system).get("capturable", False))
    saved = {id(p) for part in system.parts().values() for p in part.parameters()}
    lost = [name for name, p in system.named_parameters() if p.requires_grad and id(p) not in saved]
    if lost:
        raise UserError(
            f"{called}: {listed(lost, SHOWN)} would be trained but not saved, since parts() has no module with "
            "them: return one for each from parts()"
        )
    return system


def check_training(system: SegmentationModel, image_size: int) -> None:
    """Run the system once as training does; its weights, buffers and random numbers stay as they are.

    The system comes back on the CPU.

    Raises:
        UserError: the losses are not scalars under `loss_names`, or are named like other columns of
            history.csv. Where the network ends in a sigmoid there is a warning.
    """
    names = system.loss_names
    if names[:1] != ("loss",) or COLUMNS & set(names):
        raise UserError(
            f"loss_names is {names}: expected 'loss', the total, first, and none of "
            f"{', '.join(sorted(COLUMNS))}, which are columns of history.csv"
        )
    device = _trial_device()
    system.to(device)
    buffers = [
        (owner._buffers, name, buffer, buffer.clone())
        for owner in system.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(0)
        of_image, of_mask, of_noise = system.batch_shapes(2, image_size)
        image = torch.rand(of_image).to(device)
        mask = (torch.rand(of_mask) > 0.5).float().to(device)
        noise = torch.zeros(of_noise, device=device)
        losses = system.train()(image, mask, noise)
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    for owner, name, buffer, before in buffers:  # changed in place, or replaced
        owner[name] = buffer.copy_(before)
    for name in (*names, "dice"):
        value = losses.get(name) if isinstance(losses, dict) else losses
        if not isinstance(value, Tensor) or value.shape != ():
            raise UserError(
                f"{type(system).__name__} in training: expected a scalar tensor {name!r} among the losses, got "
                f"{_described(value)}"
            )
    if isinstance(system, Baseline):
        with _LastOperation() as last:
            _output(system.network, image[:1])
        if last.name in ("sigmoid", "sigmoid_"):
            log.warning("the network ends in a sigmoid: leave it out, since the loss applies one")
    system.to("cpu")


class _LastOperation(TorchDispatchMode):
    """Notes the name of the operation that torch did last."""

    name = ""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.name = function.overloadpacket.__name__
        return function(*args, **(kwargs or {}))


def _options(spec: str, query: str) -> dict[str, str | float | bool | None]:
    """The options in `name=value&name=value`; UserError where one is given twice or is no plain value."""
    options: dict[str, str | float | bool | None] = {}
    for option in query.split("&") if query else ():
        name, _, text = option.partition("=")
        if name in options:
            raise UserError(f"model {spec!r}: the option {name!r} is given twice; leave one out")
        value = float(text) if EXPONENT.fullmatch(text) else parse_yaml(text, f"model {spec!r}")
        if value is not None and not isinstance(value, (str, int, float)):
            raise UserError(
                f"model {spec!r}: the option {name!r} is {shown(value)}, expected a number, a word, true, false or "
                "null; quote text that YAML takes for something else"
            )
        options[name] = value
    return options


def _check_options(
    spec: str, options: Iterable[str], signature: inspect.Signature, given: Iterable[str]
) -> None:
    """UserError for an option that a function of this signature does not take."""
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    if inspect.Parameter.VAR_KEYWORD in kinds.values():
        return
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [name for name, kind in kinds.items() if kind in by_name and name not in given]
    for option in options:
        if option not in known:
            close = get_close_matches(option, known, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known) or 'none'}"
            )
            raise UserError(f"model {spec!r}: the function has no option {option!r}; {hint}")


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


def _trial_device() -> str:
    """Where a network is tried out: on the GPU where there is one, since some run nowhere else."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@torch.no_grad()
def _output(network: nn.Module, image: Tensor) -> Any:
    """Output of the network in eval mode."""
    training = network.training
    output = network.eval()(image)
    network.train(training)
    return output


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"a {type(value).__name__}"
