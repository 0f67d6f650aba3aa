"""The estimate of training's memory, against what a real step allocates and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import train
from engine.device import make_accelerator
from engine.training.explained_errors import (
    available_memory,
    out_of_memory_error,
    split_batch,
)
from engine.training.memory import (
    CudaAutocast,
    MemoryEstimate,
    PeakMemory,
    describe_memory,
    estimate_memory,
)
from engine.training.weight_average import WeightAverage
from models.base import SegmentationModel
from models.build import build_system
from models.ensemble import Ensemble
from models.losses import LossWeights
from tests.small_run import arguments
from utils.errors import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MB, GB = 1 << 20, 1e9


def build(vae: Path, **changes: Any) -> SegmentationModel:
    settings: dict[str, Any] = {"vae_model": "tiny_vae", "guidance_method": None, "ch": 16}
    settings |= {"vae_weights": vae, "loss_weights": LossWeights()}
    return build_system(**(settings | changes))


@pytest.fixture(scope="module")
def small(vae: Path) -> SegmentationModel:
    return build(vae)


def batch(size: int, count: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    shapes = (3, size, size), (1, size, size), (4, size // 8, size // 8)
    image, mask, noise = (torch.rand(count, *shape, device=device) for shape in shapes)
    return image, mask.round(), noise


def saved_bytes(system: SegmentationModel, size: int, count: int) -> int:
    """What autograd keeps between forward and backward of a real step, weights aside."""
    kept = {p.untyped_storage().data_ptr() for p in system.state_dict().values()}
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        system(*batch(size, count))
    return sum(storages.values())


def test_live_tensors_are_counted() -> None:
    with PeakMemory() as memory:
        a = torch.zeros(MB, dtype=torch.uint8)
        b = a.view(-1, 2)[1:]  # no memory of its own
        c = torch.zeros(3, dtype=torch.uint8)  # a block
        assert memory.live == MB + 512
        del a
        assert memory.live == MB + 512
        del b
        assert memory.live == 512
        (torch.zeros(MB, dtype=torch.uint8) + 1).sum()
    assert memory.live == 512 and len(c) == 3
    assert 2 * MB <= memory.peak - 512 <= 2 * MB + 1024


def test_the_estimate_is_what_a_real_step_takes(small: SegmentationModel) -> None:
    estimate = estimate_memory(small, 3, 64, "fp32")
    assert all(p.grad is None and p.device.type == "cpu" for p in small.parameters())
    inputs = sum(t.nbytes for t in batch(64, 3))
    small.zero_grad()
    small(*batch(64, 3))[
        "loss"
    ].backward()  # so that there are gradients, as from the second step on
    with PeakMemory() as memory:
        memory.ignore(p.grad for p in small.parameters() if p.grad is not None)
        small(*batch(64, 3))["loss"].backward()
    small.zero_grad()
    assert estimate.step - inputs == pytest.approx(memory.peak, rel=0.02)
    saved = saved_bytes(small, 64, 3)
    assert saved < estimate.step < 2 * saved
    trained = sum(p.numel() for p in small.parameters() if p.requires_grad)
    assert (estimate.gradients, estimate.optimizer) == (4 * trained, 8 * trained)


def test_an_average_takes_memory_for_what_is_trained_alone(small: SegmentationModel) -> None:
    alone, averaged = (estimate_memory(small, 1, 32, "fp32", each) for each in (False, True))
    assert averaged.weights - alone.weights == alone.gradients > 0
    assert (averaged.step, averaged.optimizer) == (alone.step, alone.optimizer)
    average = WeightAverage(small, 0.9).system
    own = {t.data_ptr() for t in [*small.parameters(), *small.buffers()]}
    added = [t for t in [*average.parameters(), *average.buffers()] if t.data_ptr() not in own]
    assert averaged.weights - alone.weights == sum(t.nbytes for t in added)


def test_teachers_take_memory_for_their_weights_and_predictions(
    small: SegmentationModel, vae: Path
) -> None:
    teachers = Ensemble([build(vae), build(vae)]).eval().requires_grad_(False)
    alone, taught = (
        estimate_memory(small, 3, 64, "fp32", teachers=each) for each in (None, teachers)
    )
    kept = sum(t.nbytes for t in [*teachers.parameters(), *teachers.buffers()])
    assert taught.weights - alone.weights == kept
    assert (taught.gradients, taught.optimizer) == (alone.gradients, alone.optimizer)
    image = batch(64, 3)[0]
    with PeakMemory() as memory, torch.no_grad():
        teachers(image)
    assert taught.step - alone.step - image.nbytes == pytest.approx(memory.peak, rel=0.02)


def test_what_makes_it_grow_and_shrink(small: SegmentationModel, vae: Path) -> None:
    def step(count: int = 4, size: int = 64, precision: str = "fp32") -> int:
        return estimate_memory(small, count, size, precision).step

    base = step()
    assert step(count=8) == pytest.approx(2 * base, rel=0.05)
    assert step(size=128) == pytest.approx(4 * base, rel=0.15)
    assert 0.5 * base < step(precision="bf16") < 0.9 * base
    saving = build(vae, checkpoint_decoder=True)
    assert estimate_memory(saving, 4, 64, "fp32").step < 0.9 * base


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no CUDA")
def test_autocast_keeps_the_precision_that_it_keeps_on_cuda() -> None:
    def kinds(device: str) -> list[torch.dtype]:
        x = torch.empty(2, 16, 8, 8, device=device, dtype=torch.bfloat16)
        weight = torch.empty(16, 16, 3, 3, device=device)
        one = torch.empty(16, device=device)
        results = [
            F.conv2d(x.float(), weight),
            F.group_norm(x, 4, one, one),
            F.batch_norm(x, one, one, one, one, training=True),
            F.prelu(x, one[:1]),
            F.silu(x),
            F.relu(x),
            F.softmax(x, 1),
            F.interpolate(x, scale_factor=2),
            F.avg_pool2d(x, 2),
            F.scaled_dot_product_attention(x, x, x),
            torch.cat([x, x.float()]),
        ]
        return [result.dtype for result in results]

    with FakeTensorMode():
        try:  # torch.autocast would not turn on for a device that is not there
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            expected = kinds("cuda")
        except RuntimeError as error:
            if "CUDA driver" not in str(error):
                raise
            pytest.skip("this torch asks for a CUDA driver even where it computes nothing")
        finally:
            torch.set_autocast_enabled("cuda", False)
        with torch.autocast("cpu", torch.bfloat16), CudaAutocast():
            assert kinds("cpu") == expected


def test_the_largest_batch_and_its_accumulation() -> None:
    estimate = MemoryEstimate(12, weights=100, gradients=100, optimizer=200, step=1200)
    assert estimate.total == 1600
    assert estimate.largest_batch(1060) == 5  # 0.85 of it, 400 of which are taken by the weights
    assert estimate.largest_batch(300) == 0
    assert split_batch(12, 1, 5) == (4, 3)
    assert split_batch(12, 2, 11) == (8, 3)
    assert split_batch(7, 1, 6) == (1, 7)
    line = describe_memory(estimate, "bf16", 1060)
    assert "batch 12, bf16" in line and "batches up to 5" in line


@pytest.mark.parametrize(
    ("available", "has_saved", "expected", "not_expected"),
    [
        (1060, False, "up to 5 should fit: batch_size=4 accumulate=3", "resume"),
        (10**6, True, "up to 11 should fit: batch_size=6 accumulate=2 .*resume=never", None),
        (300, False, "not even one image fits", "accumulate"),
        (None, False, "batch_size=6 accumulate=2", "should fit"),
    ],
)
def test_what_is_told(
    available: int | None, has_saved: bool, expected: str, not_expected: str | None
) -> None:
    estimate = MemoryEstimate(12, weights=100, gradients=100, optimizer=200, step=1200)
    error = out_of_memory_error(
        estimate,
        image_size=224,
        accumulate=1,
        available=available,
        checkpointed=False,
        has_saved=has_saved,
    )
    with pytest.raises(UserError, match=rf"batches of 12 at 224 px[\s\S]*{expected}") as caught:
        raise error
    assert "checkpoint_decoder=true" in str(caught.value)
    assert not_expected is None or not_expected not in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_the_memory_of_the_gpu_that_accelerate_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own check of the device, with the calls of the driver replaced."""
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_getMemoryFraction", lambda _: 0.5, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10)
    assert available_memory(torch.device(name)) == 40
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80, 100))
    assert available_memory(torch.device(name)) == 50, "a process that may take half has no more"
    assert available_memory(torch.device("cpu")) is None


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_has_memory() -> None:
    accelerator = make_accelerator("fp32", 1, deterministic=False)
    available = available_memory(accelerator.device)
    assert available is not None and available > 1 << 30


