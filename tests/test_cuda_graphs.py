"""Replayed steps and predictions: that they are the ones that would be launched one by one."""

from __future__ import annotations

import copy
import csv
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from datasets.loading import SegmentationDataset
from engine.build import system_from
from engine.cuda_graphs import MAX_SHAPES, Predictor, can_capture, capture_training_step
from engine.device import make_accelerator
from engine.training.memory import estimate_memory
from models.base import SegmentationModel
from models.build import build_system
from models.losses import LossWeights
from tests.autoencoders import save_sd_vae
from tests.small_run import arguments
from utils.config import make_config

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SYSTEMS: dict[str, dict[str, Any]] = {
    "Wave-GMS": {"vae_model": "litevae"},
    "decoder checkpointed": {"vae_model": "litevae", "checkpoint_decoder": True},
    "SFT": {"vae_model": "tiny_vae", "guidance_method": "wavelet"},
    "GMS": {"vae_model": "sd_vae"},
}


def build(vae: Path, **settings: Any) -> SegmentationModel:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"vae_model": "litevae", "guidance_method": None, "ch": 16}
    return build_system(
        **(defaults | {"vae_weights": vae, "loss_weights": LossWeights()} | settings)
    )


def batch(count: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 3, 32, 32, generator=random)
    mask = torch.rand(count, 1, 32, 32, generator=random).round()
    noise = torch.randn(count, 4, 4, 4, generator=random)
    return image.to(device), mask.to(device), noise.to(device)


def test_only_on_one_gpu(vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator("fp32", 1, deterministic=False)
    system = build(vae)
    assert can_capture(system, accelerator) == (accelerator.device.type == "cuda")
    monkeypatch.setattr(type(accelerator), "device", torch.device("cuda", 0))
    assert can_capture(system, accelerator)
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    assert not can_capture(system, accelerator)


@pytest.mark.parametrize(
    ("settings", "captured"),
    [
        ({}, True),
        ({"cuda_graphs": False}, False),
        ({"compile": True}, True),
        ({"model": "tests.own_networks:build"}, False),
        ({"model": "tests.own_networks:wave_gms", "image_size": 32}, False),
        ({"model": "tests.own_networks:capturable", "image_size": 32}, True),
    ],
)
def test_what_may_be_captured(vae: Path, settings: dict[str, Any], captured: bool) -> None:
    config = make_config({"pickle_file_path": "x.json", "vae_weights": str(vae)} | settings)
    assert system_from(config).capturable == captured


def test_without_a_gpu_predictions_are_computed_as_ever(vae: Path) -> None:
    accelerator = make_accelerator("fp32", 1, deterministic=False)
    system = build(vae).to(accelerator.device).eval()
    predict = Predictor(system, accelerator)
    predict.max_shapes = 0
    image, *_ = batch(2, 0, accelerator.device)
    torch.testing.assert_close(predict(image), system(image))


def test_predictions_take_turns_and_try_out_no_kernels(vae: Path) -> None:
    accelerator = make_accelerator("fp32", 1, deterministic=False)
    system = build(vae).to(accelerator.device).eval()
    inside, most, tried_out = 0, 0, []

    def slowly(image: Tensor) -> Tensor:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        tried_out.append(torch.backends.cudnn.benchmark)
        time.sleep(0.05)
        inside -= 1
        return image

    system.forward = slowly
    predict = Predictor(system, accelerator)
    predict.max_shapes = 0
    image, *_ = batch(1, 0, accelerator.device)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(predict, [image] * 4))
    assert most == 1
    assert tried_out == [False] * 4
    assert torch.backends.cudnn.benchmark, "as training has it"


