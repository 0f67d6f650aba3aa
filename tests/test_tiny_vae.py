from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import distill
from datasets.cases import read_image
from datasets.phantom import phantom_case
from distillation.crops import Pool
from distillation.narrowing import shrink
from distillation.procedural import procedural_crops
from distillation.report import compare_vaes, table, write_picture
from distillation.scores import encode, mask_input, mask_round_trip, psnr, r_squared
from distillation.student import make_student
from distillation.training import Budget, Distiller
from models.tiny_vae import load_tiny_vae
from tests.cases_on_disk import write_data_set
from utils.arithmetic import multiply_adds
from utils.errors import UserError
from utils.interruption import Interrupted

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "ckpt" / "tiny_vae"


@pytest.fixture(scope="module")
def bundled() -> Any:
    return load_tiny_vae(BUNDLED)


@pytest.fixture(scope="module")
def phantoms() -> tuple[np.ndarray, np.ndarray]:
    """Three images (N, S, S, 3) and masks (N, S, S) of 0 and 1."""
    cases = [phantom_case(index, size=224) for index in range(5)]
    cases = [case for case in cases if case.kind != "normal"][:3]
    images = np.stack([np.repeat(case.image[..., None], 3, axis=2) for case in cases])
    return images, np.stack([case.mask // 255 for case in cases])


def test_bundled_folder_is_small_licensed_and_of_taesds_layout(bundled: Any) -> None:
    assert sum(p.numel() for p in bundled.parameters()) == 614_279
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) <= 2_500_000
    assert "Ollin Boer Bohan" in (BUNDLED / "LICENSE").read_text()
    assert bundled.decode(bundled.encode(torch.zeros(1, 3, 64, 96)).latents).sample.shape == (
        1,
        3,
        64,
        96,
    )


def test_masks_survive_the_bundled_round_trip(
    bundled: Any, phantoms: tuple[np.ndarray, np.ndarray]
) -> None:
    _, masks = phantoms
    assert mask_round_trip(bundled, encode(bundled, mask_input(masks)), masks).mean() >= 0.98


def test_bundled_latents_are_taesds(
    bundled: Any, phantoms: tuple[np.ndarray, np.ndarray], shared: Path
) -> None:
    teacher = load_tiny_vae(shared / "taesd")
    images, masks = phantoms
    as_images = mask_input(masks)
    theirs = encode(teacher, as_images)
    assert r_squared(encode(bundled, as_images), theirs) >= 0.95
    assert r_squared(encode(bundled, images), encode(teacher, images)) >= 0.8
    assert mask_round_trip(bundled, theirs, masks).mean() >= 0.98
    assert mask_round_trip(teacher, encode(bundled, as_images), masks).mean() >= 0.98


def test_plain_ground_far_from_the_border_is_taesds(bundled: Any, shared: Path) -> None:
    """Tuning on large crops is for this: small crops leave a bias of 0.2 to 0.4 there."""
    teacher = load_tiny_vae(shared / "taesd")
    black = np.zeros((1, 224, 224, 3), np.uint8)
    middle = (..., slice(10, 18), slice(10, 18))
    difference = encode(bundled, black)[middle] - encode(teacher, black)[middle]
    assert np.abs(difference).max() < 0.15


def random_vae(width: int) -> Any:
    torch.manual_seed(3)
    return make_student(width).eval().requires_grad_(False)


def test_shrinking_to_the_same_width_keeps_the_function() -> None:
    wide, narrow = random_vae(8), make_student(8)
    x = torch.rand(24, 3, 32, 32)
    shrink(wide.encoder.layers, narrow.encoder.layers, x)
    expected, got = wide.encoder.layers(x), narrow.encoder.layers(x)
    assert r_squared(got.detach().numpy(), expected.numpy()) > 0.95


def test_shrinking_starts_closer_to_the_teacher_than_chance(bundled: Any) -> None:
    crops = procedural_crops(11, 64, 32)
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    narrow = make_student(24)
    shrink(bundled.encoder.layers, narrow.encoder.layers, x[:48])
    expected, got = bundled.encoder.layers(x[48:]), narrow.encoder.layers(x[48:])
    assert r_squared(got.detach().numpy(), expected.numpy()) > 0.7


def random_start(pool: Pool, part: str) -> Any:
    torch.manual_seed(0)
    return make_student()


def small_distiller(part: str, folder: Path, teacher: Any, steps: int) -> Distiller:
    pool = Pool(folder / "pool", teacher, seed=1, size=32, chunk=48)
    budget = Budget(minutes=0, steps=steps, window=2)
    return Distiller(part, pool, budget, folder / f"{part}.pth")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_few_steps_of_distillation_reduce_the_loss(
    part: str, tmp_path: Path, bundled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillation.training.start_student", random_start)
    distiller = small_distiller(part, tmp_path, bundled, steps=10)
    batch = [array[:32] for array in distiller.window()]
    before = distiller.loss(batch).item()
    distiller.run()
    assert distiller.loss(batch).item() < 0.95 * before
    assert distiller.step == 10


def test_tuning_starts_from_the_average_of_the_first_run(
    tmp_path: Path, bundled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillation.training.start_student", random_start)
    first = small_distiller("encoder", tmp_path, bundled, steps=1)
    first.run()
    tuned = Distiller(
        "encoder", first.pool, first.budget, tmp_path / "tuned.pth", initial=first.checkpoint
    )
    for name, value in tuned.module.state_dict().items():
        torch.testing.assert_close(value, first.average[name])


def test_tuning_starts_afresh_once_the_first_run_was_trained_further(
    tmp_path: Path, bundled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillation.training.start_student", random_start)
    monkeypatch.setattr(Distiller, "validate", lambda self: {})
    tuned_by = tmp_path / "tuned.pth"

    def tune(first: Distiller) -> Distiller:
        first.run()
        budget = Budget(minutes=0, steps=1, window=2)
        return Distiller("encoder", first.pool, budget, tuned_by, initial=first.checkpoint)

    tune(small_distiller("encoder", tmp_path, bundled, steps=1)).run()
    same = tune(small_distiller("encoder", tmp_path, bundled, steps=1))
    assert same.step == 1
    further = small_distiller("encoder", tmp_path, bundled, steps=2)
    afresh = tune(further)
    assert further.step == 2 and afresh.step == 0 and afresh.history == []
    for name, value in afresh.module.state_dict().items():
        torch.testing.assert_close(value, further.average[name])
    afresh.run()
    assert tune(further).step == 1


@pytest.mark.parametrize("crash", [True, False], ids=["crash", "Ctrl-C"])
def test_an_interrupted_run_resumes_to_the_same_weights(
    crash: bool,
    tmp_path: Path,
    bundled: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distillation.training.start_student", random_start)
    whole = small_distiller("encoder", tmp_path / "whole", bundled, steps=8)
    whole.run()

    update = Distiller.update

    def interrupted(self: Distiller, batch: list[np.ndarray], rate: float) -> float:
        if self.step == 4:
            if crash:
                raise MemoryError
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, batch, rate)

    monkeypatch.setattr(Distiller, "update", interrupted)
    with pytest.raises(MemoryError if crash else Interrupted):
        small_distiller("encoder", tmp_path / "parts", bundled, steps=8).run()
    monkeypatch.setattr(Distiller, "update", update)
    resumed = small_distiller("encoder", tmp_path / "parts", bundled, steps=8)
    # after the last whole epoch; after the step under way
    assert resumed.step == (3 if crash else 5)
    resumed.run()
    assert resumed.step == 8
    for name, value in whole.average.items():
        torch.testing.assert_close(resumed.average[name], value, rtol=1e-4, atol=1e-5)


def no_chunk(self: Pool, index: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0, 4, 1, 1), np.float32)


def test_a_checkpoint_of_another_teacher_or_seed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillation.training.start_student", random_start)
    monkeypatch.setattr(Pool, "latents", no_chunk)
    one, other = random_vae(8), random_vae(16)
    small_distiller("encoder", tmp_path, one, steps=1).save()
    small_distiller("encoder", tmp_path, one, steps=2)
    with pytest.raises(
        UserError, match=r"encoder\.pth was saved with another teacher \(.*--teacher"
    ):
        small_distiller("encoder", tmp_path, other, steps=2)
    another_seed = Pool(tmp_path, one, seed=2)
    with pytest.raises(UserError, match=r"another seed \(1, not 2\): give that --seed again"):
        Distiller("encoder", another_seed, Budget(minutes=1), tmp_path / "encoder.pth")


def test_two_teachers_have_two_sets_of_latents_in_one_folder(tmp_path: Path) -> None:
    one, other = (Pool(tmp_path, random_vae(w), seed=1, size=16, chunk=4) for w in (8, 16))
    crops, latents = one.latents(0)
    same_crops, other_latents = other.latents(0)
    np.testing.assert_array_equal(crops, same_crops)
    assert not np.allclose(latents, other_latents)
    np.testing.assert_array_equal(Pool(tmp_path, one.teacher, 1, 16, 4).latents(0)[1], latents)


def write_checkpoint(path: Path, module: nn.Module, **changes: Any) -> Path:
    """A checkpoint as of one step of training, but for `changes`."""
    weights = {"module": module.state_dict(), "average": module.state_dict(), "optimiser": {}}
    counters = {"step": 1, "epoch": 0, "position": 16, "seconds": 60.0, "history": []}
    torch.save(weights | counters | {"teacher": "a", "seed": 1, "initial": None} | changes, path)
    return path


def test_parts_of_two_teachers_are_not_joined(tmp_path: Path) -> None:
    for part, name in (("encoder", "encoder_tuned"), ("decoder", "decoder")):
        module = getattr(make_student(), part)
        write_checkpoint(tmp_path / f"{name}.pth", module, teacher=f"that of the {part}")
    with pytest.raises(UserError, match="different teachers"):
        distill.export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_writes_a_folder_that_loads_without_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = make_student()
    for part, name in (("encoder", "encoder_tuned"), ("decoder", "decoder")):
        last, average = (getattr(vae, part) for vae in (make_student(), student))
        write_checkpoint(tmp_path / f"{name}.pth", last, average=average.state_dict())
    distill.export(tmp_path, tmp_path / "out")
    loaded = load_tiny_vae(tmp_path / "out")
    assert "block_out_channels" not in caplog.text
    for part in ("encoder", "decoder"):
        got, expected = (getattr(vae, part).layers[0].weight for vae in (loaded, student))
        torch.testing.assert_close(got, expected.detach(), rtol=1e-3, atol=1e-4)


def test_export_without_training_says_what_to_run(tmp_path: Path) -> None:
    command = [sys.executable, "distill.py", "export", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no ")
    assert f"python distill.py encoder --work {tmp_path}" in done.stderr


def test_a_part_is_distilled_tuned_and_exported(
    tmp_path: Path, bundled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillation.training.start_student", random_start)
    trained: list[tuple[str, int, str, float, int | None]] = []

    def run(self: Distiller) -> None:
        budget = self.budget
        trained.append((self.part, self.pool.size, self.checkpoint.name, budget.rate, budget.steps))
        self.save()

    monkeypatch.setattr(Distiller, "run", run)
    monkeypatch.setattr(Pool, "latents", no_chunk)
    out = tmp_path / "out"
    folders = ["--teacher", str(BUNDLED), "--work", str(tmp_path), "--out", str(out)]
    distill.main([*folders, "--lr", "1e-3", "--steps", "250"])
    assert trained == [
        ("encoder", 64, "encoder.pth", 1e-3, 250),
        ("encoder", 192, "encoder_tuned.pth", 2e-4, 25),
        ("decoder", 64, "decoder.pth", 1e-3, 250),
    ]
    assert (out / "diffusion_pytorch_model.safetensors").is_file()


def test_a_stop_asked_for_while_scoring_ends_the_run_before_tuning(
    tmp_path: Path, bundled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(self: Distiller) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setattr("distillation.training.start_student", random_start)
    monkeypatch.setattr(Distiller, "validate", validate)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        small_distiller("encoder", tmp_path, bundled, steps=1).run()
    assert small_distiller("encoder", tmp_path, bundled, steps=1).done == 1


@pytest.mark.parametrize("option", ["--minutes", "--steps", "--lr", "--cases"])
def test_nothing_to_do_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distill.parse_arguments([option, "0"])
    assert re.search(f"{option}( must be|: expected) ", capsys.readouterr().err)


def test_the_rate_goes_through_one_cycle() -> None:
    budget = Budget(minutes=2, rate=1e-3)
    assert budget.progress(step=99, seconds=60) == pytest.approx(0.5)
    assert Budget(minutes=2, steps=8).progress(step=4, seconds=0) == pytest.approx(0.5)
    rates = [budget.rate_at(p) for p in (0, 0.1, 0.5, 1, 1.2)]
    assert rates[1] == pytest.approx(1e-3)
    assert rates[0] < rates[2] < rates[1]
    assert rates[3] == rates[4] == pytest.approx(1e-6)


def test_scores_of_known_values() -> None:
    target = np.random.default_rng(0).standard_normal((2, 4, 8, 8))
    assert r_squared(target, target) == 1
    mean = np.broadcast_to(target.mean(axis=(0, 2, 3), keepdims=True), target.shape)
    assert r_squared(mean, target) == pytest.approx(0)
    black = torch.full((2, 3, 4, 4), -1.0)
    torch.testing.assert_close(psnr(black + 0.2, black), torch.tensor([20.0, 20.0]))


def test_multiply_adds_are_counted_and_no_gradient_is_left() -> None:
    convolution = nn.Conv2d(3, 5, 3, padding=1, stride=2)
    products = 5 * 4 * 4 * 3 * 9
    assert multiply_adds(convolution, [torch.zeros(1, 3, 8, 8)]) == (products, products)
    assert convolution.weight.grad is None
    convolution.requires_grad_(False)
    assert multiply_adds(convolution.forward, [torch.zeros(1, 3, 8, 8)]) == (products, 0)


def test_multiply_adds_of_attention_are_counted() -> None:
    tokens, width = 64, 16
    one = torch.rand(1, 1, tokens, width, requires_grad=True)
    forward, backward = multiply_adds(nn.functional.scaled_dot_product_attention, [one, one, one])
    assert forward == 2 * tokens**2 * width
    assert backward >= 2 * forward  # the products are computed again there


def test_a_vae_compared_with_itself_agrees_fully(bundled: Any) -> None:
    case = phantom_case(1, size=64)
    images = np.repeat(case.image[None, ..., None], 3, axis=3)
    scores = compare_vaes(bundled, bundled, images, case.mask[None] // 255)
    assert scores.r2_images == scores.r2_masks == 1
    at_224 = [(224 / 64) ** 2 * count for count in scores.giga_macs["student"]]
    assert at_224 == pytest.approx([2.95, 3.40], abs=0.01)  # as docs/tiny_vae.md has them
    assert len(set(scores.psnr.values())) == len(set(scores.dice.values())) == 1
    assert "| R² of latents with TAESD's: masks | 1 | 1.0000 |" in table(scores)
    assert f"| Tiny-VAE | TAESD | {scores.dice['student', 'teacher']:.4f} |" in table(scores)


def test_each_encoder_is_compared_with_each_decoder(bundled: Any) -> None:
    """The student is the teacher, but that its encoder sees nothing."""
    student = load_tiny_vae(BUNDLED)
    with torch.no_grad():
        for value in student.encoder.layers[-1].parameters():
            value.zero_()
    case = phantom_case(1, size=64)
    images = np.repeat(case.image[None, ..., None], 3, axis=3)
    scores = compare_vaes(bundled, student, images, case.mask[None] // 255)
    for of_pair in (scores.psnr, scores.dice):
        assert of_pair["teacher", "student"] == of_pair["teacher", "teacher"]
        assert of_pair["student", "teacher"] == of_pair["student", "student"]
        assert of_pair["teacher", "teacher"] > of_pair["student", "teacher"]
    assert scores.dice["teacher", "teacher"] > 0.9
    for r2 in (scores.r2_images, scores.r2_masks):
        assert math.isfinite(r2) and r2 <= 0, "of the teacher's latents nothing is explained"


def test_a_picture_keeps_its_colours(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    write_picture(tmp_path / "drawn.png", [], image, np.ones((16, 16), np.uint8))
    drawn = read_image(tmp_path / "drawn.png")
    np.testing.assert_array_equal(drawn[:16], image)
    assert (drawn[16:] == 255).all()


def test_report_reads_prepared_test_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data_set(tmp_path / "datasets", train=1, test=2)
    monkeypatch.chdir(tmp_path)
    arguments = ["report", "--dataset", "blobs", "--image-size", "64"]
    arguments += ["--teacher", str(BUNDLED), "--out", str(BUNDLED)]
    distill.main([*arguments, "--picture", "drawn.png"])
    assert "2 test cases at 64 px" in capsys.readouterr().out
    assert read_image(tmp_path / "drawn.png").shape == (128, 192, 3)
    with pytest.raises(UserError, match="image size 60 is not divisible by 8"):
        distill.main([*arguments, "--image-size", "60"])
