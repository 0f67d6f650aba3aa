"""A network of the user's own, named in the config as `package.module:function`.

Shapes: image (B, 3, S, S) in [0, 1] -> logits (B, 1, S, S).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.base import SegmentationModel
from models.baseline import Baseline
from utils.errors import UserError, listed
from utils.own_functions import OwnFunction
from utils.random_numbers import python_and_numpy_kept

log = logging.getLogger("wavegms")

SHOWN = 4  # weights in a message
COLUMNS = frozenset(
    {"epoch", "lr", "dice", "train_dice", "val_dice", "val_iou", "test_dice", "test_iou"}
)
"""Other columns of history.csv; no loss may have these names."""


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
    function = OwnFunction("model", spec)
    given = {"in_channels": 3, "out_channels": 1, "image_size": image_size}
    called = function.call_text(**given)
    log.info("network: %s of %s", function.name.partition(":")[2], function.file)
    network = function(**given)
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
    gpus = [torch.cuda.current_device()] if device == "cuda" else []
    with python_and_numpy_kept(), torch.random.fork_rng(devices=gpus):
        torch.manual_seed(0)
        of_image, of_mask, of_noise = system.batch_shapes(2, image_size)
        image = torch.rand(of_image).to(device)
        mask = (torch.rand(of_mask) > 0.5).float().to(device)
        noise = torch.zeros(of_noise, device=device)
        losses = system.train()(image, mask, noise)
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


def _trial_device() -> str:
    """The device on which a network is tried out: a GPU if there is one, since some run nowhere else."""
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