def test_a_step_is_captured_before_the_loader_is_at_work(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that pins the memory of the next batches would make the capture fail."""
    events: list[object] = []
    read = SegmentationDataset.__getitem__

    def capture(model: object, *batch: Tensor) -> None:
        events.append([tuple(part.shape) for part in batch])

    def noted(data_set: SegmentationDataset, key: Any) -> Any:
        events.append("read")
        return read(data_set, key)

    monkeypatch.setattr("engine.training.step.can_capture", lambda *_: True)
    monkeypatch.setattr("engine.cuda_graphs.capture_training_step", capture)
    monkeypatch.setattr(SegmentationDataset, "__getitem__", noted)
    train.main(arguments(tmp_path, vae, "ch=16", "vae_model=tiny_vae", "epochs=1"))
    shapes = [(2, 3, 32, 32), (2, 1, 32, 32), (2, 4, 4, 4)]
    assert events[0] == shapes
    assert [event for event in events if event != "read"] == [shapes]


def test_a_captured_step_is_not_replayed_to_estimate_its_memory(vae: Path) -> None:
    system = build(vae)
    expected = estimate_memory(system, 2, 32, "fp32")

    def replay(*_: Tensor) -> Tensor:
        raise AssertionError("called as if on the GPU")

    system.forward = replay  # type: ignore[method-assign, assignment]
    assert estimate_memory(system, 2, 32, "fp32") == expected


@gpu
@needs_gpu
@pytest.mark.parametrize("name", SYSTEMS)
def test_replayed_losses_and_gradients_are_those_of_the_step(
    name: str, vae: Path, tmp_path: Path
) -> None:
    accelerator = make_accelerator("fp32", 1, deterministic=True)
    weights = save_sd_vae(tmp_path) if name == "GMS" else vae
    system = build(weights, **SYSTEMS[name])
    plain, replayed = (accelerator.prepare_model(copy.deepcopy(system)) for _ in range(2))
    capture_training_step(replayed, *batch(3, 0, accelerator.device))
    for seed in (1, 2):
        results = []
        for model in (plain, replayed):
            model.zero_grad()
            losses = model(*batch(3, seed, accelerator.device))
            results.append({name: value.item() for name, value in losses.items()})
            losses["loss"].backward()
        assert results[1] == pytest.approx(results[0], rel=1e-4, abs=1e-6)
        for a, b in zip(plain.parameters(), replayed.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)


@gpu
@needs_gpu
def test_a_replayed_prediction_sees_new_images_and_new_weights(vae: Path) -> None:
    accelerator = make_accelerator("fp32", 1, deterministic=True)
    system = build(vae).to(accelerator.device).eval()
    predict = Predictor(system, accelerator)
    held = []
    first, *_ = batch(1, 4, accelerator.device)
    with torch.no_grad():
        before = system(first)
    for count in range(1, MAX_SHAPES + 3):
        for seed in (1, 2):
            image, *_ = batch(count, seed, accelerator.device)
            with torch.no_grad():
                expected = system(image)
            held.append((predict(image), expected))
    replayed = predict(batch(1, 3, accelerator.device)[0])  # the first graph, after all others
    torch.testing.assert_close(
        replayed, system(batch(1, 3, accelerator.device)[0]), rtol=1e-4, atol=1e-5
    )
    for ours, expected in held:  # a later call does not overwrite what an earlier one returned
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in system.parts()["model"].parameters():
            parameter.mul_(0.5)
        changed = system(first)
    torch.testing.assert_close(predict(first), changed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, before)


@gpu
@needs_gpu
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("num_workers=2",),
        ("skip_nonfinite=1", "clip_norm=1"),
        ("ema_decay=0.9", "clip_norm=1"),
        pytest.param(("ema_decay=0.9", "accumulate=2"), id="predictions alone"),
    ],
)
def test_a_run_with_graphs_learns_what_one_without_learns(
    settings: tuple[str, ...], tmp_path: Path, vae: Path
) -> None:
    histories = []
    for graphs in ("true", "false"):
        common = ("precision=fp32", "deterministic=true", "lr=1e-4", *settings)
        train.main(arguments(tmp_path, vae, f"cuda_graphs={graphs}", *common, out=graphs))
        with (tmp_path / graphs / "epochs_2" / "history.csv").open() as file:
            histories.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert histories[0] == pytest.approx(histories[1], rel=1e-3)
