"""How much arithmetic a call takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

_ATEN = torch.ops.aten
# Attention on the CPU, which torch counts as nothing, by torch's formulas for the same on a GPU.
for _name in (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_backward",
):
    _on_cpu = getattr(_ATEN, _name.replace("flash_attention", "flash_attention_for_cpu"), None)
    if _on_cpu is not None:
        flop_registry.setdefault(_on_cpu, flop_registry[getattr(_ATEN, _name)])


def multiply_adds(method: Callable[..., Any], arguments: Sequence[Tensor]) -> tuple[float, float]:
    """Multiply-adds (MACs) of a call, and of the gradients of what requires some.

    Convolutions and matrix products count (torch.utils.flop_counter). `method` is a module or one
    of its bound methods; no gradient is left behind in the module.
    """
    inputs = [a.detach().requires_grad_(a.requires_grad) for a in arguments]
    with FlopCounterMode(display=False) as counter:
        outputs = [o for o in _tensors(method(*inputs)) if o.requires_grad]
        forward = counter.get_total_flops()
        if outputs:
            torch.autograd.backward([o.sum() for o in outputs])
        total = counter.get_total_flops()
    owner = method if isinstance(method, torch.nn.Module) else getattr(method, "__self__", None)
    if isinstance(owner, torch.nn.Module):
        owner.zero_grad()
    return forward / 2, (total - forward) / 2


def _tensors(result: Any) -> list[Tensor]:
    """The tensors in a tensor, a mapping or a sequence."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        return [t for value in result.values() for t in _tensors(value)]
    if isinstance(result, Sequence):
        return [t for value in result for t in _tensors(value)]
    return []
