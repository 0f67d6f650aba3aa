"""Where a run computes: which GPUs, how many processes, which precision."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from models.base import SegmentationModel

log = logging.getLogger("wavegms")


def use_gpus(gpus: Sequence[int]) -> None:
    """Limit the process to `gpus`; with several, start it again as one process per GPU.

    Must run before anything touches CUDA. Where CUDA_VISIBLE_DEVICES is set already, `gpus` count those that
    it shows; where it shows fewer than that, its first ones are taken. A launch through torchrun is left
    as it is. UserError if fewer GPUs exist than are named.
    """
    import torch

    if "LOCAL_RANK" in os.environ:
        return
    # chosen before they are counted: where NVML is missing, counting them touches CUDA
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        shown = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        if max(gpus, default=0) < len(shown):
            chosen = [shown[gpu] for gpu in gpus]
            if chosen != shown[: len(gpus)] or not gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
        visible = torch.cuda.device_count()
        if 0 < visible < len(gpus):
            raise UserError(
                f"GPUs names {len(gpus)}, but CUDA_VISIBLE_DEVICES shows only {visible} of them"
            )
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        visible = torch.cuda.device_count()
        if visible < len(gpus):
            del os.environ["CUDA_VISIBLE_DEVICES"]
            if present := torch.cuda.device_count():
                missing = [gpu for gpu in gpus if gpu >= present]
                raise UserError(
                    f"GPUs names {missing}, but this machine has GPUs 0 to {present - 1}"
                )
    if visible and len(gpus) > 1:
        pass_on_signals()
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(gpus)}"]
        os.execv(sys.executable, [sys.executable, *launch, *sys.argv])


def pass_on_signals() -> None:
    """Let a torchrun that this process starts pass on the signals that stop a training, and wait.

    By default, and with torch before 2.10, SIGUSR1 ends it alone, and leaves its processes behind. A
    SIGHUP that is ignored, as under `nohup`, stays so. What the environment says already is left as it
    is.
    """
    names = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1"]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        names.remove("SIGHUP")
    # of newer and of older versions of torch
    for variable in ("PET_SIGNALS_TO_HANDLE", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        os.environ.setdefault(variable, ",".join(names))


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for later ones; does nothing where there is no glibc.

    By default it gives large blocks back to the system, which zeroes them page by page when the next
    step asks for them again: a fifth of the processor time of a training step on the CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # names in malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)  # other arenas cannot hold large blocks; backward runs in its own thread


def choose_layout(system: SegmentationModel, on_gpu: bool) -> None:
    """Put the weights, and with them the activations, into the faster memory layout.

    That is `channels_last`, except for a trained encoder on the CPU: the gradients of its weights, and
    its group norms, are faster in the contiguous one.
    """
    import torch

    if any(weight.dim() > 4 for weight in system.parameters()):
        return  # 3D convolutions have no such layout, and torch converts all weights or none
    system.to(memory_format=torch.channels_last)
    encoder = system.parts().get("vae_model")
    if encoder is not None and not on_gpu:
        encoder.to(memory_format=torch.contiguous_format)


def choose_precision(asked: str, on_gpu: bool) -> str:
    """`fp32`, `bf16` or `fp16`: what the config's `precision` stands for; UserError for fp16 on a CPU."""
    import torch

    if asked == "fp16" and not on_gpu:
        raise UserError("precision: fp16 needs a GPU; use fp32 (or auto) on the CPU")
    if asked != "auto":
        return asked
    if not on_gpu:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def bf16_on_this_cpu() -> str:
    """How this processor computes in bf16: `fast`, by units for matrix products (AMX, in most Intel
    Xeons since 2023), `slow`, without any instructions for it, or `unknown`, also where torch cannot
    tell.
    """
    import torch

    has: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if has.get("amx_bf16"):
        return "fast"
    return "slow" if has.get("avx512_bf16") is False else "unknown"


def set_up_torch(on_gpu: bool, deterministic: bool) -> None:
    """Settings of the whole process, for speed or for the same digits at each run."""
    import torch

    if not on_gpu:
        keep_freed_memory()
    torch.set_flush_denormal(True)  # denormal numbers slow CPU training several times
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.benchmark_limit = 3  # kernels tried: ten are no faster, but start later
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def make_accelerator(precision: str, accumulate: int, deterministic: bool) -> Accelerator:
    """The engine under the loop: device, mixed precision, gradient accumulation, processes."""
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, data_loader
    from accelerate.utils import DataLoaderConfiguration

    # where Hugging Face's `datasets` is installed, it would import our package of that name
    data_loader.is_datasets_available = lambda: False

    on_gpu = torch.cuda.is_available()
    chosen = choose_precision(precision, on_gpu)
    set_up_torch(on_gpu, deterministic)
    if not on_gpu and torch.cuda.device_count():
        log.warning(
            "there is an NVIDIA GPU, but PyTorch cannot use it, perhaps since its driver is too old for CUDA %s "
            "(`nvidia-smi` names the newest one that it takes): going on with the CPU",
            torch.version.cuda,
        )
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision="no" if chosen == "fp32" else chosen,
        gradient_accumulation_steps=accumulate,
        step_scheduler_with_optimizer=False,
        # a batch goes to the GPU while the step before is at work
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        # weights that take no part in the loss, such as those of the head level3, get no gradient
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    check_gpu(accelerator.device)
    return accelerator


def check_gpu(device: torch.device) -> None:
    """UserError where PyTorch has no kernels for this GPU, which it says only when it first computes."""
    import torch

    if device.type != "cuda":
        return
    try:
        torch.zeros(1, device=device).add_(1)
    except RuntimeError as error:
        if "no kernel image" not in str(error):
            raise
        major, minor = torch.cuda.get_device_capability(device)
        raise UserError(
            f"PyTorch {torch.__version__} has no kernels for {torch.cuda.get_device_name(device)}, compute "
            f"capability {major}.{minor}; it has those for {', '.join(torch.cuda.get_arch_list())}. Install a build "
            "for an older CUDA into .venv (pytorch.org, Get Started), or use the CPU: GPUs=[]"
        ) from error


def resolved_precision(accelerator: Accelerator) -> str:
    """`fp32`, `bf16` or `fp16`: what `precision: auto` stands for here."""
    return {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)


def describe_device(accelerator: Accelerator) -> str:
    """For example `CPU, 2 threads, fp32` or `2 x NVIDIA A100, bf16`."""
    import torch

    count = accelerator.num_processes
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    else:
        name = f"CPU, {torch.get_num_threads()} threads"
    return f"{f'{count} x ' if count > 1 else ''}{name}, {resolved_precision(accelerator)}"
