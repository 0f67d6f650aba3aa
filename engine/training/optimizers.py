"""The optimisers of a training: AdamW, and Muon for the weights that are matrices.

Source: Muon, Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); the size of its updates, with
which AdamW's learning rate and weight decay can stay, Liu et al. 2025 (arXiv 2502.16982), section 2.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

OptimizerName = Literal["adamw", "muon"]

SMALLEST_SIDE = 8  # channels in and out; weights with fewer, as those of a latent's 4, are AdamW's
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # brings all singular values near 1 in these iterations
ADAMW_SIZE = 0.2  # root mean square of an update of AdamW, in learning rates


def make_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> Optimizer:
    """The optimiser that the config calls `name`, for those of `parameters` that are trained."""
    trained = [p for p in parameters if p.requires_grad]
    if name == "muon":
        return Muon(trained, lr, weight_decay)
    return AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)


def is_matrix(weight: Tensor) -> bool:
    """Whether Muon takes it: the weight of a convolution or linear layer between 8 channels or more.

    It goes by the shape alone, so that in other networks a table of embeddings counts, too.
    """
    return weight.dim() > 1 and min(weight.shape[:2]) >= SMALLEST_SIDE


class Muon(Optimizer):
    """Momentum that is orthogonalised, for convolutions and linear layers; AdamW for everything else.

    The weight (out, in, k, k) of a convolution counts as a matrix (out, in k k). All singular values of its
    update are near 1, so that rare directions of the gradients are learned as fast as frequent ones; the
    update is as large as one of AdamW, whose learning rate and decoupled weight decay it takes.

    Args:
        parameters: what to train, see `is_matrix` for which kind takes which way.
        momentum: of the matrices (Nesterov's).
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in parameters:
            kinds[is_matrix(parameter)].append(parameter)
        settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        settings |= {"betas": betas, "eps": eps}
        settings |= {"fused": True}  # a saved state's steps then go where the parameters are
        super().__init__(
            [{"params": group, "matrices": kind} for kind, group in kinds.items() if group],
            settings,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update all parameters that have a gradient; `closure` is not supported."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained:
                (self._step_matrices if group["matrices"] else self._step_others)(group, trained)

    def _step_matrices(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        gradients = [w.grad for w in weights if w.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's

        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        of_shape = defaultdict(list)
        for weight, update in zip(weights, updates, strict=True):
            of_shape[weight.shape].append((weight, update))
        for shape, pairs in of_shape.items():  # together, or a GPU would wait for their launches
            same, stacked = [w for w, _ in pairs], torch.stack([u for _, u in pairs])
            orthogonal = orthogonalise(stacked.flatten(2))
            size = ADAMW_SIZE * max(orthogonal.shape[1:]) ** 0.5
            torch._foreach_add_(
                same, orthogonal.view(-1, *shape).unbind(), alpha=-group["lr"] * size
            )

    def _step_others(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (N, m, n) with the same singular vectors, and singular values near 1; zeros stay.

    Values above a hundredth of the largest come out between 0.3 and 1.25. By Newton-Schulz iterations, for
    which all are first scaled to a norm of 1.
    """
    a, b, c = QUINTIC
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