def test_a_run_out_of_memory_is_told_and_goes_on(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.wave_gms import WaveGMS

    losses, calls = WaveGMS.losses, iter(range(10))

    def too_large(self, *details):
        # the fourth call is the fifth step's: the first three are an epoch
        if details[0].is_cpu and next(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GB")
        return losses(self, *details)

    command = arguments(tmp_path, vae, "ch=16", "vae_model=tiny_vae")
    with monkeypatch.context() as patch:
        patch.setattr(WaveGMS, "losses", too_large)
        with pytest.raises(UserError, match="batches of 2 at 32 px") as caught:
            train.main(command)
    assert "batch_size=1 accumulate=2" in str(caught.value)
    assert "resume=never" in str(caught.value)
    train.main([*command, "checkpoint_decoder=true"])  # as it says, that needs no new start
    assert (tmp_path / "run" / "epochs_2" / "history.csv").read_text().count("\n") == 3


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_estimate_is_near_the_gpu(shared: Path, precision: str, checkpointed: bool) -> None:
    system, peak = step_on_gpu(shared, precision, checkpointed)
    assert estimate_memory(system, 12, 224, precision).total == pytest.approx(peak, rel=0.3)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("checkpointed", "limit"), [(False, 5), (True, 3)])
def test_the_published_batch_fits_a_small_gpu(
    shared: Path, checkpointed: bool, limit: float
) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 12 * GB / total))
    try:
        _, peak = step_on_gpu(shared, "bf16", checkpointed)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert peak < limit * GB


def step_on_gpu(shared: Path, precision: str, checkpointed: bool) -> tuple[SegmentationModel, int]:
    """Three training steps at the published size; the system and the most bytes allocated."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    system = build(
        shared / "taesd", vae_model="litevae", ch=32, checkpoint_decoder=checkpointed
    ).to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        [p for p in system.parameters() if p.requires_grad], lr=1e-4, fused=True
    )
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            losses = system(*batch(224, 12, "cuda"))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return system, torch.cuda.max_memory_allocated() - before
