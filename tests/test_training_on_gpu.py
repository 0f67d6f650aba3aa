"""Training and prediction on a GPU in every precision: against float32, without graphs, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import train
from engine.build import system_from
from engine.cuda_graphs import Predictor, TrainingPass
from engine.device import make_accelerator
from engine.validation.case_predictions import mean_over_orientations
from tests.small_run import arguments
from tests.test_cuda_graphs import batch, build
from tests.test_training import end_of, stop_and_resume
from utils.config import load_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SCALE = 2.0**6  # of the losses in fp16: at torch's 2**16 the gradients of these networks overflow
SETTINGS = [
    ("precision=bf16",),
    ("precision=bf16", "optimizer=muon", "ema_decay=0.5"),
    ("precision=fp16", "clip_norm=1"),
    ("precision=fp16", "optimizer=muon", "ema_decay=0.5"),
    ("precision=fp32", "ema_decay=0.5", "skip_nonfinite=1"),
    ("precision=bf16", "checkpoint_decoder=true"),
]


@pytest.fixture
def low_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    def with_low_scale(precision: str, accumulate: int, deterministic: bool) -> Accelerator:
        accelerator = make_accelerator(precision, accumulate, deterministic)
        if accelerator.scaler is not None:
            accelerator.scaler = torch.amp.GradScaler("cuda", SCALE)
        return accelerator

    monkeypatch.setattr(train, "make_accelerator", with_low_scale)


def start_of(command: list[str]) -> Tensor:
    parts = system_from(load_config(Path(command[1]), command[2:])).parts()
    return torch.cat([w.flatten() for part in parts.values() for w in part.state_dict().values()])


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(
    ("precision", "of_loss", "cosine"), [("bf16", 2e-2, 0.95), ("fp16", 1e-2, 0.98)]
)
def test_a_step_in_low_precision_is_near_that_in_float32(
    graphs: bool, precision: str, of_loss: float, cosine: float, vae: Path
) -> None:
    check_step_near_float32(graphs, precision, of_loss, cosine, vae)


def check_step_near_float32(
    graphs: bool, precision: str, of_loss: float, cosine: float, vae: Path
) -> None:
    accelerator = make_accelerator(precision, 1, deterministic=True)
    plain = build(vae).to(accelerator.device)
    model = accelerator.prepare_model(build(vae))
    training_pass = TrainingPass(model, accelerator, graphs)
    for seed in (1, 2):  # the second one is replayed, on other values
        given = batch(3, seed, accelerator.device)
        plain.zero_grad()
        model.zero_grad()
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            expected = plain(*given)
            expected["loss"].backward()
        losses = training_pass(*given)
        assert all(value.dtype == torch.float32 for value in losses.values())
        for name in ("loss", "lm", "seg", "align"):
            assert losses[name].item() == pytest.approx(expected[name].item(), rel=of_loss)
        assert losses["loss"].item() != expected["loss"].item(), "computed in float32"
        (losses["loss"] * SCALE).backward()
        both = zip(plain.parameters(), model.parameters(), strict=True)
        gradients = [(one.grad, other.grad) for one, other in both]
        assert all((one is None) == (other is None) for one, other in gradients)
        one = torch.cat([a.flatten() for a, _ in gradients if a is not None])
        other = torch.cat([b.flatten() for _, b in gradients if b is not None]) / SCALE
        assert other.isfinite().all()
        assert torch.cosine_similarity(one, other, dim=0) > cosine
        assert 0.8 < other.norm() / one.norm() < 1.25


@pytest.mark.usefixtures("low_scale")
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_with_graphs_moves_the_weights_as_one_without(
    settings: tuple[str, ...], tmp_path: Path, vae: Path
) -> None:
    common = ("lr=1e-4", "deterministic=true", *settings)
    for graphs in ("true", "false"):
        train.main(arguments(tmp_path, vae, f"cuda_graphs={graphs}", *common, out=graphs))
        if "precision=fp16" in settings:
            saved = torch.load(tmp_path / graphs / "epochs_2" / "last.pth", weights_only=True)
            assert saved["scaler"]["scale"] == SCALE, "no step was skipped"
    with_graphs, without = end_of(tmp_path / "true"), end_of(tmp_path / "false")
    moved = (without - start_of(arguments(tmp_path, vae, *common))).norm()
    assert moved > 0
    assert (with_graphs - without).norm() < 0.1 * moved


@pytest.mark.usefixtures("low_scale")
@pytest.mark.parametrize(
    ("settings", "later"),
    [*((each, "") for each in SETTINGS), (("precision=fp32",), "channels_last=false")],
)
def test_a_stopped_run_goes_on(
    settings: tuple[str, ...],
    later: str,
    tmp_path: Path,
    vae: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = ("lr=1e-4", "deterministic=true", "log_every=1", *settings)
    moved, differs = stop_and_resume(tmp_path, vae, monkeypatch, *common, later=later)
    assert moved > 0
    assert differs < 0.1 * moved


@pytest.mark.parametrize("keep_upright", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_replayed_orientations_are_those_computed_one_by_one(
    precision: str, keep_upright: bool, vae: Path
) -> None:
    accelerator = make_accelerator(precision, 1, deterministic=True)
    system = build(vae).to(accelerator.device).eval()
    replayed, plain = (Predictor(system, accelerator) for _ in range(2))
    plain.max_shapes = 0
    for count in (3, 3, 1):  # the last batch is smaller
        image, *_ = batch(count, count, accelerator.device)

        def mean(predict: Callable[[Tensor], Tensor], images: Tensor = image) -> Tensor:
            return mean_over_orientations(predict, images, keep_upright)

        torch.testing.assert_close(mean(replayed), mean(plain), rtol=0, atol=2e-3)
