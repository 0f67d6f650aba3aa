"""`compile: true`: what is compiled, and what happens where that fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

import train
from engine.build import system_from
from engine.cuda_graphs import TrainingPass, can_capture
from engine.device import make_accelerator
from engine.training.compiling import compile_losses, compile_on_gpu
from models.base import SegmentationModel
from tests.small_run import arguments
from utils.config import make_config

Batch = tuple[Tensor, Tensor, Tensor]


def build(vae: Path, **settings: Any) -> SegmentationModel:
    """The smallest system that there is, with the same weights each time."""
    defaults = {"pickle_file_path": "x.json", "vae_weights": str(vae), "vae_model": "tiny_vae"}
    return system_from(make_config(defaults | {"ch": 16, "image_size": 32} | settings))


def compile_as_on_a_gpu(system: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr("engine.training.compiling.shutil.which", lambda name: name)
        compile_on_gpu(system)


def assert_same_gradients(plain: SegmentationModel, other: SegmentationModel) -> None:
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad)


@pytest.fixture
def batch() -> Batch:
    random = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 1, 32, 32, generator=random).round()
    return torch.rand(2, 3, 32, 32, generator=random), mask, torch.zeros(2, 4, 4, 4)


@pytest.fixture(autouse=True)
def forget_what_was_compiled() -> Iterator[None]:
    """And let what cannot be compiled fail, unless the test asks for a training on a GPU."""
    torch._dynamo.reset()
    kept = torch._functorch.config.save_config()
    with torch._dynamo.config.patch(suppress_errors=False):
        yield
    torch._functorch.config.load_config(kept)


def test_without_a_compiler_training_goes_on_as_it_is(
    vae: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.compile_fx as inductor

    asked = []

    def broken(*_: Any, **__: Any) -> None:
        asked.append(True)
        raise RuntimeError("no working compiler")

    monkeypatch.setattr(inductor, "compile_fx", broken)
    plain, compiled, measured = build(vae), build(vae), build(vae)
    compile_losses(measured)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):  # as a benchmark asks for it
        measured(*batch)
    asked.clear()
    compile_as_on_a_gpu(compiled, monkeypatch)
    for system in (plain, compiled):
        system(*batch)["loss"].backward()
    assert asked
    assert_same_gradients(plain, compiled)


@pytest.mark.skipif(
    not hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"),
    reason="this torch compiles the backward pass when it comes to it",
)
def test_a_backward_pass_that_cannot_be_compiled_is_run_as_it_is(
    vae: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.compile_fx as inductor
    from torch._dynamo.backends.common import aot_autograd

    asked = []

    def broken(*_: Any, **__: Any) -> None:
        asked.append(True)
        raise RuntimeError("too large a kernel")

    # the forward pass is "compiled" to itself
    backend = aot_autograd(fw_compiler=lambda graph, _: graph.forward, bw_compiler=broken)
    monkeypatch.setattr(inductor, "compile_fx", backend)
    plain, compiled = build(vae), build(vae)
    compile_as_on_a_gpu(compiled, monkeypatch)
    for system in (plain, compiled):
        system(*batch)["loss"].backward()
    assert asked
    assert_same_gradients(plain, compiled)


def test_predictions_are_not_compiled(
    vae: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *arguments: "compiled")
    plain, compiled = build(vae), build(vae)
    compile_losses(compiled)
    assert compiled(*batch) == "compiled"
    torch.testing.assert_close(compiled(batch[0]), plain(batch[0]))


def test_a_copy_computes_with_its_own_weights(vae: Path, batch: Batch) -> None:
    system = build(vae)
    compile_losses(system)
    average = copy.deepcopy(system)
    before = system(batch[0])
    with torch.no_grad():
        for parameter in average.parts()["model"].parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(system(batch[0]), before)
    assert not torch.allclose(average(batch[0]), before)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_only_a_training_on_a_gpu_is_compiled(
    on_gpu: bool, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[SegmentationModel] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr("engine.training.compiling.compile_losses", compiled.append)
    monkeypatch.setattr("engine.training.compiling.shutil.which", lambda name: name)
    compile_on_gpu(build(vae))
    assert bool(compiled) == on_gpu
    assert torch._dynamo.config.suppress_errors == on_gpu, (
        "in a training, what fails is run as it is"
    )


def test_nothing_is_compiled_without_a_compiler(
    vae: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled: list[SegmentationModel] = []
    monkeypatch.setattr("engine.training.compiling.compile_losses", compiled.append)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("engine.training.compiling.shutil.which", lambda _: None)
    compile_on_gpu(build(vae))
    assert not compiled
    assert "needs a C compiler" in caplog.text


def test_train_compiles_where_the_config_asks_for_it(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[SegmentationModel] = []
    monkeypatch.setattr("engine.training.compiling.compile_on_gpu", compiled.append)
    for asked in (False, True):
        train.main(arguments(tmp_path, vae, f"compile={asked}", "epochs=1", out=f"{asked}"))
        assert bool(compiled) == asked


def losses_and_gradient(
    system: SegmentationModel, accelerator: Accelerator, batch: Batch, capture: bool
) -> tuple[dict[str, float], Tensor]:
    """Of a second batch, so that one pass is a replayed one."""
    model = accelerator.prepare_model(system)
    training_pass = TrainingPass(model, accelerator, capture)
    for turn in range(2):
        model.zero_grad()
        losses = training_pass(*(part.roll(turn, 0).to(accelerator.device) for part in batch))
        losses["loss"].backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return {name: value.item() for name, value in losses.items()}, torch.cat(gradients)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [True, False])
def test_compiled_losses_and_gradients_are_those_of_the_step(
    graphs: bool, vae: Path, batch: Batch
) -> None:
    accelerator = make_accelerator("fp32", 1, deterministic=True)
    plain, compiled = build(vae), build(vae)
    compile_losses(compiled)
    capture = graphs and can_capture(compiled, accelerator)
    # TensorFloat-32 alone makes a difference of 2e-4 between kernels
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        expected, gradient = losses_and_gradient(plain, accelerator, batch, capture=False)
        losses, compiled_gradient = losses_and_gradient(compiled, accelerator, batch, capture)
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (compiled_gradient - gradient).norm() < 1e-3 * gradient.norm()
