"""torch.compile for the training pass."""

from __future__ import annotations

import logging
import os
import shutil
from types import MethodType
from typing import Any

from models.base import SegmentationModel

log = logging.getLogger("wavegms")


def compile_on_gpu(system: SegmentationModel) -> None:
    """`compile_losses`, but on a GPU only: on a CPU it takes minutes and gains nothing.

    What cannot be compiled runs as it is, with a warning; in older versions of torch only the forward pass.
    """
    import torch
    from torch._functorch import config as functorch_config

    if not torch.cuda.is_available():
        return
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), "cc", "gcc", "clang")):
        log.warning(
            "compile: needs a C compiler, and there is none (Debian, Ubuntu: apt install gcc); training "
            "goes on without"
        )
        return
    log.info("compile: the first training step takes some minutes")
    torch._dynamo.config.suppress_errors = True
    # the backward pass together with the forward pass: compiled later, its errors would not be suppressed
    backward_too = "force_non_lazy_backward_lowering"
    if hasattr(functorch_config, backward_too):
        setattr(functorch_config, backward_too, True)
    compile_losses(system)


def compile_losses(system: SegmentationModel) -> None:
    """Let `torch.compile` fuse the training pass of `system`, at its first call.

    Predictions stay as they are: they are few in a training, and compiling takes minutes.
    """
    import torch

    plain = type(system).forward
    compiled = torch.compile(plain, dynamic=False)

    def forward(self: SegmentationModel, image: Any, mask: Any = None, noise: Any = None) -> Any:
        return plain(self, image) if mask is None else compiled(self, image, mask, noise)

    # a method, so that a copy of the system (an average of its weights) has its own
    system.forward = MethodType(forward, system)  # type: ignore[method-assign]
